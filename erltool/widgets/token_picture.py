"""TokenInspector's picture: a group's tokens in rows, and the chosen token's alternatives."""

from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from erltool.plots import Picture, as_text
from erltool.text import shown
from erltool.widgets.token_groups import CHOICES, branches, forks_of, numbers_of, rows_of, same_place

WIDE, MOST_ROWS, LONGEST = 92, 16, 24  # characters across, responses, characters of a token
CENTRES = {"covariance": 0.0, "push": 0.0, "ratio": 1.0}  # a quantity's neutral value is white
MEANINGS = {
    "covariance": ": (log-prob \u2212 mean) \u00b7 (advantage \u2212 mean)",
    "push": ": change of the place's entropy by the token's own gradient",
}
NAMES = {"log_prob": "log-prob", "selected": "taken by the run", "clip_cov": "taken by Clip-Cov", "kl_cov": "by KL-Cov"}


def token_picture(
    table: pd.DataFrame, data: dict, quantity: str, rows: list[int], chosen: int, probes: pd.DataFrame | None = None
) -> Figure:
    """Rows of tokens of a step's `table`, which the browser gets as `data`; `chosen` is a place in the table. With
    `probes`, the run's, of which the table is a step, colours mean the same at every step, and the chosen place has its
    entropy over the run."""
    quantity = quantity if quantity in data["quantities"] else "entropy"
    has_bars = "likeliest" in data and len(table["likeliest"][chosen]) > 0
    shown_rows = rows[:MOST_ROWS]
    high = 0.25 * max(1, len(shown_rows)) + 0.9
    figure = Picture(figsize=(8.4, high + 1.6 * has_bars), dpi=88, facecolor="white")
    total = figure.get_figheight()
    ax = figure.add_axes((0.17, 1 - (high - 0.5) / total, 0.82, (high - 0.9) / total))
    bar = figure.add_axes((0.17, 1 - (high - 0.2) / total, 0.25, 0.12 / total))
    values, all_of = _values(table, quantity), table if probes is None else probes
    group = rows_of(data, rows[0]) if rows else []
    begins = [*data["begins"], len(table)]
    in_group = np.concatenate([values[begins[r] : begins[r + 1]] for r in group]) if group else values
    cmap, low, top, at = _colours(_values(all_of, quantity), in_group, quantity)
    _tokens(ax, table, data, shown_rows, chosen, matplotlib.colormaps[cmap](np.clip(at(values), 0, 1)))
    bar.imshow(np.linspace(0, 1, 64)[None], aspect="auto", cmap=cmap)
    bar.set_axis_off()
    name = NAMES.get(quantity, quantity)
    bar.text(-0.02, 0.5, f"{low:.2g}", ha="right", va="center", fontsize=8, transform=bar.transAxes)
    roots = ", by cube roots" if quantity in CENTRES else ""
    text = f"{top:.3g}   {name}{roots}{MEANINGS.get(quantity, '')}"
    bar.text(1.02, 0.5, text, ha="left", va="center", fontsize=8, transform=bar.transAxes)
    if has_bars:
        _bars(figure.add_axes((0.17, 0.35 / total, 0.4, 1.0 / total)), table, data, chosen)
    if probes is not None and len(place := same_place(probes, int(table["step"].iloc[0]), chosen)) > 1:
        _place(figure.add_axes((0.7, 0.35 / total, 0.28, 1.0 / total)), place, int(table["step"].iloc[0]))
    return figure


def _values(table: pd.DataFrame, quantity: str) -> np.ndarray:
    values = numbers_of(table).get(quantity)
    return (table[quantity].to_numpy() if values is None else values).astype(float)


def _colours(
    values: np.ndarray, group: np.ndarray, quantity: str
) -> tuple[str, float, float, Callable[[np.ndarray], np.ndarray]]:
    """Colour map, its ends, and the place of a value on it, as the browser has them: amounts span 2 % to 98 % of the
    values; a quantity with a centre spans its group, by cube roots, since a few tokens have most of it."""
    if (centre := CENTRES.get(quantity)) is not None:
        reach = max(float(np.abs(group - centre).max(initial=0)), 1e-6)
        return "PuOr", centre - reach, centre + reach, lambda v: 0.5 + np.cbrt((v - centre) / reach) / 2
    ordered = np.sort(values)
    low, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.02, 0.98))
    if quantity in CHOICES:
        low, high = 0.0, 1.0
    return "cividis", low, high, lambda v: (v - low) / max(high - low, 1e-9)


