"""Other tools' logs as points of entropy and performance, and as runs.

`read_log` reads the logs of other trainers (formats.py), guesses by name which columns are step, entropy and
performance (metrics.py), tells several runs apart (several.py), and reports its choices; `columns`, `unit` and `run`
correct them. `align_points` averages the entropy before each measurement of performance.
"""

import contextlib
import json
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from erltool import tables
from erltool.errors import ErltoolError
from erltool.files import write_whole, writing
from erltool.law.units import unit_of
from erltool.logs.columns import Choice, choose_columns, with_negated
from erltool.logs.formats import KINDS, Table, detect, read_table
from erltool.logs.metrics import ALL_ROLES, MAIN, entropy_average, has_role, is_sum_of_rewards, split_run, tool_of
from erltool.logs.several import Taken, named_run, run_by_steps
from erltool.logs.text import Counts
from erltool.runs.folder import METRICS, read_run
from erltool.runs.writer import RunWriter
from erltool.text import listed, shown

CLOCKS = ("_runtime", "_timestamp", "timestamp", "time", "epoch")  # columns that differ within a step


@dataclass(frozen=True)
class Log:
    """A log: the roles of its columns, its numbers, and what was skipped."""

    path: Path
    kind: str  # the format, one of formats.KINDS
    columns: Mapping[str, str]  # column by role: step, entropy, performance, and further keys of METRICS
    candidates: Mapping[str, tuple[str, ...]]  # columns whose names fit a role, the likeliest first
    metrics: pd.DataFrame
    """One row a step, sorted. The columns are the file's, numbers or NaN."""
    unit: str
    """Of performance: "fraction", "percentage points" or "as given"."""
    entropy_average: str  # which average the entropy is, as far as the log shows
    skipped: Mapping[str, int]  # counts of what was not used or was corrected, by reason
    unit_stated: bool = False
    """Whether the caller or a percent sign states the unit; otherwise name and values suggest it."""
    run: str = ""  # the run's name, where the log names it or has several runs
    runs: tuple[str, ...] = ()  # the names of all runs, where there are several
    notes: tuple[str, ...] = ()  # guesses and decisions, a sentence each
    percents: frozenset[str] = frozenset()  # columns with percent signs

    def points(self, window: float | None = None) -> pd.DataFrame:
        """The points of `align_points`, with `unit` and `entropy_average` in `.attrs`, too."""
        step, entropy, performance = (self.metrics[self.columns[r]] for r in MAIN)
        points = align_points(step, entropy, performance, window)
        points.attrs.update(unit=self.unit, entropy_average=self.entropy_average)
        return points


def align_points(step, entropy, performance, window: float | None = None) -> pd.DataFrame:
    """A point for each measurement of performance, with the mean entropy of the `window` steps up to it.

    step, entropy and performance are (n,), in any order, NaN where a step has no measurement. A measurement at step s
    averages the entropies at steps in (s - window, s]; without any it gives no point. By default `window` is the median
    gap between measurements, so that the windows tile the run, and 1 for a single measurement.

    Returns columns step, entropy (nats), performance (unit as given) and averaged, the number of entropies in the mean.
    `.attrs` has the `window` and the number of measurements `dropped`. Raises ErltoolError for different lengths or a
    window not above 0.
    """
    step, entropy, performance = (np.asarray(a, dtype=float).ravel() for a in (step, entropy, performance))
    if not len(step) == len(entropy) == len(performance):
        counts = f"{len(step)} steps, {len(entropy)} entropies and {len(performance)} performances"
        raise ErltoolError(f"align_points: {counts}; give as many of each")
    order = np.argsort(step, kind="stable")
    step, entropy, performance = step[order], entropy[order], performance[order]
    measured = np.isfinite(performance) & np.isfinite(step)
    seen = np.isfinite(entropy) & np.isfinite(step)
    at, values = step[seen], entropy[seen]
    ends, performance = step[measured], performance[measured]
    if window is None:
        gaps = np.diff(np.unique(ends))
        window = float(np.median(gaps)) if len(gaps) else 1.0
    if not (np.isfinite(window) and window > 0):
        raise ErltoolError(f"align_points: window={window}: must be a positive number of steps")
    first, last = (np.searchsorted(at, edge, side="right") for edge in (ends - window, ends))
    kept = last > first
    means = [values[i:j].mean() for i, j in zip(first[kept], last[kept], strict=True)]
    points = pd.DataFrame({
        "step": ends[kept], "entropy": np.array(means, dtype=float), "performance": performance[kept],
        "averaged": (last - first)[kept],
    })  # fmt: skip
    points.attrs.update(window=float(window), dropped=int((~kept).sum()))
    return points


