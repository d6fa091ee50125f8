"""The maps of data/RESULTS.md: where Clip-Cov ends above its rivals. Each cell is a setting with six seeds.

python data/experiments/maps.py                 # prints the tables
python data/experiments/maps.py --figure FILE   # also draws them
"""

import argparse
import functools
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from report import markdown, record

from erltool.plots import new_axes
from erltool.runs import compare
from erltool.runs.folder import Run
from erltool.tasks.chain import parse_settings

AXES = {
    "facts": ("products among the operations", "wrong habit"),
    "updates": ("updates per iteration", "learning rate"),
}
RIVALS = ("none", "one-update", "random-clip")


def cell_of(grid: str, run: Run) -> tuple[float, float]:
    """Where a run stands on its map, (x, y)."""
    config = run.config
    if grid == "updates":
        return config["updates_per_iteration"], config["learning_rate"]
    return 1 / len(parse_settings(config["task"]).ops), float(config["policy"].rpartition("habit")[2])


@functools.cache
def map_of(grid: str) -> pd.DataFrame:
    """A row for each cell: `x`, `y`, the mean greedy accuracy at the end of each arm, and in "more:ARM" how much more
    Clip-Cov has than that arm, a `compare.Difference` over seeds."""
    runs, table = record(grid)
    table[["x", "y"]] = [cell_of(grid, run) for run in runs.values()]
    table["arm"] = [next(arm for arm in (*RIVALS, "clip-cov") if name.endswith(f"-{arm}")) for name in runs]
    rows = []
    for (x, y), cell in table.groupby(["x", "y"]):
        means = cell.groupby("arm", sort=False)["average@0"].mean()
        rivals = means.index.drop("clip-cov")
        more = {f"more:{r}": compare.differences(cell, "average@0", r, by="arm")["clip-cov"] for r in rivals}
        rows.append({"x": x, "y": y} | means.to_dict() | more)
    return pd.DataFrame(rows)


def pays(row: pd.Series) -> bool:
    """Whether Clip-Cov is above each rival of a cell beyond doubt."""
    return all(d.low > 0 for name, d in row.items() if name.startswith("more:"))


def map_lines(grid: str) -> list[str]:
    """A map's table: mean greedy accuracies at the end, and how far Clip-Cov is above no control."""
    table = map_of(grid)
    arms = [arm for arm in (*RIVALS, "clip-cov") if arm in table]
    heads = [*AXES[grid], *(f"`{arm}`" for arm in arms), "`clip-cov` − `none`", "above all"]
    rows = []
    for _, row in table.iterrows():
        d = row["more:none"]
        rows.append([f"{row['x']:.2g}", f"{row['y']:g}", *(f"{row[arm]:.2f}" for arm in arms),
                     f"{d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f})", "yes" if pays(row) else ""])  # fmt: skip
    return markdown(heads, rows)


def draw_maps() -> Figure:
    """A panel a map: how much more greedy accuracy Clip-Cov ends with than no control. A frame marks the cells where it
    is above every rival beyond doubt."""
    axes = new_axes(len(AXES), width=4.2, height=3.4)
    for ax, (grid, (xlabel, ylabel)) in zip(axes, AXES.items(), strict=True):
        table = map_of(grid)
        xs, ys = (sorted(table[name].unique()) for name in ("x", "y"))
        more = np.full((len(ys), len(xs)), np.nan)
        for _, row in table.iterrows():
            i, j = ys.index(row["y"]), xs.index(row["x"])
            more[i, j] = row["more:none"].mean
            words, frame = f"{row['none']:.2f}\n{more[i, j]:+.2f}", {"fill": False, "edgecolor": "black"}
            ax.text(j, i, words, ha="center", va="center", fontsize=9, bbox=frame if pays(row) else None)
        ax.imshow(more, cmap="PuOr", vmin=-0.6, vmax=0.6, origin="lower", aspect="auto")
        ax.set(xlabel=xlabel, ylabel=ylabel, title=grid)
        ax.set_xticks(range(len(xs)), [f"{x:.2g}" for x in xs])
        ax.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    return axes[0].figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="file of the figure")
    args = parser.parse_args()
    print("\n\n".join("\n".join(map_lines(grid)) for grid in AXES))
    if args.figure is not None:
        draw_maps().savefig(args.figure)


if __name__ == "__main__":
    main()
