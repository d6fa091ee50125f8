"""What the residuals of a fit say: how neighbouring errors go together, and whether the points keep to their law.

Errors along a run are taken as a first-order autoregression: each is r times the one before, and something new.
Residuals show less of r than the errors have, because a fit bends towards them. Here r is the value at which the ratio
of expectations, E(sum of e_t e_(t-1)) / E(sum of e_t^2) over the residuals e, is the ratio seen; the variance of the
errors is corrected alike, and its degrees of freedom are Satterthwaite's.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize, special

LARGEST = 0.97  # autocorrelation; above it a run cannot tell its level from its errors
NEIGHBOURS = 2  # on either side, whose mean entropy stands for the entropy without its noise


@dataclass(frozen=True)
class Diagnostics:
    """What the residuals say of a fit."""

    autocorrelation: float
    """Of neighbouring errors, in [-LARGEST, LARGEST], corrected for what the fit takes of it."""
    independent_points: float
    """n (1 - r) / (1 + r) for autocorrelation r > 0: points that would tell as much if they were independent."""
    curvature_p: float
    """Two-sided p of a quadratic term in exp(H): where it is small the points bend away from the law."""
    bend: float
    """How far the quadratic term takes performance off a straight line, from its lowest to its highest, in the unit of
    R."""
    drift: float
    """Performance gained from first to last point at equal entropy, bending allowed for, in the unit of R."""
    drift_p: float
    """Its p: where it is small something else than entropy moves performance, as a control does."""
    revisited: float
    """Share of the variance of time that exp(H) and its square do not explain. Near 0 entropy falls so steadily that
    time and entropy are one, and nothing can be said of a drift."""
    entropy_noise: float
    """Standard deviation of what is noise in H, nats, from the second differences of neighbours."""
    attenuation: float
    """Share by which that noise makes a too small, in [0, 1]: its share of the variance of exp(H), but no more than the
    share of the variance of performance that the law leaves, for R too would follow what is no noise."""


@dataclass(frozen=True)
class Autoregression:
    """Errors of a linear fit as a first-order autoregression."""

    correlation: float
    """In [-LARGEST, LARGEST]."""
    covariance: np.ndarray
    """(k, k) of the fit's coefficients."""
    degrees: float
    """Of freedom, of the variance."""


def autoregression(residuals, design, instruments=None, *, surely: float = 0.0) -> Autoregression:
    """The autocorrelation of a linear fit's errors, and what is to be believed of its coefficients.

    `design` (n, k); the fit is of least squares, or with `instruments` (n, k) Z the solution of Z'(y - X b) = 0. The
    covariance is at the autocorrelation found, but at least 0, plus `surely` times its standard error
    sqrt((1 - r^2) / n).
    """
    z = design if instruments is None else instruments
    inverse = np.linalg.inv(z.T @ design)
    spread = design @ inverse  # residuals are (I - spread z') times the errors
    seen = np.sum(residuals[1:] * residuals[:-1]) / np.sum(residuals**2)

    def expected(r: float) -> float:
        square, neighbours = _expected(r, spread, z)
        return neighbours / square - seen

    low, high = expected(-LARGEST), expected(LARGEST)
    if low >= 0 or high <= 0:
        found = -LARGEST if low >= 0 else LARGEST
    else:
        found = optimize.brentq(expected, -LARGEST, LARGEST, xtol=1e-4)
    r = min(LARGEST, max(0.0, found) + surely * np.sqrt((1 - found**2) / len(residuals)))
    between = z.T @ _correlated(r, z)
    variance = residuals @ residuals / _expected(r, spread, z)[0]
    return Autoregression(float(found), variance * inverse @ between @ inverse.T, _degrees(r, design))


