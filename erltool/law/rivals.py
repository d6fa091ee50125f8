"""Rival laws of performance, and whether the points can tell them apart.

    exponential   R = b - a exp(H)                        Cui et al. 2025, Eq 6
    linear        R = b - a H
    log           R = b - a log(H)                        has no ceiling at H = 0
    power         R = b - a H^c
    free exponent R = b - a exp(c H)
    sigmoid       R = R0 + (A - R0) / (1 + (C_mid/C)^B)   ScaleRL (arXiv 2510.13786), in compute C, here steps;
                                                          R0 is the first performance
Below H of about 0.3, exp(H) is nearly 1 + H, and the points of one run cannot tell the first two apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize

from erltool.errors import ErltoolError
from erltool.law.fit import GREATEST

Shape = Callable[[np.ndarray, tuple[float, ...]], np.ndarray]
CLOSE = np.log(1.05)  # errors that differ by less are tied, even where the difference is certain
EXPONENTS = np.concatenate([-np.geomspace(12, 0.05, 25), np.geomspace(0.05, 12, 25)])


@dataclass(frozen=True)
class RivalLaw:
    """R = offset + factor * shape(u, c), linear in offset and factor, where c has up to two parameters."""

    formula: str
    shape: Shape
    starts: tuple[tuple[float, ...], ...] = ((),)  # start values of the search for c
    in_steps: bool = False
    """Whether u is steps instead of entropy; the offset is then the first performance, and not fitted."""

    @property
    def parameters(self) -> int:
        return (1 if self.in_steps else 2) + len(self.starts[0])

    def fit(self, u: np.ndarray, r: np.ndarray, offset: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
        """The least-squares fit to (u, r), as a function of u."""

        def solved(c: tuple[float, ...]) -> tuple[float, float, float]:
            """Sum of squares, offset and factor for c; infinite and NaN where the shape has no finite values."""
            s = self.shape(u, c)
            top = np.abs(s).max()
            if not np.isfinite(s).all():
                return np.inf, np.nan, np.nan
            s = s / (top or 1.0)  # or squares of small or large values would vanish or overflow
            if self.in_steps:
                factor, first = s @ (r - offset) / max(s @ s, np.finfo(float).tiny), offset
            else:
                spread = np.sum((s - s.mean()) ** 2)
                factor = (s - s.mean()) @ (r - r.mean()) / spread if spread > 0 else 0.0
                first = r.mean() - factor * s.mean()
            return float(np.sum((r - first - factor * s) ** 2)), float(first), float(factor / (top or 1.0))

        with np.errstate(all="ignore"):
            c = min(self.starts, key=lambda c: solved(c)[0])
            if len(c) == 1:  # between the neighbours of the best start
                at, last = self.starts.index(c), len(self.starts) - 1
                ends = self.starts[max(0, at - 1)][0], self.starts[min(last, at + 1)][0]
                c = (optimize.minimize_scalar(lambda c: solved((c,))[0], bounds=ends, method="bounded").x,)
            elif c:
                c = tuple(optimize.minimize(lambda c: solved(tuple(c))[0], c, method="Nelder-Mead").x)
            _, first, factor = solved(c)

        def predict(v: np.ndarray) -> np.ndarray:
            with np.errstate(all="ignore"):
                return first + factor * self.shape(np.asarray(v, dtype=float), c)

        return predict


RIVALS = {
    "exponential": RivalLaw("R = b - a exp(H)", lambda h, c: np.exp(h)),
    "linear": RivalLaw("R = b - a H", lambda h, c: h),
    "log": RivalLaw("R = b - a log(H)", lambda h, c: np.log(h)),
    "power": RivalLaw("R = b - a H^c", lambda h, c: np.sign(c[0]) * h ** c[0], tuple((c,) for c in EXPONENTS)),
    "free exponent": RivalLaw(
        "R = b - a exp(c H)", lambda h, c: np.sign(c[0]) * np.exp(c[0] * h), tuple((c,) for c in EXPONENTS)
    ),
    "sigmoid": RivalLaw(
        "R = R0 + (A - R0) / (1 + (C_mid/C)^B)",
        lambda steps, c: 1 / (1 + np.exp(np.clip(c[0] * (c[1] - np.log(steps)), -700, 700))),
        tuple((b, m) for b in (0.5, 1.0, 2.0, 4.0) for m in np.log([3.0, 10.0, 30.0, 100.0, 300.0, 1000.0])),
        in_steps=True,
    ),
}


def compare_laws(entropy, performance, step=None, *, blocks: int = 5) -> pd.DataFrame:
    """One row a law, best first by its error on points that it was not fitted to.

    `entropy` (nats, above 0) and `performance` are (n,), in the order of the run. With `step` (n,), above 0, the
    sigmoid in compute is among the laws. Columns: `formula`, `parameters`, `rmse`, `aicc` (Akaike's criterion,
    corrected for few points, for independent points; smaller is better), `out_of_sample` (rmse of each of `blocks`
    stretches of the run when predicted from the others; their geometric mean, because the last stretch is an
    extrapolation and may outweigh all), `last_block` (rmse of the last stretch from those before it), `at_zero`
    (performance at H = 0; infinite for the log, NaN for the sigmoid), and `tied`: whether its out-of-sample error is
    within 5 % of the best, or within one standard error of the stretches' logarithmic differences. Errors below the
    rounding of performance count as that, and those of a law that overflows are infinite. Raises ErltoolError for fewer
    than 2 * blocks points, values that are not finite, entropies or steps not above 0, or entropy that does not vary.
    """
    h, r = (np.asarray(v, dtype=float).ravel() for v in (entropy, performance))
    n = len(h)
    steps = np.ones(n) if step is None else np.asarray(step, dtype=float).ravel()
    if n < 2 * blocks or len(r) != n or len(steps) != n:
        raise ErltoolError(f"compare_laws: {n} entropies, {len(r)} performances; give as many, at least {2 * blocks}")
    if not (np.isfinite(h).all() and np.isfinite(r).all() and (h > 0).all()):
        raise ErltoolError("compare_laws: entropies must be above 0, and all values finite; drop the others first")
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ErltoolError("compare_laws: steps must be above 0 and finite")
    if np.abs(r).max() > GREATEST:
        raise ErltoolError(
            f"compare_laws: performance reaches {np.abs(r).max():.3g}, whose squares overflow; rescale it"
        )
    if np.ptp(h) <= 1e-12 * h.max():
        raise ErltoolError("compare_laws: entropy does not vary, so no law of it can be fitted")
    least = max(np.finfo(float).eps * np.abs(r).max(), np.finfo(float).tiny)
    stretches = np.array_split(np.arange(n), blocks)
    rows: dict[str, dict] = {}
    errors: dict[str, np.ndarray] = {}
    for name, law in RIVALS.items():
        if law.in_steps and step is None:
            continue
        u, k = steps if law.in_steps else h, law.parameters
        fitted = law.fit(u, r, r[0])
        rmse = max(_rms(r - fitted(u)), least)
        errors[name] = np.array([_error(law, u, r, np.setdiff1d(np.arange(n), s), s) for s in stretches]).clip(least)
        rows[name] = {
            "formula": law.formula, "parameters": k, "rmse": rmse,
            "aicc": 2 * n * np.log(rmse) + 2 * (k + 1) + 2 * (k + 1) * (k + 2) / max(1, n - k - 2),
            "out_of_sample": np.exp(np.log(errors[name]).mean()),
            "last_block": _error(law, u, r, np.arange(stretches[-1][0]), stretches[-1]),
            "at_zero": np.nan if law.in_steps else float(fitted(np.array(0.0))),
        }  # fmt: skip
    table = pd.DataFrame(rows).T.infer_objects().sort_values("out_of_sample")
    best = np.log(errors[str(table.index[0])])
    table["tied"] = [bool(name == table.index[0] or _tied(np.log(errors[name]), best)) for name in table.index]
    return table


def _error(law: RivalLaw, u: np.ndarray, r: np.ndarray, fitted_on: np.ndarray, predicted: np.ndarray) -> float:
    """Root mean square error on the points `predicted` of a law fitted to the points `fitted_on`."""
    return _rms(r[predicted] - law.fit(u[fitted_on], r[fitted_on], r[0])(u[predicted]))


def _rms(values: np.ndarray) -> float:
    """Root mean square; infinite where a value is not finite or its square overflows."""
    with np.errstate(over="ignore"):
        square = np.mean(values**2) if np.isfinite(values).all() else np.inf
    return float(np.sqrt(square))


def _tied(errors: np.ndarray, best: np.ndarray) -> bool:
    """Whether logarithms of errors are no worse than the best law's, in both (blocks,), beyond doubt."""
    if not np.isfinite(errors).all():
        return False
    worse = errors - best
    return bool(np.mean(worse) <= max(CLOSE, np.std(worse, ddof=1) / np.sqrt(len(worse))))


def verdict(table: pd.DataFrame) -> str:
    """The result of `compare_laws` in one sentence."""
    tied = list(table.index[table["tied"]])
    if len(tied) == 1:
        return f"Out of sample the law `{tied[0]}` is ahead by more than a standard error."
    return f"Out of sample {', '.join(tied)} cannot be told apart (within 5 % or a standard error of `{tied[0]}`)."
