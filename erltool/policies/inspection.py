"""Anyone's rollouts as tokens with everything that our widgets show: what a file lacks is scored by a local model.

The tokens of a text are those of the policy's tokenizer. They are exact where the file has token ids, or where decoding
gives the text back and the number of log-probs agrees; everywhere else `Inspection.notes` says what is approximate.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from erltool.controls.base import Control, NoControl
from erltool.entropy.advantages import group_advantages, scaled
from erltool.entropy.covariance import as_tokens, token_covariance
from erltool.entropy.log_probs import TokenStatistics
from erltool.entropy.tokens import Tokens
from erltool.errors import ErltoolError
from erltool.logs.rollouts import RolloutFile
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts, response_statistics
from erltool.runs.folder import PUSH_COLUMNS, TOKEN_COLUMNS
from erltool.tables import Table
from erltool.text import listed

SCORED = 4096  # tokens in a forward pass, about
ALIKE = 0.05  # nats; mean difference of log-probs up to which two policies count as the same


@dataclass(frozen=True)
class Inspection:
    """The tokens of a file's rollouts, an update for each of its steps."""

    tokens: pd.DataFrame
    """One row a token, columns as in runs.TOKEN_COLUMNS (without `entropy` where it is not known), and PUSH_COLUMNS
    where a policy has scored them; what `TokenInspector` opens."""
    notes: tuple[str, ...]
    """What a reader must know, and what is approximate."""
    control: Control
    rewarded: bool = True
    """Whether the file has rewards; otherwise the column `reward` holds each response's advantage."""

    def table(self) -> pd.DataFrame:
        return self.tokens

    def top(self, count: int = 10, by: str = "covariance") -> pd.DataFrame:
        """The `count` tokens with the highest value, the highest first; of equal ones the earlier first."""
        return self.tokens.sort_values(by, ascending=False, kind="stable").head(count)


class _Encoded(NamedTuple):
    """The tokens of each response, and of its prompt."""

    prompts: list[list[int]]
    responses: list[list[int]]
    notes: list[str]


def inspect_rollouts(
    file: RolloutFile,
    policy: Policy | None = None,
    *,
    control: Control | None = None,
    advantages: str = "grpo",
    temperature: float = 1.0,
    progress: Callable[[int], object] = lambda done: None,
) -> Inspection:
    """The tokens of `read_rollouts`, with log-probs, entropy and advantages made where the file lacks them.

    Without a policy the file needs token ids and log-probs. What the file has stays; with a policy, push is the
    policy's, and log-probs and entropy are where the file has none. Advantages are the file's, else by the estimator
    `advantages` from the rewards of each group. Covariance and the choice of `control` are over all responses of a
    step. `progress` gets the number of responses that were scored.

    Raises ErltoolError for what is missing, groups of one without advantages, and prompts too long for the model.
    """
    table, chosen = file.table, control if control is not None else NoControl()
    encoded = _encode(table, policy)
    notes = [*file.notes, *encoded.notes]
    known = [_known(table, name, encoded.responses, notes) for name in ("log_probs", "old_log_probs", "entropy")]
    statistics = None
    if policy is not None:
        statistics = _scored(policy, encoded, temperature, progress)
        notes += _compared(known[0] or known[1], statistics, encoded)
    elif known[0] is None and known[1] is None:
        raise ErltoolError("inspect: the file has no log-probs of its tokens; give --policy, a model that scores them")
    of_file = _advantages(table, advantages, notes)
    frames = []
    for step, rows in table.groupby("step").indices.items():
        tokens = _tokens(table, rows, encoded, known, statistics, of_file)
        frames.append(_frame(int(step), table, rows, encoded, tokens, statistics, chosen, policy))
    frame = pd.concat(frames, ignore_index=True)
    rewarded = bool(np.isfinite(table["reward"]).all())
    if not rewarded:
        notes.append("the file has no rewards: the column reward holds each response's advantage")
    if "entropy" not in frame:
        notes.append("no entropy is known: give --policy to score it")
    return Inspection(Table(frame), tuple(dict.fromkeys(notes)), chosen, rewarded)


# --- tokens -------------------------------------------------------------------------------------------


