"""Sampling groups of responses, our way or the model's own.

Our way makes one prefill for all responses to a prompt and writes into a cache with room; it is for models of which
probe.py found that it is their own. For others transformers' `generate` does all but the drawing.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.cache_utils import Cache, DynamicLayer

from erltool.entropy.log_probs import logits_of
from erltool.errors import Diverged, ErltoolError
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts, concatenate

COMPACT_AT = 0.75  # sampling drops finished responses once fewer than this share are still going


@torch.no_grad()
def sample_groups(
    policy: Policy,
    prompts: Sequence[str],
    group_size: int,
    *,
    max_response_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch: int = 0,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """`group_size` responses to each prompt, in the order of the prompts: len(prompts) * group_size of them.

    Sampled from softmax(z / temperature) of the whole vocabulary, or of the likeliest tokens that together have
    `top_p`; temperature 0 takes the likeliest token. At most `max_response_tokens` tokens with EOS. `log_probs`
    are those of the drawn tokens under softmax(z / temperature). At most `batch` responses at a time, 0 for all;
    prompts of like length share a batch, and a response that ended leaves it. `generator` must live on the
    policy's device. Raises ErltoolError for no prompts, prompts that the model has no room for, or logits that are not
    finite.
    """
    if not prompts:
        raise ErltoolError("sample_groups: no prompts; give at least one")
    return sample_ids(
        policy, policy.encode(prompts), group_size, prompts=prompts, max_response_tokens=max_response_tokens,
        temperature=temperature, top_p=top_p, batch=batch, generator=generator,
    )  # fmt: skip


@torch.no_grad()
def sample_ids(
    policy: Policy,
    prompt_ids: list[list[int]],
    group_size: int,
    *,
    prompts: Sequence[str] = (),
    max_response_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch: int = 0,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """`sample_groups` of prompts that are tokens already; `prompts` are their texts, "" without."""
    prompts = prompts or [""] * len(prompt_ids)
    _check(policy, prompt_ids, max_response_tokens)
    batches = list(_batches(prompt_ids, batch // group_size if batch else 0, policy.path.rows == "single"))
    draw = _Draw(temperature, top_p, generator)
    sample = _sample if policy.path.rows == "packed" else _generate
    with policy.sampling():
        parts = [
            _rollouts(policy, [prompts[i] for i in b], ids, *sample(policy, ids, group_size, max_response_tokens, draw))
            for b in batches
            for ids in [[prompt_ids[i] for i in b]]
        ]
    if len(parts) == 1:
        return parts[0]
    place = {i: at for at, i in enumerate(i for b in batches for i in b)}
    rows = torch.tensor([place[i] * group_size + j for i in range(len(prompts)) for j in range(group_size)])
    return concatenate(parts).take(rows)


def _check(policy: Policy, prompt_ids: list[list[int]], max_response_tokens: int) -> None:
    """Raises ErltoolError for prompts that the model has no positions or no embeddings for."""
    at = max(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    length, known = len(prompt_ids[at]), policy.causal_lm.get_input_embeddings().weight.shape[0]
    if policy.longest is not None and length + max_response_tokens > policy.longest:
        raise ErltoolError(
            f"policy {policy.source!r}: prompt {at} has {length} tokens, and with {max_response_tokens} of a response "
            f"that is more than the {policy.longest} positions of the model; "
            + (f"use max_response_tokens up to {policy.longest - length}" if length < policy.longest else "shorten it")
        )
    if not min(map(len, prompt_ids)):
        raise ErltoolError(f"policy {policy.source!r}: a prompt has no tokens; give it a text, or another template")
    if (largest := max(map(max, prompt_ids))) >= known:
        raise ErltoolError(
            f"policy {policy.source!r}: its tokenizer made token {largest}, and its model knows {known}; "
            "give the tokenizer and the model of one release"
        )


def _batches(prompt_ids: list[list[int]], size: int, alike: bool) -> Iterator[list[int]]:
    """Prompts that are sampled together: at most `size`, 0 for all, and of one length where they must be `alike`."""
    every = range(len(prompt_ids))
    if not alike and not (size and size < len(prompt_ids)):
        yield list(every)
        return
    by_length = sorted(every, key=lambda i: len(prompt_ids[i]))
    for _, same in itertools.groupby(by_length, key=lambda i: len(prompt_ids[i]) if alike else 0):
        members = list(same)
        for at in range(0, len(members), size or len(members)):
            yield members[at : at + (size or len(members))]


def _rollouts(policy: Policy, prompts, prompt_ids, ids: Tensor, log_probs: Tensor) -> Rollouts:
    """Responses of drawn tokens (B, T) and their log-probs; what stands behind a response's end is left out."""
    ends = torch.isin(ids, torch.tensor(policy.ends, device=ids.device))
    if log_probs.isnan().any():  # once, not at every token, which the host would have to wait for
        raise Diverged("sampling: the policy's logits are not finite; its weights are broken, go back to a checkpoint")
    finished = ends.any(-1)
    lengths = torch.where(finished, ends.int().argmax(-1) + 1, ids.shape[1])
    width = int(lengths.max())
    mask = torch.arange(width, device=ids.device) < lengths[:, None]
    ids, log_probs = ids[:, :width].masked_fill(~mask, policy.pad), log_probs[:, :width].masked_fill(~mask, 0)
    shown = (lengths - finished.long()).tolist()
    texts = policy.tokenizer.batch_decode([row[:n] for row, n in zip(ids.tolist(), shown, strict=True)])
    group_size = len(ids) // len(prompts)
    return Rollouts(
        [p for p in prompts for _ in range(group_size)],
        texts,
        [p for p in prompt_ids for _ in range(group_size)],
        ids,
        mask,
        log_probs,
        finished,
    )