def _correlated(r: float, v: np.ndarray) -> np.ndarray:
    """R v along the first axis, for R with r^|i - j| at (i, j)."""
    band = np.array([np.ones(len(v)), np.full(len(v), -r)])  # y_t - r y_{t-1} = v_t, solved for y
    forth = linalg.solve_banded((1, 0), band, v)
    back = linalg.solve_banded((1, 0), band, v[::-1])[::-1]
    return forth + back - v


def _beside(v: np.ndarray) -> np.ndarray:
    """D v, with 1/2 at neighbours, so that e'De is the sum of the products of neighbours."""
    found = np.zeros_like(v)
    found[1:] += v[:-1] / 2
    found[:-1] += v[1:] / 2
    return found


def _expected(r: float, spread: np.ndarray, z: np.ndarray) -> tuple[float, float]:
    """Expected sums over the residuals of e_t^2 and of e_t e_(t-1), for errors of variance 1: the traces of M R M' and
    of D M R M', with M = I - spread z'."""
    rz = _correlated(r, z)
    between, beside = z.T @ rz, _beside(spread)
    square = len(z) - 2 * np.sum(spread * rz) + np.sum((spread @ between) * spread)
    return square, (len(z) - 1) * r - 2 * np.sum(beside * rz) + np.sum((beside @ between) * spread)


def _degrees(r: float, design: np.ndarray) -> float:
    """Degrees of freedom of the variance of least squares on `design`: tr(MR)^2 / tr(MRMR)."""
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
    """What performance gained over a run, in its unit: its highest running mean of 5 points minus its lowest."""
    return float(np.ptp(running_mean(performance)))


def diagnose(entropy: np.ndarray, performance: np.ndarray, residuals: np.ndarray) -> Diagnostics:
    """What the residuals of the law say of it; NaN where the fit is exact or points are below 6.

    Curvature and drift are fitted with the mean of NEIGHBOURS entropies on either side as an instrument for a point's
    own, in whose noise time would else be taken for a better measure of entropy, and a straight law for a bent one.
    """
    n, x = len(entropy), np.exp(entropy)
    noise = entropy_noise(entropy)
    total = np.var(performance)
    left = np.var(residuals) / total if total > 0 else 0.0
    attenuation = float(min(np.mean(x**2) * noise**2 / np.var(x), left))
    if n < 6 or np.sum(residuals**2) <= 1e-20 * np.sum(performance**2):
        return Diagnostics(np.nan, float(n), *[np.nan] * 5, noise, attenuation)
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
    """Standard deviation of noise in H (nats) about a smooth course: of its second differences, by their median
    absolute deviation, over sqrt(6). What changes from point to point counts as noise, whatever its cause; 0 below 5
    points."""
    bends = np.diff(entropy, 2)
    return float(1.4826 / np.sqrt(6) * np.median(np.abs(bends - np.median(bends)))) if len(entropy) >= 5 else 0.0


def _others(values: np.ndarray) -> np.ndarray:
    """The mean of NEIGHBOURS values on either side of each, without itself."""
    around = np.ones(2 * NEIGHBOURS + 1)
    around[NEIGHBOURS] = 0
    return np.convolve(values, around, "same") / np.convolve(np.ones(len(values)), around, "same")


def _rest(values: np.ndarray, design: np.ndarray) -> np.ndarray:
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def _last_term(design: np.ndarray, y: np.ndarray, instruments: np.ndarray) -> tuple[float, float]:
    """The last coefficient of a fit by instruments and its two-sided p, autocorrelation counted; NaN where it is not
    determined."""
    product = instruments.T @ design
    if np.linalg.matrix_rank(product) < design.shape[1]:
        return np.nan, np.nan
    beta = np.linalg.solve(product, instruments.T @ y)
    residuals = y - design @ beta
    if np.sum(residuals**2) <= 1e-20 * np.sum(y**2):
        return np.nan, np.nan
    found = autoregression(residuals, design, instruments)
    error = np.sqrt(found.covariance[-1, -1])
    return float(beta[-1]), float(2 * special.stdtr(max(1.0, found.degrees), -abs(beta[-1]) / error))
