"""Loading a policy: model, tokenizer and adapter from where they are, and the way in which its log-probs are made.

What comes out is the model's own distribution or an error: weights that are missing or too many are refused, dropout
of the base is off, and probe.py has compared what the policy says with what the model says.
"""

import ctypes
import re
from pathlib import Path

import torch
import transformers

from erltool.errors import ErltoolError
from erltool.policies import lora
from erltool.policies.heads import find_head
from erltool.policies.policy import Policy
from erltool.policies.probe import choose_path, probe_ids
from erltool.policies.sources import check_loaded, find_model, is_offline, loading

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DROPOUT = re.compile(r"drop")  # in the names of settings; a jitter is of training alone, and PhiMoE routes by its size


def load_policy(
    source: str = "sharpening",
    *,
    base: str = "none",
    dtype: str = "auto",
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.0,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    trust_remote_code: bool = False,
    device: str = "auto",
    seed: int = 0,
) -> Policy:
    """A policy with LoRA on all its linear layers, in eval mode, ready to sample and to train.

    `source` is a shipped policy's name ("sharpening", "discovery", "trap", "countdown"), a folder in Hugging Face
    format, a GGUF file, "smollm2-135m", or a hub id. `base` is "none", "nf4" (bitsandbytes, double quantisation) or
    "int8". `dtype` is that of weights and computation, as in `resolve_dtype`.
    `lora_rank` 0 trains all weights, which a quantised base cannot: that one can only be evaluated. `seed` decides
    the adapter's first weights; the global random state is left alone. `compile` compiles each decoder layer for
    training (needs a C++ compiler; half a minute, once). Only safetensors and GGUF weights; a model's own code runs
    only with `trust_remote_code`.
    `policy.path` says how log-probs are made of the model; it was compared with the model's own logits.
    Raises ErltoolError where the source is missing, out of reach, damaged or no model, and for a model whose
    distribution cannot be reproduced.
    """
    where = resolve_device(device)
    tokenizer = load_tokenizer(source, trust_remote_code)
    place = find_model(source)
    common = {"trust_remote_code": trust_remote_code, "local_files_only": is_offline(place)}
    with loading(source, place):
        _check_folder(Path(place), source)
        config = without_dropout(transformers.AutoConfig.from_pretrained(place, **common))
        wanted = resolve_dtype(dtype, config.dtype or torch.float32, where, whole=not lora_rank)
        settings = {"config": config, "dtype": wanted, "use_safetensors": True}
        settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # looked at by check_loaded
        if base != "none":
            settings |= {"quantization_config": _quantization(base, wanted), "device_map": {"": where}}
        model, found = transformers.AutoModelForCausalLM.from_pretrained(place, **settings, **common)
        check_loaded(found, source)
        if base == "none":
            model.to(where)
        lora.keep_4_bit_weights(model.eval())
        ids = probe_ids(tokenizer, model, 3)
        head = find_head(model, ids)
        ends = ends_of_response(tokenizer, model, source)
        if lora_rank:
            targets = lora.targets(model, ids)
            model = lora.attach(model, targets, place, lora_rank, lora_alpha, lora_dropout, seed).to(where).eval()
    policy = Policy(model, tokenizer, source, head, ends, compile)
    policy.path = choose_path(policy)
    if gradient_checkpointing:
        _checkpoint(policy)
    if compile:
        _compile(policy)
    _settle_memory()
    return policy


def _check_folder(place: Path, source: str) -> None:
    """Raises ErltoolError for a folder that holds an adapter beside a model, or a damaged generation_config.json."""
    if (place / "adapter_config.json").is_file():
        raise ErltoolError(f"policy {source!r}: holds an adapter beside a model; merge it, or take it away")
    if (place / "generation_config.json").is_file():
        transformers.GenerationConfig.from_pretrained(place)  # a damaged one would be left out without a word


def load_tokenizer(source: str, trust_remote_code: bool = False) -> transformers.PreTrainedTokenizerBase:
    """A policy's tokenizer, padding on the left. Raises ErltoolError as `load_policy` does."""
    place = find_model(source)
    with loading(source, place):
        return transformers.AutoTokenizer.from_pretrained(
            place,
            padding_side="left",
            trust_remote_code=trust_remote_code,
            local_files_only=is_offline(place),
        )


