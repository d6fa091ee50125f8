"""Other people's logs as points of entropy and performance, and as runs.

`read_log` reads what other trainers leave behind (logformats.py lists the formats), guesses by name which columns are
step, entropy and performance, and says so; a wrong guess is corrected by `columns`. Performance is often measured at
fewer steps than entropy: `align_points` then averages the entropy over a stated window before each measurement.
"""

import contextlib
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.files import write_whole, writing
from erltool.fit import unit_of
from erltool.logformats import KINDS, Counts, detect, read_table, shown
from erltool.runs import METRICS, read_run
from erltool.runwriter import RunWriter

HELD_OUT = r"(^|/)(eval|val|test)(-core|-aux)?[/_]"
# What a role's column is called, the best name first: regular expressions on the lower-case name.
ROLES = {
    "step": (
        r"^(train/)?global_step$", r"^_step$", r"^steps?$", r"^training/global_step$",
        r"^(iteration|update|trainer/global_step)$",
    ),
    "entropy": (
        r"^policy_entropy$", r"^actor/entropy$", r"^(train/)?entropy$", r"^policy/entropy",
        r"^(train/|actor/)?entropy_(loss|mean|avg)$", r"entropy",
    ),
    "performance": (
        r"^eval_accuracy$", r"^val-core/.*/acc/mean@", r"^val-core/.*mean", r"^val-core/",
        HELD_OUT + r".*(acc|pass@?1\b|correct)", HELD_OUT + r"(eval_)?(reward|score)s?$",
        HELD_OUT + r".*(reward|score|pass@?\d)", r"accuracy", r"^(train/)?reward$|rewards?/mean$|score/mean$",
    ),
    "reward": (r"^(train/)?reward$", r"^critic/rewards/mean$", r"^(train/)?rewards?/mean$", r"^critic/score/mean$"),
    "response_entropy": (r"^response_entropy$",),
    "response_length": (r"^(train/)?response_length(/mean)?$", r"^(train/)?completions/mean_length$"),
    "truncated_fraction": (
        r"^(train/)?completions/clipped_ratio$", r"^response_length/clip_ratio$", r"^truncated_fraction$",
    ),
    "zero_spread_fraction": (r"^(train/)?frac_reward_zero_std$", r"^zero_spread_fraction$"),
    "clip_fraction": (r"^actor/pg_clipfrac$", r"^(train/)?clip_ratio/region_mean$", r"^clip_fraction$"),
    "kl_k1": (r"^actor/ppo_kl$", r"^kl_k1$"),
    "grad_norm": (r"^(actor/|train/)?grad_norm$",),
}  # fmt: skip
NOT_IT = {
    "entropy": r"coef|std|min|max|bonus|weight|target|change|response_entropy",
    "performance": r"std|min\b|max\b|worst|length|time|clip|frac_|num_|entropy|loss",
}
ENTROPY_AVERAGES = (
    (r"^policy_entropy$", "exact, mean over response tokens, if erltool wrote it; not Eq 5's mean over responses"),
    (r"^response_entropy$", "mean over each response, then over responses (Eq 5)"),
    (r"^actor/entropy", "token mean, under verl's default loss_agg_mode; not Eq 5's mean"),
    (r"entropy_loss$", "token mean, under OpenRLHF's token-level loss; not Eq 5's mean"),
    (r"^(train/)?entropy$", "token mean, if TRL wrote it; not Eq 5's mean over responses"),
)
UNKNOWN_AVERAGE = "not known: the log does not say over what it is averaged"


