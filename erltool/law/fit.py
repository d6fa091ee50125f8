"""The law R = -a exp(H) + b between policy entropy and performance, its uncertainty, and when not to believe it.

Cui et al. 2025 (arXiv 2505.22617), Eq 6. In x = exp(H) the law is a line, so least squares fits it in closed form.
Points of a run are autocorrelated. An interval is therefore the wider of two: a moving-block bootstrap of the residuals
with fixed x (Kuensch 1989), and a first-order autoregression of the errors (residuals.py).
"""

import html
import textwrap
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import special

from erltool.errors import ErltoolError
from erltool.law.doubts import doubts
from erltool.law.residuals import Autoregression, Diagnostics, autoregression, diagnose
from erltool.law.units import unit_of

RESAMPLES = 2000
SURELY = 0.5  # standard errors added to the autocorrelation, because few points show little of it
GREATEST = 1e100  # performance whose squares do not overflow
BIAS = 0.2  # fraction of half an interval that a bias may have: coverage of 95 % falls to 93 %
METHODS = ("bootstrap", "autoregression", "analytic")  # of an interval
TERMS = {"a": (-1.0, 0.0), "b": (0.0, 1.0), "ceiling": (1.0, 1.0)}  # multiples of slope and intercept


@dataclass(frozen=True)
class LawFit:
    """A fitted law. a, b, ceiling, rmse and performance are in `unit`."""

    a: float  # performance gained per unit of exp(H)
    b: float  # intercept at exp(H) = 0, which no policy reaches: see `ceiling`
    r_squared: float
    """Fraction of the variance of performance that the law explains; NaN where performance does not vary."""
    rmse: float  # root of the (weighted) mean square of the residuals, with n in the denominator
    entropy: np.ndarray  # (n,) nats, in the order of the run
    performance: np.ndarray  # (n,)
    weights: np.ndarray | None  # (n,) where they were given
    unit: str  # of performance: one of UNITS
    unit_stated: bool  # False where the values told the unit
    entropy_average: str
    """Which average of token entropies `entropy` is, or "not stated"."""
    method: str
    """"least squares", "weighted least squares" or "errors in both"."""
    line_covariance: np.ndarray  # (2, 2) of (slope, intercept) in exp(H), for independent errors
    block_length: int  # points in a bootstrap block
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

    def interval(self, level: float = 0.95, method: str | None = None) -> dict[str, tuple[float, float]]:
        """Interval of a, b and ceiling at a level in (0, 1).

        Each is the estimate plus and minus Student's quantile times a standard deviation, by one of METHODS:

            bootstrap of RESAMPLES refits to residuals in random blocks; n / block_length - 2 degrees of freedom
            autoregression for errors autocorrelated as the residuals show, plus SURELY standard errors; Satterthwaite's
            analytic of least squares, for independent errors; n - 2

        Without `method` it is the wider of bootstrap and autoregression, longer on one side where noise in H makes a
        too small (`flattened`); the bootstrap where block_length is 1; analytic for errors in both. `warnings` says
        where the coverage is too low (measured by tests/benchmarks/forecast_alarms.py). Raises ErltoolError for a level
        outside (0, 1), or a method other than analytic for errors in both.
        """
        bounds = {name: self._between(getattr(self, name), level, method, *terms) for name, terms in TERMS.items()}
        return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}

    def band(self, entropy, level: float = 0.95, method: str | None = None, *, new_point: bool = False):
        """(low, high) of the law's R at an entropy (nats), or of a new measurement there; scalars or arrays."""
        return self._between(self.predict(entropy), level, method, np.exp(entropy), 1.0, new_point)

    def standard_error(self, entropy, method: str | None = None, *, new_point: bool = False):
        """Standard deviation of `predict` at an entropy (nats), or of a new measurement about it, by one of METHODS.
        The default is the bootstrap, or analytic for errors in both."""
        return self._error(self._methods(method)[0], np.exp(entropy), 1.0, new_point)

    def quantile(self, level: float, method: str | None = None) -> float:
        """Student's quantile of an interval at a level, with the method's degrees of freedom."""
        if not 0 < level < 1:
            raise ErltoolError(f"interval level {level}: must be between 0 and 1, as 0.95")
        n, method = len(self.entropy), self._methods(method)[0]
        if method == "autoregression":
            degrees = self._autoregressive.degrees
        else:
            degrees = n - 2 if method == "analytic" else n / self.block_length - 2
        return float(special.stdtrit(max(1.0, degrees), (1 + level) / 2))

    def _between(self, value, level: float, method: str | None, x, one: float, new_point: bool = False):
        """(low, high) about a value of slope * x + intercept * one, by the widest method. Without `method` it is longer
        on the side to which `flattened` moves the value, by the excess over BIAS of the half."""
        half = np.max([self.quantile(level, m) * self._error(m, x, one, new_point) for m in self._methods(method)], 0)
        shift = 0.0 if method else -self.flattened * (x - one * np.exp(self.entropy).mean())
        more = np.maximum(0, abs(shift) - BIAS * half)
        return value - half - more * (shift < 0), value + half + more * (shift > 0)

    @property
    def flattened(self) -> float:
        """By how much noise in H makes a too small, in its unit; 0 for errors in both."""
        attenuation = min(0.5, self.diagnostics.attenuation)  # more noise than that cannot be corrected
        return 0.0 if self.method == "errors in both" else self.a * attenuation / (1 - attenuation)

    def _error(self, method: str, x, one: float, new_point: bool):
        """Standard deviation of slope * x + intercept * one, or of a measurement about it."""
        c, n = self._covariance(method), len(self.entropy)
        scatter = self.rmse**2 * n / (n - 2) if new_point else 0.0
        return np.sqrt(np.maximum(0, c[0, 0] * x**2 + 2 * c[0, 1] * x * one + c[1, 1] * one) + scatter)

    def _covariance(self, method: str) -> np.ndarray:
        """(2, 2) of slope and intercept."""
        if method == "analytic":
            return self.line_covariance
        return self._bootstrapped if method == "bootstrap" else self._autoregressive.covariance

    def _methods(self, method: str | None) -> tuple[str, ...]:
        """The methods of which the widest counts."""
        allowed = METHODS[-1:] if self.method == "errors in both" else METHODS
        if method is not None:
            if method not in allowed:
                raise ErltoolError(f"interval method {method!r}: use {' or '.join(allowed)}")
            return (method,)
        return allowed[: 1 if self.block_length == 1 else 2]

    @cached_property
    def _autoregressive(self) -> Autoregression:
        n, x = len(self.entropy), np.exp(self.entropy)
        if self._exact:
            return Autoregression(0.0, np.zeros((2, 2)), n - 2.0)
        root = np.ones(n) if self.weights is None else np.sqrt(self.weights)
        centred = np.column_stack([(x - x.mean()) / x.std(), np.ones(n)]) * root[:, None]
        errors = autoregression(self.residuals * root, centred, surely=SURELY)
        back = np.array([[1 / x.std(), 0.0], [-x.mean() / x.std(), 1.0]])
        return replace(errors, covariance=back @ errors.covariance @ back.T)

    @property
    def _exact(self) -> bool:
        return np.sum(self.residuals**2) <= 1e-20 * np.sum(self.performance**2)

    @cached_property
    def _bootstrapped(self) -> np.ndarray:
        """(2, 2) covariance of slope and intercept over the bootstrap's refits.

        Both are linear in the residuals, so a refit is the sum of its blocks' contributions.
        """
        n, length = len(self.entropy), self.block_length
        count = -(-n // length)
        scale = np.ones(n) if self.weights is None else np.sqrt(self.weights)
        # A fit with two parameters makes residuals too small by sqrt((n - 2) / n).
        residuals = self.residuals * scale * np.sqrt(n / (n - 2))
        windows = np.lib.stride_tricks.sliding_window_view(residuals, length)
        starts = np.random.default_rng(self.seed).integers(0, n - length + 1, (RESAMPLES, count))
        adds = np.zeros((2, count * length))
        adds[:, :n] = _line_coefficients(np.exp(self.entropy), self.weights) / scale
        slopes, intercepts = ((a.reshape(count, length) @ windows.T)[np.arange(count), starts].sum(1) for a in adds)
        return np.cov(slopes, intercepts, bias=True)

    @cached_property
    def diagnostics(self) -> Diagnostics:
        """What the residuals say of the fit; NaN for an exact fit or fewer than 6 points."""
        return diagnose(self.entropy, self.performance, self.residuals)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to believe this fit, one sentence each; empty where there is none."""
        return doubts(self)

    def summary(self) -> str:
        """The fit and its warnings as text of at most 80 columns."""
        interval, d = self.interval(), self.diagnostics
        lines = [
            f"R = -a exp(H) + b on {len(self.entropy)} points, "
            f"H from {self.entropy.min():.3f} to {self.entropy.max():.3f} nats",
            *textwrap.wrap(f"R in {self._unit_words}; entropy averaged as: {self.entropy_average}", 80),
        ]
        for name, (low, high) in interval.items():
            formula = "  (b - a, at H = 0)" if name == "ceiling" else ""
            lines.append(f"{name:>8} = {getattr(self, name):8.4f}   95 % interval {low:8.4f} to {high:8.4f}{formula}")
        lines += [
            f"R² = {self.r_squared:.3f}, RMSE = {self.rmse:.4f}, {self.method}; {self._interval_words}",
            f"residuals: autocorrelation {d.autocorrelation:.2f}, worth {d.independent_points:.0f} independent points",
        ]
        return "\n".join([*lines, *(line for w in self.warnings for line in textwrap.wrap(f"note: {w}", 80))])

    @property
    def _interval_words(self) -> str:
        method, *_ = self._methods(None)
        return f"bootstrap in blocks of {self.block_length}" if method == "bootstrap" else f"{method} intervals"

    @property
    def _unit_words(self) -> str:
        return self.unit if self.unit_stated or self.unit == "as given" else f"{self.unit} (read off the values)"

    def to_dict(self, level: float = 0.95) -> dict:
        """The numbers of the fit, ready for JSON; None for NaN."""
        numbers = {n: _json(getattr(self, n)) for n in ("a", "b", "ceiling", "r_squared", "rmse")}
        return numbers | {
            "unit": self.unit, "unit_stated": self.unit_stated, "entropy_average": self.entropy_average,
            "points": len(self.entropy), "method": self.method, "level": level,
            "interval": {k: list(map(float, v)) for k, v in self.interval(level).items()},
            "diagnostics": {k: _json(v) for k, v in vars(self.diagnostics).items()}, "warnings": list(self.warnings),
        }  # fmt: skip

    def latex(self, level: float = 0.95) -> str:
        """The coefficients with their intervals as a LaTeX tabular."""
        interval, symbols = self.interval(level), {"a": "$a$", "b": "$b$", "ceiling": "$b-a$"}
        rows = [
            f"{symbols[name]} & {getattr(self, name):.4f} & [{low:.4f}, {high:.4f}] \\\\"
            for name, (low, high) in interval.items()
        ]
        head = f"coefficient & {self.unit} & {100 * level:g}\\,\\% interval \\\\"
        foot = f"$R^2$ & {self.r_squared:.3f} & {len(self.entropy)} points \\\\"
        line = "\\hline"
        return "\n".join(["\\begin{tabular}{lrr}", line, head, line, *rows, line, foot, line, "\\end{tabular}"])

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th scope='row'>{name}</th><td>{getattr(self, name):.4f}</td><td>{low:.4f} to {high:.4f}</td></tr>"
            for name, (low, high) in self.interval().items()
        )
        notes = "".join(f"<li>{html.escape(w)}</li>" for w in self.warnings)
        return (
            "<table class='tex2jax_ignore mathjax_ignore'>"
            f"<caption>R = −a·exp(H) + b, {len(self.entropy)} points, R² {self.r_squared:.3f}, RMSE "
            f"{self.rmse:.4f}</caption><thead><tr><th></th><th scope='col'>{self._unit_words}</th>"
            f"<th scope='col'>95 % interval</th></tr></thead><tbody>{cells}</tbody></table>"
            + (f"<ul>{notes}</ul>" if notes else "")
        )


def fit_law(
    entropy, performance, *, weights=None, entropy_error=None, performance_error=None, unit: str | None = None,
    entropy_average: str = "not stated", block_length: int | None = None, seed: int = 0,
) -> LawFit:  # fmt: skip
    """The least-squares fit of R = -a exp(H) + b to points (H, R) in the order of the run.

    `entropy` (nats) and `performance` are (n,). `weights` (n,) weigh the squares like inverse variances. With
    `entropy_error` and `performance_error`, standard deviations of H and R, scalars or (n,), the fit is orthogonal:
    errors in both (ODRPACK95). `unit` is one of UNITS; without it `unit_of` infers it from the values.
    `entropy_average` names the average that H is, such as "token mean" or "mean of responses (Eq 5)". `block_length` is
    the number of points in a bootstrap block, by default round(n^(1/2)); 1 takes the points as independent. Raises
    ErltoolError for fewer than 3 points, different lengths, values that are not finite, performance beyond GREATEST,
    entropy that does not vary, fractions mixed with percentage points, weights or errors that are not positive, or one
    error without the other.
    """
    h, r = (np.asarray(v, dtype=float).ravel() for v in (entropy, performance))
    if len(h) != len(r):
        raise ErltoolError(f"fit_law: {len(h)} entropies but {len(r)} performances; give as many of both")
    if len(h) < 3:
        raise ErltoolError(f"fit_law: {len(h)} points; at least 3 are needed for two parameters and their interval")
    if not (np.isfinite(h).all() and np.isfinite(r).all()):
        bad = int((~(np.isfinite(h) & np.isfinite(r))).sum())
        raise ErltoolError(f"fit_law: {bad} of {len(h)} points are not finite; drop them first (DataFrame.dropna)")
    with np.errstate(over="ignore"):
        x = np.exp(h)
    if not np.isfinite(x).all() or np.ptp(x) <= 1e-12 * np.abs(x).max():
        raise ErltoolError("fit_law: entropy does not vary (or overflows), so no law can be fitted to it")
    if np.abs(r).max() > GREATEST:
        raise ErltoolError(f"fit_law: performance reaches {np.abs(r).max():.3g}, whose squares overflow; rescale it")
    if block_length is None:
        block_length = min(len(h) // 2, max(1, round(len(h) ** 0.5)))
    if not 1 <= block_length <= len(h) // 2:
        raise ErltoolError(f"fit_law: block_length {block_length}; must be from 1 to half of the {len(h)} points")
    if (entropy_error is None) != (performance_error is None):
        raise ErltoolError("fit_law: errors in both need entropy_error and performance_error; give the other one too")
    w = _positive("weights", weights, len(h))
    method = "least squares" if w is None else "weighted least squares"
    if entropy_error is not None:
        if w is not None:
            raise ErltoolError("fit_law: give weights, or the errors of both, not all three")
        in_h = _positive("entropy_error", entropy_error, len(h))
        in_r = _positive("performance_error", performance_error, len(h))
        method, (slope, intercept, covariance) = "errors in both", _orthogonal(h, r, in_h, in_r)
    else:
        slope, intercept = _line(x, r, w)
        covariance = _line_covariance(x, r - (intercept + slope * x), w)
    residuals, mass = r - (intercept + slope * x), np.ones(len(h)) if w is None else w
    total = np.sum(mass * (r - np.average(r, weights=mass)) ** 2)
    r_squared = 1 - np.sum(mass * residuals**2) / total if total > 0 else np.nan
    rmse = np.sqrt(np.average(residuals**2, weights=mass))
    return LawFit(
        float(-slope), float(intercept), float(r_squared), float(rmse), h, r, w, unit_of(r, unit), unit is not None,
        entropy_average, method, covariance, block_length, seed,
    )  # fmt: skip


def _positive(name: str, values, n: int) -> np.ndarray | None:
    if values is None:
        return None
    values = np.asarray(values, dtype=float)
    values = np.broadcast_to(values, (n,)) if values.ndim == 0 else values
    if values.shape != (n,) or not (np.isfinite(values).all() and (values > 0).all()):
        raise ErltoolError(f"fit_law: {name} must be above 0 and finite, one or {n} of them")
    return values


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Slope and intercept of least squares of y on x, both (n,). Centring y first keeps digits."""
    w = np.full(len(x), 1 / len(x)) if weights is None else weights / weights.sum()
    mean = w @ y
    slope, intercept = _line_coefficients(x, weights) @ (y - mean)
    return slope, intercept + mean


def _line_coefficients(x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(2, n): the coefficients of each y in slope and intercept of least squares on x."""
    w = np.full(len(x), 1 / len(x)) if weights is None else weights / weights.sum()
    centre = w @ x
    slope = w * (x - centre) / (w @ (x - centre) ** 2)
    return np.stack([slope, w - centre * slope])


def _line_covariance(x: np.ndarray, residuals: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """(2, 2) covariance of slope and intercept for independent errors of variance proportional to 1 / weights."""
    w = np.ones(len(x)) if weights is None else weights
    centre = np.average(x, weights=w)
    variance = np.sum(w * residuals**2) / (len(x) - 2)
    slope = variance / np.sum(w * (x - centre) ** 2)
    return np.array([[slope, -centre * slope], [-centre * slope, variance / w.sum() + centre**2 * slope]])


def _orthogonal(h, r, entropy_error, performance_error) -> tuple[float, float, np.ndarray]:
    """Slope, intercept in exp(H) and their covariance, with errors in H and R."""
    from odrpack import odr_fit  # few fits need it

    start = np.array(_line(np.exp(h), r))
    fitted = odr_fit(
        lambda x, beta: beta[0] * np.exp(x) + beta[1], h, r, start,
        weight_x=1 / entropy_error**2, weight_y=1 / performance_error**2,
    )  # fmt: skip
    if not fitted.success:
        raise ErltoolError(f"fit_law: errors in both did not converge ({fitted.stopreason}); fit without entropy_error")
    return float(fitted.beta[0]), float(fitted.beta[1]), np.array(fitted.cov_beta) * fitted.res_var


def _json(value) -> float | None:
    return float(value) if np.isfinite(value) else None
