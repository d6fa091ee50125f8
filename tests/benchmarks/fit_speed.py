"""Time of a fit of the law with its 2,000 bootstrap refits on 500 points, against 2,000 refits by numpy.polyfit.

python tests/benchmarks/fit_speed.py
"""

import time

import numpy as np

from erltool import fit_law
from erltool.law.fit import RESAMPLES

POINTS = 500


def timed(function, repeats: int) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    rng = np.random.default_rng(0)
    h = np.linspace(0.6, 0.05, POINTS)
    r = 0.7 - 0.2 * np.exp(h) + 0.01 * rng.normal(size=POINTS)
    ours = timed(lambda: fit_law(h, r).interval(), 15)
    x = np.exp(h)
    plain = timed(lambda: [np.polyfit(x, rng.permutation(r), 1) for _ in range(RESAMPLES)], 1)
    print(f"fit and {RESAMPLES} refits of {POINTS} points: {1000 * ours:.1f} ms (100 wanted); ", end="")
    print(f"numpy.polyfit as often: {1000 * plain:.0f} ms, {plain / ours:.0f} times as long")


if __name__ == "__main__":
    main()
