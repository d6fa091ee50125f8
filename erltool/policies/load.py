"""Loading a policy: its model, tokenizer and adapter, and the way in which its log-probs are computed.

A policy has its model's own distribution, or loading fails: missing and surplus weights are refused, the base has no
dropout, and probe.py compares the policy's log-probs with the model's logits.
"""

import ctypes
import re
from pathlib import Path

import torch
import transformers

from erltool.errors import ErltoolError
from erltool.policies import lora
from erltool.policies.heads import find_head, weight_of
from erltool.policies.policy import Policy
from erltool.policies.probe import choose_path, probe_ids
from erltool.policies.sources import find_model, is_offline, loading, read_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DROPOUT = re.compile(r"drop")  # names of settings; not jitter, which acts in training only and routes PhiMoE's tokens


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
    format, a GGUF file, "smollm2-135m", or a hub id; weights are safetensors or GGUF. `base` is "none", "nf4"
    (bitsandbytes, double quantisation) or "int8". `dtype` is that of weights and computation, as in `resolve_dtype`.
    `lora_rank` 0 trains all weights; a quantised base can then only be evaluated. `seed` decides the adapter's first
    weights and leaves the global random state alone. `compile` compiles each decoder layer for training (needs a C++
    compiler; takes half a minute once). A model's own code runs only with `trust_remote_code`. `policy.path` says how
    log-probs are computed.

    Raises ErltoolError for a source that is missing, out of reach, damaged or not a model, and for a model whose
    distribution cannot be reproduced.
    """
    target = resolve_device(device)
    tokenizer = load_tokenizer(source, trust_remote_code)
    place = find_model(source)
    with loading(source, place):
        _check_folder(Path(place), source)
        model = _base_model(
            source, place, base, dtype, target, whole=not lora_rank, trust_remote_code=trust_remote_code
        )
        ids = probe_ids(tokenizer, model, 3)
        head = find_head(model, ids)
        ends = ends_of_response(tokenizer, model, source)
        policy = Policy(model, tokenizer, source, head, ends, compile)
        if lora_rank:
            targets = lora.targets(model, ids)
            adapted = lora.attach(model, targets, place, lora_rank, lora_alpha, lora_dropout, seed)
            policy.model = adapted.to(target).eval()
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
        transformers.GenerationConfig.from_pretrained(place)  # loading the model would skip a damaged one silently


def _base_model(
    source: str, place: str, base: str, dtype: str, device: torch.device, *, whole: bool, trust_remote_code: bool
) -> transformers.PreTrainedModel:
    """The model in eval mode on the device, quantised as `base` says; `whole` as in `resolve_dtype`."""
    common = {"trust_remote_code": trust_remote_code, "local_files_only": is_offline(place)}
    config = without_dropout(transformers.AutoConfig.from_pretrained(place, **common))
    computed = resolve_dtype(dtype, stored_dtype(config), device, whole)
    # Sizes that do not match are for check_loaded to name.
    settings = {"config": config, "dtype": computed, "use_safetensors": True, "ignore_mismatched_sizes": True}
    if base != "none":
        settings |= {"quantization_config": _quantization(base, computed), "device_map": {"": device}}
    model = read_model(place, source, **settings, **common)
    if base == "none":
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides that it is a method
    lora.keep_4_bit_weights(model.eval())
    return model


def stored_dtype(config: transformers.PretrainedConfig) -> torch.dtype:
    """The type in which a model's weights are stored."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def load_tokenizer(source: str, trust_remote_code: bool = False) -> transformers.PreTrainedTokenizerBase:
    """A policy's tokenizer, padding on the left. Raises ErltoolError as `load_policy` does."""
    place = find_model(source)
    with loading(source, place):
        return transformers.AutoTokenizer.from_pretrained(
            place, padding_side="left", trust_remote_code=trust_remote_code, local_files_only=is_offline(place)
        )