def _sample(policy: Policy, prompt_ids, group_size: int, max_tokens: int, draw) -> tuple[Tensor, Tensor]:
    """Drawn tokens and their log-probs (B, T), our way."""
    hidden, mask, cache = _prefill(policy, prompt_ids)
    cache.batch_repeat_interleave(group_size)
    hidden, mask = hidden.repeat_interleave(group_size, 0), mask.repeat_interleave(group_size, 0)
    rows = torch.arange(len(hidden), device=hidden.device)  # which response each row of the work is
    ids = torch.full((len(rows), max_tokens), policy.pad, device=hidden.device)
    log_probs = torch.zeros(ids.shape, device=hidden.device)
    stops = torch.tensor(policy.ends, device=hidden.device)
    going = torch.ones_like(rows, dtype=torch.bool)
    for t in range(max_tokens):
        token, log_prob = draw(logits_of(hidden, policy.head))
        # All rows are written, not those that are going on, which the host would have to wait for.
        ids[rows, t] = torch.where(going, token[:, 0], policy.pad)
        log_probs[rows, t] = torch.where(going, log_prob[:, 0], 0.0)
        going = going & ~torch.isin(token[:, 0], stops)
        still = int(going.sum())  # the only synchronisation of a step
        if not still or t + 1 == max_tokens:
            break
        if still < COMPACT_AT * len(rows):
            rows, mask, token = rows[going], mask[going], token[going]
            cache.batch_select_indices(going.nonzero()[:, 0])
            going = going[going]
        positions = mask.sum(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        out = policy.hidden(token, attention_mask=mask[:, None, None], position_ids=positions, cache=cache)
        hidden = out.last_hidden_state[:, -1]
    return ids, log_probs


def _generate(policy: Policy, prompt_ids, group_size: int, max_tokens: int, draw) -> tuple[Tensor, Tensor]:
    """The same by the model's own masks and cache."""
    width, drawing = max(map(len, prompt_ids)), _Drawing(draw)
    ids = torch.tensor([[policy.pad] * (width - len(p)) + p for p in prompt_ids], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompt_ids], device=policy.device)
    policy.causal_lm.generate(
        ids.repeat_interleave(group_size, 0), attention_mask=mask.repeat_interleave(group_size, 0), do_sample=False,
        max_new_tokens=max_tokens, eos_token_id=list(policy.ends), pad_token_id=policy.pad, logits_processor=[drawing],
    )  # fmt: skip
    return torch.cat(drawing.tokens, 1), torch.cat(drawing.log_probs, 1)