def _tokens(ax: Axes, table: pd.DataFrame, data: dict, rows: list[int], chosen: int, colours: np.ndarray) -> None:
    begins = [*data["begins"], len(table)]
    ids, forks = table["token_id"].tolist(), forks_of(table)
    parts = branches([ids[begins[r] : begins[r + 1]] for r in rows])
    texts = [shown(text, LONGEST) for text in data["texts"]]
    first = _first(texts, begins, chosen)
    for line, (r, parting) in enumerate(zip(rows, parts, strict=True)):
        across = 0.0
        for i in range(begins[r] + first, begins[r + 1]):
            width = max(1, len(texts[i])) + 0.7
            if across + width > WIDE:
                ax.text(across, line, "\u2026", va="center", fontsize=8)
                break
            edge, line_width = ("#D55E00", 2.5) if i == chosen else ("#000000" if forks[i] else "none", 0.8)
            ax.add_patch(Rectangle((across, line - 0.42), width - 0.1, 0.84, facecolor=colours[i], edgecolor=edge,
                                   linewidth=line_width, zorder=3 if i == chosen else 1))  # fmt: skip
            if i - begins[r] in parting:
                ax.plot([across] * 2, [line - 0.5, line + 0.5], color="black", linewidth=2)
            ink = "black" if _luminance(colours[i]) > 0.179 else "white"
            ax.text(across + width / 2, line, as_text(texts[i]), color=ink, ha="center", va="center", fontsize=8,
                    family="monospace", zorder=4)  # fmt: skip
            across += width
        told = f"{data['rewards'][r]:g}  {data['strategies'][r]}" + (
            f", step {w} wrong" if (w := data["wrong"][r]) else ""
        )
        ax.text(-1, line, as_text(shown(told, 26)), ha="right", va="center", fontsize=8)
    ax.set(xlim=(0, WIDE), ylim=(max(1, len(rows)) - 0.5, -0.5))
    ax.set_axis_off()
    prompt = as_text(shown(data["prompts"][rows[0]], 60)) if rows else "no response passes the filter"
    step = f"step {int(table['step'].iloc[0])}: " if len(table) else ""
    marks = "bar: these responses part here" + ("; box: fork, the task leaves a choice" if forks.any() else "")
    ax.set_title(f"{step}{prompt}   ({marks})", fontsize=9, loc="left")


def _first(texts: list[str], begins: list[int], chosen: int) -> int:
    """The position from which on tokens are drawn, so that the chosen one is among them."""
    begin = max(b for b in begins[:-1] if b <= chosen)
    first, width = 0, sum(len(texts[i]) + 0.7 for i in range(begin, chosen + 1))
    while width > 0.8 * WIDE and begin + first < chosen:
        width -= len(texts[begin + first]) + 0.7
        first += 1
    return first


def _bars(ax: Axes, table: pd.DataFrame, data: dict, chosen: int) -> None:
    words = [as_text(shown(word, 12)) for word in table["likeliest"][chosen]]
    before = table["likeliest_before"][chosen]
    at = np.arange(len(words))
    if has_after := "likeliest_after" in table:
        ax.bar(at + 0.2, table["likeliest_after"][chosen], 0.38, color="#0072B2", label="after the update")
    ax.bar(at - 0.2 * has_after, before, 0.38, facecolor="white", edgecolor="black", label="before the update")
    ax.set_xticks(at, words, fontsize=8)
    ax.tick_params(axis="y", labelsize=8)
    ax.set_title(f"likeliest tokens at \u201c{as_text(shown(data['texts'][chosen], 20))}\u201d", fontsize=9, loc="left")
    if has_after:
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _place(ax: Axes, place: pd.Series, step: int) -> None:
    """The entropy of one place over the run."""
    ax.plot(place.index, place, color="#0072B2", linewidth=1.6)
    if step in place.index:
        ax.plot([step], [place[step]], "o", color="#D55E00", markersize=6)
    ax.set_title("entropy of this place (nats), by step", fontsize=9, loc="left")
    ax.set_ylim(bottom=0)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)


def _luminance(colour: np.ndarray) -> float:
    c = colour[:3]
    return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])
