"""The law's coefficients over model sizes and algorithms.

Cui et al. 2025 (arXiv 2505.22617), Sections 2.4, 2.5: a and b are linear in log N (parameters), for every algorithm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.law.fit import LawFit
from erltool.tables import Table


@dataclass(frozen=True)
class Scaling:
    """a(N) = a_slope * log N + a_offset, and b(N) alike, by least squares over sizes."""

    sizes: tuple[float, ...]  # numbers of parameters, one a model
    a_slope: float
    a_offset: float
    b_slope: float
    b_offset: float

    def a(self, size: float) -> float:
        return self.a_slope * np.log(size) + self.a_offset

    def b(self, size: float) -> float:
        return self.b_slope * np.log(size) + self.b_offset

    def ceiling(self, size: float) -> float:
        """b(N) - a(N): the trend's performance at entropy 0."""
        return self.b(size) - self.a(size)


def fit_scaling(laws: Mapping[float, LawFit]) -> Scaling:
    """The trend of laws by model size (parameters).

    Raises ErltoolError for fewer than 3 sizes, sizes not above 0, or laws in different units.
    """
    sizes = np.array(sorted(laws), dtype=float)
    units = {law.unit for law in laws.values()}
    if len(sizes) < 3 or sizes[0] <= 0 or len(units) > 1:
        raise ErltoolError(
            f"fit_scaling: {len(sizes)} sizes in {', '.join(sorted(units)) or 'no unit'}; give the laws of at least 3 "
            "sizes above 0, in one unit"
        )
    lines = [np.polyfit(np.log(sizes), [getattr(laws[n], name) for n in sizes], 1) for name in ("a", "b")]
    return Scaling(tuple(map(float, sizes)), *(float(v) for line in lines for v in line))


def held_out(laws: Mapping[float, LawFit]) -> pd.DataFrame:
    """The law of the largest size predicted from the others: one row each for a, b and ceiling.

    Columns: `predicted`, `fitted` (the largest model's own law), `error`. Raises ErltoolError for fewer than 4 sizes.
    """
    if len(laws) < 4:
        raise ErltoolError(f"held_out: {len(laws)} sizes; at least 4 are needed, 3 for the trend and one to hold out")
    largest = max(laws)
    trend = fit_scaling({n: law for n, law in laws.items() if n != largest})
    names = ("a", "b", "ceiling")
    predicted = [float(getattr(trend, name)(largest)) for name in names]
    table = pd.DataFrame({"predicted": predicted, "fitted": [getattr(laws[largest], n) for n in names]}, names)
    return table.assign(error=table["predicted"] - table["fitted"])


def law_differences(groups: Mapping[str, Sequence[LawFit]], baseline: str, level: float = 0.95) -> pd.DataFrame:
    """Whether groups of runs, such as those of an algorithm, share a and b (Fig 6): one row a group and coefficient.

    Each law is of one run. Columns: `group`, `coefficient` (a, b or ceiling), `difference` of the mean from that of
    `baseline`, `low` and `high` of Welch's interval over runs, `runs`, `excludes_zero`. Raises ErltoolError for an
    unknown baseline or a single run.
    """
    if baseline not in groups:
        raise ErltoolError(f"law_differences: no group {baseline!r}; there are {', '.join(groups)}")
    few = [name for name, laws in groups.items() if len(laws) < 2]
    if few:
        raise ErltoolError(f"law_differences: {few[0]} has {len(groups[few[0]])} runs; at least 2 are needed each")
    from scipy import stats  # slow to import

    rows = []
    for name, laws in groups.items():
        for coefficient in ("a", "b", "ceiling") if name != baseline else ():
            ours, theirs = ([getattr(f, coefficient) for f in fits] for fits in (laws, groups[baseline]))
            interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(level)
            rows.append({
                "group": name, "coefficient": coefficient, "difference": np.mean(ours) - np.mean(theirs),
                "low": interval.low, "high": interval.high, "runs": len(ours),
                "excludes_zero": bool(interval.low > 0 or interval.high < 0),
            })  # fmt: skip
    return Table(rows)
