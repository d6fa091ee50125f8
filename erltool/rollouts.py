"""Sampling groups of responses, and scoring them again with gradients.

Both share the work on a prompt within its group: one prefill for all its responses when sampling, and one
row that holds the prompt once and its responses after it when scoring.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from erltool.errors import Diverged, ErltoolError
from erltool.logprobs import token_log_probs
from erltool.policy import Policy

PACKED_ROW = 512  # tokens in a row of several responses: beyond, attention to masked tokens costs more than it saves
COMPACT_AT = 0.75  # sampling drops finished responses once fewer than this share are still going


@dataclass(frozen=True)
class Rollout:
    """One response to a prompt."""

    prompt: str
    response: str
    token_ids: list[int]
    """Tokens of the response, its EOS included."""
    log_probs: list[float]
    """Of those tokens under the sampling policy, nats."""
    stop_reason: str
    """"eos", or "length" where it was cut."""


@dataclass(frozen=True)
class Rollouts:
    """B responses in columns; those of a group stand together."""

    prompts: list[str]
    """(B,) prompt of each response."""
    responses: list[str]
    """(B,) text without EOS. Hostile: never evaluate it, never show it as markup."""
    prompt_ids: list[list[int]]
    """(B,) tokens of the prompts."""
    token_ids: Tensor
    """(B, T) tokens of the responses, EOS included, padded on the right."""
    response_mask: Tensor
    """(B, T) bool, True on response tokens."""
    log_probs: Tensor
    """(B, T) under the sampling policy, nats; 0 outside the mask."""
    finished: Tensor
    """(B,) bool: the response ended with EOS, and was not cut by the length."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, at: int) -> Rollout:
        n = int(self.response_mask[at].sum())
        return Rollout(
            self.prompts[at],
            self.responses[at],
            self.token_ids[at, :n].tolist(),
            self.log_probs[at, :n].tolist(),
            "eos" if self.finished[at] else "length",
        )

    def take(self, rows: Sequence[int]) -> "Rollouts":
        """Some of the responses, without the padding that only the others needed."""
        rows = torch.as_tensor(rows).tolist()
        width = int(self.response_mask[rows].sum(-1).max())
        return Rollouts(*(_take(getattr(self, f.name), rows, width) for f in fields(self)))


def _take(column, rows, width):
    if isinstance(column, list):
        return [column[r] for r in rows]
    return column[rows][:, :width] if column.ndim == 2 else column[rows]


def concatenate(parts: Sequence[Rollouts]) -> Rollouts:
    """Several Rollouts as one."""
    width = max(p.token_ids.shape[1] for p in parts)
    columns = []
    for f in fields(Rollouts):
        values = [getattr(p, f.name) for p in parts]
        if isinstance(values[0], list):
            columns.append([v for value in values for v in value])
        elif values[0].ndim == 2:
            columns.append(torch.cat([torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in values]))
        else:
            columns.append(torch.cat(values))
    return Rollouts(*columns)


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
    policy's device. Raises ErltoolError for no prompts, or a model whose logits are not finite.
    """
    if not prompts:
        raise ErltoolError("sample_groups: no prompts; give at least one")
    prompt_ids = policy.encode(prompts)
    if not batch or batch >= len(prompts) * group_size:
        batches = [list(range(len(prompts)))]
    else:
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompt_ids[i]))
        size = max(1, batch // group_size)
        batches = [by_length[at : at + size] for at in range(0, len(by_length), size)]
    draw = _Draw(temperature, top_p, generator)
    with policy.sampling():
        parts = [
            _sample(policy, [prompts[i] for i in b], [prompt_ids[i] for i in b], group_size, max_response_tokens, draw)
            for b in batches
        ]
    if len(parts) == 1:
        return parts[0]
    place = {i: at for at, i in enumerate(i for b in batches for i in b)}
    rows = torch.tensor([place[i] * group_size + j for i in range(len(prompts)) for j in range(group_size)])
    return concatenate(parts).take(rows)


def _sample(policy, prompts, prompt_ids, group_size, max_tokens, draw):
    hidden, mask, cache = _prefill(policy, prompt_ids)
    cache.batch_repeat_interleave(group_size)
    hidden, mask = hidden.repeat_interleave(group_size, 0), mask.repeat_interleave(group_size, 0)
    rows = torch.arange(len(hidden), device=hidden.device)  # which response each row of the work is
    ids = torch.full((len(rows), max_tokens), policy.tokenizer.pad_token_id, device=hidden.device)
    log_probs = torch.zeros(ids.shape, device=hidden.device)
    lengths = torch.full_like(rows, max_tokens)
    finished = torch.zeros_like(rows, dtype=torch.bool)
    going = ~finished
    for t in range(max_tokens):
        token, log_prob = draw(hidden @ policy.head.T.to(hidden.dtype))
        ids[rows[going], t] = token[going, 0]
        log_probs[rows[going], t] = log_prob[going, 0]
        ends = going & (token[:, 0] == policy.tokenizer.eos_token_id)
        lengths[rows[ends]], finished[rows[ends]] = t + 1, True
        going = going & ~ends
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
    width = int(lengths.max())
    response_mask = torch.arange(width, device=ids.device) < lengths[:, None]
    texts = policy.tokenizer.batch_decode(
        [row[:n] for row, n in zip(ids.tolist(), (lengths - finished.long()).tolist(), strict=True)]
    )
    return Rollouts(
        [p for p in prompts for _ in range(group_size)],
        texts,
        [p for p in prompt_ids for _ in range(group_size)],
        ids[:, :width],
        response_mask,
        log_probs[:, :width],
        finished,
    )


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
        if not torch.isfinite(total).all():
            raise Diverged(
                "sampling: the policy's logits are not finite; its weights are broken, go back to a checkpoint"
            )
        at = torch.rand(len(p), 1, generator=self.generator, device=p.device, dtype=torch.float64) * total
        token = torch.searchsorted(summed, at, right=True).clamp(max=p.shape[-1] - 1)
        return token, log_p.gather(-1, token)


class _RoomyLayer(DynamicLayer):
    """Keys and values of a layer with room behind them: a token is written in place, not by copying all.

    Copying was a third of the time of sampling from the embedded policy.
    """

    filled = 0  # tokens

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
    pad = policy.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompt_ids], device=policy.device)
    lengths = torch.tensor([len(p) for p in prompt_ids], device=policy.device)
    positions = torch.arange(width, device=policy.device) - (width - lengths)[:, None]
    mask = positions >= 0
    causal = torch.ones(width, width, dtype=torch.bool, device=policy.device).tril()
    # A padded query sees itself only: a row of attention with nothing to see would be NaN.
    allowed = (causal & mask[:, None, :]) | torch.eye(width, dtype=torch.bool, device=policy.device)
    cache = Cache(layers=[_RoomyLayer() for _ in range(policy.causal_lm.config.num_hidden_layers)])
    out = policy.hidden(ids, attention_mask=allowed[:, None], position_ids=positions.clamp(min=0), cache=cache)
    return out.last_hidden_state[:, -1], mask, cache


def response_log_probs(policy: Policy, rollouts: Rollouts, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and exact entropy of every response token, each (B, T) fp32, nats; 0 outside the mask.

    One forward pass of the policy as it is now, with gradients where they are enabled.
    """
    mask = rollouts.response_mask
    log_probs, entropy = token_log_probs(
        contexts(policy, rollouts), rollouts.token_ids[mask], policy.head, temperature=temperature
    )
    blank = torch.zeros(mask.shape, device=mask.device)
    return blank.masked_scatter(mask, log_probs), blank.masked_scatter(mask, entropy)


