"""A policy: a causal language model, its tokenizer, and the part of it that trains.

With LoRA the base never changes and the reference policy is the same model with its adapter off; without,
all weights train and there is no reference unless a second copy is kept.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

# bitsandbytes, which peft imports, warns at once about an optional kernel that the CPU can do without.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from erltool.errors import ErltoolError
from erltool.resources import shipped


@dataclass
class Policy:
    """A model ready to sample and to train, its tokenizer, and where it came from."""

    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    source: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def has_adapter(self) -> bool:
        return isinstance(self.model, PeftModel)

    @property
    def causal_lm(self) -> torch.nn.Module:
        """The Hugging Face model inside, with the adapter's layers in it."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def head(self) -> Tensor:
        """Weight of the output layer, (V, D)."""
        return self.causal_lm.get_output_embeddings().weight

    def hidden(self, input_ids: Tensor, **kwargs):
        """Output of the decoder without its head; `last_hidden_state` is (rows, length, D)."""
        return self.causal_lm.get_decoder()(input_ids, **kwargs)

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
        """Inside, the model is in eval mode and its adapter is folded into fp32 weights: sampling costs no LoRA.

        The base's own weights are put back afterwards, not computed back, so nothing drifts. Quantised layers
        are left as they are: an adapter with one of them stays unfolded.
        """
        self.model.eval()
        layers = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        own = [m.get_base_layer().weight for m in layers]
        foldable = all(type(m.get_base_layer()) is torch.nn.Linear and w.dtype == torch.float32
                       for m, w in zip(layers, own, strict=True))  # fmt: skip
        try:
            with self.model.disable_adapter() if layers and foldable else contextlib.nullcontext():
                kept = [w.data for w in own]
                try:
                    if foldable:
                        for layer, weight in zip(layers, own, strict=True):
                            weight.data = weight.data + layer.get_delta_weight("default")
                    yield
                finally:
                    for weight, data in zip(own, kept, strict=True):
                        weight.data = data
        finally:
            self.model.train()

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


def load_policy(
    source: str = "embedded", *, lora_rank: int = 16, lora_alpha: float = 32.0, device: str = "auto", seed: int = 0
) -> Policy:
    """The embedded policy, or a folder in Hugging Face format, in fp32, with LoRA on all linear layers.

    `lora_rank` 0 trains all weights instead. `seed` decides the adapter's first weights; the global random
    state is left alone. Only safetensors weights, no remote code. Raises ErltoolError where the folder is
    missing or no model.
    """
    folder = shipped("data/policies/embedded") if source == "embedded" else Path(source)
    if not (folder / "config.json").is_file():
        raise ErltoolError(f"policy {source!r}: no config.json in {folder}; give 'embedded' or a model's folder")
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
            )
    except (OSError, ValueError, KeyError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ErltoolError(f"policy {source!r} cannot be loaded from {folder}: {reason}") from e
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise ErltoolError(f"policy {source!r}: its tokenizer needs an EOS and a padding token")
    if lora_rank:
        lora = LoraConfig(
            r=lora_rank, lora_alpha=lora_alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with warnings.catch_warnings():  # peft 0.21 asks transformers 5 for a name that it renamed
                warnings.simplefilter("ignore", FutureWarning)
                model = get_peft_model(model, lora)
        model.peft_config["default"].base_model_name_or_path = source
    model.to(resolve_device(device)).train()
    _keep_freed_memory()
    return Policy(model, tokenizer, source)


@functools.cache
def _keep_freed_memory() -> None:
    """Lets glibc keep up to 1 GiB of freed memory instead of handing every tensor's pages back and forth.

    Measured on the embedded policy: a fifth of the time of sampling. Elsewhere than on glibc it does nothing.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(m_mmap_threshold, 32 * 2**20)  # the largest that glibc takes
    mallopt(m_trim_threshold, 2**30)


def resolve_device(device: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one. Raises ErltoolError where there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ErltoolError(f"device {device!r}: this PyTorch sees no CUDA; use device=cpu")
    return torch.device(device)


@contextlib.contextmanager
def quiet_transformers():
    """No progress bar for reading weights, which takes no time for the models here."""
    was_on = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers.utils.logging.enable_progress_bar()
