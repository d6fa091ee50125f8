"""The maps of data/RESULTS.md: where Clip-Cov does better than its rivals. Each cell is a setting with six seeds.

python data/experiments/maps.py                 # prints the tables
python data/experiments/maps.py --figure FILE   # also draws them
"""

import argparse
import functools
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from report import difference, markdown, record, takeover_cell, takeovers

from erltool.plots import new_axes
from erltool.runs import compare
from erltool.runs.folder import Run
from erltool.tasks.chain import parse_settings

AXES = {
    "facts": ("products among the operations", "wrong habit"),
    "updates": ("updates per iteration", "learning rate"),
    "rarity": ("demonstrations that work step by step", "steps right in them"),
}
RIVALS = ("none", "one-update", "random-clip")
ARMS = (*RIVALS, "clip-cov", "kl-cov")


def cell_of(grid: str, run: Run) -> tuple[float, float]:
    """Where a run stands on its map, (x, y)."""
    config = run.config
    if grid == "updates":
        return config["updates_per_iteration"], config["learning_rate"]
    if grid == "rarity":
        think, step = config["policy"].rpartition("/think")[2].split("-step")
        return float(think), float(step)
    return 1 / len(parse_settings(config["task"]).ops), float(config["policy"].rpartition("habit")[2])


@functools.cache
def ends_of(grid: str) -> pd.DataFrame:
    """The end values of a map's runs, with `x`, `y`, `arm` and, on the map `rarity`, `takeover`: NaN for none."""
    runs, table = record(grid)
    if grid == "rarity":
        table = takeovers(grid)
    x, y = zip(*(cell_of(grid, run) for run in runs.values()), strict=True)
    return table.assign(x=x, y=y, arm=[next(arm for arm in ARMS if name.endswith(f"-{arm}")) for name in runs])


def arms_of(grid: str) -> list[str]:
    return [arm for arm in ARMS if arm in set(ends_of(grid)["arm"])]


@functools.cache
def map_of(grid: str) -> pd.DataFrame:
    """A row for each cell: `x`, `y`, and the mean of each arm over seeds. "clip-cov:RIVAL" and "kl-cov:none" hold how
    far a control is from another arm, a `compare.Difference` over seeds. The values are greedy accuracies at the end;
    on the map `rarity` iterations of the takeover, where a run without one counts as a takeover after its end."""
    measure, ends = "average@0", ends_of(grid)
    if grid == "rarity":
        measure, ends = "takeover", ends.assign(takeover=ends["takeover"].fillna(ends["iterations"]))
    arms, rows = arms_of(grid), []
    pairs = [("clip-cov", rival) for rival in RIVALS if rival in arms] + [("kl-cov", "none")] * ("kl-cov" in arms)
    for (x, y), cell in ends.groupby(["x", "y"]):
        less = {f"{a}:{b}": compare.differences(cell, measure, b, by="arm")[a] for a, b in pairs}
        rows.append({"x": x, "y": y} | cell.groupby("arm")[measure].mean().to_dict() | less)
    return pd.DataFrame(rows)


def pays(grid: str, row: pd.Series) -> bool:
    """Whether Clip-Cov is above each rival of a cell beyond doubt; on the map `rarity`, earlier."""
    less = [d for name, d in row.items() if name.startswith("clip-cov:")]
    return all(d.high < 0 if grid == "rarity" else d.low > 0 for d in less)


def map_lines(grid: str) -> list[str]:
    """A map's table: the means of each arm, and how far Clip-Cov and KL-Cov are from no control. On the map `rarity` a
    cell has an arm's takeovers."""
    table, ends, arms = map_of(grid), ends_of(grid), arms_of(grid)
    less = [name for name in table if name.endswith(":none")]
    rows = []
    for _, row in table.iterrows():
        cell = ends[(ends["x"] == row["x"]) & (ends["y"] == row["y"])]
        if grid == "rarity":
            digits, means = 0, [takeover_cell(cell[cell["arm"] == arm]) for arm in arms]
        else:
            digits, means = 2, [f"{row[arm]:.2f}" for arm in arms]
        means += [difference(d, digits) for d in row[less]]
        rows.append([f"{row['x']:.2g}", f"{row['y']:g}", *means, "yes" if pays(grid, row) else ""])
    names = [*(f"`{arm}`" for arm in arms), *("`{}` − `{}`".format(*name.split(":")) for name in less)]
    return markdown([*AXES[grid], *names, "earlier than all" if grid == "rarity" else "above all"], rows)


def draw_maps() -> Figure:
    """A panel a map. A cell has the value without control and how far Clip-Cov is from it: greedy accuracy at the end,
    on the map `rarity` the iteration of the takeover. Violet is better. A frame marks the cells where Clip-Cov is
    better than every rival beyond doubt."""
    axes = new_axes(len(AXES), width=4.2, height=3.4)
    for ax, (grid, (xlabel, ylabel)) in zip(axes, AXES.items(), strict=True):
        table = map_of(grid)
        xs, ys = (sorted(table[name].unique()) for name in ("x", "y"))
        better = np.full((len(ys), len(xs)), np.nan)
        for _, row in table.iterrows():
            i, j = ys.index(row["y"]), xs.index(row["x"])
            start, more = row["none"], row["clip-cov:none"].mean
            better[i, j] = -more / start if grid == "rarity" else more
            words = f"{start:.0f}\n{more:+.0f}" if grid == "rarity" else f"{start:.2f}\n{more:+.2f}"
            ink = "white" if abs(better[i, j]) > 0.35 else "black"
            frame = {"fill": False, "edgecolor": ink} if pays(grid, row) else None
            ax.text(j, i, words, ha="center", va="center", fontsize=9, color=ink, bbox=frame)
        ax.imshow(better, cmap="PuOr", vmin=-0.6, vmax=0.6, origin="lower", aspect="auto")
        measure = "iteration of the takeover" if grid == "rarity" else "greedy accuracy"
        ax.set(xlabel=xlabel, ylabel=ylabel, title=f"{grid}: {measure}")
        ax.set_xticks(range(len(xs)), [f"{x:.2g}" for x in xs])
        ax.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    return axes[0].figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="file of the figure")
    args = parser.parse_args()
    print("\n\n".join("\n".join(lines) for lines in map(map_lines, AXES)))
    if args.figure is not None:
        draw_maps().savefig(args.figure)


if __name__ == "__main__":
    main()