def read_log(
    path: str | Path, *, columns: Mapping[str, str] | None = None, kind: str | None = None, unit: str | None = None,
    run: str | None = None,
) -> Log:  # fmt: skip
    """The log of another tool, or the folder of an erltool run.

    `columns` names columns of the file by role, {"performance": "val-core/aime24/acc/mean@32"}; {"entropy":
    "-entropy_loss"} takes minus that column. `kind`, one of formats.KINDS, corrects the format, and `unit`, one of
    law.units.UNITS, the unit of performance. `run` names one of several runs. A run that was resumed in the same log is
    one run (several.py). Of several values of a column at one step the last one counts.

    Raises ErltoolError for a missing, empty or damaged file or one that is no log, a missing column, a log without
    step, entropy or performance, an entropy below 0, an unclear decimal sign, several runs without `run`, or mixed
    units.
    """
    return read_part(path, columns=columns, kind=kind, unit=unit, run=run, need=MAIN)


def read_part(
    path: str | Path, *, columns: Mapping[str, str] | None = None, kind: str | None = None, unit: str | None = None,
    run: str | None = None, need: Collection[str] = ("step", "entropy"),
) -> Log:  # fmt: skip
    """As `read_log`, of a log that may still lack a role that is not in `need`."""
    path, asked, run = Path(path), dict(columns or {}), None if run is None else str(run)
    _check_asked(path, asked, kind)
    try:
        kind = kind or detect(path)
        table, imported = _table(path, kind, asked, run)
    except OSError as e:
        raise ErltoolError(f"{shown(path)}: cannot be read ({e.strerror or shown(e)}); make it readable") from e
    return log_of(path, kind, table, asked, unit, run, imported, need)


def log_of(
    path: Path, kind: str, table: Table, asked: Mapping[str, str], unit: str | None, run: str | None, imported: dict,
    need: Collection[str] = MAIN,
) -> Log:  # fmt: skip
    """The log in a table: its run, columns and unit, as `read_log`; the roles in `need` must be there."""
    table = with_negated(table, asked, path)
    taken = named_run(table, kind, asked, run, path)
    choice = choose_columns(taken.table, kind, taken.name, asked, path, need)
    taken = run_by_steps(taken, choice.columns, None if run == taken.name else run, path)
    choice = choose_columns(taken.table, kind, taken.name, asked, path, need)
    return _log(path, kind, taken, choice, unit, imported)


def _check_asked(path: Path, asked: Mapping[str, str], kind: str | None) -> None:
    if not path.exists():
        raise ErltoolError(f"{shown(path)}: no such file or folder")
    if unknown := set(asked) - set(ALL_ROLES):
        roles = ", ".join(map(shown, sorted(unknown)))
        raise ErltoolError(f"columns: no role {roles}; the roles are {', '.join(ALL_ROLES)}")
    if kind not in (None, *KINDS):
        raise ErltoolError(f"kind {shown(kind)!r}: not known; use one of {', '.join(KINDS)}")


def _table(path: Path, kind: str, asked: Mapping[str, str], run: str | None) -> tuple[Table, dict]:
    """A log's table, and for an imported erltool run the origin in its config."""
    mapped = {*asked.values(), *(name.removeprefix("-") for name in asked.values())}
    imported = None
    if kind == "erltool run":
        own = read_run(path)
        numbers = own.metrics.select_dtypes("number").astype(float)
        skipped = Counts({"unreadable lines": own.skipped_lines})
        table = Table(numbers, pd.DataFrame(index=numbers.index), {}, frozenset(), skipped)
        imported = json.loads((path / "config.json").read_text(encoding="utf-8")).get("imported")
    else:
        table = read_table(path, kind, lambda name: name in mapped or has_role(name), run)
    if table.numbers.empty:
        why = "".join(f"; skipped: {n} {reason}" for reason, n in table.skipped.items() if n)
        raise ErltoolError(f"{shown(path)}: read as {kind}, and holds no numbers{why}; is it the right file?")
    train, evaluation = (f"{where}/global_step" for where in ("train", "eval"))
    if {train, evaluation} <= set(table.numbers):  # OpenRLHF on W&B: evaluations have a step of their own
        table.numbers[train] = table.numbers[train].fillna(table.numbers[evaluation])
    return table, imported if isinstance(imported, dict) else {}


