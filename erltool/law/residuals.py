"""What the residuals of a fit say: how neighbouring errors correlate, and whether the points follow the law.

Errors along a run are modelled as a first-order autoregression: each is r times the one before plus a new one.
Residuals correlate less than errors, because a fit bends towards its points. So r is the value at which the ratio of
expectations over the residuals e, E(sum of e_t e_(t-1)) / E(sum of e_t^2), is the observed ratio. The variance of the
errors is corrected alike, with Satterthwaite's degrees of freedom.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize, special

LARGEST = 0.97  # autocorrelation; above it level and errors of a run cannot be told apart
NEIGHBOURS = 2  # on either side of a point; their mean entropy has less noise than its own


@dataclass(frozen=True)
class Diagnostics:
    """What the residuals say of a fit."""

    autocorrelation: float  # of neighbouring errors, in [-LARGEST, LARGEST], corrected for the fit
    independent_points: float
    """n (1 - r) / (1 + r) for autocorrelation r > 0: independent points with as much information."""
    curvature_p: float
    """Two-sided p of a quadratic term in exp(H). Where it is small, the points bend away from the law."""
    bend: float  # range of the quadratic term's deviation from a line, in the unit of R
    drift: float  # performance gained from first to last point at equal entropy, beside the bend, in the unit of R
    drift_p: float
    """Its p. Where it is small, something other than entropy changes performance, such as a control."""
    revisited: float
    """Fraction of the variance of time that exp(H) and its square leave unexplained. Near 0 entropy falls so steadily
    that time and entropy cannot be told apart, nor a drift be seen."""
    entropy_noise: float  # standard deviation of the noise in H, nats: see `entropy_noise`
    attenuation: float
    """Fraction by which that noise makes a too small, in [0, 1]: its fraction of the variance of exp(H), at most the
    fraction of the variance of performance that the law leaves, since R would follow real changes of H."""


@dataclass(frozen=True)
class Autoregression:
    """Errors of a linear fit as a first-order autoregression."""

    correlation: float  # in [-LARGEST, LARGEST]
    covariance: np.ndarray  # (k, k) of the fit's coefficients
    degrees: float  # of freedom, of the variance


def autoregression(residuals, design, instruments=None, *, surely: float = 0.0) -> Autoregression:
    """The autocorrelation of a linear fit's errors, and the covariance of its coefficients.

    `design` X is (n, k). The fit is least squares, or with `instruments` Z (n, k) the solution of Z'(y - X b) = 0. The
    covariance is that at an autocorrelation of at least 0, plus `surely` standard errors sqrt((1 - r^2) / n).
    """
    z = design if instruments is None else instruments
    inverse = np.linalg.inv(z.T @ design)
    spread = design @ inverse  # residuals are (I - spread z') times the errors
    observed = np.sum(residuals[1:] * residuals[:-1]) / np.sum(residuals**2)

    def expected(r: float) -> float:
        square, neighbours = _expected(r, spread, z)
        return neighbours / square - observed

    low, high = expected(-LARGEST), expected(LARGEST)
    if low >= 0 or high <= 0:
        correlation = -LARGEST if low >= 0 else LARGEST
    else:
        correlation = optimize.brentq(expected, -LARGEST, LARGEST, xtol=1e-4)
    r = min(LARGEST, max(0.0, correlation) + surely * np.sqrt((1 - correlation**2) / len(residuals)))
    between = z.T @ _correlated(r, z)
    variance = residuals @ residuals / _expected(r, spread, z)[0]
    return Autoregression(float(correlation), variance * inverse @ between @ inverse.T, _degrees(r, design))


def _correlated(r: float, v: np.ndarray) -> np.ndarray:
    """R v along the first axis, for R with r^|i - j| at (i, j)."""
    band = np.array([np.ones(len(v)), np.full(len(v), -r)])  # y_t - r y_{t-1} = v_t, solved for y
    forth = linalg.solve_banded((1, 0), band, v)
    back = linalg.solve_banded((1, 0), band, v[::-1])[::-1]
    return forth + back - v


def _beside(v: np.ndarray) -> np.ndarray:
    """D v, with 1/2 at neighbours, so that e'De is the sum of the products of neighbours."""
    product = np.zeros_like(v)
    product[1:] += v[:-1] / 2
    product[:-1] += v[1:] / 2
    return product


