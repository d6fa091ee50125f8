"""The law R = -a exp(H) + b between policy entropy and performance, and its uncertainty.

Cui et al. 2025 (arXiv 2505.22617), Eq 6. In x = exp(H) the law is a line, so the fit is ordinary least
squares in closed form. Points of a run are autocorrelated: intervals come from a moving-block bootstrap of the
residuals (Kuensch 1989), which keeps the x as they are.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from erltool.errors import ErltoolError

RESAMPLES = 2000


@dataclass(frozen=True)
class LawFit:
    """A fitted law. Units of a, b and performance are those given: fractions or percentage points."""

    a: float
    """Performance bought per unit of exp(H)."""
    b: float
    """Performance that would remain if exp(H) were 0, which it cannot be: see `ceiling`."""
    r_squared: float
    """Share of the variance of performance that the law explains; NaN where performance does not vary."""
    rmse: float
    """Root mean square of the residuals, with n in the denominator."""
    entropy: np.ndarray
    """(n,) nats"""
    performance: np.ndarray
    """(n,)"""
    block_length: int
    """Points in a block of the bootstrap."""
    seed: int

    @property
    def ceiling(self) -> float:
        """b - a: the performance at entropy 0."""
        return self.b - self.a

    @property
    def residuals(self) -> np.ndarray:
        return self.performance - self.predict(self.entropy)

    def predict(self, entropy):
        """Performance that the law gives at an entropy (nats); scalar or array."""
        return self.b - self.a * np.exp(entropy)

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Interval of a, b and ceiling at a level in (0, 1), by moving-block bootstrap.

        The estimate plus and minus Student's quantile times the standard deviation over RESAMPLES refits. The
        quantile has n / block_length - 2 degrees of freedom (at least 1), because so many blocks tell of the
        spread, as for batch means. tests/test_fit.py states its coverage by simulation.
        Raises ErltoolError for a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ErltoolError(f"interval level {level}: must be between 0 and 1, as 0.95")
        width = stats.t.ppf((1 + level) / 2, max(1.0, len(self.entropy) / self.block_length - 2))
        values = {"a": self.a, "b": self.b, "ceiling": self.ceiling}
        half = {name: width * self._spread[name] for name in values}
        return {name: (value - half[name], value + half[name]) for name, value in values.items()}

    @cached_property
    def _spread(self) -> dict[str, float]:
        """Standard deviation of a, b and ceiling over the bootstrap's refits."""
        n, length = len(self.entropy), self.block_length
        rng = np.random.default_rng(self.seed)
        # Residuals of a fit with two parameters are too small by sqrt((n - 2) / n).
        residuals = self.residuals * np.sqrt(n / (n - 2))
        starts = rng.integers(0, n - length + 1, (RESAMPLES, -(-n // length)))
        at = (starts[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :n]
        noise = residuals[at]
        slope, intercept = _line(np.exp(self.entropy), noise)
        return {"a": np.std(slope), "b": np.std(intercept), "ceiling": np.std(intercept + slope)}

    def summary(self) -> str:
        """The fit in a few lines of text."""
        interval = self.interval()
        lines = [
            f"R = -a exp(H) + b on {len(self.entropy)} points, "
            f"H from {self.entropy.min():.3f} to {self.entropy.max():.3f} nats"
        ]
        for name in ("a", "b", "ceiling"):
            low, high = interval[name]
            what = "  (b - a, at H = 0)" if name == "ceiling" else ""
            lines.append(f"{name:>8} = {getattr(self, name):8.4f}   95 % interval {low:8.4f} to {high:8.4f}{what}")
        lines.append(f"R² = {self.r_squared:.3f}, RMSE = {self.rmse:.4f}, blocks of {self.block_length} points")
        return "\n".join(lines)


def fit_law(entropy, performance, *, block_length: int | None = None, seed: int = 0) -> LawFit:
    """The least-squares fit of R = -a exp(H) + b to points (H, R) in the order of the run.

    `entropy` in nats, `performance` in any unit, both of shape (n,). `block_length` is the number of points in
    a block of the bootstrap, by default round(n^(1/2)); 1 takes the points as independent. Raises ErltoolError
    for fewer than 4 points, lengths that differ, values that are not finite, or entropy that does not vary.
    """
    h, r = (np.asarray(v, dtype=float).ravel() for v in (entropy, performance))
    if len(h) != len(r):
        raise ErltoolError(f"fit_law: {len(h)} entropies but {len(r)} performances; give as many of both")
    if len(h) < 4:
        raise ErltoolError(f"fit_law: {len(h)} points; at least 4 are needed for two parameters and their interval")
    if not (np.isfinite(h).all() and np.isfinite(r).all()):
        bad = int((~(np.isfinite(h) & np.isfinite(r))).sum())
        raise ErltoolError(f"fit_law: {bad} of {len(h)} points are not finite; drop them first (DataFrame.dropna)")
    with np.errstate(over="ignore"):
        x = np.exp(h)
    if not np.isfinite(x).all() or np.ptp(x) <= 1e-12 * np.abs(x).max():
        raise ErltoolError("fit_law: entropy does not vary (or overflows), so no law can be fitted to it")
    if block_length is None:
        block_length = max(1, round(len(h) ** 0.5))
    if not 1 <= block_length <= len(h) // 2:
        raise ErltoolError(f"fit_law: block_length {block_length}; must be from 1 to half of the {len(h)} points")
    slope, intercept = _line(x, r)
    residuals = r - (intercept + slope * x)
    total = np.sum((r - r.mean()) ** 2)
    r_squared = 1 - np.sum(residuals**2) / total if total > 0 else np.nan
    return LawFit(
        float(-slope),
        float(intercept),
        float(r_squared),
        float(np.sqrt(np.mean(residuals**2))),
        h,
        r,
        block_length,
        seed,
    )


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of least squares of y (..., n) on x (n,), with x centred first for accuracy."""
    centre = x.mean()
    slope = y @ (x - centre) / np.sum((x - centre) ** 2)
    # Centring y as well keeps digits where its mean is large against its variation.
    mean = y.mean(-1)
    slope = slope if y.ndim > 1 else (y - mean) @ (x - centre) / np.sum((x - centre) ** 2)
    return slope, mean - slope * centre
