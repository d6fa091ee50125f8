"""Makes the files of this folder: the microscope at four policies along one run of each regime, without control.

python data/microscope/make.py FOLDER [REGIME...]      one file a regime; 3 minutes a policy, one thread
"""

import sys
from pathlib import Path

import torch

from erltool import read_runs
from erltool.resources import shipped
from erltool.runs.microscope import summary, write_microscope
from erltool.training.microscope import examine_run

RUNS = {
    "sharpening": "sharpening-seed0-none", "discovery": "discovery-seed10-none", "trap": "trap-seed12-none",
}  # fmt: skip


def main(folder: Path, regimes: list[str]) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for regime in regimes:
        points = []
        for point in examine_run(read_runs(shipped("data/runs") / regime)[RUNS[regime]]):
            points.append(point)
            write_microscope(points, folder / f"{regime}.parquet")
            print(regime, summary(point), sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(RUNS))
