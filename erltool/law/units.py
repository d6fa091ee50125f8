"""The unit of a performance: stated, or inferred from its name and values."""

import re

import numpy as np

from erltool.errors import ErltoolError

UNITS = ("fraction", "percentage points", "as given")


def unit_of(performance, unit: str | None = None, name: str = "performance") -> str:
    """The unit of performances, one of UNITS: the one stated, else inferred from their name and values in order.

    Values in [0, 1] are fractions. Values up to 100 are percentage points if their name says percent, or accuracy and
    they exceed 2, or nothing and they exceed 10. Everything else is "as given"; a reward, a score or a count of what is
    solved is no percentage.
    Values that are not finite do not count. Raises ErltoolError for an unknown unit, fractions outside [0, 1], a
    percentage that never exceeds 1, or neighbours that jump about hundredfold across 1 (mixed units).
    """
    values = np.asarray(performance, dtype=float)
    values = values[np.isfinite(values)]
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    if unit is not None:
        if unit not in UNITS:
            raise ErltoolError(f"unit {unit!r} is not known: use one of {', '.join(UNITS)}")
        if unit == "fraction" and not 0 <= low <= high <= 1:
            raise ErltoolError(f"{name} from {low:g} to {high:g} is no fraction; use 'percentage points' or 'as given'")
        return unit
    if not len(values) or low < 0 or high > 100:
        return "as given"
    percent = re.search(r"%|percent|pct", name, re.I)
    if high <= 1:
        if percent and high > 0:
            raise ErltoolError(f"{name} never exceeds {high:g}, which is low for a percentage; state the unit")
        return "fraction"
    reward = re.search(r"reward|score|return", name, re.I)
    accuracy = not reward and re.search(r"acc(?![a-z])|accura|correct|pass|solve|success|match|(mean|avg)@", name, re.I)
    if high > (20 if reward else 1 if percent or accuracy else 2):
        _refuse_mixed(values, name)
    if not percent and re.search(r"correct|solved|success", name, re.I) and (values % 1 == 0).all():
        if not re.search(r"acc(?![a-z])|accura|rate|@", name, re.I):
            return "as given"
    if percent or (accuracy and high > 2) or (not reward and high > 10):
        return "percentage points"
    return "as given"


def _refuse_mixed(values: np.ndarray, name: str) -> None:
    before, after = values[:-1], values[1:]
    small, large = np.minimum(before, after), np.maximum(before, after)
    mixed = (small > 0) & (small <= 1) & (large > 1) & (large > 60 * small) & (large < 160 * small)
    if mixed.any():
        i = int(np.argmax(mixed))
        raise ErltoolError(
            f"{name} jumps from {before[i]:g} to {after[i]:g}, so fractions and percentage points are mixed; use one "
            "unit, or state the unit"
        )