@dataclass(frozen=True)
class Log:
    """A log that was read: which column plays which role, its numbers, and what was skipped."""

    path: Path
    kind: str
    """The format, one of logformats.KINDS."""
    columns: Mapping[str, str]
    """Column by role: step, entropy, performance, and the keys of METRICS that were found beside them."""
    candidates: Mapping[str, tuple[str, ...]]
    """Columns whose names fit a role, the likeliest first."""
    metrics: pd.DataFrame
    """One row a step, sorted; the columns are the file's own, numbers or NaN."""
    unit: str
    """Of performance: "fraction", "percentage points" or "as given"."""
    entropy_average: str
    """Which average the entropy is, as far as its name tells."""
    skipped: Mapping[str, int]
    """What was not used, and what was mended, as counts by reason."""

    def points(self, window: float | None = None) -> pd.DataFrame:
        """The aligned points as `align_points` makes them; `.attrs` has their `unit` and `entropy_average` too."""
        step, entropy, performance = (self.metrics[self.columns[r]] for r in ("step", "entropy", "performance"))
        points = align_points(step, entropy, performance, window)
        points.attrs.update(unit=self.unit, entropy_average=self.entropy_average)
        return points


def align_points(step, entropy, performance, window: float | None = None) -> pd.DataFrame:
    """A point for each measurement of performance, with the mean entropy of the `window` steps up to it.

    step, entropy and performance are (n,), in any order, NaN where a step has no measurement. The mean is over the
    entropies measured at steps in (s - window, s], where s is the measurement's step. By default `window` is the
    median gap between measurements of performance, so that the windows tile the run: 1 where both are measured at
    every step, and for a single measurement. A measurement without an entropy in its window gives no point.

    Returns columns step, entropy (nats), performance (unit as given) and averaged, the entropies in the mean;
    `.attrs` has the `window` and the number of measurements `dropped`. Raises ErltoolError for arrays of different
    lengths or a window that is not a positive number.
    """
    step, entropy, performance = (np.asarray(a, dtype=float).ravel() for a in (step, entropy, performance))
    if not len(step) == len(entropy) == len(performance):
        raise ErltoolError(
            f"align_points: {len(step)} steps, {len(entropy)} entropies and {len(performance)} performances; "
            "give as many of each"
        )
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
    points = pd.DataFrame(
        {"step": ends[kept], "entropy": np.array(means, dtype=float), "performance": performance[kept]}
    )
    points["averaged"] = (last - first)[kept]
    points.attrs.update(window=float(window), dropped=int((~kept).sum()))
    return points


def read_log(path: str | Path, *, columns: Mapping[str, str] | None = None, kind: str | None = None) -> Log:
    """The log of another tool, or the folder of an erltool run.

    `columns` corrects the guess: a column's name in the file by role, {"performance": "val-core/aime24/acc/mean@32"};
    `kind`, one of logformats.KINDS, corrects the format. Several values of a column at one step: the last one wins.
    Raises ErltoolError, in one line with the remedy, for what is missing, empty, damaged or no log, for a column that
    is not there, where no step, entropy or performance is found, and for performance in two units.
    """
    path, columns = Path(path), dict(columns or {})
    if not path.exists():
        raise ErltoolError(f"{shown(path)}: no such file or folder")
    if unknown := set(columns) - set(ROLES):
        raise ErltoolError(
            f"columns: no role {', '.join(map(shown, sorted(unknown)))}; the roles are {', '.join(ROLES)}"
        )
    if kind not in (None, *KINDS):
        raise ErltoolError(f"kind {shown(kind)!r}: not known; use one of {', '.join(KINDS)}")
    try:
        kind = kind or detect(path)
        table, skipped = _table(path, kind, set(columns.values()))
    except OSError as e:
        raise ErltoolError(f"{shown(path)}: cannot be read ({e.strerror or shown(e)}); make it readable") from e
    candidates = _candidates(list(table), columns)
    for name in columns.values():
        if name not in table:
            raise ErltoolError(f"{shown(path)}: no column {shown(name)!r} with numbers; {_nearest(name, table)}")
    columns = {role: found[0] for role, found in candidates.items() if found} | columns
    for role in ("step", "entropy", "performance"):
        if role not in columns:
            raise ErltoolError(
                f"{shown(path)}: no column found for {role}; name it with --{role} COL or columns={{{role!r}: COL}}; "
                f"{_nearest(role, table)}"
            )
    metrics = _by_step(table, columns["step"], skipped)
    return Log(
        path, kind, columns, {role: tuple(names) for role, names in candidates.items()}, metrics,
        unit_of(metrics[columns["performance"]], name=f"column {shown(columns['performance'])!r}"),
        _entropy_average(columns["entropy"]),
        {reason: n for reason, n in skipped.items() if n},
    )  # fmt: skip