def _log(path: Path, kind: str, taken: Taken, choice: Choice, unit: str | None, imported: dict) -> Log:
    table, columns, skipped = taken.table, choice.columns, taken.table.skipped
    skipped["rows that the run did again after it was resumed"] += taken.again
    counters = set(choice.candidates.get("step", ())) - {columns["step"]}
    metrics = tables.Table(_by_step(table.numbers, columns["step"], counters, skipped))  # columns of any name
    entropy, performance = columns["entropy"], columns.get("performance", "")
    stated = unit or ("percentage points" if performance in table.percents else None)
    if kind == "erltool run" and performance == "eval_accuracy":
        stated = stated or "fraction"
    try:
        values = metrics[performance] if performance else []
        unit = unit_of(values, stated, name=f"column {split_run(performance, kind)[1]!r}")
    except ErltoolError as e:
        raise ErltoolError(f"{shown(path)}: {shown(e, 300)} (--unit, unit=)") from e
    if stated is None and is_sum_of_rewards(performance, table.numbers):
        unit = "as given"
    tool = tool_of(kind, [split_run(name, kind)[1] for name in table.numbers])
    average = entropy_average(kind, tool, split_run(entropy, kind)[1])
    if imported and entropy == "policy_entropy":
        average = shown(imported.get("entropy_average", average), 200)
    return Log(
        path, kind, columns, choice.candidates, metrics, unit, average, {r: n for r, n in skipped.items() if n},
        stated is not None, taken.name, taken.names, (*table.notes, *choice.notes), frozenset(table.percents),
    )  # fmt: skip


def _by_step(table: pd.DataFrame, step: str, counters: set[str], skipped: Counts) -> pd.DataFrame:
    """One row a step, sorted, with the last value of each column. `skipped` counts what is lost; other `counters` of
    steps, such as a tracker's count of calls, differ within a step and are not missed."""
    rows = table.dropna(subset=[step])
    skipped["rows without a step"] += len(table) - len(rows)
    skipped["rows out of order"] += int((rows[step].diff() < 0).sum())
    apart = [name for name in (*counters, *CLOCKS) if name != step]
    twice = rows[rows.duplicated(step, keep=False)].drop(columns=apart, errors="ignore")
    again = twice.groupby(step).nunique()  # or an evaluation's row
    skipped["duplicated steps, of which the last value wins"] += int((again > 1).any(axis=1).sum())
    return rows.groupby(step, sort=True).last().reset_index().astype(float)


