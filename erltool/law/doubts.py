"""What speaks against believing a fit of the law, in sentences.

Each asks for a size that matters and not only for one that can be seen: shares of what performance gained over the run.
tests/benchmarks/forecast_alarms.py measures how often each is said of runs that follow the law, and how often intervals
hold the truth where they are called rough.
"""

import numpy as np

from erltool.law.residuals import gain_of, running_mean

SURE = 0.01  # two-sided p below which a departure from the law is spoken of
BENT, DRIFTED = 0.15, 0.25  # shares of the gain from which on a bend, a drift is spoken of
REVISITED = 0.1  # Diagnostics.revisited from which on a drift can be told
FEW, TOGETHER = 12, 0.8  # points below which, autocorrelation from which on intervals are called rough
# Measured: fewer than FEW points; autocorrelation 0.8 to 0.95; noise in H of 5 to 20 % of its range.
HELD_FEW, HELD_TOGETHER, HELD_NOISY = "70 to 100 %", "70 to 98 %", "75 to 100 %"


def doubts(law) -> tuple[str, ...]:
    """What speaks against believing a LawFit, one sentence each; empty where nothing was found."""
    return (*_of_the_run(law), *_of_the_law(law), *_of_the_intervals(law))


def _of_the_run(law) -> list[str]:
    """What of the run is no trade of entropy for performance."""
    h, found = law.entropy, []
    n, edge = len(h), max(1, len(h) // 10)
    start, smooth = np.median(h[:edge]), running_mean(law.performance)
    if h.max() > 1.5 * start and np.argmax(h) > edge:
        found.append(f"Entropy rises from {start:.2f} to {h.max():.2f} nats: an explosion, no trade for performance.")
    elif (rise := np.corrcoef(np.arange(n), h)[0, 1]) > 0.3:
        found.append(f"Entropy rises over the run (correlation {rise:.2f}); the law is of runs that spend it.")
    best = int(np.argmax(smooth))
    fallen = smooth[best] - np.mean(law.performance[-edge:])
    if fallen > 2.5 * law.rmse and n - best > n // 4 and h[-edge:].mean() < h[best]:
        found.append(
            f"Performance falls after its best, by {fallen:.3g} ({law.unit}), while entropy goes on falling: the law "
            "has no such branch."
        )
    return found


def _of_the_law(law) -> list[str]:
    """Where the points do not keep to the law, or cannot tell."""
    d, gain, found = law.diagnostics, gain_of(law.performance), []
    if law.a <= 0:
        found.append(f"a is {law.a:.3g}: performance does not rise as entropy falls.")
    if law.r_squared < 0.5:
        found.append(f"The law explains {law.r_squared:.0%} of the variance: too little to forecast from.")
    if d.curvature_p < SURE and d.bend > BENT * gain:
        found.append(
            f"The points bend away from the law by {d.bend:.3g} ({law.unit}), {d.bend / gain:.0%} of the gain (p "
            f"{d.curvature_p:.1g}); look at the rival laws."
        )
    if d.drift_p < SURE and abs(d.drift) > DRIFTED * gain and d.revisited > REVISITED:
        found.append(
            f"Performance moved by {d.drift:+.3g} ({law.unit}) at equal entropy (p {d.drift_p:.1g}): something else "
            "than entropy is at work, as under a control, and the ceiling does not bound this run."
        )
    if law.entropy.max() < 0.3:
        found.append("All H lie below 0.3 nats, where exp(H) is nearly a line: rival laws cannot be told apart.")
    return found


def _of_the_intervals(law) -> list[str]:
    """Where the intervals are rough, with the share of simulated runs in which a 95 % one holds the truth there."""
    d, n, found = law.diagnostics, len(law.entropy), []
    count = max(1, round(d.independent_points))
    points = f"{count} independent point{'s' * (count > 1)}"
    if n < FEW:
        found.append(
            f"Only {n} points, at most {points}: how neighbours go together cannot be seen in so few. A 95 % interval "
            f"held the truth in {HELD_FEW} of simulated runs."
        )
    elif d.autocorrelation >= TOGETHER or d.independent_points < 10:
        found.append(
            f"About {points} (autocorrelation {d.autocorrelation:.2f}): intervals are rough. Where neighbours go "
            f"together by 0.8 and more, a 95 % one held the truth in {HELD_TOGETHER} of simulated runs."
        )
    low, high = law.interval()["a"]
    if high - law.a > 1.001 * (law.a - low):
        found.append(
            f"Entropy is noisy, by about {d.entropy_noise:.2g} nats: a is too small by about {law.flattened:.2g} "
            f"({law.unit}), {d.attenuation:.0%}. The intervals are longer to that side; a 95 % one held the truth in "
            f"{HELD_NOISY} of simulated runs."
        )
    return found
