"""How often the alarms of collapse and explosion are right on recorded runs, and how early they come.

    python tests/benchmarks/alarm_rates.py [FOLDER_OF_RUNS ...]        (data/runs)

Prints a row a run; then which thresholds do best on the runs of even seed, by one rule: the fewest misses and false
alarms together, among equals the earliest (largest median lead), among those the first of the grid; then how those and
the defaults do on the runs of odd seed, which decided nothing.
"""

import itertools
import sys
from functools import partial
from pathlib import Path

import pandas as pd

from erltool import Watch, alarm_report, alarm_summary, read_runs
from erltool.resources import shipped

GRIDS = {
    "collapse": {"collapse": (0.3, 0.4, 0.5), "floor": (0.1, 0.15, 0.2)},
    "explosion": {"explosion": (1.3, 1.5, 1.8)},
}


CRITERIA = (0.1, 0.2)  # of the start: what share of it a run must end below to have collapsed


def rates(runs: list, below: float, settings: dict) -> pd.DataFrame:
    return alarm_summary(alarm_report(runs, partial(Watch, **settings), collapsed=below))


def best(kind: str, runs: list, below: float) -> dict:
    """The settings of GRIDS[kind] that do best on these runs."""
    tried = []
    for values in itertools.product(*GRIDS[kind].values()):
        settings = dict(zip(GRIDS[kind], values, strict=True))
        row = rates(runs, below, settings).loc[kind]
        tried.append((row["misses"] + row["false_alarms"], -row["lead"] if row["hits"] else 0.0, settings))
    return min(tried, key=lambda t: t[:2])[2]


def main(folders: list[str]) -> None:
    runs = [run for folder in folders or [shipped("data/runs")] for run in read_runs(Path(folder)).values()]
    pd.set_option("display.width", 250, "display.max_columns", 40, "display.max_rows", 500)
    print(alarm_report(runs).round(3).to_string(index=False))
    even, odd = ([r for r in runs if r.config["seed"] % 2 == parity] for parity in (0, 1))
    for below in CRITERIA:
        print(f"\ncollapsed is below {below:.0%} of the start")
        chosen = {name: value for kind in GRIDS for name, value in best(kind, even, below).items()}
        print(f"best on the {len(even)} runs of even seed: {chosen}; default: {Watch()}")
        for name, settings, seeds, group in (
            ("best", chosen, "even", even),
            ("best", chosen, "odd", odd),
            ("default", {}, "odd", odd),
            ("default", {}, "all", runs),
        ):
            print(f"\n{name}, seeds: {seeds}\n{rates(group, below, settings).to_string()}")


if __name__ == "__main__":
    main(sys.argv[1:])