class _Drawing(LogitsProcessor):
    """Draws the next token itself and leaves `generate` no other; rows that have ended draw too, and are cut later."""

    def __init__(self, draw: "_Draw"):
        self.draw, self.tokens, self.log_probs = draw, [], []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token, log_prob = self.draw(scores)
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


@dataclass(frozen=True)
class _Draw:
    """Draws one token a row from logits (B, V): tokens (B, 1) and their log-probs (B, 1)."""

    temperature: float
    top_p: float
    generator: torch.Generator | None

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(logits.float() / (self.temperature or 1.0), -1)
        if not self.temperature:
            token = log_p.argmax(-1, keepdim=True)
            return token, log_p.gather(-1, token)
        p = log_p.exp()
        if self.top_p < 1:
            ordered, order = p.sort(-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0)
            p = torch.zeros_like(p).scatter_(-1, order, ordered)
        # One uniform number a row through the inverse of the summed probabilities, in double so that a large
        # vocabulary's tail keeps its share. torch.multinomial draws one a token: a fifth of sampling's time.
        summed = p.cumsum(-1, dtype=torch.float64)
        total = summed[:, -1:]
        at = torch.rand(len(p), 1, generator=self.generator, device=p.device, dtype=torch.float64) * total
        token = torch.searchsorted(summed, at, right=True).clamp(max=p.shape[-1] - 1)
        return token, log_p.gather(-1, token)


class _RoomyLayer(DynamicLayer):
    """Keys and values of a layer with room behind them: a token is written in place, not by copying all.

    Copying was a third of the time of sampling from the policy `countdown`.
    """

    filled = 0  # tokens
    buffers: tuple[Tensor, ...] = ()

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = (key_states[:, :, :0], value_states[:, :, :0])
        before, self.filled = self.filled, self.filled + key_states.shape[-2]
        if self.buffers[0].shape[-2] < self.filled:
            room = self.filled + max(8, before // 4)
            self.buffers = tuple(self._moved(b, before, room) for b in self.buffers)
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, before : self.filled] = new
        return self._show()

    def _moved(self, buffer, filled, room):
        larger = buffer.new_empty(*buffer.shape[:2], room, buffer.shape[-1])
        larger[:, :, :filled] = buffer[:, :, :filled]
        return larger

    def _show(self):
        if not self.buffers:  # a layer that the model has, and does not run
            return None
        self.keys, self.values = (b[:, :, : self.filled] for b in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices):
        self.buffers = tuple(b[indices] for b in self.buffers)
        self._show()

    def batch_repeat_interleave(self, repeats):
        self.buffers = tuple(b.repeat_interleave(repeats, 0) for b in self.buffers)
        self._show()


def _prefill(policy: Policy, prompt_ids: list[list[int]]) -> tuple[Tensor, Tensor, Cache]:
    """Last hidden state (P, D), mask (P, L) and cache of left-padded prompts."""
    width = max(map(len, prompt_ids))
    ids = torch.tensor([[policy.pad] * (width - len(p)) + p for p in prompt_ids], device=policy.device)
    lengths = torch.tensor([len(p) for p in prompt_ids], device=policy.device)
    positions = torch.arange(width, device=policy.device) - (width - lengths)[:, None]
    mask = positions >= 0
    causal = torch.ones(width, width, dtype=torch.bool, device=policy.device).tril()
    # A padded query sees itself only: a row of attention with nothing to see would be NaN.
    allowed = (causal & mask[:, None, :]) | torch.eye(width, dtype=torch.bool, device=policy.device)
    cache = Cache(layers=[_RoomyLayer() for _ in range(policy.causal_lm.config.num_hidden_layers)])
    out = policy.hidden(ids, attention_mask=allowed[:, None], position_ids=positions.clamp(min=0), cache=cache)
    return out.last_hidden_state[:, -1], mask, cache