def _encode(table: pd.DataFrame, policy: Policy | None) -> _Encoded:
    """Token ids of prompts and responses: the file's, else those of the policy's tokenizer."""
    notes: list[str] = []
    if policy is None:
        if "token_ids" not in table or table["token_ids"].isna().any():
            raise ErltoolError("inspect: the file has no token ids; give --policy, a model with their tokenizer")
        blank: list[list[int]] = [[] for _ in range(len(table))]
        return _Encoded(list(table["prompt_ids"]) if "prompt_ids" in table else blank, list(table["token_ids"]), notes)
    given = table["token_ids"].notna() if "token_ids" in table else pd.Series(False, index=table.index)
    tokenizer = policy.tokenizer
    most = len(tokenizer)
    responses: list[list[int]] = []
    unlike, changed = 0, 0
    for has, text, ids in zip(given, table["response"], table.get("token_ids", given), strict=True):
        if has:
            if max(ids, default=0) >= most:
                raise ErltoolError(f"inspect: token id {max(ids)} is beyond the policy's {most}; give the same model")
            unlike += bool(text) and str(tokenizer.decode(ids, skip_special_tokens=True)).strip() != text.strip()
        else:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            changed += tokenizer.decode(ids) != text
            ids = ids or [policy.ends[0]]  # it ended at once
        responses.append(list(ids))
    if unlike:
        notes.append(f"approximate: the token ids of {unlike} responses decode to another text than the file's")
    if changed:
        notes.append(f"approximate: the tokens of {changed} responses do not decode to their text again")
    if not given.all():
        notes.append("approximate: the file has text and no token ids, so how it was split at sampling, and whether an "
                     "EOS ended it, is not known")  # fmt: skip
    return _Encoded(_prompts(table, policy, notes), responses, notes)


