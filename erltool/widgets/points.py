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
        """Means of `window` neighbours each; the last point is the mean of the rest."""
        bins = np.arange(len(self.entropy)) // window
        h, r = (np.bincount(bins, v) / np.bincount(bins) for v in (self.entropy, self.performance))
        return Points(h, r, self.unit, self.entropy_average)


def named_points(source) -> dict[str, Run | Points]:
    """A source's runs and points, by name. Raises ErltoolError where it holds none."""
    if isinstance(source, Mapping):
        members: dict[str, Run | Points] = {}
        for name, member in source.items():
            points = named_points(member)
            members |= {str(name) if len(points) == 1 else f"{name} {own}": value for own, value in points.items()}
    elif isinstance(source, Run | str | Path):
        members = {run.name: run for run in opened(source)}
    else:
        members = {"points": _points(source)}
    if not members:
        raise ErltoolError("there is nothing to fit; give a run, its folder, or points (H, R)")
    return members


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
        kind = type(source).__name__
        raise ErltoolError(f"give a run, its folder, a table, or two arrays of numbers (H, R), not {kind}") from None
    if len(h) != len(r):
        raise ErltoolError(f"{len(h)} entropies but {len(r)} performances; give as many of both")
    return Points(h, r, unit if unit in UNITS else None, str(average))


def points_of(run: Run, performance: str) -> Points:
    """Points of a run: its evaluations, each with the mean entropy before it (`align_points`), or the means of its
    iterations. Raises ErltoolError where it has none."""
    metrics, columns = run.metrics, ["step", "policy_entropy", performance]
    if metrics.empty:
        raise ErltoolError(f"run {run.path}: has no steps yet")
    if performance == "eval_accuracy" and run.evaluated().empty:
        raise ErltoolError(
            f"run {run.path}: was never evaluated; choose the training reward, or train with eval_every above 0"
        )
    if missing := [c for c in columns if c not in metrics]:
        raise ErltoolError(f"run {run.path}: has no {missing[0]}")
    numbers = metrics[columns].apply(pd.to_numeric, errors="coerce").astype(float)  # a damaged file may hold text
    if performance == "eval_accuracy":
        points = align_points(*(numbers[c] for c in columns))
        h, r = points[["entropy", "performance"]].to_numpy().T
        return Points(h, r, "fraction", OWN["policy_entropy"])
    h, r = numbers.groupby(metrics["iteration"])[columns[1:]].mean().to_numpy().T
    # Another trainer's rewards may lie outside [0, 1].
    return Points(h, r, unit_of(r, name=performance), OWN["policy_entropy"])
