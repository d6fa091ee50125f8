"""The static twin of ControlExplorer: the map as intervals, and the lines of the cells on show."""

from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from erltool.plots import Picture, as_text
from erltool.widgets.control_grid import NONE, colour_of, middles

INK, QUIET, PAYS, COSTS = "#111111", "#767676", "#0072B2", "#A84500"
APART = 0.07  # of an axis, between two names


def draw_picture(
    data: dict, curves: dict[str, np.ndarray], cells: list[int], metrics: list[str], around: dict[int, list[int]]
) -> Figure:
    """The figure of an explorer's `data`: above the map, below a column a cell and a row a metric, with shared axes."""
    rows, columns = data["map"]["controls"], data["map"]["settings"]
    heights = [0.9 + 0.24 * len(rows), 2.3 * len(metrics)]
    figure = Picture(figsize=(8.8, sum(heights)), dpi=88, layout="constrained", facecolor="white")
    above, below = cast("np.ndarray", figure.subfigures(2, 1, height_ratios=heights))
    _map(above.subplots(1, len(columns), squeeze=False, sharex=True, sharey=True)[0], data, cells)
    axes = below.subplots(len(metrics), len(cells), squeeze=False, sharex=True, sharey="row")
    for j, cell in enumerate(cells):
        for i, metric in enumerate(metrics):
            _lines(axes[i, j], data, curves[metric], around[cell])
        axes[0, j].set_title(_title(data, data["groups"][cell]), fontsize=9, parse_math=False)
        axes[-1, j].set_xlabel("optimiser step", fontsize=8)
    for i, metric in enumerate(metrics):
        axes[i, 0].set_ylabel(data["metrics"][metric], fontsize=8)
        for j, cell in enumerate(cells):  # after all lines of the row, whose limits the axes share
            _names(axes[i, j], data, curves[metric], around[cell])
    return figure


def _title(data: dict, group: dict) -> str:
    alone = data["map"]["settings"] == [group["setting"]]
    return group["control"] if alone else f"{group['control']} in {data['settings'][group['setting']]}"


def _map(axes: np.ndarray, data: dict, cells: list[int]) -> None:
    rows, columns = data["map"]["controls"], data["map"]["settings"]
    for ax, setting in zip(axes, columns, strict=True):
        for y, control in enumerate(rows):
            here = [i for i, g in enumerate(data["groups"]) if (g["control"], g["setting"]) == (control, setting)]
            if here:
                chosen = next((i for i in here if i in cells), max(here, key=lambda i: len(data["groups"][i]["runs"])))
                _cell(ax, y, data["groups"][chosen], chosen in cells)
        ax.axvline(0, color=INK, linewidth=0.7)
        ax.set_title(data["settings"][setting] or "all runs", fontsize=9, parse_math=False)
        ax.tick_params(labelsize=8)
    axes[0].set(yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6))
    axes[0].set_yticklabels([as_text(r) for r in rows])
    axes[len(axes) // 2].set_xlabel(
        f"{data['map']['accuracy']}: difference to {NONE}, 95 % interval; × entropy held", fontsize=8
    )


def _cell(ax: Axes, y: int, group: dict, chosen: bool) -> None:
    d, held = group["end"]["difference"], group["end"]["held"]
    if d is None:
        value = group["end"]["accuracy"]
        ax.text(0, y, f" {value[0]:.3f}" if value else " not measured", fontsize=7, va="center", color=QUIET)
        return
    mean, low, high = d
    colour = QUIET if low is None else PAYS if low > 0 else COSTS if high < 0 else INK
    if low is not None:
        ax.plot([low, high], [y, y], color=colour, linewidth=2.4 if chosen else 1.4)
    ax.plot([mean], [y], "o", color=colour, markersize=6 if chosen else 4)
    if held:
        ax.text(1.02, y, f"{held[0]:.2g}×", fontsize=7, va="center", color=QUIET,
                transform=ax.get_yaxis_transform())  # fmt: skip


def _lines(ax: Axes, data: dict, values: np.ndarray, groups: list[int]) -> None:
    steps = middles(data["last"])
    for i in groups:
        group = data["groups"][i]
        (colour, dash), rows = colour_of(group["control"], data["controls"]), values[group["runs"]]
        for row in rows if len(rows) > 1 else ():
            at = np.isfinite(row)
            ax.plot(steps[at], row[at], color=colour, linewidth=0.6, alpha=0.35)
        mean = rows.mean(0)
        at = np.isfinite(mean)
        if group["quantile"] and at.any():
            half = group["quantile"] * rows[:, at].std(0, ddof=1) / np.sqrt(len(rows))
            ax.fill_between(steps[at], mean[at] - half, mean[at] + half, color=colour, alpha=0.14, linewidth=0)
        ax.plot(steps[at], mean[at], color=colour, linewidth=2, linestyle=(0, dash) if dash else "-")
    ax.grid(alpha=0.25)
    ax.tick_params(labelsize=8)


def _names(ax: Axes, data: dict, values: np.ndarray, groups: list[int]) -> None:
    """The controls' names at the ends of their lines, one above the other where these meet."""
    low, high = ax.get_ylim()
    ends = []
    for i in groups:
        mean = values[data["groups"][i]["runs"]].mean(0)
        if (at := np.flatnonzero(np.isfinite(mean))).size:
            ends.append((mean[at[-1]], i, middles(data["last"])[at[-1]]))
    free = low
    for y, i, x in sorted(ends):
        free = max(y, free)
        control = data["groups"][i]["control"]
        ax.annotate(as_text(control), (x, free), fontsize=7, color=colour_of(control, data["controls"])[0],
                    xytext=(3, 0), textcoords="offset points", va="center", annotation_clip=False)  # fmt: skip
        free += APART * (high - low)
