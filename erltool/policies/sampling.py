"""Sampling groups of responses, in our way or by transformers' `generate`.

Our way reads a prompt once for all its responses, and writes keys and values in place. It serves the models for which
probe.py found it to be right.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor
from transformers.cache_utils import Cache

from erltool.entropy.log_probs import logits_of
from erltool.errors import Diverged, ErltoolError
from erltool.policies.decoding import FixedSteps, RoomyLayer
from erltool.policies.heads import weight_of
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts, common_beginning, concatenate

COMPACT_AT = 0.75  # finished responses leave the batch once the fraction of unfinished ones is below this
# Devices on which responses share a row of the batch until they differ. A GPU takes as long for a few rows as for many,
# and its host would wait for the number of rows.
SHARING = ("cpu",)
RECORDING = ("cuda",)  # devices on which a step is recorded
RECORD_FROM = 8  # tokens of a response, from which on recording a step as a CUDA graph pays

Sampler = Callable[..., Rollouts]  # called as `sample_groups` is, which is the one of every run by default


@torch.no_grad()
def sample_groups(
    policy: Policy,
    prompts: Sequence[str | list[int]],
    group_size: int,
    *,
    max_response_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch: int = 0,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """`group_size` responses to each prompt, a text or its token ids: len(prompts) * group_size of them, in this order.

    Tokens are sampled from softmax(z / temperature), restricted to the likeliest tokens with total probability `top_p`;
    temperature 0 takes the likeliest token. A response has at most `max_response_tokens` tokens with EOS. `log_probs`
    are of softmax(z / temperature). At most `batch` responses are sampled at a time, but at least one group, in batches
    of prompts of similar length; 0 for all. `generator` must be on the policy's device.

    Raises ErltoolError for no prompts, for prompts too long for the model, and for logits that are not finite.
    """
    texts, prompt_ids = encoded(policy, prompts, max_response_tokens)
    batches = list(_batches(prompt_ids, max(1, batch // group_size) if batch else 0, policy.path.rows == "single"))
    draw = _Draw(temperature, top_p, generator)
    sample = _sample if policy.path.rows == "packed" else _generate
    sampled = []
    with policy.sampling():
        for batched in batches:
            ids = [prompt_ids[i] for i in batched]
            tokens, log_probs = sample(policy, ids, group_size, max_response_tokens, draw)
            sampled.append(rollouts_of(policy, [texts[i] for i in batched], ids, tokens, log_probs))
    if len(sampled) == 1:
        return sampled[0]
    place = {i: n for n, i in enumerate(itertools.chain(*batches))}
    rows = [place[i] * group_size + j for i in range(len(prompts)) for j in range(group_size)]
    return concatenate(sampled).take(rows)


def encoded(
    policy: Policy, prompts: Sequence[str | list[int]], max_response_tokens: int
) -> tuple[list[str], list[list[int]]]:
    """The prompts' texts ("" for one given as token ids) and token ids. Raises ErltoolError as `sample_groups` does."""
    if not prompts:
        raise ErltoolError("sample_groups: no prompts; give at least one")
    texts = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
    written = [prompt for prompt in prompts if isinstance(prompt, str)]
    ids = iter(policy.encode(written) if written else ())
    prompt_ids = [next(ids) if isinstance(prompt, str) else prompt for prompt in prompts]
    _check(policy, prompt_ids, max_response_tokens)
    return texts, prompt_ids