def _table(path: Path, kind: str, mapped: set[str]) -> tuple[pd.DataFrame, Counts]:
    if kind == "erltool run":
        run = read_run(path)
        return run.metrics.select_dtypes("number").astype(float), Counts({"unreadable lines": run.skipped_lines})

    def keep(name: str) -> bool:
        return name in mapped or any(_rank(role, name) is not None for role in ROLES) or name == "eval/global_step"

    table, skipped = read_table(path, kind, keep)
    if table.empty:
        why = "".join(f"; skipped: {n} {reason}" for reason, n in skipped.items())
        raise ErltoolError(f"{shown(path)}: read as {kind}, and holds no numbers{why}; is it the right file?")
    if {"train/global_step", "eval/global_step"} <= set(table):  # OpenRLHF on W&B: evaluations count in their own
        table["train/global_step"] = table["train/global_step"].fillna(table["eval/global_step"])
    return table, skipped


# --- which column is what ------------------------------------------------------------------------


def _base(name: str) -> tuple[str, str]:
    """The run and the metric of a W&B chart's column, "run - metric"; no run elsewhere."""
    run, _, metric = name.rpartition(" - ")
    return run, metric


def _rank(role: str, name: str) -> int | None:
    """The place of a column's name among those of a role; None where it does not fit."""
    metric = _base(name)[1].lower()
    if role in NOT_IT and re.search(NOT_IT[role], metric):
        return None
    return next((i for i, pattern in enumerate(ROLES[role]) if re.search(pattern, metric)), None)


def _candidates(names: list[str], mapped: Mapping[str, str]) -> dict[str, list[str]]:
    """Columns by role, the likeliest first, all of one run where a W&B chart holds several."""
    found = {}
    for role in ROLES:
        ranked = [(rank, i, name) for i, name in enumerate(names) if (rank := _rank(role, name)) is not None]
        found[role] = [name for _, _, name in sorted(ranked)]
    entropy = mapped.get("entropy") or next(iter(found["entropy"]), "")
    if run := _base(entropy)[0]:
        for role in set(ROLES) - {"step", "entropy"}:
            found[role] = [name for name in found[role] if _base(name)[0] == run]
    return found


def _nearest(name: str, table: pd.DataFrame) -> str:
    """The columns of a table for an error's text, those most like `name` first."""
    near = difflib.get_close_matches(name, list(table), n=8, cutoff=0.3)
    names = near + [c for c in table if c not in near]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"the columns are {', '.join(shown(n) for n in names[:12])}{more}"


def _entropy_average(name: str) -> str:
    metric = _base(name)[1].lower()
    return next((average for pattern, average in ENTROPY_AVERAGES if re.search(pattern, metric)), UNKNOWN_AVERAGE)


def _by_step(table: pd.DataFrame, step: str, skipped: Counts) -> pd.DataFrame:
    """One row a step, sorted; of several values of a column at one step the last. Counts what that took."""
    rows = table.dropna(subset=[step])
    skipped["rows without a step"] += len(table) - len(rows)
    skipped["rows out of order"] += int((rows[step].diff() < 0).sum())
    again = rows[rows.duplicated(step, keep=False)].groupby(step).nunique()  # evaluations may have a row of their own
    skipped["duplicated steps, of which the last value wins"] += int((again > 1).any(axis=1).sum())
    return rows.groupby(step, sort=True).last().reset_index().astype(float)