def without_dropout(config: transformers.PretrainedConfig) -> transformers.PretrainedConfig:
    """The configuration with no dropout, in its parts too.

    The policy is the distribution that is sampled from, so its log-probs must not be random. An adapter's own dropout
    is LoRA's and stays.
    """
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            without_dropout(value)
        elif DROPOUT.search(name) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def ends_of_response(tokenizer, model: torch.nn.Module, source: str) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's EOS, those of the model's generation_config, and the token by which
    its chat template ends an assistant's turn. Raises ErltoolError where there is none."""
    listed = [tokenizer.eos_token_id]
    for config in (model.generation_config, model.config.get_text_config(decoder=True)):
        ids = getattr(config, "eos_token_id", None)
        listed += ids if isinstance(ids, list | tuple) else [ids]
    listed.append(_turn_end(tokenizer))
    known = model.get_input_embeddings().weight.shape[0]
    ends = dict.fromkeys(i for i in listed if isinstance(i, int) and 0 <= i < known)
    if not ends:
        raise ErltoolError(f"policy {source!r}: no token ends a response; give its tokenizer an EOS token")
    return tuple(ends)


def _turn_end(tokenizer) -> int | None:
    """The special token behind an assistant's words in the chat template; None without one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template that refuses this asks for nothing here
        return None
    said, answer, behind = text.rpartition("answer")
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if answer else []
    return next((i for i in ids if i in tokenizer.all_special_ids), None)


def _checkpoint(policy: Policy) -> None:
    """Has decoder layers keep their inputs only, and compute the rest again in the backward pass."""
    model = policy.causal_lm
    if not model.supports_gradient_checkpointing:
        raise ErltoolError(f"policy {policy.source!r}: its layers know no gradient_checkpointing; leave it out")
    # transformers 5.24 renamed it, and warns of the old name.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # of this one alone: it asks for it, and has no dropout


def _compile(policy: Policy) -> None:
    layers = getattr(policy.causal_lm.get_decoder(), "layers", None)
    if layers is None or policy.path.rows != "packed":
        raise ErltoolError(f"policy {policy.source!r}: compile is for models like Llama; leave it out")
    for layer in layers:
        layer.compile(dynamic=True)


def _quantization(base: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    if base == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if base != "nf4":
        raise ErltoolError(f"base {base!r}: use none, nf4 or int8")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _settle_memory() -> None:
    """Has glibc give back what loading left, and from then on keep up to 1 GiB of freed memory instead of handing
    every tensor's pages back and forth. Elsewhere than on glibc it does nothing.

    Measured: quantising SmolLM2's layers one by one leaves 309 MiB of freed pieces; keeping freed memory saves a fifth
    of the time of sampling from the policy `countdown`.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL(None)
        trim, mallopt = libc.malloc_trim, libc.mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
    mallopt(m_mmap_threshold, 32 * 2**20)  # the largest that glibc takes
    mallopt(m_trim_threshold, 2**30)


def resolve_device(device: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one. Raises ErltoolError where there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ErltoolError(f"device {device!r}: this PyTorch sees no CUDA; use device=cpu")
    return torch.device(device)


def resolve_dtype(dtype: str, stored: torch.dtype, device: torch.device, whole: bool = False) -> torch.dtype:
    """The type of weights and computation: "fp32", "bf16", or "stored", the one the weights are stored in, but fp32
    on a CPU without instructions for bf16, where PyTorch's products take up to 45 times as long as fp32's. "auto" is
    "stored", but fp32 where the whole model trains (`whole`)."""
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype not in ("auto", "stored"):
        raise ErltoolError(f"dtype {dtype!r}: use auto, stored, {' or '.join(DTYPES)}")
    emulated = device.type == "cpu" and stored == torch.bfloat16 and not cpu_has_bf16()
    return torch.float32 if emulated or (whole and dtype == "auto") else stored


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bf16 (AVX512-BF16, AMX, or ARM's)."""
    return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)
