"""A policy: a causal language model, its tokenizer, and the weights that train.

With LoRA the base never changes and may be quantised, and the reference policy is the model with its adapter off.
Without LoRA all weights train, and there is no reference policy.
"""

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from erltool.errors import ErltoolError
from erltool.policies import lora
from erltool.policies.heads import OwnHead, weight_of
from erltool.policies.sources import loading, quiet_transformers, read_model, reason_of

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
PLAIN_FORMS = {"none": "{}", "question": f"Question: {{}}\n\n{BOXED.replace('{', '{{').replace('}', '}}')}\n\nAnswer: "}


@dataclass(frozen=True)
class Template:
    """The form in which a policy sees a prompt, after worked examples (prompt, response).

    "none" is the prompt alone, "question" a plain text for base models, and "chat" the tokenizer's chat template.
    "boxed" is "chat" with the request to reason and to box the answer, as Qwen2.5-Math was trained.
    """

    name: str = "none"
    shots: tuple[tuple[str, str], ...] = ()

    @classmethod
    def choose(cls, name: str, tokenizer, source: str, shots: tuple[tuple[str, str], ...] = ()) -> "Template":
        """The template of that name; "auto" is "chat" where the tokenizer has a chat template, else "none". Raises
        ErltoolError for "chat" and "boxed" where it has none."""
        has_chat = bool(tokenizer.chat_template)
        if name in ("chat", "boxed") and not has_chat:
            raise ErltoolError(f"template {name}: the tokenizer of {source!r} has no chat template; use question")
        return cls(name if name != "auto" else "chat" if has_chat else "none", tuple(shots))

    def render(self, prompt: str, tokenizer) -> str:
        """The text that the model sees."""
        if self.name in PLAIN_FORMS:
            form = PLAIN_FORMS[self.name]
            return "".join(form.format(p) + r + "\n\n" for p, r in self.shots) + form.format(prompt)
        turns = [*self.shots, (prompt, None)]
        if self.name != "boxed":
            return self._chat(turns, None, tokenizer)
        with contextlib.suppress(ErltoolError):  # a template may refuse a system message, or drop it
            text = self._chat(turns, BOXED, tokenizer)
            if BOXED in text:
                return text
        first, *rest = turns
        return self._chat([(f"{BOXED}\n\n{first[0]}", first[1]), *rest], None, tokenizer)

    def _chat(self, turns: Sequence[tuple[str, str | None]], system: str | None, tokenizer) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        for question, answer in turns:
            messages.append({"role": "user", "content": question})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as e:  # a chat template is a program that came with the model
            raise ErltoolError(f"template {self.name}: the chat template refuses a prompt: {reason_of(e)}") from e

    def encode(self, prompts: Sequence[str], tokenizer) -> list[list[int]]:
        """Token ids of each prompt in this form."""
        special = self.name in PLAIN_FORMS  # a chat template adds special tokens itself
        return tokenizer([self.render(p, tokenizer) for p in prompts], add_special_tokens=special)["input_ids"]


@dataclass(frozen=True)
class ForwardPath:
    """How a model's log-probs are computed. probe.py chooses it, and a faster way only if it agrees with the model."""

    head: str = "linear"
    """"linear": logits are hidden @ W.T. "own": the model's own code after its decoder."""
    rows: str = "packed"
    """"packed": our masks and cache, with which responses share the work on their prompt. "padded": the model's own
    masks and cache, by transformers' `generate`, one response a row. "single": like "padded", but a batch holds prompts
    of one length, since the model takes no padding."""
    reason: str = ""
    """Why it is not the fastest."""

    def __str__(self) -> str:
        return f"{self.head} head, {self.rows} rows" + (f" ({self.reason})" if self.reason else "")


