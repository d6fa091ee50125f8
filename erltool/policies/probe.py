"""Is what a policy says what its model says? Asked of every model as it is loaded.

Our sampler and our scoring lay prompts and responses out in ways of their own, and a model may have more to it than
they know of: windows, sinks, recurrent layers, something behind its head. So a few prompts are answered and scored
our way, two of them padded on the left and one longer than the others, and held against the logits of the model
itself, each sequence alone, in the same type. The first way that agrees is the policy's; where none does, there is no
policy.
"""

import contextlib
import itertools
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from erltool.entropy.log_probs import token_log_probs
from erltool.errors import ErltoolError
from erltool.policies.attention import CPU_ATTENTION
from erltool.policies.heads import is_linear
from erltool.policies.policy import ForwardPath, Policy
from erltool.policies.rollouts import Rollouts, response_log_probs
from erltool.policies.sampling import sample_ids
from erltool.policies.sources import reason_of

# Families whose layers are plain causal attention through transformers' interface, so that our masks, positions and
# cache are theirs; tests/test_architectures.py holds each. All others take the model's own.
PLAIN_CAUSAL = frozenset(
    """
    apertus arcee biogpt bitnet codegen cohere deepseek_v2 deepseek_v3 diffllama dots1 ernie4_5 ernie4_5_moe
    exaone falcon flex_olmo gemma glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gptj granite granitemoe
    granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe jetmoe llama mistral mixtral nanochat nemotron olmo
    olmo2 olmoe opt persimmon phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2
    """.split()
)
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
# Products of a weight and a token that the probe's longest prompt may cost, by device: a tenth of a second.
AFFORDABLE = {"cpu": 4e9, "cuda": 4e12}
GROUP = 2  # responses to a prompt


class Probe(NamedTuple):
    prompts: tuple[int, ...]
    """Tokens of the prompts, the last longer than any window that the device can afford."""
    response: int
    """Tokens of a response."""


QUICK, THOROUGH = Probe((2, 3, 5), 2), Probe((3, 6, 24), 4)


def choose_path(policy: Policy) -> ForwardPath:
    """The fastest way to make the policy's log-probs that is the model's own; the model's attention is set to it.

    Raises ErltoolError where no way agrees with the model's own logits. Warns where the probe found a difference that
    nothing in the model's configuration lets expect.
    """
    model = policy.causal_lm
    own, refused = model.config._attn_implementation, []
    why = not_plain(model.config) or ("" if own == "sdpa" else f"its attention is {own}")
    head = "linear" if is_linear(policy.own_head, model) else "own"
    for rows in ("packed", "padded", "single")[bool(why) :]:
        path = ForwardPath(head, rows, "; ".join(([why] if why else []) + refused))
        found = disagreement(replace(policy, path=path), own)
        if found is None:
            if refused:
                warnings.warn(f"policy {policy.source!r}: {path}", stacklevel=3)
            return path
        refused.append(f"{rows}: {found}")
    raise ErltoolError(
        f"policy {policy.source!r}: no way to sample and score is the model's own ({'; '.join(refused)})"
    )


def not_plain(config) -> str:
    """Why a model of this configuration is not known to be plain causal attention in every layer; "" where it is."""
    if config.model_type not in PLAIN_CAUSAL:
        return f"{config.model_type} is not among the families whose attention is known to be plain"
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return "" if kinds == {DynamicLayer} else "not every layer sees all that stands before"


def disagreement(policy: Policy, attention: str) -> str | None:
    """In words, how the policy's way differs from the model's own logits, made with that attention; None where it
    does not. Of attention, whose layers are alike, the first layers of every kind are asked; where those differ, or
    a model has other layers, all are."""
    with first_layers(policy.causal_lm, policy.own_head.name) as fewer:
        found = _disagreement(policy, attention, QUICK) if fewer else ""
    return _disagreement(policy, attention, THOROUGH) if found is not None else None


@contextlib.contextmanager
def first_layers(model: torch.nn.Module, decoder: str) -> Iterator[bool]:
    """Inside, the model has its first layers only, two and as many as it takes to have one of every kind. That is so
    where its configuration says that all are attention, and of which kind; elsewhere False, and nothing has changed."""
    config, decoder = model.config.get_text_config(decoder=True), model.get_submodule(decoder)
    kinds = getattr(config, "layer_types", None) or ([] if not_plain(config) else ["full_attention"])
    count = max([2, *(kinds.index(kind) + 1 for kind in kinds)])
    for name, layers in decoder.named_children() if {*kinds} <= ATTENTION and kinds else ():
        if isinstance(layers, torch.nn.ModuleList) and len(layers) == config.num_hidden_layers > count:
            setattr(decoder, name, layers[:count])
            try:
                yield True
            finally:
                setattr(decoder, name, layers)
            return
    yield False


