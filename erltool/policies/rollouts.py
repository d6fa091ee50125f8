"""Responses of a group in columns, and scoring them again with gradients.

Where the model allows it, responses share the work on their prompt: a row holds the prompt once and its responses
after it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from erltool.entropy.log_probs import token_log_probs
from erltool.policies.policy import Policy

PACKED_ROW = 512  # most tokens in a row of several responses


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
        rows = torch.as_tensor(rows)
        there = rows.to(self.token_ids.device, non_blocking=True)
        width = int(self.response_mask[there].sum(-1).max())
        return Rollouts(*(_take(getattr(self, f.name), rows.tolist(), there, width) for f in fields(self)))


def _take(column, rows: list[int], there: Tensor, width: int):
    if isinstance(column, list):
        return [column[r] for r in rows]
    return column[there][:, :width] if column.ndim == 2 else column[there]


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
    width = policy.causal_lm.get_input_embeddings().weight.shape[-1]  # a model's own head has no shape
    packed = pack(rollouts, policy.path.rows == "packed", width)
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


def pack(rollouts: Rollouts, shared: bool = True, hidden: int = PACKED_ROW) -> Packed:
    """Each prompt once, followed by its responses, which see the prompt and themselves but not each other; or, not
    `shared`, a row for each response.

    Responses share a row while they share a prompt and the row would hold at most min(PACKED_ROW, `hidden`) tokens with
    the longest of the prompts: beyond, attention to masked tokens costs more than a prompt read once saves, and sooner
    the narrower the model is. Where one row is too small they are shared out evenly, since the longest row sets the
    width of all. The last token of a response predicts nothing and is left out.
    """
    lengths = rollouts.response_mask.sum(-1).tolist()
    ids = rollouts.token_ids.tolist()
    rows: list[list[int]] = []  # responses of each row
    longest = max(map(len, rollouts.prompt_ids))  # one prompt a token shorter must not make a row twice as wide
    for _, group in itertools.groupby(rollouts.prompt_ids):
        first = sum(map(len, rows))
        of_group = lengths[first : first + len(list(group))]
        parts = share_rows(longest, of_group, hidden) if shared else np.arange(len(of_group))[:, None]
        rows += [(first + part).tolist() for part in parts]
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


def share_rows(prompt: int, lengths: Sequence[int], hidden: int) -> list[np.ndarray]:
    """Which responses of a prompt, of those lengths in tokens, share a row of a model `hidden` wide: in as few rows of
    even number as min(PACKED_ROW, hidden) tokens a row allow, or one a row."""
    most = min(PACKED_ROW, hidden)
    for count in range(1, len(lengths) + 1):
        rows = np.array_split(np.arange(len(lengths)), count)
        if all(prompt + sum(lengths[b] - 1 for b in row) <= most for row in rows):
            break
    return rows


def _padded(rows: list[list[int]], width: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
