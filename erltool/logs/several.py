"""Several runs in one log: how they are told apart and named, and which one is read.

A column with names of runs divides them. Without one, the steps with an entropy do, in the file's order. Where they
fall back, or another event file, table or cell begins, the same run goes on or another one begins:

- All steps come after the earlier ones, or all before: the same run.
- They begin in the later half of the earlier steps and go on beyond the last: the same run, resumed from a checkpoint;
  steps that it did again replace the earlier ones.
- Anything else, such as a new start from the first step: two runs, and the reader has to choose.

Where most steps still have several entropies, nothing tells the runs apart, and the log is refused.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.logs.folders import chosen, not_chosen
from erltool.logs.formats import Table
from erltool.logs.metrics import RUN_NAME, rank, split_run
from erltool.logs.rows import SOURCE
from erltool.text import shown

LATER = 0.5  # fraction of a run's steps that a resumed one may do again
SHUFFLED = 0.25  # falls per measurement, above which rows have no order
MOST_SECTIONS = 1000
MOST_NAMES = 64  # different texts in a column that may name runs
ARM = re.compile(r"arm|control|condition|config|method|variant|algo(rithm)?|group", re.I)  # each run with several seeds


@dataclass
class Run:
    """The rows of one run, by position, and its sorted steps with an entropy."""

    rows: list[np.ndarray]
    steps: np.ndarray
    again: int = 0  # rows left out because the resumed run did them again

    @property
    def positions(self) -> np.ndarray:
        return np.sort(np.concatenate(self.rows))

    def goes_on(self, steps: np.ndarray) -> bool:
        """Whether sorted steps belong to this run, too."""
        if not len(self.steps) or not len(steps) or steps[0] > self.steps[-1] or steps[-1] < self.steps[0]:
            return True
        again = np.mean(self.steps >= steps[0])
        further = steps[-1] > self.steps[-1] or not np.isin(steps, self.steps).any()
        return bool(steps[0] > self.steps[0] and again <= LATER and further)

    def join(self, rows: np.ndarray, steps: np.ndarray, step: np.ndarray) -> None:
        if np.isin(steps, self.steps).any():
            kept = [positions[~(step[positions] >= steps[0])] for positions in self.rows]
            self.again += sum(map(len, self.rows)) - sum(map(len, kept))
            self.rows, self.steps = kept, self.steps[self.steps < steps[0]]
        self.rows.append(rows)
        self.steps = np.union1d(self.steps, steps)


@dataclass(frozen=True)
class Taken:
    """One run of a log."""

    table: Table
    name: str = ""
    names: tuple[str, ...] = ()  # of all runs, where there are several
    again: int = 0
    """As in Run."""


def named_run(table: Table, kind: str, columns: Mapping[str, str], run: str | None, path: Path) -> Taken:
    """The requested or only run, of those that a folder, a column or a chart's columns name.

    A chart's column in `columns` requests its run. Raises ErltoolError, naming the runs.
    """
    if (texts := _naming_column(table)) is not None:
        names = tuple(map(str, texts.dropna().unique()))
        name = chosen(names, run, path)
        if len(names) == 1:
            return Taken(table, name)
        table.skipped["rows that name no run"] += int(texts.isna().sum())
        return Taken(table.rows(np.flatnonzero(texts.astype(str) == name)), name, names)
    metrics = (split_run(name, kind) for name in table.numbers)
    main = ("entropy", "performance")
    charted = dict.fromkeys(of for of, m in metrics if of and any(rank(role, m) is not None for role in main))
    if charted:
        mapped = (split_run(columns[role], kind)[0] for role in main if role in columns)
        name = chosen(charted, run or next(filter(None, mapped), None), path)
        return Taken(table, name, tuple(charted) if len(charted) > 1 else ())
    return Taken(table, table.run.removeprefix("."))


def _naming_column(table: Table) -> pd.Series | None:
    """The names of runs by row, from a column with several names or else one; None without such a column.

    A column of seeds beside it tells runs of one name apart: "clip-cov-seed3".
    """
    texts = {name: table.texts[name] for name in table.texts if RUN_NAME.fullmatch(name)}
    numbers = {name: values for name, values in table.numbers.items()
               if RUN_NAME.fullmatch(name) and (values.dropna() % 1 == 0).all()}  # fmt: skip
    texts |= {name: values.map("{:g}".format, na_action="ignore") for name, values in numbers.items()}
    several = [values for values in texts.values() if 1 < values.nunique() <= MOST_NAMES]
    single = [values for name, values in texts.items() if values.nunique() == 1 and name not in numbers]
    seeds = next((values for name, values in texts.items() if name.lower() == "seed"), None)
    if seeds is not None and seeds.nunique() <= MOST_NAMES:
        arms = [table.texts[name] for name in table.texts if ARM.fullmatch(name)]
        for names in (v for v in several + arms if v is not seeds and 1 < v.nunique() <= MOST_NAMES):
            if seeds.groupby(names).nunique().max() > 1:
                return names.astype(str).where(names.notna()) + "-seed" + seeds
    return next(iter(several + single), None)


def run_by_steps(taken: Taken, columns: Mapping[str, str], run: str | None, path: Path) -> Taken:
    """The requested or only run, by steps and sections of the log. Raises ErltoolError, naming the runs."""
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
    kept = table.rows(at)
    if (performance := columns.get("performance")) in kept.numbers and performance not in kept.percents:
        several = kept.numbers.groupby(columns["step"])[performance].nunique()
        if (count := int((several > 1).sum())) > LATER * (several > 0).sum():
            said = f"performance: {count:,} steps have several values of it, of which the last counts"
            kept = replace(kept, notes=(*kept.notes, said))
    return Taken(kept, name, names, one.again)


def _separating_text(texts: pd.DataFrame, step: np.ndarray, measured: np.ndarray) -> pd.Series | None:
    """A column of texts that separates runs: most steps are measured several times, but once for each text."""
    if not measured.any() or pd.Series(step[measured]).duplicated(keep=False).mean() <= LATER:
        return None
    for name in texts.columns.drop(SOURCE, errors="ignore"):
        groups = pd.DataFrame({"text": texts[name], "step": step})[measured].dropna()
        if 1 < groups["text"].nunique() <= MOST_NAMES and groups.duplicated().mean() < 0.02:
            return texts[name]
    return None


def _refuse_mixed(step: np.ndarray, entropy: np.ndarray, path: Path) -> None:
    """Raises ErltoolError where most steps of a run have several entropies."""
    beside = pd.Series(entropy).groupby(step, sort=False).nunique() > 1
    if beside.sum() >= 3 and beside.mean() > LATER:
        raise ErltoolError(
            f"{shown(path)}: {beside.sum():,} of {len(beside):,} steps have several entropies side by side; give the "
            "log of one run, or add a column run with the runs' names"
        )


def runs_of(step: np.ndarray, measured: np.ndarray, source: np.ndarray, path: Path) -> list[Run]:
    """The runs among rows in the file's order.

    By row, (n,): `step` or NaN, whether an entropy and a step are `measured`, and `source`, the section of the log.
    Raises ErltoolError where steps fall back too often to tell runs apart.
    """
    runs: list[Run] = []
    for rows in _sections(step, measured, source, path):
        steps = np.unique(step[rows[measured[rows]]])
        if runs and runs[-1].goes_on(steps):
            runs[-1].join(rows, steps, step)
        else:
            runs.append(Run([rows], steps))
    return runs


def _sections(step: np.ndarray, measured: np.ndarray, source: np.ndarray, path: Path) -> list[np.ndarray]:
    """Rows between falls of the measured steps or changes of source."""
    seen = np.flatnonzero(measured)
    falls = np.diff(step[seen]) < 0
    if falls.sum() > SHUFFLED * len(seen):
        falls = np.zeros_like(falls)
    new = falls | (source[seen][1:] != source[seen][:-1])
    if new.sum() >= MOST_SECTIONS:
        raise ErltoolError(f"{shown(path)}: its steps fall back {new.sum():,} times; sort it by run and step")
    begins = []
    for before, at in zip(seen[:-1][new], seen[1:][new], strict=True):
        # Rows without an entropy, such as an evaluation before the first update, belong to the next section.
        first = step[at]
        while at - 1 > before and source[at - 1] == source[at] and step[at - 1] <= first:
            at -= 1
        begins.append(at)
    return np.split(np.arange(len(step)), begins)


def _pick(runs: list[Run], texts: pd.DataFrame, run: str | None, path: Path) -> tuple[Run, str, tuple[str, ...]]:
    """The requested run, its name, and the names of all. Raises ErltoolError, naming the runs."""
    names = _names(runs, texts)
    if run is not None and run in names:
        return runs[names.index(run)], run, tuple(names) if len(runs) > 1 else ()
    if len(runs) == 1:
        raise ErltoolError(f"{shown(path)}: no run {shown(run)!r}; it holds a single one, so leave the name out")
    spans = [f"{name} (steps {r.steps[0]:g} to {r.steps[-1]:g})" for name, r in zip(names, runs, strict=True)]
    raise not_chosen(names, run, path, spans)


def _names(runs: list[Run], texts: pd.DataFrame) -> list[str]:
    """Names of runs: their source, another text that is different in each, or else numbers."""
    for name in sorted(texts, key=lambda name: name != SOURCE):
        values = [list(texts[name].iloc[r.positions].dropna().unique()) for r in runs]
        firsts = [str(v[0]) for v in values if v]
        alone = name == SOURCE or all(len(v) == 1 for v in values)
        if len(set(firsts)) == len(runs) and alone:
            return firsts
    return [str(i) for i in range(1, len(runs) + 1)]
