"""Reasons not to believe a fit of the law, in sentences.

A departure must be large as a fraction of the run's gain, besides significant. tests/benchmarks/forecast_alarms.py
measures how often each sentence is wrong, and the coverage of intervals that are called rough.
"""

from typing import TYPE_CHECKING

import numpy as np

from erltool.law.residuals import gain_of, running_mean

if TYPE_CHECKING:
    from erltool.law.fit import LawFit

SURE = 0.01  # two-sided p below which a departure from the law counts
BENT, DRIFTED = 0.15, 0.25  # fractions of the gain from which on a bend, a drift counts
REVISITED = 0.1  # Diagnostics.revisited from which on a drift can be seen
FEW, TOGETHER = 12, 0.8  # intervals are rough with fewer points, or from this autocorrelation on
# Measured: fewer than FEW points; autocorrelation 0.8 to 0.95; noise in H of 5 to 20 % of its range.
HELD_FEW, HELD_TOGETHER, HELD_NOISY = "70 to 100 %", "70 to 98 %", "75 to 100 %"


def doubts(law: "LawFit") -> tuple[str, ...]:
    """Reasons not to believe a fit, one sentence each; empty where there is none."""
    return (*_of_the_run(law), *_of_the_law(law), *_of_the_intervals(law))


def _of_the_run(law: "LawFit") -> list[str]:
    """Where the run does not trade entropy for performance."""
    h, reasons = law.entropy, []
    n, edge = len(h), max(1, len(h) // 10)
    start, smooth = np.median(h[:edge]), running_mean(law.performance)
    if h.max() > 1.5 * start and np.argmax(h) > edge:
        reasons.append(f"Entropy rises from {start:.2f} to {h.max():.2f} nats: an explosion, no trade for performance.")
    elif (rise := np.corrcoef(np.arange(n), h)[0, 1]) > 0.3:
        reasons.append(f"Entropy rises over the run (correlation {rise:.2f}); the law is for runs that spend it.")
    best = int(np.argmax(smooth))
    fallen = smooth[best] - np.mean(law.performance[-edge:])
    if fallen > 2.5 * law.rmse and n - best > n // 4 and h[-edge:].mean() < h[best]:
        reasons.append(
            f"Performance falls after its best, by {fallen:.3g} ({law.unit}), while entropy goes on falling: the law "
            "has no such branch."
        )
    return reasons


def _of_the_law(law: "LawFit") -> list[str]:
    """Where the points do not follow the law, or cannot tell."""
    d, gain, reasons = law.diagnostics, gain_of(law.performance), []
    if law.a <= 0:
        reasons.append(f"a is {law.a:.3g}: performance does not rise as entropy falls.")
    if law.r_squared < 0.5:
        reasons.append(f"The law explains {law.r_squared:.0%} of the variance: too little to forecast from.")
    if d.curvature_p < SURE and d.bend > BENT * gain:
        reasons.append(
            f"The points bend away from the law by {d.bend:.3g} ({law.unit}), {d.bend / gain:.0%} of the gain (p "
            f"{d.curvature_p:.1g}); look at the rival laws."
        )
    if d.drift_p < SURE and abs(d.drift) > DRIFTED * gain and d.revisited > REVISITED:
        reasons.append(
            f"Performance changed by {d.drift:+.3g} ({law.unit}) at equal entropy (p {d.drift_p:.1g}): something other "
            "than entropy is at work, such as a control, and the ceiling does not bound this run."
        )
    if law.entropy.max() < 0.3:
        reasons.append("All H lie below 0.3 nats, where exp(H) is nearly a line: rival laws cannot be told apart.")
    return reasons


def _of_the_intervals(law: "LawFit") -> list[str]:
    """Where the intervals are rough, with the coverage of a 95 % interval in simulated runs like that."""
    d, n, reasons = law.diagnostics, len(law.entropy), []
    count = max(1, round(d.independent_points))
    points = f"{count} independent point{'s' * (count > 1)}"
    if n < FEW:
        reasons.append(
            f"Only {n} points, at most {points}: too few to show how neighbours correlate. A 95 % interval held the "
            f"truth in {HELD_FEW} of simulated runs."
        )
    elif d.autocorrelation >= TOGETHER or d.independent_points < 10:
        reasons.append(
            f"About {points} (autocorrelation {d.autocorrelation:.2f}): intervals are rough. From autocorrelation 0.8 "
            f"on, a 95 % interval held the truth in {HELD_TOGETHER} of simulated runs."
        )
    low, high = law.interval()["a"]
    if high - law.a > 1.001 * (law.a - low):
        reasons.append(
            f"Entropy is noisy, by about {d.entropy_noise:.2g} nats: a is too small by about {law.flattened:.2g} "
            f"({law.unit}), {d.attenuation:.0%}. The intervals are longer on that side; a 95 % interval held the truth "
            f"in {HELD_NOISY} of simulated runs."
        )
    return reasons
