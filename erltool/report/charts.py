"""Metrics by step as the page's charts draw them."""

import math

import numpy as np

from erltool.report.sources import QUANTILES, Source

POINTS = 300  # of a line, at most


def charts_of(sources: list[Source]) -> list[dict]:
    """A dict each: `title`, `unit`, whether the axis is `log`, and `lines`. A line has the position of its source, its
    `name` within it, its `kind` (which of the chart's metrics it is), and its points `x` (steps) and `y`."""
    given = any(s.log and s.log.unit == "as given" for s in sources)
    accuracies = {"eval_accuracy": "", "eval_accuracy_tempered": "tempered"}
    groups = {"zero_spread_fraction": "equal rewards", "all_wrong_fraction": "all wrong"}
    charts = [
        _chart("Policy entropy", "nats/token", sources, {"policy_entropy": ""}),
        _chart("Reward", "mean of an iteration", sources, {"reward": ""}),
        _chart("Held-out accuracy", "log's own unit" if given else "in [0, 1]", sources, accuracies),
        _chart("Covariance by quantile", "nats, logarithmic axis", sources, QUANTILES, log=True),
        _chart("Groups without a gradient", "fraction", sources, groups),
        _chart("Response length", "tokens", sources, {"response_length": ""}),
    ]
    return [chart for chart in charts if chart["lines"]]


def _chart(title: str, unit: str, sources: list[Source], metrics: dict[str, str], log: bool = False) -> dict:
    lines = []
    for at, source in enumerate(sources):
        for k, (metric, name) in enumerate(metrics.items()):
            values = source.by_iteration(metric)
            if len(values):
                x, y = reduced(values.index.to_numpy(float), values.to_numpy(float))
                lines.append({"run": at, "name": _name(source, metric, name), "kind": k, "x": x, "y": y})
    return {"title": title, "unit": unit, "log": log, "lines": lines}


def _name(source: Source, metric: str, name: str) -> str:
    """A line's name within its run: which tokens, which groups, or how the accuracy was sampled."""
    if not metric.startswith("eval_accuracy") or "eval_accuracy_tempered" not in source.rows:
        return name
    if metric == "eval_accuracy":
        return "sampled"
    temperature = source.run.config.get("eval_temperature") if source.run else None
    return "greedy" if temperature == 0 else f"temperature {temperature}"


def reduced(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """At most POINTS points: means over equal numbers of neighbours that were measured, of four significant digits."""
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    bins = np.arange(len(x)) // max(1, math.ceil(len(x) / POINTS))
    count = np.bincount(bins)
    across, up = ([float(f"{v:.5g}") for v in np.bincount(bins, w) / count] for w in (x, y))
    return across, up
