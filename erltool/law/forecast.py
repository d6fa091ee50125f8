"""Forecasts by the law: what the first part of a run says of the rest, and whether the entropy is spent.

Cui et al. 2025 (arXiv 2505.22617), Section 2.4: a and b from the first 36 of 236 steps predict performance at the
entropies of the others, and at entropy 0. A forecast is of performance at a given entropy, not at a given step.

A run has left its law if the forecast is off at the end by a tenth of the run's gain, by three times the scatter, and
outside the interval. tests/benchmarks/forecast_alarms.py measures how often that is right.
"""

import textwrap
from dataclasses import dataclass

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.law.doubts import FEW, TOGETHER
from erltool.law.fit import LawFit, fit_law
from erltool.law.residuals import gain_of

FEWEST = 6  # points to fit
LEFT_FOR_GOOD = 3  # neighbours outside the interval with which a run leaves its law; fewest points at the end
FAR, OUTSIDE, INSIDE = 3, 0.1, 0.2  # off at the end: times the scatter; fractions of the gain, outside or inside
CHANCE = 0.1  # fraction of all points' scatter below which that of the first few is chance
REACH = 0.5  # fraction of the range of exp(H) that fitted points must span, lest a small error of the slope grows
# Measured by tests/benchmarks/forecast_alarms.py: fewer than FEW points fitted; autocorrelation 0.8 to 0.95.
HELD_FEW, HELD_TOGETHER = "85 to 99 %", "85 to 97 %"