@torch.no_grad()
def _disagreement(policy: Policy, attention: str, probe: Probe) -> str | None:
    try:
        _attend(policy, attention)
        generator = torch.Generator(policy.device).manual_seed(0)
        prompts = list(probe_prompts(policy, probe))
        rollouts = sample_ids(policy, prompts, GROUP, max_response_tokens=probe.response, generator=generator)
        ours = response_log_probs(policy, rollouts)
    except Exception as e:  # in the model's own code, given masks or a cache that it does not take
        return reason_of(e)
    policy.causal_lm.set_attn_implementation(attention)
    log_probs, entropy, size = model_log_probs(policy, rollouts)
    _attend(policy, attention)
    mask = rollouts.response_mask
    pairs = {"sampled": (rollouts.log_probs, log_probs), "scored": (ours[0], log_probs), "entropy": (ours[1], entropy)}
    for name, (mine, own) in pairs.items():
        off = (mine - own)[mask].abs()
        # In a short type a single token is off by what its logits are, so the mean counts.
        error = (off.max() if policy.causal_lm.dtype == torch.float32 else off.mean()).item()
        if not error <= tolerance(policy, size):
            return f"{name} log-probs are off by {error:.2g} nats" if name != "entropy" else f"entropy by {error:.2g}"
    return None


def _attend(policy: Policy, own: str) -> None:
    """Sets the attention of the policy's way: the model's own, or ours on a CPU in bf16, where that one is slow."""
    model, ours = policy.causal_lm, policy.path.rows == "packed" and policy.device.type == "cpu"
    ours = ours and own == "sdpa" and model.dtype == torch.bfloat16 and model._can_set_attn_implementation()
    model.set_attn_implementation(CPU_ATTENTION if ours else own)


def tolerance(policy: Policy, size: float) -> float:
    """Nats by which rounding may move a log-prob of logits up to `size`."""
    if policy.causal_lm.dtype == torch.float32 and not policy.quantised:
        return 2e-5 * (1 + size)
    return 0.01 * (1 + size)


def model_log_probs(policy: Policy, rollouts: Rollouts) -> tuple[Tensor, Tensor, float]:
    """Log-probs and entropies (B, T) by the model's own decoder and head, no sequence padded, and the largest logit."""
    lengths, hidden = rollouts.response_mask.sum(-1).tolist(), []
    alike = itertools.groupby(range(len(rollouts)), key=lambda b: (rollouts.prompt_ids[b], lengths[b]))
    for (prompt, length), rows in alike:
        ids = rollouts.token_ids[list(rows), :length]
        before = torch.tensor([prompt] * len(ids), device=ids.device)
        found = policy.hidden(torch.cat([before, ids], 1), use_cache=False).last_hidden_state
        hidden.append(found[:, len(prompt) - 1 : -1].flatten(0, 1))
    mask = rollouts.response_mask
    logits = policy.own_head(torch.cat(hidden))
    log_probs, entropy = token_log_probs(logits, rollouts.token_ids[mask])
    blank = torch.zeros(mask.shape, device=mask.device)
    size = logits.abs().max().item()
    return blank.masked_scatter(mask, log_probs), blank.masked_scatter(mask, entropy), size


def probe_prompts(policy: Policy, probe: Probe) -> Iterator[list[int]]:
    """Tokens of the probe's prompts, fewer where the model has no positions for more."""
    model = policy.causal_lm
    config = model.config.get_text_config(decoder=True)
    weights = sum(p.numel() for p in model.parameters())
    affordable = AFFORDABLE.get(policy.device.type, AFFORDABLE["cpu"]) / weights
    room = (policy.longest or math.inf) - probe.response
    sizes = [v for k, v in vars(config).items() if re.search("window|chunk|block", k) and type(v) is int]
    *short, long = probe.prompts
    longest = max([long, *(size + 2 for size in sizes if 0 < size + 2 < affordable)])
    for length in (*short, longest):
        yield probe_ids(policy.tokenizer, model, max(1, min(length, room)))[0].tolist()


def probe_ids(tokenizer, model: torch.nn.Module, length: int) -> Tensor:
    """(1, length) tokens from all over the vocabulary that are no special ones, as far as there are others."""
    known = min(model.get_input_embeddings().weight.shape[0], len(tokenizer))
    drawn = torch.randint(known, (20 * length,), generator=torch.Generator().manual_seed(length)).tolist()
    special = {*tokenizer.all_special_ids}
    plain = [i for i in drawn if i not in special] + drawn
    return torch.tensor([plain[:length]], device=model.device)
