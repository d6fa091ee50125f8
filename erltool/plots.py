"""One function a figure: it takes data, draws on the given Axes or on new ones, and returns the Axes.

Without pyplot there is no global state, so a widget's callback in another thread cannot draw into a figure by mistake.
`ax.figure` shows itself at the end of a notebook cell and saves with `savefig`.
"""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from erltool.errors import ErltoolError
from erltool.law.fit import LawFit
from erltool.law.forecast import Forecast
from erltool.runs.folder import METRICS, Run
from erltool.runs.microscope import Microscope
from erltool.text import visible

# Those of Okabe and Ito's colours that have at least 3:1 contrast on white, each with its own marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
MARKERS = ("o", "s", "^", "D", "v")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
LABELS = {
    "policy_entropy": "policy entropy",
    "eval_accuracy": "held-out accuracy",
    "mean_covariance": "mean covariance",
}


class Picture(Figure):
    """A Figure that a notebook shows as PNG by itself, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def new_axes(columns: int = 1, width: float = 4.2, height: float = 3.2) -> np.ndarray:
    """A row of new Axes, shape (columns,), on one Figure with an opaque white background."""
    return new_rows(1, columns, width, height)


def new_rows(rows: int, columns: int, width: float = 4.2, height: float = 3.2) -> np.ndarray:
    """Rows of new Axes on one such Figure, row by row, shape (rows * columns,)."""
    size = (width * columns, height * rows)
    figure = Picture(figsize=size, dpi=88, layout="constrained", facecolor="white")
    return figure.subplots(rows, columns, squeeze=False).flatten()


def as_text(name: str, keep: str = "") -> str:
    """A name that matplotlib shows unchanged. Dollars make no formula, and a space before a leading underscore keeps
    the name in a legend. Hidden characters, except those in `keep`, become visible."""
    text = visible(name, keep).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _dressed(ax: Axes, xlabel: str, ylabel: str) -> Axes:
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.25)
    return ax


def _label_of(metric: str) -> str:
    return f"{LABELS.get(metric, metric.replace('_', ' '))} ({METRICS[metric][0]})"


def plot_run(
    run: Run, metric: str = "policy_entropy", *, ax: Axes | None = None, label: str | None = None, index: int = 0
) -> Axes:
    """A metric of a run by optimiser step, with its unit. Returns the Axes, new ones without `ax`.

    `index` chooses colour and marker, for several runs on the same Axes. A metric that was measured on some steps only
    has markers. Raises ErltoolError for a metric that the run does not have.
    """
    if metric not in run.metrics or metric not in METRICS:
        known = ", ".join(m for m in METRICS if m in run.metrics)
        raise ErltoolError(f"run {run.path}: no metric {metric!r}; it has {known or 'no steps yet'}")
    ax = new_axes()[0] if ax is None else ax
    rows, name = run.metrics.dropna(subset=[metric]), as_text(run.name if label is None else label)
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    marker = marker if len(rows) < len(run.metrics) else ""
    ax.plot(rows["step"], rows[metric], color=colour, marker=marker, markersize=4, linewidth=1.4, label=name)
    return _dressed(ax, "optimiser step", _label_of(metric))


def plot_fit(result: LawFit, *, ax: Axes | None = None, label: str = "points", index: int = 0) -> Axes:
    """Points (H, R), the fitted law down to H = 0, and its ceiling with the 95 % interval. Returns the Axes."""
    ax = new_axes()[0] if ax is None else ax
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    ax.plot(result.entropy, result.performance, marker, color=colour, markersize=4, label=as_text(label))
    h = np.linspace(0, result.entropy.max(), 200)
    ax.plot(h, result.predict(h), color=colour, linewidth=1.4)
    low, high = result.interval()["ceiling"]
    ends = [[result.ceiling - low], [high - result.ceiling]]
    ax.errorbar([0], [result.ceiling], ends, color=colour, capsize=4, linewidth=1.4)
    return _dressed(ax, "policy entropy H (nats/token)", f"performance R ({result.unit})")


def plot_forecast(result: Forecast, *, ax: Axes | None = None, label: str = "run", index: int = 0) -> Axes:
    """A forecast by the law: fitted points filled, later ones open, the law and its interval down to H = 0. Returns the
    Axes."""
    ax = new_axes()[0] if ax is None else ax
    law, colour, marker = result.law, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    ax.plot(law.entropy, law.performance, marker, color=colour, markersize=4, label=as_text(f"{label}: fitted"))
    h, r = result.entropy, result.performance
    ax.plot(h, r, marker, color=colour, markersize=4, fillstyle="none", label="measured later")
    h = np.linspace(0, max(law.entropy.max(), h.max(initial=0)), 200)
    ax.plot(h, law.predict(h), color=colour, linewidth=1.4)
    ax.fill_between(h, *result.at(h), color=colour, alpha=0.15, linewidth=0, label=f"{result.level:.0%} interval")
    return _dressed(ax, "policy entropy H (nats/token)", f"performance R ({law.unit})")


def plot_entropy_change(predicted, measured, *, ax: Axes | None = None, title: str = "", index: int = 0) -> Axes:
    """Measured against predicted change of entropy (Lemma 1, nats), a point a context, with the line of equality and
    the correlation. Returns the Axes. Raises ErltoolError for no contexts, or not as many of both."""
    x, y = (np.asarray(v, dtype=float).ravel() for v in (predicted, measured))
    if len(x) == 0 or len(x) != len(y):
        raise ErltoolError(f"plot_entropy_change: {len(x)} predicted, {len(y)} measured changes; give as many of both")
    ax = new_axes(width=4.6, height=4.2)[0] if ax is None else ax
    r = np.corrcoef(x, y)[0, 1] if len(x) > 1 and x.std() * y.std() > 0 else float("nan")
    ax.plot(x, y, ".", color=COLOURS[index], markersize=3, alpha=0.4, label=f"{len(x)} contexts, r = {r:.2f}")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    ax.plot([low, high], [low, high], color="black", linewidth=1, linestyle="--", label="as predicted")
    ax.set(xlabel="predicted change of entropy (nats)", ylabel="measured (nats)", title=as_text(title, keep="\n"))
    ax.legend(fontsize=8)
    return ax


def plot_seeds(
    runs: Sequence[Run], metric: str = "policy_entropy", *, ax: Axes | None = None, label: str = "", index: int = 0,
    smooth: int = 1, by: str = "step",
) -> Axes:  # fmt: skip
    """A metric by step for runs of one setting: seeds as thin lines, their mean thick. Returns the Axes.

    A single seed is thick. Curves are means of `smooth` iterations, or of `smooth` evaluations for a metric that was
    measured on some steps only. The mean is over the seeds that reached a step. `by` "iteration" counts rounds of
    sampling, for runs with different numbers of updates. Raises ErltoolError for no runs with the metric, or another
    `by`.
    """
    curves = [r.metrics.dropna(subset=[metric]).groupby("iteration").mean(numeric_only=True) for r in runs
              if metric in r.metrics]  # fmt: skip
    if by not in ("step", "iteration"):
        raise ErltoolError(f"plot_seeds: by={by!r}: must be step or iteration")
    if not curves or metric not in METRICS:
        raise ErltoolError(f"plot_seeds: none of {len(runs)} runs has the metric {metric!r}")
    ax = new_axes()[0] if ax is None else ax
    colour, line = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
    smoothed = [c.reset_index().set_index(by)[metric].rolling(smooth, min_periods=1).mean() for c in curves]
    for curve in smoothed if len(smoothed) > 1 else ():
        ax.plot(curve.index, curve, color=colour, linestyle=line, linewidth=0.6, alpha=0.45)
    mean = pd.concat(smoothed, axis=1).sort_index().mean(axis=1)
    ax.plot(mean.index, mean, color=colour, linestyle=line, linewidth=2, label=as_text(label) or None)
    return _dressed(ax, "optimiser step" if by == "step" else by, _label_of(metric))


def plot_prices(
    point: Microscope,
    criteria: Sequence[str] = ("push", "covariance", "band", "random", "oracle"),
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """What sparing the tokens of each criterion saves and costs at one policy: a curve a criterion, a point a share of
    the dose, with 95 % intervals on both axes. Up is more entropy, to the right less progress. Criteria that were not
    measured are left out. Returns the Axes. Raises ErltoolError where none was measured."""
    table = point.prices()
    known = [c for c in criteria if c in set(table["criterion"])]
    if not known:
        raise ErltoolError(f"plot_prices: none of {', '.join(criteria)} was measured")
    ax = new_axes(width=5.4, height=3.8)[0] if ax is None else ax
    for index, criterion in enumerate(known):
        rows = table[table["criterion"] == criterion]
        x, y = 100 * rows["lost"].to_numpy(), 1000 * rows["saved"].to_numpy()
        x_error, y_error = (
            scale * np.abs([rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]])
            for name, scale in (("lost", 100), ("saved", 1000))
        )
        colour, line = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
        ax.errorbar(x, y, y_error, x_error, elinewidth=0.5, alpha=0.35, linestyle="none", color=colour)
        marker = MARKERS[index % len(MARKERS)]
        ax.plot([0, *x], [0, *y], color=colour, linestyle=line, marker=marker, markersize=4, label=as_text(criterion))
    ax.axhline(0, color="black", linewidth=0.6)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.legend(fontsize=8)
    if title:
        ax.set_title(title, parse_math=False, fontsize=9)
    return _dressed(ax, "reward lost (% of the whole update's gain)", "entropy saved (mnats/token an update)")
