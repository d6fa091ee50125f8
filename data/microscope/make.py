"""Makes the files of this folder: the microscope at policies along one run of each regime, without control.

python data/microscope/make.py FOLDER [FILE...]     one file after the other; 3 to 5 minutes a policy, one thread

A file REGIME has the criteria at four policies, REGIME-controls the controls at the last three of them.
"""

import sys
from pathlib import Path

import torch

from erltool import parse_control, read_runs
from erltool.resources import shipped
from erltool.runs.microscope import summary, write_microscope
from erltool.training.microscope import AT, examine_run

RUNS = {
    "sharpening": "sharpening-seed0-none", "discovery": "discovery-seed10-none", "trap": "trap-seed12-none",
}  # fmt: skip
# The values that were chosen for discovery (data/README.md); where nothing was chosen, the defaults.
CONTROLS = (
    "clip-cov:fraction=0.02,low=0.5,high=50", "kl-cov:fraction=0.1,coef=0.3,estimator=k2",
    "kl-cov:fraction=0.1,coef=1", "entropy-bonus:coef=0.003", "clip-higher", "cw-grpo", "opefo", "clip-v:fraction=0.02",
    "positive-reweighting", "repo-r", "erc", "ce-gppo", "dcpo", "bapo", "silence:criterion=push,dose=0.1",
    "silence:criterion=covariance,dose=0.1",
)  # fmt: skip


def main(folder: Path, files: list[str]) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        regime, _, controls = file.partition("-")
        run, points = read_runs(shipped("data/runs") / regime)[RUNS[regime]], []
        named = {text: parse_control(text) for text in CONTROLS} if controls else None
        for point in examine_run(run, AT[1:] if controls else AT, named):
            points.append(point)
            write_microscope(points, folder / f"{file}.parquet")
            print(file, summary(point), sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or [*RUNS, *(f"{regime}-controls" for regime in ("discovery", "sharpening"))])
