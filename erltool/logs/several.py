"""Several runs in one log: told from a run that was resumed, named, and the one that was asked for.

A column that names runs divides them. Without one, the steps at which entropy was measured do, in the file's order;
where they fall back, or another event file, table or cell begins, either the same run goes on or another begins:

- all steps lie behind those before them, or all before them: the same run;
- they begin after the first and in the later half of the steps before them, and go on beyond the last: the same run,
  resumed from a checkpoint; what it did again replaces what it had done;
- anything else, as a start over from the first step, or from the middle without going further: not clear, so they are
  two runs, and a reader has to choose.

Where most steps have several entropies without any of these, nothing tells the runs apart, and the log is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.logs.folders import chosen, not_chosen
from erltool.logs.formats import Table
from erltool.logs.metrics import RUN_NAME, rank, split_run
from erltool.logs.rows import SOURCE
from erltool.text import shown

LATER = 0.5  # share of a run's steps that a resumed one may do again
SHUFFLED = 0.25  # falls back per measurement above which rows are in no order at all
MOST_PARTS = 1000
MOST_NAMES = 64  # different texts in a column that may name runs


@dataclass
class Run:
    """Rows of one run, by position, and the steps at which its entropy was measured, sorted."""

    rows: list[np.ndarray]
    steps: np.ndarray
    again: int = 0
    """Rows that a resumed run did again, which are left out."""

    @property
    def positions(self) -> np.ndarray:
        return np.sort(np.concatenate(self.rows))

    def goes_on(self, steps: np.ndarray) -> bool:
        """Whether steps, sorted, are of this run too."""
        if not len(self.steps) or not len(steps) or steps[0] > self.steps[-1] or steps[-1] < self.steps[0]:
            return True
        again = np.mean(self.steps >= steps[0])
        further = steps[-1] > self.steps[-1] or not np.isin(steps, self.steps).any()
        return bool(steps[0] > self.steps[0] and again <= LATER and further)

    def join(self, rows: np.ndarray, steps: np.ndarray, step: np.ndarray) -> None:
        if np.isin(steps, self.steps).any():
            kept = [part[~(step[part] >= steps[0])] for part in self.rows]
            self.again += sum(map(len, self.rows)) - sum(map(len, kept))
            self.rows, self.steps = kept, self.steps[self.steps < steps[0]]
        self.rows.append(rows)
        self.steps = np.union1d(self.steps, steps)


@dataclass(frozen=True)
class Taken:
    """One run of a log."""

    table: Table
    name: str = ""
    names: tuple[str, ...] = ()
    """Of all runs, where there are several."""
    again: int = 0
    """Rows that the run did again after it was resumed, which are left out."""


def named_run(table: Table, kind: str, columns: Mapping[str, str], run: str | None, path: Path) -> Taken:
    """Of runs that a folder, a column or a chart's columns name, the one asked for, or the only one.

    A chart's column that is asked for by name, in `columns`, says of which run. Raises ErltoolError that names them.
    """
    if (texts := _naming_column(table)) is not None:
        names = tuple(map(str, texts.dropna().unique()))
        name = chosen(names, run, path)
        if len(names) == 1:
            return Taken(table, name)
        table.skipped["rows that name no run"] += int(texts.isna().sum())
        return Taken(table.rows(np.flatnonzero(texts.astype(str) == name)), name, names)
    charted = dict.fromkeys(of for of, metric in (split_run(n, kind) for n in table.numbers) if of and _is_main(metric))
    if charted:
        mapped = (split_run(columns[role], kind)[0] for role in ("entropy", "performance") if role in columns)
        name = chosen(charted, run or next(filter(None, mapped), None), path)
        return Taken(table, name, tuple(charted) if len(charted) > 1 else ())
    return Taken(table, table.run.removeprefix("."))


def _is_main(metric: str) -> bool:
    return any(rank(role, metric) is not None for role in ("entropy", "performance"))


def _naming_column(table: Table) -> pd.Series | None:
    """The names of runs by row, of a column with several before one with a single one; None where no column does."""
    texts = {name: table.texts[name] for name in table.texts if RUN_NAME.fullmatch(name)}
    numbers = {name: values for name, values in table.numbers.items()
               if RUN_NAME.fullmatch(name) and (values.dropna() % 1 == 0).all()}  # fmt: skip
    texts |= {name: values.map("{:g}".format, na_action="ignore") for name, values in numbers.items()}
    several = [values for values in texts.values() if 1 < values.nunique() <= MOST_NAMES]
    single = [values for name, values in texts.items() if values.nunique() == 1 and name not in numbers]
    return next(iter(several + single), None)


def run_by_steps(taken: Taken, columns: Mapping[str, str], run: str | None, path: Path) -> Taken:
    """Of runs that only the steps, or the parts of the log, tell apart, the one asked for, or the only one.

    Raises ErltoolError that names the runs.
    """
    table = taken.table
    step, entropy = (table.numbers[columns[role]].to_numpy() for role in ("step", "entropy"))
    measured = np.isfinite(entropy) & np.isfinite(step)
    if (texts := _separating_text(table.texts, step, measured)) is not None:
        names = tuple(map(str, texts.dropna().unique()))
        name = chosen(names, run, path)
        return Taken(table.rows(np.flatnonzero(texts.astype(str) == name)), name, names)
    none = pd.Series("", table.texts.index)
    runs = runs_of(step, measured, table.texts.get(SOURCE, none).fillna("").to_numpy(), path)
    if len(runs) == 1 and run is None:
        one, name, names = runs[0], taken.name, taken.names
    else:
        one, name, names = _pick(runs, table.texts, run, path)
    at = one.positions
    _refuse_mixed(step[at][measured[at]], entropy[at][measured[at]], path)
    return Taken(table.rows(at), name, names, one.again)


def _separating_text(texts: pd.DataFrame, step: np.ndarray, measured: np.ndarray) -> pd.Series | None:
    """The texts of a column within each of which every step is measured once, where over all of them most are not."""
    if not measured.any() or pd.Series(step[measured]).duplicated(keep=False).mean() <= LATER:
        return None
    for name in texts.columns.drop(SOURCE, errors="ignore"):
        groups = pd.DataFrame({"text": texts[name], "step": step})[measured].dropna()
        if 1 < groups["text"].nunique() <= MOST_NAMES and groups.duplicated().mean() < 0.02:
            return texts[name]
    return None


def _refuse_mixed(step: np.ndarray, entropy: np.ndarray, path: Path) -> None:
    """Refuses rows of which nothing tells the run, where most steps have several entropies."""
    beside = pd.Series(entropy).groupby(step, sort=False).nunique() > 1
    if beside.sum() >= 3 and beside.mean() > LATER:
        raise ErltoolError(
            f"{shown(path)}: {beside.sum():,} of {len(beside):,} steps have several entropies side by side; give the "
            "log of one run, or rows with a column run that names theirs"
        )


def runs_of(step: np.ndarray, measured: np.ndarray, source: np.ndarray, path: Path) -> list[Run]:
    """The runs among rows in the file's order.

    `step` (n,) is NaN where there is none, `measured` (n,) whether a row has an entropy and a step, `source` (n,) the
    part of the log it comes from. Raises ErltoolError where steps fall back so often that no run can be told.
    """
    runs: list[Run] = []
    for rows in _parts(step, measured, source, path):
        steps = np.unique(step[rows[measured[rows]]])
        if runs and runs[-1].goes_on(steps):
            runs[-1].join(rows, steps, step)
        else:
            runs.append(Run([rows], steps))
    return runs


def _parts(step: np.ndarray, measured: np.ndarray, source: np.ndarray, path: Path) -> list[np.ndarray]:
    """Rows between one fall of the measured steps, or change of source, and the next."""
    seen = np.flatnonzero(measured)
    falls = np.diff(step[seen]) < 0
    if falls.sum() > SHUFFLED * len(seen):
        falls = np.zeros_like(falls)
    new = falls | (source[seen][1:] != source[seen][:-1])
    if new.sum() >= MOST_PARTS:
        raise ErltoolError(f"{shown(path)}: its steps fall back {new.sum():,} times; sort it by run and step")
    begins = []
    for before, at in zip(seen[:-1][new], seen[1:][new], strict=True):
        # Rows without an entropy, as an evaluation before the first update, belong to what follows them.
        first = step[at]
        while at - 1 > before and source[at - 1] == source[at] and step[at - 1] <= first:
            at -= 1
        begins.append(at)
    return np.split(np.arange(len(step)), begins)


def _pick(runs: list[Run], texts: pd.DataFrame, run: str | None, path: Path) -> tuple[Run, str, tuple[str, ...]]:
    """The run that was asked for, its name, and those of all. Raises ErltoolError that names them."""
    names = _names(runs, texts)
    if run in names:
        return runs[names.index(run)], run, tuple(names) if len(runs) > 1 else ()
    if len(runs) == 1:
        raise ErltoolError(f"{shown(path)}: no run {shown(run)!r}; it holds a single one, so leave the name out")
    spans = [f"{name} (steps {r.steps[0]:g} to {r.steps[-1]:g})" for name, r in zip(names, runs, strict=True)]
    raise not_chosen(spans, run, path)


def _names(runs: list[Run], texts: pd.DataFrame) -> list[str]:
    """Names of runs: their source, or another text that is one in each and differs between them; else numbers."""
    for name in sorted(texts, key=lambda name: name != SOURCE):
        values = [list(texts[name].iloc[r.positions].dropna().unique()) for r in runs]
        firsts = [str(v[0]) for v in values if v]
        alone = name == SOURCE or all(len(v) == 1 for v in values)
        if len(set(firsts)) == len(runs) and alone:
            return firsts
    return [str(i) for i in range(1, len(runs) + 1)]