def _expected(r: float, spread: np.ndarray, z: np.ndarray) -> tuple[float, float]:
    """Expected sums of e_t^2 and e_t e_(t-1) at error variance 1: traces of M R M' and D M R M', M = I - spread z'."""
    rz = _correlated(r, z)
    between, beside = z.T @ rz, _beside(spread)
    square = len(z) - 2 * np.sum(spread * rz) + np.sum((spread @ between) * spread)
    return square, (len(z) - 1) * r - 2 * np.sum(beside * rz) + np.sum((beside @ between) * spread)


def _degrees(r: float, design: np.ndarray) -> float:
    """Degrees of freedom of the variance: tr(MR)^2 / tr(MRMR)."""
    n, lag = len(design), np.arange(1, len(design))
    q = np.linalg.qr(design)[0]
    rq = _correlated(r, q)
    qrq = q.T @ rq
    squares = n + 2 * np.sum((n - lag) * r ** (2.0 * lag))
    return float((n - np.trace(qrq)) ** 2 / (squares - 2 * np.sum(rq**2) + np.sum(qrq * qrq.T)))


def running_mean(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Means of `width` neighbours, fewer at the ends."""
    ones = np.ones(min(width, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def gain_of(performance: np.ndarray) -> float:
    """Highest minus lowest running mean of 5 points of a run's performance, in its unit."""
    return float(np.ptp(running_mean(performance)))


def diagnose(entropy: np.ndarray, performance: np.ndarray, residuals: np.ndarray) -> Diagnostics:
    """What the residuals say of a fit of the law; NaN for an exact fit or fewer than 6 points.

    For curvature and drift, the mean of NEIGHBOURS entropies on either side is an instrument for a point's own. Without
    it, noise in H would make time look like a better measure of entropy, and a straight law like a bent one.
    """
    n, x = len(entropy), np.exp(entropy)
    noise = entropy_noise(entropy)
    total = np.var(performance)
    left = np.var(residuals) / total if total > 0 else 0.0
    attenuation = float(min(np.mean(x**2) * noise**2 / np.var(x), left))
    if n < 6 or np.sum(residuals**2) <= 1e-20 * np.sum(performance**2):
        unknown = np.nan, np.nan, np.nan, np.nan, np.nan
        return Diagnostics(np.nan, float(n), *unknown, noise, attenuation)
    r = autoregression(residuals, np.column_stack([np.ones(n), x])).correlation
    scaled, time = (x - x.mean()) / x.std(), np.linspace(0, 1, n)
    smooth, law = _others(scaled), [np.ones(n), scaled]
    own = np.column_stack([*law, scaled**2, time])
    around = np.column_stack([law[0], smooth, smooth**2, time])
    square, drift = (_last_term(own[:, :k], performance, around[:, :k]) for k in (3, 4))
    off, unexplained = (_rest(own[:, k], own[:, :k]) for k in (2, 3))
    return Diagnostics(
        r, n * (1 - r) / (1 + r) if r > 0 else float(n), square[1], float(abs(square[0]) * np.ptp(off)), *drift,
        float(np.var(unexplained) / np.var(time)), noise, attenuation,
    )  # fmt: skip


def entropy_noise(entropy: np.ndarray) -> float:
    """Standard deviation of the noise in H (nats): the median absolute deviation of second differences, scaled. Every
    change from point to point counts as noise; 0 below 5 points."""
    bends = np.diff(entropy, 2)
    return float(1.4826 / np.sqrt(6) * np.median(np.abs(bends - np.median(bends)))) if len(entropy) >= 5 else 0.0


def _others(values: np.ndarray) -> np.ndarray:
    """Mean of the NEIGHBOURS values on either side of each, without itself."""
    around = np.ones(2 * NEIGHBOURS + 1)
    around[NEIGHBOURS] = 0
    return np.convolve(values, around, "same") / np.convolve(np.ones(len(values)), around, "same")


def _rest(values: np.ndarray, design: np.ndarray) -> np.ndarray:
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def _last_term(design: np.ndarray, y: np.ndarray, instruments: np.ndarray) -> tuple[float, float]:
    """The last coefficient of a fit by instruments and its two-sided p; NaN where undetermined."""
    product = instruments.T @ design
    if np.linalg.matrix_rank(product) < design.shape[1]:
        return np.nan, np.nan
    beta = np.linalg.solve(product, instruments.T @ y)
    residuals = y - design @ beta
    if np.sum(residuals**2) <= 1e-20 * np.sum(y**2):
        return np.nan, np.nan
    errors = autoregression(residuals, design, instruments)
    deviation = np.sqrt(errors.covariance[-1, -1])
    return float(beta[-1]), float(2 * special.stdtr(max(1.0, errors.degrees), -abs(beta[-1]) / deviation))
