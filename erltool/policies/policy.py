"""A policy: a causal language model, its tokenizer, and the part of it that trains.

With LoRA the base never changes, may be quantised, and the reference policy is the same model with its adapter
off; without, all weights train and there is no reference unless a second copy is kept.
"""

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache

from erltool.entropy.log_probs import Head
from erltool.errors import ErltoolError
from erltool.policies import lora
from erltool.policies.heads import OwnHead
from erltool.policies.sources import check_loaded, loading, quiet_transformers, reason_of

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
PLAIN_FORMS = {"none": "{}", "question": f"Question: {{}}\n\n{BOXED.replace('{', '{{').replace('}', '}}')}\n\nAnswer: "}


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
        asked = [*self.shots, (prompt, None)]
        if self.name != "boxed":
            return self._chat(asked, None, tokenizer)
        with contextlib.suppress(ErltoolError):  # a template may refuse a system's words, or drop them
            text = self._chat(asked, BOXED, tokenizer)
            if BOXED in text:
                return text
        first, *rest = asked
        return self._chat([(f"{BOXED}\n\n{first[0]}", first[1]), *rest], None, tokenizer)

    def _chat(self, asked: Sequence[tuple[str, str | None]], system: str | None, tokenizer) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        for question, answer in asked:
            messages.append({"role": "user", "content": question})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as e:  # a chat template is a program that came with the model
            raise ErltoolError(f"template {self.name}: the chat template refuses a prompt: {reason_of(e)}") from e

    def encode(self, prompts: Sequence[str], tokenizer) -> list[list[int]]:
        """Token ids of each prompt as the model is given it."""
        special = self.name in PLAIN_FORMS  # a chat template writes its own
        return tokenizer([self.render(p, tokenizer) for p in prompts], add_special_tokens=special)["input_ids"]


@dataclass(frozen=True)
class ForwardPath:
    """How log-probs are made from a model, chosen for it as it is loaded (probe.py): in our way, which is fast, only
    where that was found to be the model's own."""

    head: str = "linear"
    """"linear" where logits are hidden @ W.T and nothing else, or "own": the model's own code behind its decoder."""
    rows: str = "packed"
    """"packed": masks and cache of ours, by which responses share the work on their prompt. "padded": the model's own,
    by transformers' `generate`, a response a row. "single": the same, but prompts of other lengths are never in one
    batch, since the model takes no padding."""
    reason: str = ""
    """Why it is not the fast one."""

    @property
    def fast(self) -> bool:
        return self.head == "linear" and self.rows == "packed"

    def __str__(self) -> str:
        return f"{self.head} head, {self.rows} rows" + (f" ({self.reason})" if self.reason else "")


@dataclass
class Policy:
    """A model ready to sample and to train, its tokenizer, and where it came from."""

    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    source: str
    own_head: OwnHead
    ends: tuple[int, ...]
    """Tokens that end a response, the tokenizer's EOS among them."""
    compiled: bool = False
    template: Template = Template()
    path: ForwardPath = ForwardPath()

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
    def head(self) -> Head:
        """What makes logits of hidden states: a weight (V, D), or a function."""
        return self.causal_lm.get_output_embeddings().weight if self.path.head == "linear" else self.own_head

    @property
    def pad(self) -> int:
        """Token that fills a row up; no mask ever has it."""
        pad = self.tokenizer.pad_token_id
        return self.ends[0] if pad is None else pad

    @property
    def longest(self) -> int | None:
        """Tokens of prompt and response together that the model has positions for, None where nothing bounds them."""
        config = self.causal_lm.config.get_text_config(decoder=True)
        limit = getattr(config, "max_position_embeddings", None)
        ropes = getattr(config, "rope_parameters", None) or {}
        for rope in (ropes, *(r for r in ropes.values() if isinstance(r, dict))):
            # Beyond the first length their angles depend on the longest row of a batch: no distribution of one's own.
            if rope.get("rope_type") in ("dynamic", "longrope"):
                limit = min(limit, rope.get("original_max_position_embeddings") or limit)
        return limit if isinstance(limit, int) and limit > 0 else None

    def hidden(self, input_ids: Tensor, cache: Cache | None = None, **kwargs):
        """Output of the decoder without its head; `last_hidden_state` is (rows, length, D)."""
        decoder = self.causal_lm.get_submodule(self.own_head.name)
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
        """Inside, the model is in eval mode, made ready for many small steps, and generates as it is.

        An adapter on a dense fp32 base is folded into its weights: sampling costs no LoRA. The base's own weights
        are put back afterwards, not computed back, so nothing drifts. In bf16 folding would round small updates
        away, so the adapter stays beside the base. A 4-bit base is dequantised once for the duration; on a GPU, whose
        memory it is there to save, only where half of the free memory has room for it, else at every step. Compiled
        layers run as written. What a model's generation_config asks for beside its distribution (a repetition
        penalty, a top-k) is left out.
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
            if layers and foldable and not layers[0].disable_adapters:  # off where the reference is sampled from
                stack.enter_context(self.model.disable_adapter())
                stack.callback(_put_back, own, [w.data for w in own])
                for layer, weight in zip(layers, own, strict=True):
                    weight.data = weight.data + layer.get_delta_weight(lora.ADAPTER)
            else:
                stack.enter_context(lora.dense_weights(self.model, base=self._has_room_for_dense_weights()))
            yield

    def _has_room_for_dense_weights(self) -> bool:
        if self.device.type == "cpu" or not self.quantised:
            return True
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return 2 * lora.dense_bytes(self.model) <= torch.cuda.mem_get_info(self.device)[0] + unused

    @contextlib.contextmanager
    def dropping(self):
        """Inside, the adapter's own dropout is at work, by the global random state; the base has none."""
        layers = [m for layer in lora.lora_layers(self.model) for m in layer.lora_dropout.values()]
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()

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
        with quiet_transformers():  # its progress bar would stand in the middle of ours, at every checkpoint
            self.model.save_pretrained(folder, **({"save_embedding_layers": False} if self.has_adapter else {}))

    def load(self, folder: Path) -> None:
        """Takes the weights that `save` wrote. Raises ErltoolError where they are not this policy's."""
        if not any(folder.glob("*.safetensors")):
            raise ErltoolError(f"{folder}: holds no safetensors weights")
        if not self.has_adapter and (folder / "adapter_config.json").is_file():
            raise ErltoolError(
                f"{folder}: holds a LoRA adapter, and lora_rank=0 trains all weights; restore the config"
            )
        with loading(str(folder), str(folder)):
            if self.has_adapter:
                lora.load_adapter(self.model, folder)
                return
            saved, found = type(self.model).from_pretrained(folder, dtype=self.model.dtype, output_loading_info=True)
            check_loaded(found, str(folder))
        self.model.load_state_dict(saved.state_dict())


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module):
    """Inside, all of the model is in eval mode; afterwards each module is as it was."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@functools.cache
def _cache_argument(decoder: type) -> str:
    """What a decoder calls its cache: transformers 5.24 renamed it, and warns of the old name."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def _put_back(weights: list[Tensor], data: list[Tensor]) -> None:
    for weight, own in zip(weights, data, strict=True):
        weight.data = own
