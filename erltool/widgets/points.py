"""Points of entropy and performance, from whatever holds some."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.law.units import UNITS, unit_of
from erltool.logs.metrics import OWN
from erltool.logs.read import align_points
from erltool.runs.folder import Run
from erltool.widgets.control_explorer import opened


@dataclass(frozen=True)
class Points:
    """Points of a run, in its order."""

    entropy: np.ndarray
    """(n,) nats"""
    performance: np.ndarray
    """(n,)"""
    unit: str | None = None
    """Of performance, one of law.units.UNITS, where it was stated."""
    entropy_average: str = "not stated"

    @property
    def widest(self) -> int:
        """The widest window of `averaged` that leaves three points."""
        return max(1, len(self.entropy) // 3)

    def averaged(self, window: int) -> "Points":
        """Means of `window` neighbours each, the last of those that are left."""
        part = np.arange(len(self.entropy)) // window
        means = [np.bincount(part, v) / np.bincount(part) for v in (self.entropy, self.performance)]
        return Points(*means, self.unit, self.entropy_average)


def named_points(source) -> dict[str, Run | Points]:
    """What a source holds, by name. Raises ErltoolError for what is neither runs nor points, or holds none."""
    if isinstance(source, Mapping):
        found: dict[str, Run | Points] = {}
        for name, one in source.items():
            parts = named_points(one)
            found |= {str(name) if len(parts) == 1 else f"{name} {part}": value for part, value in parts.items()}
    elif isinstance(source, Run | str | Path):
        found = {run.name: run for run in opened(source)}
    else:
        found = {"points": _points(source)}
    if not found:
        raise ErltoolError("there is nothing to fit; give a run, its folder, or points (H, R)")
    return found


def _points(source) -> Points:
    """Points of a table or of two arrays."""
    unit, average = None, "not stated"
    if isinstance(source, pd.DataFrame):
        if missing := [c for c in ("entropy", "performance") if c not in source]:
            raise ErltoolError(f"the table lacks the column {missing[0]}; rename its own to entropy and performance")
        unit, average = source.attrs.get("unit"), source.attrs.get("entropy_average", average)
        source = source["entropy"], source["performance"]
    try:
        h, r = (np.asarray(v, dtype=float).ravel() for v in source)
    except (TypeError, ValueError):
        what = type(source).__name__
        raise ErltoolError(f"give a run, its folder, a table, or two arrays of numbers (H, R), not {what}") from None
    if len(h) != len(r):
        raise ErltoolError(f"{len(h)} entropies but {len(r)} performances; give as many of both")
    return Points(h, r, unit if unit in UNITS else None, str(average))


def points_of(run: Run, performance: str) -> Points:
    """Points of a run: its evaluations, each with the mean entropy before it as `align_points` gives it, or the means
    of its iterations. Raises ErltoolError where it has none."""
    metrics = run.metrics
    if metrics.empty:
        raise ErltoolError(f"run {run.path}: has no steps yet")
    if performance == "eval_accuracy" and run.evaluated().empty:
        raise ErltoolError(
            f"run {run.path}: was never evaluated; choose the training reward, or train with eval_every above 0"
        )
    if missing := [c for c in ("policy_entropy", performance) if c not in metrics]:
        raise ErltoolError(f"run {run.path}: has no {missing[0]}")
    if performance == "eval_accuracy":
        points = align_points(*(_numbers(metrics[c]) for c in ("step", "policy_entropy", performance)))
        return Points(*points[["entropy", "performance"]].to_numpy().T, "fraction", OWN["policy_entropy"])
    of_iteration = metrics[["policy_entropy", performance]].apply(_numbers).groupby(metrics["iteration"])
    h, r = of_iteration.mean().to_numpy(float).T
    # A run of another trainer, or through TRL, may have rewards outside [0, 1].
    return Points(h, r, unit_of(r, name=performance), OWN["policy_entropy"])


def _numbers(column: pd.Series) -> pd.Series:
    """A damaged file's text is NaN."""
    return pd.to_numeric(column, errors="coerce").astype(float)
