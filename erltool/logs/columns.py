"""The choice of a log's columns for step, entropy and performance, by names and values.

Notes explain a guess. An error names the columns where no choice is possible.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.logs.formats import Table
from erltool.logs.metrics import MAIN, candidates, is_certain, is_loss, plain, rank, split_run, tool_of
from erltool.logs.rows import COUNTED
from erltool.text import listed, shown

ROUNDING = 1e-3  # nats below 0 to which rounding may take an entropy
MOST = 14.0  # nats a token; the uniform distribution over a million tokens has 13.8
LITTLE = 0.05  # nats; a loss that never exceeds it may be a coefficient times the entropy
BESIDE = 0.9  # fraction of entropies, and of performances, whose rows must have a step


@dataclass(frozen=True)
class Choice:
    """Columns by role."""

    columns: Mapping[str, str]
    candidates: Mapping[str, tuple[str, ...]]  # columns whose names fit a role, the likeliest first
    notes: tuple[str, ...]


def with_negated(table: Table, asked: Mapping[str, str], path: Path) -> Table:
    """A log's table with requested columns such as "-entropy_loss". Raises ErltoolError for a missing column."""
    numbers = table.numbers
    for name in asked.values():
        if name in numbers:
            continue
        if not name.startswith("-") or name[1:] not in numbers:
            raise ErltoolError(f"{shown(path)}: no column {shown(name)!r} with numbers; {nearest(name, numbers)}")
        numbers = numbers.assign(**{name: -numbers[name[1:]]})
    return replace(table, numbers=numbers)


def choose_columns(
    table: Table, kind: str, run: str, asked: Mapping[str, str], path: Path, need: Collection[str] = MAIN
) -> Choice:
    """The columns by role, requested or likeliest; of a chart of several runs those of `run`.

    A log may lack a performance where that is not in `need`. Raises ErltoolError, naming the columns, where none fits a
    role or the values of one do not.
    """
    numbers, columns = table.numbers, dict(asked)
    fitting = candidates(list(numbers), kind, run)
    notes: list[str] = []
    if "entropy" not in asked:
        columns["entropy"], notes = _entropy(numbers, fitting["entropy"], kind, path)
    elif asked["entropy"] in numbers and _is_below_zero(numbers[asked["entropy"]]):
        raise _below_zero(asked["entropy"], path)
    for role, names in fitting.items():
        if role not in (*columns, "step") and names:
            columns[role] = names[0]
    for role in ("entropy", "performance"):
        if role in columns and role not in asked:
            notes += _alike(role, columns[role], fitting[role], kind)
    if "performance" in need:
        _require("performance", columns, numbers, path)
    if "step" not in asked:
        columns["step"], more = _step(numbers, fitting["step"], columns, kind, path)
        notes += more
    for role in MAIN:
        if role not in need and role not in columns:
            continue
        _require(role, columns, numbers, path)
        _check(role, columns[role], table, path)
    order = sorted(columns, key=lambda role: MAIN.index(role) if role in MAIN else len(MAIN))
    return Choice({role: columns[role] for role in order}, {r: tuple(n) for r, n in fitting.items()}, tuple(notes))


def _entropy(numbers: pd.DataFrame, fitting: list[str], kind: str, path: Path) -> tuple[str, list[str]]:
    """The likeliest column of an entropy that is not below 0."""
    possible = [name for name in fitting if not _is_below_zero(numbers[name])]
    if not possible:
        raise _below_zero(fitting[0], path) if fitting else _none_for("entropy", numbers, path)
    name = possible[0]
    notes = [f"entropy: not {shown(other)}, which lies below 0" for other in fitting[: fitting.index(name)]]
    metric = split_run(name, kind)[1]
    if is_loss(metric) and not tool_of(kind, [split_run(other, kind)[1] for other in numbers]):
        if (most := numbers[name].max()) < LITTLE:
            raise ErltoolError(
                f"{shown(path)}: column {shown(name)!r} is a loss by its name and never exceeds {most:g} nats, as a "
                "coefficient times the entropy does; if it is the entropy, name it with --entropy COL"
            )
        notes.append("entropy: a loss by its name; in verl, OpenRLHF and slime that is the mean entropy, in other "
                     "tools perhaps a multiple of it")  # fmt: skip
    if not is_certain(metric):
        notes.append(f"entropy: guessed; {shown(metric, 40)} may be the entropy of something else")
    return name, notes


def _alike(role: str, name: str, fitting: list[str], kind: str) -> list[str]:
    """What is said where other columns fit a role as well as the chosen one, such as several evaluations."""
    ranks = [rank(role, split_run(other, kind)[1]) for other in fitting]
    others = ranks.count(rank(role, split_run(name, kind)[1])) - 1
    return [f"{role}: {shown(name, 40)} is the first of {others + 1} that fit as well"] if others > 0 else []


