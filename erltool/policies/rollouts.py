"""Responses in columns, and their log-probs with gradients.

Where the model allows it, responses share the work on their prompt: a row holds the prompt once, then its responses.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from erltool.entropy.log_probs import TokenStatistics, token_statistics
from erltool.policies.heads import weight_of
from erltool.policies.policy import Policy

PACKED_ROW = 512  # the most tokens in a row of several responses
SHARED_FROM = 16  # tokens that prompts must begin with alike to share their reading


@dataclass(frozen=True)
class Rollout:
    """One response to a prompt."""

    prompt: str
    response: str
    token_ids: list[int]
    """Tokens of the response, its EOS included."""
    log_probs: list[float]
    """Of these tokens under the sampling policy, nats."""
    stop_reason: str
    """"eos", or "length" where the length limit cut it."""


@dataclass(frozen=True)
class Rollouts:
    """B responses in columns; the responses of a group are adjacent."""

    prompts: list[str]
    """(B,) prompt of each response."""
    responses: list[str]
    """(B,) text without EOS. Not to be trusted: never evaluate it, never show it as markup."""
    prompt_ids: list[list[int]]
    """(B,) tokens of the prompts."""
    token_ids: Tensor
    """(B, T) tokens of the responses, EOS included, padded on the right."""
    response_mask: Tensor
    """(B, T) bool, True on response tokens."""
    log_probs: Tensor
    """(B, T) under the sampling policy, nats; 0 outside the mask."""
    finished: Tensor
    """(B,) bool: the response ended with EOS; the length limit did not cut it."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, row: int) -> Rollout:
        ids = self.response_ids[row]
        return Rollout(
            self.prompts[row],
            self.responses[row],
            list(ids),
            self.log_probs[row, : len(ids)].tolist(),
            "eos" if self.finished[row] else "length",
        )

    @cached_property
    def response_ids(self) -> list[list[int]]:
        """(B,) tokens of the responses without padding, read from the device once; `take` hands them on."""
        lengths = self.response_mask.sum(-1).tolist()
        return [ids[:n] for ids, n in zip(self.token_ids.tolist(), lengths, strict=True)]

    def take(self, rows: Sequence[int] | Tensor | slice) -> "Rollouts":
        """The responses `rows`, in this order, with no more padding than they need."""
        there: slice | Tensor
        if isinstance(rows, slice):  # spares a GPU's host the sending of an index for each column
            there, listed = rows, list(range(len(self))[rows])
        else:
            index = torch.as_tensor(rows)
            there, listed = index.to(self.token_ids.device, non_blocking=True), index.tolist()
        response_ids = [self.response_ids[r] for r in listed]
        width = max(map(len, response_ids))
        taken = Rollouts(*(_take(getattr(self, f.name), listed, there, width) for f in fields(self)))
        vars(taken)["response_ids"] = response_ids
        return taken

    def distinct(self) -> tuple[list[int], Tensor]:
        """Responses that differ in prompt or tokens from all before them, and (B,) which of them each response equals,
        by number, on the CPU."""
        number: dict[tuple, int] = {}
        first: list[int] = []
        place = []
        for b, (prompt, tokens) in enumerate(zip(self.prompt_ids, self.response_ids, strict=True)):
            key = (*prompt, None, *tokens)
            if key not in number:
                number[key] = len(first)
                first.append(b)
            place.append(number[key])
        return first, torch.tensor(place)


def _take(column, rows: list[int], there: slice | Tensor, width: int):
    if isinstance(column, list):
        return [column[r] for r in rows]
    return column[there][:, :width] if column.ndim == 2 else column[there]


def concatenate(batches: Sequence[Rollouts]) -> Rollouts:
    """Several Rollouts as one."""
    width = max(batch.token_ids.shape[1] for batch in batches)

    def joined(name: str):
        columns = [getattr(batch, name) for batch in batches]
        if isinstance(columns[0], list):
            return [value for column in columns for value in column]
        if columns[0].ndim == 2:
            columns = [torch.nn.functional.pad(column, (0, width - column.shape[1])) for column in columns]
        return torch.cat(columns)

    return Rollouts(*(joined(f.name) for f in fields(Rollouts)))


