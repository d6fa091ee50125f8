"""How often the alarms are right on recorded runs, how early they come, and how often they are false in simulation.

    python tests/benchmarks/alarm_rates.py [FOLDER_OF_RUNS ...]        (data/runs and the grids in it)

Prints a row a run; then which thresholds do best on the runs of even seed, by one rule: the fewest misses and false
alarms together, among equals the earliest (largest median lead), among those the first of the grid; then how those and
the defaults do on the runs of odd seed, which decided nothing. Then what noise the recorded runs have, iteration by
iteration, and with such noise, over simulated runs of 200 iterations: the share in which each alarm is raised at all,
and at which iteration; and what sureness costs a collapse and a stall. Takes 15 minutes.
"""

import itertools
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import savgol_filter

from erltool import Watch, alarm_report, alarm_summary, read_runs
from erltool.resources import shipped
from erltool.runs.alarms import KINDS
from erltool.runs.folder import Run, holds_record

GRIDS = {
    "collapse": {"collapse": (0.3, 0.4, 0.5), "floor": (0.1, 0.15, 0.2)},
    "explosion": {"explosion": (1.3, 1.5, 1.8)},
}
CRITERIA = (0.1, 0.2)  # of the start: what share of it a run must end below to have collapsed
RUNS, LONG = 200, 200  # simulated runs a row, and iterations of each
PART = np.arange(LONG) / LONG
ENTROPY = {
    "constant": np.full(LONG, 0.5),
    "to 60 % and stays": 0.3 + 0.2 * np.exp(-PART / 0.15),
    "to 30 % and stays": 0.15 + 0.35 * np.exp(-PART / 0.15),
    "to 10 %, steadily": 0.5 * 0.1**PART,
    "up by 15 %": 0.5 * (1 + 0.15 * PART),
    "threefold, iterations 50 to 80": 0.5 * 3 ** np.clip((200 * PART - 50) / 30, 0, 1),
    "threefold, iterations 50 to 150": 0.5 * 3 ** np.clip((200 * PART - 50) / 100, 0, 1),
}
REWARD = {
    "+0.1": 0.3 + 0.1 * PART, "+0.2": 0.3 + 0.2 * PART, "+0.4": 0.3 + 0.4 * PART, "-0.2": 0.5 - 0.2 * PART,
    "stands": np.full(LONG, 0.4), "+0.4, stands from 100": 0.2 + 0.8 * PART.clip(0, 0.5),
}  # fmt: skip
RISING = ("+0.1", "+0.2", "+0.4")


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