def _prompts(table: pd.DataFrame, policy: Policy, notes: list[str]) -> list[list[int]]:
    """Token ids of the prompts: the file's, those of the chat template, or those of the policy's template."""
    if "prompt_ids" in table and table["prompt_ids"].notna().all():
        return [list(ids) for ids in table["prompt_ids"]]
    if "messages" in table and table["messages"].notna().all() and policy.tokenizer.chat_template:
        try:
            texts = [
                policy.tokenizer.apply_chat_template(list(m), tokenize=False, add_generation_prompt=True)
                for m in table["messages"]
            ]
        except Exception as e:  # a chat template is a program that came with the model
            raise ErltoolError(f"inspect: the chat template refuses the prompts ({type(e).__name__})") from e
        return [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if policy.tokenizer.chat_template and policy.template.name == "none":
        notes.append("approximate: the prompts are scored as the text that the file has; --template chat puts the "
                     "policy's chat template around them")  # fmt: skip
    unique = list(dict.fromkeys(table["prompt"]))
    ids = dict(zip(unique, policy.encode(unique), strict=True))
    if any(not found for found in ids.values()):
        raise ErltoolError("inspect: a prompt has no tokens; name the column with --prompt")
    return [ids[prompt] for prompt in table["prompt"]]


def _known(table: pd.DataFrame, name: str, responses: list[list[int]], notes: list[str]) -> list[list[float]] | None:
    """A list of the file for each response, where its lengths are those of the tokens."""
    if name not in table or table[name].isna().any():
        return None
    values = [list(v) for v in table[name]]
    off = [len(v) - len(r) for v, r in zip(values, responses, strict=True)]
    if set(off) == {0}:
        return values
    if set(off) <= {0, 1} and "token_ids" not in table:  # the last is that of an EOS, which the text does not show
        notes.append(f"approximate: {sum(off)} responses have one {name} more than tokens, taken for that of an EOS")
        return [v[: len(r)] for v, r in zip(values, responses, strict=True)]
    wrong = sum(o != 0 for o in off)
    notes.append(f"approximate: {name} of {wrong} responses do not agree with their tokens in number and are left out")
    return None


# --- numbers ------------------------------------------------------------------------------------------


def _scored(policy: Policy, encoded: _Encoded, temperature: float, progress) -> list[TokenStatistics]:
    """The statistics of each response's tokens, (T,) each, on the CPU."""
    longest = policy.longest
    lengths = [len(p) + len(r) for p, r in zip(encoded.prompts, encoded.responses, strict=True)]
    if longest and max(lengths) > longest:
        raise ErltoolError(f"inspect: a response ends at token {max(lengths)}, and the policy has {longest} positions")
    found: list[TokenStatistics] = []
    start = 0
    while start < len(lengths):
        stop = start + 1
        while stop < len(lengths) and (stop + 1 - start) * max(lengths[start : stop + 1]) <= SCORED:
            stop += 1
        rollouts = _rollouts(encoded, range(start, stop), policy.device)
        with torch.no_grad():
            columns = [c.cpu() for c in response_statistics(policy, rollouts, temperature)]
        found += [TokenStatistics(*(c[b, : len(encoded.responses[start + b])] for c in columns))
                  for b in range(stop - start)]  # fmt: skip
        progress(stop - start)
        start = stop
    return found


def _rollouts(encoded: _Encoded, rows: range, device) -> Rollouts:
    ids, mask = _padded([encoded.responses[r] for r in rows], torch.long)
    blank = [""] * len(rows)
    columns = ids.to(device), mask.to(device), torch.zeros(mask.shape, device=device), mask.any(-1).to(device)
    return Rollouts(blank, blank, [encoded.prompts[r] for r in rows], *columns)


def _padded(values: Sequence[Sequence], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Lists as rows (B, T) with 0 behind, and the mask of what they hold."""
    width = max(map(len, values))
    rows = torch.tensor([[*v, *[0] * (width - len(v))] for v in values], dtype=dtype)
    return rows, torch.arange(width) < torch.tensor([[len(v)] for v in values])


def _compared(given: list[list[float]] | None, statistics: list[TokenStatistics], encoded: _Encoded) -> list[str]:
    """How far the policy's log-probs are from the file's."""
    if given is None:
        return []
    ours = torch.cat([s.log_probs for s in statistics])
    off = (torch.tensor(list(itertools.chain(*given))) - ours).abs().mean().item()
    text = f"the policy's log-probs differ from the file's by {off:.3f} nats in the mean"
    if off <= ALIKE:
        return [f"{text}: it is the policy that sampled, or close to it"]
    return [f"approximate: {text}: entropy and push are those of another policy than the one that sampled"]


def _advantages(table: pd.DataFrame, estimator: str, notes: list[str]) -> list[float | list[float]]:
    """The advantage of each response, or of each of its tokens."""
    if "advantage" in table and table["advantage"].notna().all():
        return list(table["advantage"])
    made = torch.zeros(len(table), dtype=torch.float64)
    sizes = table.groupby(["step", "group"]).size()
    in_groups = estimator != "reinforce++"  # whose baseline is the mean of the step
    if in_groups and (sizes < 2).all():
        raise ErltoolError("inspect: every prompt has one response, and a group of one has no advantage; give groups, "
                           "by --group-size or --group")  # fmt: skip
    if in_groups and (alone := int((sizes < 2).sum())):
        notes.append(f"{alone} prompts have one response, whose advantage is 0")
    rewards = torch.tensor(table["reward"].to_numpy(float), dtype=torch.float64)
    over_step = estimator == "reinforce++-baseline"  # divides by the step's deviation, over groups of any sizes
    for rows in table.groupby(["step", "group"] if in_groups else "step").indices.values():
        if len(rows) > 1:
            made[rows] = group_advantages(rewards[rows], len(rows), "dr_grpo" if over_step else estimator)
    for rows in table.groupby("step").indices.values() if over_step else ():
        if len(rows) > 1:
            made[rows] = scaled(made[rows], made[rows])
    notes.append(f"the advantages are made from the rewards, by {estimator}")
    return made.float().tolist()


def _tokens(table, rows, encoded, known, statistics, advantages) -> Tokens:
    """A step's tokens."""
    of_rows = [encoded.responses[r] for r in rows]
    mask = _padded(of_rows, torch.long)[1]

    def scored(field: str) -> Tensor | None:
        return None if statistics is None else _padded([getattr(statistics[r], field).tolist() for r in rows])[0]

    log_probs, old, entropy = (None if values is None else _padded([values[r] for r in rows])[0] for values in known)
    now = log_probs if log_probs is not None else scored("log_probs")
    now, old = (old if now is None else now), (now if old is None else old)
    assert now is not None and old is not None  # inspect_rollouts has refused a file with neither
    of_tokens = [advantages[r] if isinstance(advantages[r], list) else [advantages[r]] * len(encoded.responses[r])
                 for r in rows]  # fmt: skip
    if any(len(a) != len(r) for a, r in zip(of_tokens, of_rows, strict=True)):
        raise ErltoolError("inspect: advantages and tokens of a response differ in number; give token ids")
    if "mask" in table:
        sampled = [table["mask"].iloc[r] or [True] * len(encoded.responses[r]) for r in rows]
        mask &= _padded(sampled, torch.bool)[0]
    rewards = torch.tensor(table["reward"].to_numpy(float)[rows], dtype=torch.float32)
    sizes = table.iloc[rows].groupby("group").size()
    return Tokens(
        now, old, _padded(of_tokens)[0], mask,
        token_entropy=scored("token_entropy") if entropy is None else entropy,
        rewards=rewards if rewards.isfinite().all() else None,
        group_size=int(sizes.iloc[0]) if sizes.nunique() == 1 else None,
        entropy_slope=scored("entropy_slope"), gradient_norm=scored("gradient_norm"),
    ).without_padding()  # fmt: skip


def _frame(step, table, rows, encoded, tokens: Tokens, statistics, control: Control, policy) -> pd.DataFrame:
    """A step's tokens as a table."""
    mask = tokens.response_mask
    choice = control.choose(tokens, generator=torch.Generator().manual_seed(0))
    response, position = (x.numpy() for x in mask.nonzero().T)
    of_row = table.iloc[rows].reset_index(drop=True)
    ids = _padded([encoded.responses[r] for r in rows], torch.long)[0]
    reward = of_row["reward"].to_numpy(float)
    if not np.isfinite(reward).all():
        reward = (as_tokens(tokens.advantages, mask).sum(-1) / mask.sum(-1).clamp(min=1)).numpy()
    columns = {
        "token_id": ids, "log_prob": tokens.log_probs, "old_log_prob": tokens.old_log_probs,
        "entropy": tokens.token_entropy, "advantage": tokens.advantages,
        "covariance": token_covariance(tokens.advantages, tokens.log_probs, mask), "selected": choice.selected,
    }  # fmt: skip
    if statistics is not None:
        columns |= {"push": tokens.push, "dose": tokens.dose}
    of_group = of_row.groupby("group").cumcount().to_numpy()
    prompts = [
        _decoded(policy, encoded.prompts[r]) if not p else p for r, p in zip(rows, of_row["prompt"], strict=True)
    ]
    made = {name: value[mask].numpy() for name, value in columns.items() if value is not None} | {
        "step": step, "prompt_index": of_row["group"].to_numpy()[response], "response_index": of_group[response],
        "position": position, "prompt": [prompts[b] for b in response], "reward": reward[response],
    }  # fmt: skip
    texts = {i: _decoded(policy, [i]) for i in set(made["token_id"].tolist())}
    made["text"] = [texts[i] for i in made["token_id"].tolist()]
    return pd.DataFrame({name: made[name] for name in (*TOKEN_COLUMNS, *PUSH_COLUMNS) if name in made})


def _decoded(policy: Policy | None, ids: list[int]) -> str:
    """The text of tokens; without a tokenizer, their ids."""
    return str(policy.tokenizer.decode(ids)) if policy is not None else " ".join(f"#{i}" for i in ids)


def summary(inspection: Inspection) -> str:
    """The inspection's means, a line each: responses, reward, entropy, covariance, and what the control takes."""
    t = inspection.tokens
    responses = t.drop_duplicates(["step", "prompt_index", "response_index"])
    prompts = t.drop_duplicates(["step", "prompt_index"])
    steps = listed(sorted({str(s) for s in t["step"]}), 4)
    lines = [
        f"step {steps}: {len(responses)} responses to {len(prompts)} prompts, {len(t)} tokens",
        (f"reward {responses['reward'].mean():.3f}, " if inspection.rewarded else "no rewards, ")
        + f"sampled NLL {-t['log_prob'].mean():.3f} nats/token"
        + (f", entropy {t['entropy'].mean():.3f} nats/token" if "entropy" in t else ""),
        f"mean covariance {t['covariance'].mean():+.4f} nats"
        + (f", mean push {1000 * t['push'].mean():+.3f} mnats" if "push" in t else ""),
    ]
    if inspection.control != NoControl():
        taken = t["selected"].to_numpy()
        share = t["covariance"].clip(lower=0).to_numpy()
        held = share[taken].sum() / share.sum() if share.sum() else 0.0
        lines.append(
            f"{inspection.control.name} would act on {int(taken.sum())} tokens, {taken.mean():.2%}, "
            f"which hold {held:.0%} of the positive covariance"
        )
    return "\n".join(lines)