def _check(policy: Policy, prompt_ids: list[list[int]], max_response_tokens: int) -> None:
    """Raises ErltoolError for prompts for which the model has no positions or no embeddings."""
    longest = max(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    length, known = len(prompt_ids[longest]), weight_of(policy.causal_lm.get_input_embeddings()).shape[0]
    if policy.longest is not None and length + max_response_tokens > policy.longest:
        raise ErltoolError(
            f"policy {policy.source!r}: prompt {longest} of {length} tokens with a response of {max_response_tokens} "
            f"is longer than the model's {policy.longest} positions; "
            + (f"use max_response_tokens up to {policy.longest - length}" if length < policy.longest else "shorten it")
        )
    if not min(map(len, prompt_ids)):
        raise ErltoolError(f"policy {policy.source!r}: a prompt has no tokens; give it a text, or another template")
    if (largest := max(map(max, prompt_ids))) >= known:
        raise ErltoolError(
            f"policy {policy.source!r}: its tokenizer gives token {largest}, and its model knows {known}; "
            "give the tokenizer and the model of one release"
        )


def _batches(prompt_ids: list[list[int]], size: int, alike: bool) -> Iterator[list[int]]:
    """Prompts that are sampled together: at most `size`, 0 for all, and of one length where they must be `alike`."""
    every = range(len(prompt_ids))
    if not alike and not (size and size < len(prompt_ids)):
        yield list(every)
        return
    by_length = sorted(every, key=lambda i: len(prompt_ids[i]))
    for _, group in itertools.groupby(by_length, key=lambda i: len(prompt_ids[i]) if alike else 0):
        members = list(group)
        for start in range(0, len(members), size or len(members)):
            yield members[start : start + (size or len(members))]


def rollouts_of(policy: Policy, prompts, prompt_ids, ids: Tensor, log_probs: Tensor) -> Rollouts:
    """Rollouts of sampled tokens (B, T) and their log-probs, cut after the end of each response."""
    ends = torch.isin(ids, torch.tensor(policy.ends, device=ids.device))
    if log_probs.isnan().any():  # once, not at every token, which the host would have to wait for
        raise Diverged("sampling: the policy's logits are not finite; its weights broke: go back to a checkpoint")
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
    """Sampled tokens and their log-probs (B, T), in our way."""
    hidden, mask, cache = _prefill(policy, prompt_ids)
    device = hidden.device
    rows = torch.arange(len(prompt_ids) * group_size, device=device)  # the response that draws each token
    branch = rows // group_size  # its row of the batch
    recorded = device.type in RECORDING and max_tokens >= RECORD_FROM and policy.recordable
    shares = device.type in SHARING and not recorded
    if not shares:
        cache.batch_repeat_interleave(group_size)
        hidden, mask, branch = hidden[branch], mask[branch], rows
    ids = torch.full((len(rows), max_tokens), policy.pad, device=device)
    log_probs = torch.zeros(ids.shape, device=device)
    stops = torch.tensor(policy.ends, device=device)
    going = torch.ones_like(rows, dtype=torch.bool)
    steps: FixedSteps | None = None
    if recorded:
        steps = FixedSteps(policy, cache, mask, max_tokens)
        policy.recordable = steps.capture()
    for t in range(max_tokens):
        token, log_prob = draw(logits_of(hidden, policy.head), branch if shares else None)
        # All rows are written, not those that are going on, which the host would have to wait for.
        ids[rows, t] = torch.where(going, token[:, 0], policy.pad)
        log_probs[rows, t] = torch.where(going, log_prob[:, 0], 0.0)
        going = going & ~torch.isin(token[:, 0], stops)
        unfinished = int(going.sum())  # the only synchronisation of a step
        if not unfinished or t + 1 == max_tokens:
            break
        if steps is not None:
            hidden = steps(token)
            continue
        kept = going.nonzero()[:, 0] if unfinished < COMPACT_AT * len(rows) else None
        if kept is not None:
            rows, branch, token, going = rows[kept], branch[kept], token[kept], going[kept]
        if shares:
            kept, token, branch = _branches(branch, token, going, len(mask))
        if kept is not None:
            cache.batch_select_indices(kept)
            mask = mask[kept]
        positions = mask.sum(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        out = policy.hidden(token, attention_mask=mask[:, None, None], position_ids=positions, cache=cache)
        hidden = out.last_hidden_state[:, -1]
    return ids, log_probs


def _branches(branch: Tensor, token: Tensor, going: Tensor, size: int) -> tuple[Tensor | None, Tensor, Tensor]:
    """The next step's batch: the rows of the last of `size` that its rows continue, None for all in order; the token of
    each, (N, 1); and each response's row. An ended response, whose tokens nobody reads, has the first."""
    most = int(token.max()) + 1
    distinct, place = torch.unique(branch[going] * most + token[going, 0], return_inverse=True)
    parents, tokens = distinct // most, distinct % most
    row = torch.zeros_like(branch)
    row[going] = place
    if len(parents.unique()) < len(parents) or len(parents) < COMPACT_AT * size:
        return parents, tokens[:, None], row
    # None has parted and few have ended: copying the cache would not pay.
    every = torch.zeros(size, dtype=tokens.dtype, device=tokens.device)
    every[parents], row[going] = tokens, parents[place]
    return None, every[:, None], row


def _generate(policy: Policy, prompt_ids, group_size: int, max_tokens: int, draw) -> tuple[Tensor, Tensor]:
    """The same with the model's own masks and cache."""
    (ids, positions), drawing = _left_padded(policy, prompt_ids), _Drawing(draw)
    mask = (positions >= 0).long()
    cast(GenerationMixin, policy.causal_lm).generate(
        ids.repeat_interleave(group_size, 0), attention_mask=mask.repeat_interleave(group_size, 0), do_sample=False,
        max_new_tokens=max_tokens, eos_token_id=list(policy.ends), pad_token_id=policy.pad, logits_processor=[drawing],
    )  # fmt: skip
    return torch.cat(drawing.tokens, 1), torch.cat(drawing.log_probs, 1)


class _Drawing(LogitsProcessor):
    """Samples the next token and leaves `generate` no other. Ended rows sample too; `rollouts_of` cuts them."""

    def __init__(self, draw: "_Draw"):
        self.draw = draw
        self.tokens: list[Tensor] = []
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token, log_prob = self.draw(scores)
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


@dataclass(frozen=True)
class _Draw:
    """Samples tokens (B, 1) and their log-probs (B, 1) from the rows `row` (B,) of logits (R, V), all by default."""

    temperature: float
    top_p: float
    generator: torch.Generator | None

    def __call__(self, logits: Tensor, row: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(logits.float() / (self.temperature or 1.0), -1)
        if not self.temperature:
            token = log_p.argmax(-1, keepdim=True)
            log_prob = log_p.gather(-1, token)
            return (token, log_prob) if row is None else (token[row], log_prob[row])
        p = log_p.exp()
        if self.top_p < 1:
            ordered, order = p.sort(-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0)
            p = torch.zeros_like(p).scatter_(-1, order, ordered)
        # One uniform number a row through the inverse of the cumulative probabilities, which are doubles to keep the
        # tail of a large vocabulary. torch.multinomial's one number a token takes a fifth of the sampling time.
        cumulative = p.cumsum(-1, dtype=torch.float64)
        if row is not None:
            cumulative = cumulative.index_select(0, row)
        uniform = torch.rand(len(cumulative), 1, generator=self.generator, device=p.device, dtype=torch.float64)
        token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp(max=p.shape[-1] - 1)
        return token, log_p.gather(-1, token) if row is None else log_p[row, token[:, 0]][:, None]


def _prefill(policy: Policy, prompt_ids: list[list[int]]) -> tuple[Tensor, Tensor, Cache]:
    """Last hidden state (P, D), mask (P, L) and cache of left-padded prompts. What they begin with alike is read once,
    and the padding follows it."""
    cache = Cache(layers=[RoomyLayer() for _ in range(policy.causal_lm.config.num_hidden_layers)])
    device, begun = policy.device, common_beginning(prompt_ids) if len(prompt_ids) > 1 else 0
    if begun:
        policy.hidden(torch.tensor([prompt_ids[0][:begun]], device=device), cache=cache)
        cache.batch_repeat_interleave(len(prompt_ids))
    ids, positions = _left_padded(policy, [prompt[begun:] for prompt in prompt_ids])
    mask, width = positions >= 0, ids.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    # A padded query sees itself, since a row of attention that sees nothing would be NaN.
    allowed = (causal & mask[:, None, :]) | torch.eye(width, dtype=torch.bool, device=device)
    allowed, mask = (torch.nn.functional.pad(seen, (begun, 0), value=True) for seen in (allowed, mask))
    positions = positions.clamp(min=0) + begun
    out = policy.hidden(ids, attention_mask=allowed[:, None], position_ids=positions, cache=cache)
    return out.last_hidden_state[:, -1], mask, cache


def _left_padded(policy: Policy, prompt_ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Tokens and positions (P, L) of prompts padded on the left, where positions are negative."""
    width = max(map(len, prompt_ids))
    ids = torch.tensor([[policy.pad] * (width - len(p)) + p for p in prompt_ids], device=policy.device)
    lengths = torch.tensor([len(p) for p in prompt_ids], device=policy.device)
    return ids, torch.arange(width, device=policy.device) - (width - lengths)[:, None]
