"""What CurveFitter shows beside the least-squares fit, a curve that was dragged or a rival law's, and its picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from erltool.law.fit import LawFit
from erltool.law.forecast import Forecast
from erltool.law.rivals import RIVALS
from erltool.plots import COLOURS, new_axes, plot_fit

LAW = "exponential"  # R = b - a exp(H), the one that is dragged and forecasts
LAWS = tuple(name for name, law in RIVALS.items() if not law.in_steps)
DRAGGED = "#111111"


@dataclass(frozen=True)
class Curve:
    """A curve beside the law's least-squares fit: the law as dragged, or a rival law's fit."""

    law: str
    predict: Callable[[np.ndarray], np.ndarray]
    """Performance at an entropy (nats)."""
    entropy: np.ndarray
    """(n,) nats"""
    performance: np.ndarray
    """(n,)"""
    unit: str
    """Of performance, one of law.units.UNITS."""
    a: float | None = None
    """As dragged; None for a rival law."""
    b: float | None = None

    @property
    def dragged(self) -> bool:
        return self.a is not None

    @property
    def residuals(self) -> np.ndarray:
        return self.performance - self.predict(self.entropy)

    @property
    def rmse(self) -> float:
        return float(np.sqrt(np.mean(self.residuals**2)))

    @property
    def ceiling(self) -> float:
        """Performance at entropy 0; infinite for the law `log`."""
        return float(self.predict(np.array(0.0)))

    def to_dict(self) -> dict:
        """The numbers, ready for JSON; None for what is not a number."""
        ceiling = self.ceiling if np.isfinite(self.ceiling) else None
        return {
            "law": self.law, "dragged": self.dragged, "a": self.a, "b": self.b, "ceiling": ceiling, "rmse": self.rmse,
            "unit": self.unit, "points": len(self.entropy),
        }  # fmt: skip

    def latex(self) -> str:
        """The numbers as a LaTeX tabular."""
        numbers = {"$a$": self.a, "$b$": self.b, "performance at $H=0$": self.to_dict()["ceiling"], "RMSE": self.rmse}
        rows = [f"{name} & {value:.4f} \\\\" for name, value in numbers.items() if value is not None]
        head = f"{self.law}{', dragged' if self.dragged else ''}, {len(self.entropy)} points & {self.unit} \\\\"
        return "\n".join(["\\begin{tabular}{lr}", "\\hline", head, "\\hline", *rows, "\\hline", "\\end{tabular}"])


def draw_picture(
    fits: list[tuple[str, LawFit]], result: LawFit | Curve, ahead: Forecast | None, log_axis: bool
) -> Figure:
    """Points and fits with their names, that on show first; of it the 95 % band or the dragged or rival curve,
    residuals, ceiling and forecast."""
    ax, fit = new_axes(width=7.6, height=4)[0], fits[0][1]
    for k, (name, law_fit) in enumerate(fits):
        plot_fit(law_fit, ax=ax, label=name, index=2 + (k - 1) % 3 if k else 0)
    grid = grid_of([f for _, f in fits])
    if isinstance(result, LawFit):
        ax.fill_between(grid, *fit.band(grid), color=COLOURS[0], alpha=0.15, linewidth=0)
    else:
        label = "dragged" if result.dragged else result.law
        ax.plot(grid, result.predict(grid), color=DRAGGED, linewidth=2, label=label)
    ax.vlines(result.entropy, result.predict(result.entropy), result.performance, color=COLOURS[0], linewidth=0.8)
    if np.isfinite(result.ceiling):
        ax.axhline(result.ceiling, color=DRAGGED, linestyle=":", linewidth=1, label=f"ceiling {result.ceiling:.4g}")
    if ahead:
        first = f"from the first {len(ahead.law.entropy)} points"
        ax.plot(grid, ahead.law.predict(grid), color=COLOURS[1], linestyle="--", label=first)
        ax.fill_between(grid, *ahead.at(grid), color=COLOURS[1], alpha=0.15, linewidth=0)
    low, high = _heights([f for _, f in fits])
    ax.set(ylim=(low, high), ylabel=f"performance R ({fit.unit})")
    if log_axis:
        ax.set(xscale="log", xlim=(grid[grid > 0].min() / 1.2, grid.max() * 1.2))
    ax.legend(fontsize=8)
    return ax.figure


def grid_of(fits: list[LawFit]) -> np.ndarray:
    """Entropies from 0 to the highest, for drawing curves; dense enough for either axis."""
    h = np.concatenate([f.entropy for f in fits])
    even = np.linspace(min(0.0, h.min()), h.max(), 81)
    return np.union1d(even, np.geomspace(h[h > 0].min(), h.max(), 61)) if (h > 0).any() else even


def _heights(fits: list[LawFit]) -> tuple[float, float]:
    """Lowest and highest performance of the points and ceilings, with room."""
    values = np.concatenate([[*f.performance, f.ceiling] for f in fits])
    room = 0.08 * (np.ptp(values) or 1.0)
    return float(values.min() - room), float(values.max() + room)