def contexts(policy: Policy, rollouts: Rollouts) -> Tensor:
    """Hidden states (N, D) that predict the N response tokens, in row-major order of the mask."""
    packed = pack(rollouts)
    hidden = policy.hidden(
        packed.input_ids, attention_mask=packed.attention_mask, position_ids=packed.position_ids, use_cache=False
    ).last_hidden_state
    # Not by indexing: a prompt's last position predicts the first token of all its responses, and the backward
    # pass of indexing adds them up in whatever order the threads come.
    return hidden.flatten(0, 1).index_select(0, packed.predicting)


@dataclass(frozen=True)
class Packed:
    """Prompts and responses laid out in rows for one forward pass."""

    input_ids: Tensor
    """(R, L)"""
    position_ids: Tensor | None
    """(R, L), None where they just count"""
    attention_mask: Tensor | None
    """(R, 1, L, L) bool, None where plain causal attention serves"""
    predicting: Tensor
    """(N,) index into R * L of the position that predicts each response token, in row-major order of (B, T)"""


def pack(rollouts: Rollouts) -> Packed:
    """Each prompt once, followed by its responses, which see the prompt and themselves but not each other.

    Responses share a row while they share a prompt and the row would hold at most PACKED_ROW tokens with the longest
    of the prompts; where one row is too small they are shared out evenly, since the longest row sets the width of
    all. The last token of a response predicts nothing and is left out.
    """
    lengths = rollouts.response_mask.sum(-1).tolist()
    ids = rollouts.token_ids.tolist()
    rows: list[list[int]] = []  # responses of each row
    longest = max(map(len, rollouts.prompt_ids))  # one prompt a token shorter must not make a row twice as wide
    for _, group in itertools.groupby(rollouts.prompt_ids):
        first = sum(map(len, rows))
        shared = share_rows(longest, lengths[first : first + len(list(group))])
        rows += [(first + row).tolist() for row in shared]
    tokens, positions, owners, predicting = [], [], [], []
    for members in rows:
        prompt = rollouts.prompt_ids[members[0]]
        row, position, owner = list(prompt), list(range(len(prompt))), [0] * len(prompt)
        for i, b in enumerate(members):
            start, n = len(row), lengths[b] - 1
            predicting.append([len(prompt) - 1, *range(start, start + n)])
            row += ids[b][:n]
            position += range(len(prompt), len(prompt) + n)
            owner += [i + 1] * n
        tokens.append(row)
        positions.append(position)
        owners.append(owner)
    width = max(map(len, tokens))
    device = rollouts.token_ids.device
    at = [r for r, members in enumerate(rows) for _ in members]
    flat = np.concatenate([np.array(p) + r * width for r, p in zip(at, predicting, strict=True)])
    predicting = torch.from_numpy(flat).to(device)
    input_ids = _padded(tokens, width, 0).to(device)
    if len(rows) == len(rollouts):  # padding stands on the right, where causal attention never looks
        return Packed(input_ids, None, None, predicting)
    owner = _padded(owners, width, -1).to(device)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    return Packed(input_ids, _padded(positions, width, 0).to(device), (causal & seen)[:, None], predicting)


def share_rows(prompt: int, lengths: Sequence[int]) -> list[np.ndarray]:
    """Which responses of a prompt, of those lengths in tokens, share a row: in as few rows of even number as
    PACKED_ROW allows, or one a row."""
    for count in range(1, len(lengths) + 1):
        rows = np.array_split(np.arange(len(lengths)), count)
        if all(prompt + sum(lengths[b] - 1 for b in row) <= PACKED_ROW for row in rows):
            break
    return rows


def _padded(rows: list[list[int]], width: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
