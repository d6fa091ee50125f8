"""A test of every model as it loads: do the policy's log-probs equal the model's own?

Our sampler and scorer arrange prompts and responses in their own ways. A model may have what they do not know: windows,
sinks, recurrent layers, code after its head. So the policy samples and scores a few prompts, two of them padded and one
long, and prompts that begin alike where it would read their beginning once. The result is compared with the model's own
logits of each sequence alone, in the same type. The policy takes the first way that agrees; if none does, loading
fails.
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
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from erltool.entropy.log_probs import token_log_probs
from erltool.errors import ErltoolError
from erltool.policies.attention import cpu_attention
from erltool.policies.heads import is_linear, weight_of
from erltool.policies.policy import ForwardPath, Policy
from erltool.policies.rollouts import SHARED_FROM, Rollouts, response_log_probs
from erltool.policies.sampling import sample_groups
from erltool.policies.sources import reason_of

# Families whose layers are plain causal attention through transformers' interface, so that they can use our masks,
# positions and cache; tests/test_architectures.py tests each. Other models use their own.
PLAIN_CAUSAL = frozenset(
    """
    apertus arcee biogpt bitnet codegen cohere deepseek_v2 deepseek_v3 diffllama dots1 ernie4_5 ernie4_5_moe
    exaone falcon flex_olmo gemma glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gptj granite granitemoe
    granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe jetmoe llama mistral mixtral nanochat nemotron olmo
    olmo2 olmoe opt persimmon phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2
    """.split()
)
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
# Weights times tokens that the probe's longest prompt may cost, by device: a tenth of a second.
AFFORDABLE = {"cpu": 4e9, "cuda": 4e12}
GROUP = 2  # responses to a prompt


class Probe(NamedTuple):
    """Lengths in tokens."""

    prompts: tuple[int, ...]  # the last grows beyond every window that `AFFORDABLE` allows
    response: int


QUICK, THOROUGH = Probe((2, 3, 5), 2), Probe((3, 6, 24), 4)


def choose_path(policy: Policy) -> ForwardPath:
    """The fastest way to compute the policy's log-probs that agrees with the model; sets the model's attention for it.
    Raises ErltoolError where no way agrees. Warns where a way disagrees though the configuration gives no reason."""
    model = policy.causal_lm
    own, refused = str(model.config._attn_implementation), list[str]()
    why = not_plain(model.config) or ("" if own == "sdpa" else f"its attention is {own}")
    head = "linear" if is_linear(policy.own_head, model) else "own"
    for rows in ("packed", "padded", "single")[bool(why) :]:
        path = ForwardPath(head, rows, "; ".join(([why] if why else []) + refused))
        difference = disagreement(replace(policy, path=path), own)
        if difference is None:
            if refused:
                warnings.warn(f"policy {policy.source!r}: {path}", stacklevel=3)
            return path
        refused.append(f"{rows}: {difference}")
    raise ErltoolError(
        f"policy {policy.source!r}: no way to sample and score agrees with the model ({'; '.join(refused)})"
    )


def not_plain(config) -> str:
    """Why a model of this configuration is not known to be plain causal attention in every layer; "" where it is."""
    if config.model_type not in PLAIN_CAUSAL:
        return f"{config.model_type} is not among the families whose attention is known to be plain"
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return "" if kinds == {DynamicLayer} else "not every layer sees all earlier tokens"


def disagreement(policy: Policy, attention: str) -> str | None:
    """A text of how the policy differs from the model's logits with that attention; None where they agree.

    Attention layers are alike, so the first of each kind are tested alone. The whole model is tested where these
    disagree, and where it has other layers.
    """
    with first_layers(policy.causal_lm, policy.own_head.name) as fewer:
        if fewer and _disagreement(policy, attention, QUICK) is None:
            return None
    return _disagreement(policy, attention, THOROUGH)


@contextlib.contextmanager
def first_layers(model: PreTrainedModel, name: str) -> Iterator[bool]:
    """Inside, the decoder `name` has its first layers only: at least two, and one of every kind of attention. Yields
    False, with nothing changed, where the configuration does not say that all layers are attention."""
    config, decoder = model.config.get_text_config(decoder=True), model.get_submodule(name)
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


def _disagreement(policy: Policy, attention: str, probe: Probe) -> str | None:
    prompts = list(probe_prompts(policy, probe))
    begun = probe_ids(policy.tokenizer, policy.causal_lm, SHARED_FROM)[0].tolist()
    alike = [begun + prompt for prompt in prompts[:-1]]
    has_room = max(map(len, alike)) + probe.response <= (policy.longest or math.inf)
    for probed in (prompts, alike) if policy.path.rows == "packed" and has_room else (prompts,):
        if (difference := _difference(policy, attention, probed, probe.response)) is not None:
            return difference
    return None


@torch.no_grad()
def _difference(policy: Policy, attention: str, prompts: list[list[int]], tokens: int) -> str | None:
    """The same on these prompts, with responses of so many tokens."""
    try:
        _attend(policy, attention)
        generator = torch.Generator(policy.device).manual_seed(0)
        rollouts = sample_groups(policy, prompts, GROUP, max_response_tokens=tokens, generator=generator)
        ours = response_log_probs(policy, rollouts)
    except Exception as e:  # the model's own code may refuse our masks or cache
        return reason_of(e)
    policy.causal_lm.set_attn_implementation(attention)
    log_probs, entropy, size = model_log_probs(policy, rollouts)
    _attend(policy, attention)
    mask = rollouts.response_mask
    pairs = {"sampled": (rollouts.log_probs, log_probs), "scored": (ours[0], log_probs), "entropy": (ours[1], entropy)}
    for name, (computed, own) in pairs.items():
        errors = (computed - own)[mask].abs()
        # In bf16 the rounding of a single token's logits decides the largest error, so the mean counts.
        error = (errors.max() if policy.causal_lm.dtype == torch.float32 else errors.mean()).item()
        if not error <= tolerance(policy, size):
            return f"{name} log-probs are off by {error:.2g} nats" if name != "entropy" else f"entropy by {error:.2g}"
    return None


def _attend(policy: Policy, own: str) -> None:
    """Sets the attention of the policy's way: the model's own, but ours on a CPU in bf16, where that is slow."""
    model, ours = policy.causal_lm, policy.path.rows == "packed" and policy.device.type == "cpu"
    ours = ours and own == "sdpa" and model.dtype == torch.bfloat16 and model._can_set_attn_implementation()
    model.set_attn_implementation(cpu_attention() if ours else own)


def tolerance(policy: Policy, size: float) -> float:
    """The most nats by which rounding may change a log-prob where the largest logit is `size`."""
    if policy.causal_lm.dtype == torch.float32 and not policy.quantised:
        return 2e-5 * (1 + size)
    return 0.01 * (1 + size)


def model_log_probs(policy: Policy, rollouts: Rollouts) -> tuple[Tensor, Tensor, float]:
    """Log-probs and entropies (B, T) by the model's own decoder and head without padding, and the largest logit."""
    lengths, hidden = [len(ids) for ids in rollouts.response_ids], []
    alike = itertools.groupby(range(len(rollouts)), key=lambda b: (rollouts.prompt_ids[b], lengths[b]))
    for (prompt, length), rows in alike:
        ids = rollouts.token_ids[list(rows), :length]
        prompts = torch.tensor([prompt] * len(ids), device=ids.device)
        states = policy.hidden(torch.cat([prompts, ids], 1), use_cache=False).last_hidden_state
        hidden.append(states[:, len(prompt) - 1 : -1].flatten(0, 1))
    mask = rollouts.response_mask
    logits = policy.own_head(torch.cat(hidden))
    log_probs, entropy = token_log_probs(logits, rollouts.token_ids[mask])
    blank = torch.zeros(mask.shape, device=mask.device)
    size = logits.abs().max().item()
    return blank.masked_scatter(mask, log_probs), blank.masked_scatter(mask, entropy), size