def write_run(log: Log, folder: str | Path, window: float | None = None) -> dict:
    """Writes a log as the folder of a run, which `read_run` opens. Returns "imported" of its config.json.

    metrics.jsonl has the columns with a role under the names of METRICS: entropy as policy_entropy, performance as
    eval_accuracy in fractions, for evaluations with an aligned point. Where the log has no entropy at an evaluation's
    step, policy_entropy is the point's mean; config.json counts these, and has source, run, unit and columns. Columns
    outside the [0, 1] of their name are left out, and named in its "left_out". `iteration` counts the rows. Raises
    ErltoolError for performance that
    is neither fraction nor percentage, steps that are not whole, or a folder that is not empty.
    """
    folder, step, name = Path(folder), log.columns["step"], log.columns["performance"]
    scale = {"fraction": 1, "percentage points": 100}.get(log.unit)
    if scale is None or not (log.metrics[name].dropna() / scale).between(0, 1).all():
        raise ErltoolError(
            f"{shown(log.path)}: {shown(name)!r} is neither a fraction nor percentage points, so it cannot become "
            "eval_accuracy; fit the log itself, or choose another with --performance, or state its --unit"
        )
    if (log.metrics[step] % 1 != 0).any():
        raise ErltoolError(f"{shown(log.path)}: steps in {shown(step)!r} are not whole; choose another with --step")
    points = log.points(window)
    rows = pd.DataFrame({"step": log.metrics[step].astype(int), "iteration": range(len(log.metrics))})
    left_out = []
    for role, column in log.columns.items():
        values = log.metrics[column] / (100 if column in log.percents else 1)
        if role in METRICS and role != "step":
            if METRICS[role][0] != "in [0, 1]" or values.dropna().between(0, 1).all():
                rows[role] = values
            else:
                left_out.append(role)
    aligned = points.set_index(points["step"].astype(int))
    entropy = log.metrics[log.columns["entropy"]]
    rows["policy_entropy"] = entropy.fillna(rows["step"].map(aligned["entropy"]))
    rows["eval_accuracy"] = rows["step"].map(aligned["performance"]) / scale
    imported = {
        "source": log.path.name, "kind": log.kind, "run": log.run, "columns": dict(log.columns), "unit": log.unit,
        "left_out": left_out,
        "entropy_average": log.entropy_average, "window": points.attrs["window"], "skipped": dict(log.skipped),
        "measurements_without_entropy": points.attrs["dropped"],
        "entropies_that_are_window_means": int(rows["policy_entropy"].notna().sum() - entropy.notna().sum()),
    }  # fmt: skip
    lines = [json.dumps({k: v for k, v in row.items() if v == v}) for row in rows.to_dict("records")]
    document = {"config": {"steps": int(rows["step"].max())}, "made_by": {}, "imported": imported}
    with contextlib.closing(RunWriter(folder, document, resume=False)), writing(folder):
        write_whole(folder / "metrics.jsonl", ("\n".join(lines) + "\n").encode())
    return imported


def log_report(log: Log, window: float | None = None) -> str:
    """A log's columns and their alternatives, unit, average of the entropy, run, guesses, counts of what was skipped,
    and first and last points, as lines of at most 80 columns that are safe for a terminal."""
    points, steps = log.points(window), log.metrics[log.columns["step"]]
    width = log.metrics.shape[1]
    lines = [f"{log.kind}: {shown(log.path)}"]
    lines += [f"{len(steps)} steps from {steps.min():.6g} to {steps.max():.6g}, {width} columns of numbers"]
    for role, name in log.columns.items():
        others = [other for other in log.candidates.get(role, ()) if other != name]
        lines += [f"  {role:21}{shown(name, 56)}"] + [f"{'':20}or {shown(other, 56)}" for other in others[:3]]
        if len(others) > 3:
            lines += [f"{'':20}or one of {len(others) - 3} more"]
    lines += said_of(log)
    lines += [f"skipped: {n:,} {shown(reason, 56)}" for reason, n in log.skipped.items()]
    if dropped := points.attrs["dropped"]:
        lines += [f"skipped: {dropped:,} measurements of performance without an entropy in the window"]
    window = points.attrs["window"]
    lines += [f"{len(points)} points, entropy averaged over the {window:g} steps up to each measurement"]
    if len(points):
        rows = points if len(points) <= 6 else pd.concat([points[:3], points[-3:]])
        lines += [rows.to_string(index=False, float_format="{:.6g}".format)]
    return "\n".join(lines)


def said_of(log: Log) -> list[str]:
    """The decisions about a log beside its columns, as lines of at most 80 columns that are safe for a terminal."""
    decisions = [f"entropy: {shown(log.entropy_average, 200)}", f"performance: {_unit_words(log)}"]
    if log.run:
        others = [name for name in log.runs if name != log.run]
        beside = f", of {len(log.runs)}; others are {listed(others, 4)}" if others else ""
        decisions.append(f"run: {shown(log.run)}{beside}")
    return [line for text in (*decisions, *log.notes) for line in textwrap.wrap(text, 80, subsequent_indent="  ")]


def _unit_words(log: Log) -> str:
    name = log.columns["performance"]
    if log.unit_stated:
        how = "by its percent signs" if name in log.percents else "as stated"
        return f"{'fractions' if log.unit == 'fraction' else log.unit}, {how}"
    return {
        "fraction": "taken as fractions, because every value lies in [0, 1]",
        "percentage points": "taken as percentage points, by its name and values above 1",
        "as given": "taken as given; by name and values neither fractions nor percentages",
    }[log.unit]