@dataclass
class Policy:
    """A model ready to sample and to train, its tokenizer, and where it came from."""

    model: PreTrainedModel | lora.PeftModel
    tokenizer: transformers.PreTrainedTokenizerBase
    source: str
    own_head: OwnHead
    ends: tuple[int, ...]
    """Tokens that end a response, with the tokenizer's EOS."""
    compiled: bool = False
    template: Template = Template()
    path: ForwardPath = ForwardPath()
    recordable: bool = True
    """Whether a GPU can record a step of sampling; False once it has failed to (decoding.py)."""

    def with_template(self, name: str, shots: tuple[tuple[str, str], ...] = ()) -> "Policy":
        """The same policy with another template and worked examples (prompt, response)."""
        return replace(self, template=Template.choose(name, self.tokenizer, self.source, shots))

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt in the policy's template."""
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
    def causal_lm(self) -> PreTrainedModel:
        """The Hugging Face model, with the adapter's layers in it."""
        if isinstance(self.model, lora.PeftModel):
            return cast(PreTrainedModel, self.model.get_base_model())
        return self.model

    @property
    def head(self) -> Tensor | OwnHead:
        """Gives logits of hidden states: a weight (V, D), or a function."""
        return weight_of(self.causal_lm.get_output_embeddings()) if self.path.head == "linear" else self.own_head

    @property
    def pad(self) -> int:
        """The token that pads rows, always outside the mask."""
        pad = self.tokenizer.pad_token_id
        return self.ends[0] if pad is None else pad

    @property
    def longest(self) -> int | None:
        """The most tokens of prompt and response together that the model has positions for; None without a limit."""
        config = self.causal_lm.config.get_text_config(decoder=True)
        limits = [getattr(config, "max_position_embeddings", None)]
        ropes = getattr(config, "rope_parameters", None) or {}
        for rope in (ropes, *(r for r in ropes.values() if isinstance(r, dict))):
            # Beyond the original length, a response's angles would depend on the longest row of its batch.
            if rope.get("rope_type") in ("dynamic", "longrope"):
                limits.append(rope.get("original_max_position_embeddings"))
        return min((n for n in limits if isinstance(n, int) and n > 0), default=None)

    def hidden(self, input_ids: Tensor, cache: Cache | None = None, **kwargs):
        """Output of the decoder without its head; `last_hidden_state` is (rows, length, D)."""
        decoder = self.causal_lm.get_submodule(self.own_head.name)
        if cache is not None:
            kwargs |= {_cache_argument(type(decoder).forward): cache, "use_cache": True}
        return decoder(input_ids, **kwargs)

    def trainable(self) -> dict[str, Tensor]:
        """Parameters that train, by name, in a fixed order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def reference(self):
        """Inside, the policy is the reference: its adapter is off. Raises ErltoolError without an adapter."""
        if not isinstance(self.model, lora.PeftModel):
            raise ErltoolError("reference policy: full fine-tuning keeps none; use lora_rank above 0")
        with self.model.disable_adapter():
            yield

    @contextlib.contextmanager
    def sampling(self):
        """Inside, the model is in eval mode, prepared for many small steps, and ignores its generation_config.

        A generation_config may change the distribution by a repetition penalty or a top-k. An adapter on a dense fp32
        base is added to the base's weights, so that sampling costs no LoRA; afterwards the saved weights return, so
        that nothing drifts. In bf16 the sum would round small updates away, so the adapter stands beside the weights
        (lora.py). That copy, and a 4-bit base dequantised, are made once on a CPU; on a GPU, to save memory, only where
        half of what is free has room for it, else at every step. Compiled layers run uncompiled.
        """
        layers = lora.lora_layers(self.model)
        own = [m.get_base_layer().weight for m in layers]
        foldable = all(type(m.get_base_layer()) is torch.nn.Linear and w.dtype == torch.float32
                       for m, w in zip(layers, own, strict=True))  # fmt: skip
        with contextlib.ExitStack() as stack:
            stack.enter_context(_evaluating(self.model))
            stack.callback(setattr, self.causal_lm, "generation_config", self.causal_lm.generation_config)
            self.causal_lm.generation_config = transformers.GenerationConfig()
            if self.compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            # The adapter is off where the reference is sampled.
            if isinstance(self.model, lora.PeftModel) and foldable and not layers[0].disable_adapters:
                stack.enter_context(self.model.disable_adapter())
                for layer, weight in zip(layers, own, strict=True):
                    stack.callback(setattr, weight, "data", weight.data)
                    weight.data = weight.data + layer.get_delta_weight(lora.ADAPTER)
            else:
                stack.enter_context(lora.dense_weights(self.model, base=self._has_room_for_dense_weights()))
            yield

    def _has_room_for_dense_weights(self) -> bool:
        if self.device.type == "cpu":
            return True
        return 2 * lora.dense_bytes(self.model) <= free_on_gpu(self.device)

    @contextlib.contextmanager
    def dropping(self):
        """Inside, the adapter's dropout is active and uses the global random state; the base has no dropout."""
        dropouts = torch.nn.ModuleList(m for layer in lora.lora_layers(self.model) for m in layer.lora_dropout.values())
        dropouts.train()
        try:
            yield
        finally:
            dropouts.eval()

    def fingerprint(self) -> str:
        """Hash of the frozen weights, or of all without an adapter; a run resumes only on the same weights."""
        digest = hashlib.sha256()
        for name, p in self.model.named_parameters():
            if not (self.has_adapter and p.requires_grad):
                digest.update(name.encode())
                digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes the adapter, which `PeftModel.from_pretrained` loads, or the whole model where all weights train."""
        with quiet_transformers():  # its progress bar would break ours at every checkpoint
            if isinstance(self.model, lora.PeftModel):
                self.model.save_pretrained(str(folder), save_embedding_layers=False)
            else:
                self.model.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Loads the weights that `save` wrote. Raises ErltoolError where they are not this policy's."""
        if not any(folder.glob("*.safetensors")):
            raise ErltoolError(f"{folder}: holds no safetensors weights")
        if not self.has_adapter and (folder / "adapter_config.json").is_file():
            raise ErltoolError(
                f"{folder}: holds a LoRA adapter, and lora_rank=0 trains all weights; restore the config"
            )
        with loading(str(folder), str(folder)):
            if isinstance(self.model, lora.PeftModel):
                lora.load_adapter(self.model, folder)
                return
            saved = read_model(folder, str(folder), type(self.model), dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())


def free_on_gpu(device: torch.device) -> int:
    """Bytes of a CUDA device that are free, or that PyTorch holds unused."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module):
    """Inside, every module of the model is in eval mode; afterwards each is as it was."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@functools.cache
def _cache_argument(forward: Callable) -> str:
    """The decoder's name for its cache: transformers 5.24 renamed it, and warns about the old name."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