def without_dropout(config: transformers.PretrainedConfig) -> transformers.PretrainedConfig:
    """The configuration, changed in place, without dropout, which would make log-probs random. LoRA's own dropout is
    not part of it."""
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            without_dropout(value)
        elif DROPOUT.search(name) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def ends_of_response(tokenizer, model: transformers.PreTrainedModel, source: str) -> tuple[int, ...]:
    """Tokens that end a response: the EOS of tokenizer, generation_config and config, and the token with which the chat
    template ends an assistant's turn. Raises ErltoolError where there is none."""
    listed = [tokenizer.eos_token_id]
    for config in (model.generation_config, model.config.get_text_config(decoder=True)):
        ids = getattr(config, "eos_token_id", None)
        listed += ids if isinstance(ids, list | tuple) else [ids]
    listed.append(_turn_end(tokenizer))
    known = weight_of(model.get_input_embeddings()).shape[0]
    ends = dict.fromkeys(i for i in listed if isinstance(i, int) and 0 <= i < known)
    if not ends:
        raise ErltoolError(f"policy {source!r}: no token ends a response; give its tokenizer an EOS token")
    return tuple(ends)


def _turn_end(tokenizer) -> int | None:
    """The special token that follows an assistant's answer in the chat template; None without one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # the template, a program that came with the model, refuses these turns
        return None
    _, answer, rest = text.rpartition("answer")
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if answer else []
    return next((i for i in ids if i in tokenizer.all_special_ids), None)


def _checkpoint(policy: Policy) -> None:
    """Makes decoder layers keep their inputs only, and recompute the rest in the backward pass."""
    model = policy.causal_lm
    if not model.supports_gradient_checkpointing:
        raise ErltoolError(f"policy {policy.source!r}: its layers do not support gradient_checkpointing; leave it out")
    # transformers 5.24 renamed it, and warns about the old name.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # not its submodules: checkpointing needs the flag, and they stay in eval mode


def _compile(policy: Policy) -> None:
    layers = getattr(policy.causal_lm.get_decoder(), "layers", None)
    if layers is None or policy.path.rows != "packed":
        raise ErltoolError(f"policy {policy.source!r}: compile works for models like Llama only; leave it out")
    for layer in layers:
        layer.compile(dynamic=True)


def _quantization(base: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    if base == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if base != "nf4":
        raise ErltoolError(f"base {base!r}: use none, nf4 or int8")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _settle_memory() -> None:
    """Makes glibc return the memory that loading freed, and from then on keep up to 1 GiB of freed memory for reuse.

    Other C libraries are left alone. Returning frees 309 MiB after quantising SmolLM2 layer by layer. Keeping saves
    a fifth of the sampling time of the policy `countdown`.
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
    """The device of that name; "auto" is CUDA where PyTorch sees one, else the CPU. Raises ErltoolError for CUDA where
    PyTorch sees none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ErltoolError(f"device {device!r}: this PyTorch sees no CUDA; use device=cpu")
    return torch.device(device)


def resolve_dtype(dtype: str, stored: torch.dtype, device: torch.device, whole: bool = False) -> torch.dtype:
    """The type of weights and computation.

    `dtype` is "fp32", "bf16", "stored" or "auto". "stored" is the type in which the weights are stored, but fp32 on a
    CPU without bf16 instructions, where PyTorch's products take up to 45 times as long. "auto" is "stored", but fp32
    where the whole model trains (`whole`). Raises ErltoolError for any other name.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype not in ("auto", "stored"):
        raise ErltoolError(f"dtype {dtype!r}: use auto, stored, {' or '.join(DTYPES)}")
    emulated = device.type == "cpu" and stored == torch.bfloat16 and not cpu_has_bf16()
    return torch.float32 if emulated or (whole and dtype == "auto") else stored


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bf16 (AVX512-BF16, AMX, or ARM's)."""
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch that tells of x86 only
        return torch.cpu._is_avx512_bf16_supported()
    return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)
