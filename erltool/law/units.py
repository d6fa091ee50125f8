"""The unit of a performance: stated, or read off its name and its values."""

import re

import numpy as np

from erltool.errors import ErltoolError

UNITS = ("fraction", "percentage points", "as given")


def unit_of(performance, unit: str | None = None, name: str = "performance") -> str:
    """The unit of performances in their order, one of UNITS: the one stated, else read off their name and values.

    Values in [0, 1] are fractions. Values up to 100 are percentage points where their name says percent or accuracy
    (then from above 2), or says nothing and they reach above 10. All else is "as given": a reward, a score or a sum of
    rewards is no percentage, whatever its size. What is not finite is left out. Raises ErltoolError for an unknown
    unit, fractions outside [0, 1], a percentage that never reaches 1, or fractions mixed with percentage points:
    neighbours that jump about hundredfold across 1, from 0.31 to 31.
    """
    values = np.asarray(performance, dtype=float)
    values = values[np.isfinite(values)]
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    if unit is not None:
        if unit not in UNITS:
            raise ErltoolError(f"unit {unit!r} is not known: use one of {', '.join(UNITS)}")
        if unit == "fraction" and not 0 <= low <= high <= 1:
            raise ErltoolError(
                f"{name} from {low:g} to {high:g} is no fraction; use unit='percentage points' or 'as given'"
            )
        return unit
    if not len(values) or low < 0 or high > 100:
        return "as given"
    percent = re.search(r"%|percent|pct", name, re.I)
    if high <= 1:
        if percent and high > 0:
            raise ErltoolError(f"{name} never exceeds {high:g}, which is little for a percentage; state the unit")
        return "fraction"
    reward = re.search(r"reward|score|return", name, re.I)
    accuracy = not reward and re.search(r"acc(?![a-z])|accura|correct|pass|solve|success|match|(mean|avg)@", name, re.I)
    if high > (20 if reward else 1 if percent or accuracy else 2):
        _refuse_mixed(values, name)
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
            f"{name} jumps from {before[i]:g} to {after[i]:g}: fractions and percentage points are mixed; bring it to "
            "one unit, or state the unit"
        )