def response_log_probs(policy: Policy, rollouts: Rollouts, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and exact entropy of every response token, each (B, T) fp32, nats; 0 outside the mask. One
    forward pass, with gradients where they are enabled."""
    return response_statistics(policy, rollouts, temperature)[:2]


def response_statistics(policy: Policy, rollouts: Rollouts, temperature: float = 1.0) -> TokenStatistics:
    """`TokenStatistics` of every response token, each (B, T) fp32; 0 outside the mask. One forward pass."""
    mask = rollouts.response_mask
    columns = token_statistics(
        contexts(policy, rollouts), rollouts.token_ids[mask], policy.head, temperature=temperature
    )
    blank = torch.zeros(mask.shape, device=mask.device)
    return TokenStatistics(*(blank.masked_scatter(mask, column) for column in columns))


def contexts(policy: Policy, rollouts: Rollouts) -> Tensor:
    """Hidden states (N, D) that predict the N response tokens, in row-major order of the mask."""
    packed = pack(rollouts, policy.path.rows == "packed", weight_of(policy.causal_lm.get_input_embeddings()).shape[-1])
    hidden = policy.hidden(
        packed.input_ids, attention_mask=packed.attention_mask, position_ids=packed.position_ids, use_cache=False
    ).last_hidden_state
    # Not by indexing, whose backward pass adds gradients in an order that depends on the threads: the last position of
    # a prompt predicts the first token of all its responses.
    return hidden.flatten(0, 1).index_select(0, packed.predicting)


@dataclass(frozen=True)
class Packed:
    """Prompts and responses arranged in rows for one forward pass."""

    input_ids: Tensor  # (R, L)
    position_ids: Tensor | None  # (R, L); None for 0, 1, 2, ...
    attention_mask: Tensor | None  # (R, 1, L, L) bool; None for plain causal attention
    predicting: Tensor
    """(N,) index into R * L of the position that predicts each response token, in row-major order of (B, T)"""


def pack(rollouts: Rollouts, shared: bool = True, hidden: int = PACKED_ROW) -> Packed:
    """Rows of a prompt and its responses, which see the prompt and themselves but not each other.

    Responses to a prompt share a row of up to min(PACKED_ROW, `hidden`) tokens, counted with the longest prompt: in
    longer rows attention to masked tokens costs more than reading a prompt once saves, and more so in a narrow model.
    Responses that need several rows are spread evenly, since the longest row sets the width of all; short rows are put
    together up to that width. Prompts that begin alike (a system prompt, worked examples) share a row of up to
    min(PACKED_ROW, `hidden`) tokens, which holds their beginning once. Without `shared` each response has its own row.
    The last token of a response predicts nothing and is left out.
    """
    ids = rollouts.response_ids
    common, families = 0, [[[b]] for b in range(len(rollouts))]
    if shared:
        common = common_beginning(rollouts.prompt_ids)
        families = _families_of_rows(rollouts.prompt_ids, [len(i) for i in ids], common, min(PACKED_ROW, hidden))
    rows: list[_Row] = []
    places = [(0, [0])] * len(rollouts)  # of each response: its row, and where in it its tokens are predicted
    for of_row in families:
        row, begun = _Row(), common if len(of_row) > 1 else 0
        row.add(rollouts.prompt_ids[of_row[0][0]][:begun], 0, 0, 0)
        for family, members in enumerate(of_row, 1):
            prompt = rollouts.prompt_ids[members[0]]
            row.add(prompt[begun:], begun, family, 0)
            last = len(row.tokens) - 1
            for owner, b in enumerate(members, 1):
                start = len(row.tokens)
                row.add(ids[b][:-1], len(prompt), family, owner)
                places[b] = len(rows), [last, *range(start, len(row.tokens))]
        rows.append(row)
    width, device = max(len(row.tokens) for row in rows), rollouts.token_ids.device
    flat = np.concatenate([np.array(predicting) + row * width for row, predicting in places])
    index = torch.from_numpy(flat).to(device)
    input_ids = _padded([row.tokens for row in rows], width, 0).to(device)
    if len(rows) == len(rollouts):  # padding is on the right, where causal attention does not look
        return Packed(input_ids, None, None, index)
    seen = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    for parts in ([row.families for row in rows], [row.owners for row in rows]):
        part = _padded(parts, width, -1).to(device)
        seen = seen & ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None]))
    positions = _padded([row.positions for row in rows], width, 0).to(device)
    return Packed(input_ids, positions, seen[:, None], index)


@dataclass
class _Row:
    """A row being packed. A token sees those before it whose family and owner are its own or 0."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    families: list[int] = field(default_factory=list)  # number of the prompt; 0 for what all prompts begin with
    owners: list[int] = field(default_factory=list)  # number of the response to it; 0 for the prompt

    def add(self, tokens: list[int], position: int, family: int, owner: int) -> None:
        """Adds tokens, of which the first has this position."""
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        self.families += [family] * len(tokens)
        self.owners += [owner] * len(tokens)


def common_beginning(prompt_ids: Sequence[list[int]]) -> int:
    """Tokens with which all prompts begin, without the last of any; 0 below SHARED_FROM, where sharing does not pay."""
    first, last = min(prompt_ids), max(prompt_ids)  # in the order of their tokens: what these share, all share
    least = min(map(len, prompt_ids)) - 1
    common = next((i for i in range(least) if first[i] != last[i]), least)
    return common if common >= SHARED_FROM else 0


def _families_of_rows(prompt_ids: list[list[int]], lengths: list[int], common: int, most: int) -> list[list[list[int]]]:
    """Responses in each row of at most `most` tokens, by prompt: of one, or of several where `common` is above 0."""
    longest = max(map(len, prompt_ids))  # so that a prompt one token shorter does not make a row twice as wide
    own = [n - 1 for n in lengths]
    families: list[list[int]] = []
    for _, group in itertools.groupby(prompt_ids):
        first = sum(map(len, families))
        of_group = own[first : first + len(list(group))]
        families += [(first + members).tolist() for members in _spread(longest, of_group, most)]
    if not common:
        sizes = [len(prompt_ids[family[0]]) + sum(own[b] for b in family) for family in families]
        if len(families) == len(own) and max(sizes) > most:  # long rows of one response need no mask
            return [[family] for family in families]
        return [[families[f] for f in row] for row in _filled(sizes)]
    sizes = [longest - common + sum(own[b] for b in family) for family in families]
    return [[families[f] for f in row] for row in _spread(common, sizes, most)]


def share_rows(prompt: int, lengths: Sequence[int], hidden: int) -> list[np.ndarray]:
    """Indices of the responses in each row, for responses of these lengths to a prompt of `prompt` tokens, in a model
    of this width."""
    return _spread(prompt, [n - 1 for n in lengths], min(PACKED_ROW, hidden))


def _spread(shared: int, own: Sequence[int], most: int) -> list[np.ndarray]:
    """Indices of the parts in each row. A part has so many tokens of its `own`, and a row has the `shared` ones once.
    The rows are the fewest of even size that hold at most `most` tokens, or have one part each."""
    for count in range(1, len(own) + 1):
        rows = np.array_split(np.arange(len(own)), count)
        if all(shared + sum(own[i] for i in row) <= most for row in rows):
            break
    return rows


def _filled(sizes: Sequence[int]) -> list[list[int]]:
    """Indices of the parts of these sizes in each row, where no row is longer than the longest part: the longest comes
    first, and each goes into the first row that has room."""
    rows: list[list[int]] = []
    room: list[int] = []
    longest = max(sizes)
    for part in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r, left in enumerate(room) if left >= sizes[part]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(longest)
        rows[row].append(part)
        room[row] -= sizes[part]
    return rows


def _padded(rows: list[list[int]], width: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