def _is_below_zero(entropy: pd.Series) -> bool:
    """Whether values lie below 0 by more than rounding, or most of them at all."""
    return bool(entropy.min() < -ROUNDING or entropy.median() < 0)


def _step(
    numbers: pd.DataFrame, fitting: list[str], columns: Mapping[str, str], kind: str, path: Path
) -> tuple[str, list[str]]:
    """The likeliest column of steps with values in the rows of entropies and of performances."""
    if not fitting:
        raise _none_for("step", numbers, path)
    beside = [numbers[columns[role]].notna() for role in ("entropy", "performance") if role in columns]
    shares = [min(numbers.loc[rows, name].notna().mean() for rows in beside) for name in fitting]
    if not np.max(shares) > 0:
        raise ErltoolError(
            f"{shown(path)}: no column of steps stands beside both entropy and performance; name one with --step COL "
            f"or columns={{'step': COL}}: {listed(fitting)}"
        )
    at = next((i for i, share in enumerate(shares) if share > BESIDE), int(np.argmax(shares)))
    name, notes = _fuller(numbers, fitting[at]), []
    if name == COUNTED:
        notes.append("step: counted, one a row of training, since the log has none")
    elif plain(split_run(name, kind)[1]) == "_step" or (kind == "W&B CSV" and name == "Step"):
        notes.append("step: W&B's own, which counts calls of its log and not updates")
    elif len(fitting) > 1 and kind != "erltool run":
        notes.append(f"step: {shown(name, 40)}, of {len(fitting)} the likeliest count of updates beside both")
    return name, notes


def _fuller(numbers: pd.DataFrame, name: str) -> str:
    """verl's own `step` for its metric training/global_step, which the validation before the first update lacks."""
    if name != "training/global_step" or "step" not in numbers:
        return name
    steps = numbers[name].dropna()
    return "step" if (numbers["step"][steps.index] == steps).all() else name


def _check(role: str, name: str, table: Table, path: Path) -> None:
    """Raises ErltoolError for values that do not fit their role."""
    where = f"{shown(path)}: column {shown(name)!r}"
    if name in table.unclear:
        raise ErltoolError(f"{where} does not tell whether 1,234 is 1.234 or 1234; write decimal points only")
    if role == "entropy" and (most := table.numbers[name].median()) > MOST:
        raise ErltoolError(
            f"{where} is about {most:.3g}, more nats a token than any vocabulary allows; if it is a sum or in percent, "
            "bring it to nats a token, else name another with --entropy COL"
        )
    if lacking := table.percents.get(name):
        raise ErltoolError(f"{where} has a percent sign in some rows and none in {lacking} others; mend it")
    if name in table.percents and role != "performance":
        raise ErltoolError(f"{where} is in percent, so it is no {role}; choose another with --{role}")


def _require(role: str, columns: Mapping[str, str], numbers: pd.DataFrame, path: Path) -> None:
    if columns.get(role) not in numbers:
        raise _none_for(role, numbers, path)


# Tools that leave the entropy out of a log, by columns that tell them, and where it is instead.
ELSEWHERE = (
    (
        {"current_steps", "percentage"},
        "LLaMA-Factory writes no entropy here; train with report_to: tensorboard and give that folder",
    ),
    (
        {"Training Loss", "reward"},
        "a notebook's table leaves the entropy out; give a checkpoint's trainer_state.json, or the file of "
        "trainer.state.save_to_json(FILE)",
    ),
)


def _none_for(role: str, numbers: pd.DataFrame, path: Path) -> ErltoolError:
    for columns, why in ELSEWHERE if role == "entropy" else ():
        if columns <= set(numbers):
            return ErltoolError(f"{shown(path)}: {why}")
    return ErltoolError(
        f"{shown(path)}: no column found for {role}; name it with --{role} COL or columns={{{role!r}: COL}}; "
        f"{nearest(role, numbers)}"
    )


def _below_zero(name: str, path: Path) -> ErltoolError:
    return ErltoolError(
        f"{shown(path)}: column {shown(name)!r} lies below 0, as no entropy of tokens does; if it is minus the "
        "entropy, say so with --entropy=-COL or columns={'entropy': '-COL'}, else name another"
    )


def nearest(name: str, table: pd.DataFrame) -> str:
    """The columns of a table for an error's line, those most like `name` first."""
    near = difflib.get_close_matches(name, list(table), n=8, cutoff=0.3)
    return f"the columns are {listed(near + [c for c in table if c not in near])}"