@dataclass(frozen=True)
class Forecast:
    """A forecast of a run's later points from its first ones."""

    law: LawFit  # fitted to the first points
    inflation: float
    """At least 1: errors over believed errors where a third or half of the fitted points predicts the rest."""
    level: float
    entropy: np.ndarray  # (m,) nats, of the forecast points
    performance: np.ndarray  # (m,) as measured

    @property
    def predicted(self) -> np.ndarray:
        """(m,) performance by the law."""
        return self.law.predict(self.entropy)

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) for a measurement at each entropy."""
        return self.at(self.entropy)

    def at(self, entropy) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) for a measurement at an entropy (nats); at 0 that of the ceiling."""
        law = self.law
        t = np.sqrt(law.quantile(self.level, "bootstrap") * law.quantile(self.level, "analytic"))
        half = t * self.inflation * law.standard_error(entropy, new_point=True)
        return law.predict(entropy) - half, law.predict(entropy) + half

    @property
    def rmse(self) -> float:
        """Root mean square of measured minus predicted; NaN without forecast points."""
        return float(np.sqrt(np.mean((self.performance - self.predicted) ** 2))) if len(self.entropy) else np.nan

    @property
    def rmse_if_it_stayed(self) -> float:
        """The same for the naive forecast, that performance stays at its last fitted value. A law that forecasts no
        better says nothing about the rest of the run."""
        return (
            float(np.sqrt(np.mean((self.performance - self.law.performance[-1]) ** 2))) if len(self.entropy) else np.nan
        )

    @property
    def covered(self) -> float:
        """Fraction of the measured points inside the interval; NaN without forecast points."""
        low, high = self.interval
        return float(np.mean((low <= self.performance) & (self.performance <= high))) if len(low) else np.nan

    @property
    def gain(self) -> float:
        """Highest minus lowest running mean of 5 points over the whole run, in the unit of performance."""
        return gain_of(np.concatenate([self.law.performance, self.performance]))

    @property
    def off(self) -> float:
        """Mean of measured minus predicted over the last fifth of the forecast points, at least LEFT_FOR_GOOD, or
        NaN."""
        away = (self.performance - self.predicted)[self._end]
        return float(away.mean()) if len(away) else np.nan

    @property
    def reach(self) -> float:
        """Fraction of the range of exp(H), up to the end, that the fitted points span, in (0, 1]."""
        fitted, end = np.exp(self.law.entropy), np.exp(self.entropy[self._end])
        return float(np.ptp(fitted) / np.ptp(np.concatenate([fitted, end])))

    @property
    def _end(self) -> slice:
        return slice(-max(LEFT_FOR_GOOD, len(self.entropy) // 5), None)

    def _beyond(self, fraction: float) -> bool:
        """Whether the end is off by more than this fraction of the gain and FAR times the scatter, within `reach`."""
        enough = len(self.entropy) >= LEFT_FOR_GOOD and self.reach >= REACH
        return bool(enough and abs(self.off) > max(fraction * self.gain, FAR * self.law.rmse))

    @property
    def departure(self) -> int | None:
        """Index of the forecast point at which the run leaves its law, or None.

        The run leaves it if half of the last fifth of the forecast points lie outside the interval on one side, and
        `off` exceeds both OUTSIDE of the gain and FAR times the law's rmse, unless `reach` is below REACH. The index is
        that of the first of LEFT_FOR_GOOD neighbours outside on that side, else of the first point outside.
        """
        low, high = self.interval
        outside = self.performance > high if self.off > 0 else self.performance < low
        if not self._beyond(OUTSIDE) or outside[self._end].mean() < 0.5:
            return None
        together = [at for at in np.flatnonzero(outside) if outside[at : at + LEFT_FOR_GOOD].all()]
        longest = [at for at in together if at + LEFT_FOR_GOOD <= len(outside)]
        return int((longest or np.flatnonzero(outside))[0])

    @property
    def missed(self) -> bool:
        """Whether the forecast missed inside its interval, which few points make wide: the last fifth is all on one
        side, and `off` exceeds INSIDE of the gain and FAR times the law's rmse."""
        away = (self.performance - self.predicted)[self._end]
        return self.departure is None and self._beyond(INSIDE) and bool((np.sign(away) == np.sign(away[0])).all())

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the interval is rough, with its coverage of later points in simulated runs that follow the law."""
        d, n = self.law.diagnostics, len(self.law.entropy)
        if n < FEW:
            return (f"Fitted to {n} points: a 90 % interval held {HELD_FEW} of later points in simulated runs.",)
        if d.autocorrelation >= TOGETHER:
            return (
                f"Neighbouring points correlate ({d.autocorrelation:.2f}): a 90 % interval held {HELD_TOGETHER} of "
                "later points in such simulated runs.",
            )
        return ()

    @property
    def advice(self) -> str:
        """How far the forecast is off at the end, and whether to go on, or the entropy is spent, or the law fails."""
        law, unit, off = self.law, self.law.unit, self.off
        side, fraction = ("above", "below")[off < 0], f"{abs(off) / self.gain:.0%}" if self.gain else "all"
        fraction += f" of the {self.gain:.3g} gained"
        if self.departure is not None:
            return (
                f"This run has left its law, {side} it, from forecast point {self.departure + 1} on; at the end it is "
                f"{abs(off):.3g} ({unit}) away, {fraction}. Do not extrapolate the law. Something other than the trade "
                "changes performance at equal entropy: a control, a bonus, or a change of the run."
            )
        if self.missed:
            return (
                f"At the end performance lies {abs(off):.3g} ({unit}) {side} the forecast, {fraction} and "
                f"{abs(off) / law.rmse:.0f} times the scatter of one measurement; the interval holds it only because "
                "few points make it wide. Before you extrapolate, fit all points and see whether performance "
                "changes at equal entropy (`LawFit.warnings`), as under a control."
            )
        words = f"At the end the forecast is off by {off:+.3g} ({unit}), {fraction}."
        if self.reach < REACH:
            words += (
                f" The fitted points span {self.reach:.0%} of the range of exp(H) up to there: so far ahead, a small "
                "error of the slope looks like a run that leaves its law."
            )
        return f"{words} {self._gain_left}"

    @property
    def _gain_left(self) -> str:
        law, unit = self.law, self.law.unit
        if law.a <= 0:
            return (
                f"Performance does not rise as entropy falls (a is {law.a:.3g}): the law says nothing here yet. Go on, "
                "and fit again."
            )
        last = np.concatenate([law.entropy, self.entropy])[-1]
        gain = law.ceiling - law.predict(last)
        low, high = self.at(0.0)
        words = f"By the law {gain:+.3g} ({unit}) is left to gain from H = {last:.3f} nats to the ceiling "
        words += f"{law.ceiling:.3g} ({low:.3g} to {high:.3g} at {self.level:.0%})."
        if gain < law.rmse:
            return f"{words} That is below the scatter of one measurement, {law.rmse:.3g}: the entropy is spent."
        if low <= law.predict(last):
            return f"{words} The interval holds no gain, too: the ceiling is not known yet. Go on, and fit again."
        return f"{words} That is above the scatter of one measurement, {law.rmse:.3g}: go on."

    def summary(self) -> str:
        """The forecast and its advice as text of at most 80 columns."""
        first, others = len(self.law.entropy), len(self.entropy)
        lines = [
            f"forecast of {others} points from the first {first}: a = {self.law.a:.4f}, b = {self.law.b:.4f}",
            f"RMSE = {self.rmse:.4f}, {self.covered:.0%} inside the {self.level:.0%} interval",
            f"RMSE = {self.rmse_if_it_stayed:.4f} if performance stayed at its last fitted value",
        ]
        return "\n".join([*lines, *(x for text in (self.advice, *self.warnings) for x in textwrap.wrap(text, 80))])

    def to_dict(self) -> dict:
        """The numbers of the forecast, ready for JSON."""
        low, high = self.interval
        return {
            "fitted_points": len(self.law.entropy), "a": self.law.a, "b": self.law.b, "ceiling": self.law.ceiling,
            "level": self.level, "rmse": self.rmse, "rmse_if_it_stayed": self.rmse_if_it_stayed,
            "covered": self.covered, "departure": self.departure,
            "off": self.off, "gain": self.gain, "reach": self.reach, "missed": self.missed,
            "warnings": list(self.warnings),
            "predicted": self.predicted.tolist(), "low": low.tolist(), "high": high.tolist(), "advice": self.advice,
        }  # fmt: skip


def forecast(
    entropy, performance, *, cut: float = 0.15, level: float = 0.9, unit: str | None = None,
    entropy_average: str = "not stated", seed: int = 0,
) -> Forecast:  # fmt: skip
    """The law fitted to the first fraction `cut` of a run's points, at least FEWEST, and its forecast of the others.

    `entropy` (nats) and `performance` are (n,), in the order of the run, evenly spaced. The interval is for a new
    measurement: the bootstrap's standard error, times `Forecast.inflation`, times the geometric mean of Student's
    quantiles with as many degrees of freedom as blocks and as points. The first quantile is too wide where the law
    holds, the second too narrow where it does not. tests/test_forecasting.py has the coverage, simulated and on
    recorded runs. Raises ErltoolError as `fit_law`, and for a cut or level outside (0, 1), or too few points.
    """
    h, r = (np.asarray(v, dtype=float).ravel() for v in (entropy, performance))
    for name, value in (("cut", cut), ("level", level)):
        if not 0 < value < 1:
            raise ErltoolError(f"forecast: {name} {value} must be between 0 and 1")
    if len(h) <= FEWEST:
        raise ErltoolError(f"forecast: {len(h)} points; at least {FEWEST + 1} are needed, {FEWEST} of them to fit to")
    first = min(max(FEWEST, round(cut * len(h))), len(h) - 1)
    law = fit_law(h[:first], r[:first], unit=unit, entropy_average=entropy_average, seed=seed)
    return Forecast(law, _inflation(law), level, h[first:], r[first:])


def _inflation(law: LawFit) -> float:
    """See `Forecast.inflation`: the largest root mean square of errors over believed errors."""
    h, r, largest = law.entropy, law.performance, 1.0
    for divisor in (3, 2):
        first = max(3, round(len(h) / divisor))
        if np.ptp(np.exp(h[:first])) <= 1e-12:
            continue
        early = fit_law(h[:first], r[:first], unit="as given", seed=law.seed)
        # Few points may lie on a line by chance, and a performance that is always 0 has no scatter.
        least = max(CHANCE * law.rmse, 1e-12 * np.abs(r).max(), np.finfo(float).tiny)
        error = np.maximum(early.standard_error(h[first:], new_point=True), least)
        largest = max(largest, float(np.sqrt(np.mean(((r[first:] - early.predict(h[first:])) / error) ** 2))))
    return largest


def replay(entropy, performance, step=None, *, level: float = 0.9, unit: str | None = None) -> pd.DataFrame:
    """The forecast at each point of a run: one row for each point from number FEWEST to the last but one.

    Columns: `step` (or the point's number), `entropy` (nats) and `performance` there, `a`, `b`, `ceiling` with
    `ceiling_low` and `ceiling_high`, `gain_left` (ceiling minus the law there), `predicted_last` with `last_low` and
    `last_high` for the last point at its measured entropy, `error_last`, and `spent`: whether the advice was that the
    entropy is spent. Points without a law are left out. Raises ErltoolError as `forecast`.
    """
    h, r = (np.asarray(v, dtype=float).ravel() for v in (entropy, performance))
    steps = np.arange(1, len(h) + 1) if step is None else np.asarray(step)
    forecast(h, r, level=level, unit=unit)  # raises for the whole run
    rows = []
    for first in range(FEWEST, len(h)):
        try:
            law = fit_law(h[:first], r[:first], unit=unit)
        except ErltoolError:
            continue
        ahead = Forecast(law, _inflation(law), level, h[-1:], r[-1:])
        (low,), (high,) = ahead.interval
        ceiling_low, ceiling_high = ahead.at(0.0)
        left = law.ceiling - law.predict(h[first - 1])
        rows.append({
            "step": steps[first - 1], "entropy": h[first - 1], "performance": r[first - 1], "a": law.a, "b": law.b,
            "ceiling": law.ceiling, "ceiling_low": ceiling_low, "ceiling_high": ceiling_high, "gain_left": left,
            "predicted_last": ahead.predicted[0], "last_low": low, "last_high": high,
            "error_last": r[-1] - ahead.predicted[0], "spent": law.a > 0 and left < law.rmse,
        })  # fmt: skip
    return pd.DataFrame(rows)