def noise_of(run: Run) -> dict:
    """Standard deviation of reward and of entropy (share of its level) about a smooth course, and how neighbouring
    entropies go together; means of iterations."""
    means = run.metrics.groupby("iteration")[["reward", "policy_entropy"]].mean().to_numpy().T
    reward, entropy = (y - savgol_filter(y, min(41, len(y) // 2 * 2 - 1), 2) for y in means)
    level = pd.Series(means[1]).rolling(11, center=True, min_periods=1).mean().to_numpy()
    return {
        "reward": reward.std(), "entropy, share": np.std(entropy / level),
        "entropy, neighbours": np.sum(entropy[1:] * entropy[:-1]) / np.sum(entropy**2),
    }  # fmt: skip


def neighbours(rng: np.random.Generator, n: int, correlation: float) -> np.ndarray:
    """(n,) of standard deviation 1, each with this correlation to the one before."""
    e = rng.standard_normal(n)
    for t in range(1, n):
        e[t] = correlation * e[t - 1] + np.sqrt(1 - correlation**2) * e[t]
    return e


def raised(entropy: np.ndarray, reward: np.ndarray, rng: np.random.Generator, watch=Watch, together=0.15,
           entropy_noise=0.07, reward_noise=0.04) -> dict[str, int]:  # fmt: skip
    """The iteration at which each kind of alarm is first raised on one simulated run."""
    entropy = entropy * (1 + entropy_noise * neighbours(rng, LONG, together)).clip(0.02)
    reward = reward + reward_noise * rng.standard_normal(LONG)
    length, norm = 100 * (1 + 0.03 * rng.standard_normal(LONG)), 0.3 * np.exp(0.3 * rng.standard_normal(LONG))
    seeing, first = watch(), {}
    for i in range(LONG):
        row = {"policy_entropy": entropy[i], "reward": reward[i], "response_length": length[i], "grad_norm": norm[i]}
        for alarm in seeing.see({"step": i + 1, "iteration": i} | row):
            first.setdefault(alarm.kind, i)
    return first


def shares(runs: list[dict[str, int]], kinds=tuple(KINDS)) -> dict[str, float]:
    """Of each kind: the share of runs that raised it, and the median iteration."""
    found = {}
    for kind in kinds:
        at = [r[kind] for r in runs if kind in r]
        found |= {kind: len(at) / len(runs), f"{kind} at": np.median(at) if at else np.nan}
    return found


def entropy_table(rng: np.random.Generator) -> pd.DataFrame:
    """Alarms by course and noise of the entropy, reward rising."""
    rows = {
        (course, noise, together): shares(
            [raised(h, REWARD["+0.4"], rng, entropy_noise=noise, together=together) for _ in range(RUNS)],
        )
        for (course, h), (noise, together) in itertools.product(
            ENTROPY.items(), ((0.05, 0.15), (0.1, 0.15), (0.2, 0.15), (0.1, 0.4), (0.2, 0.4))
        )
    }
    return pd.DataFrame(rows).T.rename_axis(["entropy", "noise, share", "neighbours"])


def stall_table(rng: np.random.Generator, watch=Watch, count: int = RUNS) -> pd.DataFrame:
    """Stalls by course and noise of the reward, while entropy falls to a tenth."""
    rows = {
        (course, noise): shares(
            [raised(ENTROPY["to 10 %, steadily"], r, rng, watch, reward_noise=noise) for _ in range(count)], ("stall",)
        )
        for (course, r), noise in itertools.product(REWARD.items(), (0.02, 0.04, 0.1))
    }
    return pd.DataFrame(rows).T.rename_axis(["reward", "noise"])


def doubt_table(runs: list[Run]) -> pd.DataFrame:
    """What standard errors a collapse takes off its rate do to false alarms, and to hits and lead on recorded runs."""
    rows = {}
    for doubt in (0.0, 1.0, 1.5, 2.0, 3.0):
        watch, rng = partial(Watch, doubt=doubt), np.random.default_rng(3)
        rows[doubt] = {
            f"false, {course}, noise {noise:.0%}": shares(
                [raised(ENTROPY[course], REWARD["+0.4"], rng, watch, entropy_noise=noise) for _ in range(60)],
            )["collapse"]
            for course, noise in itertools.product(("to 60 % and stays", "to 30 % and stays"), (0.07, 0.1, 0.2))
        }
        found = rates(runs, 0.2, {"doubt": doubt}).loc["collapse"]
        rows[doubt] |= {f"{name} below 20 %": found[name] for name in ("hits", "misses", "false_alarms", "lead")}
    return pd.DataFrame(rows).T.rename_axis("doubt")


def sureness_table() -> pd.DataFrame:
    """What standard errors and iterations in a row that a stall is asked for do to its false alarms and its hits."""
    rows = {}
    for sigmas, hold in itertools.product((1.0, 2.0, 3.0), (1, 5)):
        table = stall_table(np.random.default_rng(2), partial(Watch, sigmas=sigmas, hold=hold), 60)
        rows[sigmas, hold] = {
            **{f"false, {course}, most": table.loc[course, "stall"].max() for course in RISING},
            **{f"{c}, noise 0.04{w}": table.loc[(c, 0.04), f"stall{w}"]
               for c in ("stands", "+0.4, stands from 100", "-0.2") for w in ("", " at")},
        }  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis(["standard errors", "in a row"])


def all_runs(folders: list[str]) -> list[Run]:
    """Runs of these folders; without any, the shipped ones and those of the grids among them."""
    root = Path(shipped("data/runs"))
    paths = list(map(Path, folders)) or [root, *(p for p in sorted(root.iterdir()) if holds_record(p))]
    return [run for path in paths for run in read_runs(path).values()]


def main(folders: list[str]) -> None:
    runs = all_runs(folders)
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
    noise = pd.DataFrame([noise_of(r) for r in runs if r.metrics["iteration"].nunique() >= 30])
    print(f"\nnoise of an iteration, recorded runs\n{noise.quantile([0.1, 0.5, 0.9, 1.0]).round(3).to_string()}")
    print(f"\nshare of {RUNS} simulated runs of {LONG} iterations in which an alarm is raised, and at which iteration")
    print(entropy_table(np.random.default_rng(0)).round(3).to_string())
    print(f"\nstall, entropy to 10 %\n{stall_table(np.random.default_rng(1)).round(3).to_string()}")
    print(f"\nwhat a collapse is asked for\n{doubt_table(runs).round(3).to_string()}")
    print(f"\nwhat a stall is asked for\n{sureness_table().round(3).to_string()}")


if __name__ == "__main__":
    main(sys.argv[1:])