def probe_prompts(policy: Policy, probe: Probe) -> Iterator[list[int]]:
    """Tokens of the probe's prompts, shortened to the model's positions."""
    model = policy.causal_lm
    config = model.config.get_text_config(decoder=True)
    weights = sum(p.numel() for p in model.parameters())
    affordable = AFFORDABLE.get(policy.device.type, AFFORDABLE["cpu"]) / weights
    room = (policy.longest or math.inf) - probe.response
    sizes = [v for k, v in vars(config).items() if re.search("window|chunk|block", k) and type(v) is int]
    *short, long = probe.prompts
    longest = max([long, *(size + 2 for size in sizes if 0 < size + 2 < affordable)])
    for length in (*short, longest):
        yield probe_ids(policy.tokenizer, model, int(max(1, min(length, room))))[0].tolist()


def probe_ids(tokenizer, model: PreTrainedModel, length: int) -> Tensor:
    """(1, length) tokens from the whole vocabulary, special ones only where there are no others."""
    known = min(weight_of(model.get_input_embeddings()).shape[0], len(tokenizer))
    sampled = torch.randint(known, (20 * length,), generator=torch.Generator().manual_seed(length)).tolist()
    special = {*tokenizer.all_special_ids}
    plain = [i for i in sampled if i not in special] + sampled
    return torch.tensor([plain[:length]], device=model.device)