# --- a log as a run ------------------------------------------------------------------------------


def write_run(log: Log, folder: str | Path, window: float | None = None) -> dict:
    """Writes a log as the folder of a run, which `read_run` opens. Returns its config.json's "imported" part.

    metrics.jsonl has the mapped columns under the names of METRICS: entropy as policy_entropy, performance as
    eval_accuracy in fractions. An evaluation stands there where it has an aligned point; if the log has no entropy at
    that very step, policy_entropy is that point's mean, and how many are so is in config.json, beside source, unit
    and mapping. Mapped columns that leave the [0, 1] of their name are left out. `iteration` counts the rows.
    Raises ErltoolError for performance in an unknown unit, steps that are not whole, or a folder that holds something.
    """
    folder, step = Path(folder), log.columns["step"]
    if log.unit == "as given":
        raise ErltoolError(
            f"{shown(log.path)}: {shown(log.columns['performance'])!r} is neither a fraction nor percentage points, "
            "so it cannot become eval_accuracy; choose another with --performance"
        )
    if (log.metrics[step] % 1 != 0).any():
        raise ErltoolError(
            f"{shown(log.path)}: steps in {shown(step)!r} are not whole numbers; choose another with --step"
        )
    points = log.points(window)
    rows = pd.DataFrame({"step": log.metrics[step].astype(int), "iteration": range(len(log.metrics))})
    for role, name in log.columns.items():
        values = log.metrics[name]
        if (
            role in METRICS
            and role != "step"
            and not (METRICS[role][0] == "in [0, 1]" and not values.dropna().between(0, 1).all())
        ):
            rows[role] = values
    aligned = points.set_index(points["step"].astype(int))
    entropy = log.metrics[log.columns["entropy"]]
    rows["policy_entropy"] = entropy.fillna(rows["step"].map(aligned["entropy"]))
    rows["eval_accuracy"] = rows["step"].map(aligned["performance"]) / (100 if log.unit == "percentage points" else 1)
    imported = {
        "source": log.path.name, "kind": log.kind, "columns": dict(log.columns), "unit": log.unit,
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
    """What was read of a log, as lines of at most 80 columns that are safe for a terminal: columns and what else they
    might have been, unit, which entropy, what was skipped, and the first and last aligned points."""
    points, steps = log.points(window), log.metrics[log.columns["step"]]
    lines = [f"{log.kind}: {shown(log.path)}"]
    lines += [
        f"{len(steps)} steps from {steps.min():.6g} to {steps.max():.6g}, {log.metrics.shape[1]} columns of numbers"
    ]
    for role, name in log.columns.items():
        others = [other for other in log.candidates.get(role, ()) if other != name]
        lines += [f"  {role:21}{shown(name, 56)}"] + [f"{'':20}or {shown(other, 56)}" for other in others[:3]]
        if len(others) > 3:
            lines += [f"{'':20}or one of {len(others) - 3} more"]
    lines += ["entropy: " + shown(log.entropy_average, 70), f"performance: {UNIT_WORDS[log.unit]}"]
    lines += [f"skipped: {n:,} {shown(reason, 56)}" for reason, n in log.skipped.items()]
    if dropped := points.attrs["dropped"]:
        lines += [f"skipped: {dropped:,} measurements of performance without an entropy in the window"]
    lines += [
        f"{len(points)} points, entropy averaged over the {points.attrs['window']:g} steps up to each measurement"
    ]
    if len(points):
        rows = points if len(points) <= 6 else pd.concat([points[:3], points[-3:]])
        lines += [rows.to_string(index=False, float_format="{:.6g}".format)]
    return "\n".join(lines)


UNIT_WORDS = {
    "fraction": "taken as fractions, since every value lies in [0, 1]",
    "percentage points": "taken as percentage points, since values above 1 were seen",
    "as given": "unit not known: values below 0 or above 100",
}
