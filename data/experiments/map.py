"""When does a control of entropy pay? Many short runs over a map of worlds.

    python data/experiments/map.py takeover --policies FOLDER

Three families. `takeover`: the rarity of the better strategy, and how often its steps are right at first. `discovery`:
the first chance of a product, and a wrong habit. `rate`: learning rate and updates per iteration. A point of a family
is a policy of make_chain.py, made where FOLDER lacks it (FOLDER/clean is phase 1's model). Every arm runs at every
point on the same seeds. A run is a line of data/runs/map/FAMILY.jsonl; those that are there are not made again, so the
script can be stopped at any time. `--part 0/2` and `--part 1/2` share the work between two processes.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

import erltool
from erltool.resources import commit, shipped

EVERY = 5  # iterations of a point of a curve
CURVES = {
    "reward": "reward",
    "entropy": "policy_entropy",
    "thinking": "thinking_fraction",
    "products": "right_product_fraction",
    "selected": "selected_fraction",
    "zero_spread": "zero_spread_fraction",
}
CLIP_COV = "clip-cov:fraction={},low=0.5,high=50"
KL_COV = "kl-cov:fraction={},coef={},estimator={}"
ARMS = {
    "none": "none",
    "one-update": "none",
    "clip-cov": CLIP_COV.format(0.03),
    "random-clip": "random-clip:fraction=0.03",
    "kl-cov-k1": KL_COV.format(0.02, 0.1, "k1"),
    "kl-cov-k2": KL_COV.format(0.02, 0.1, "k2"),
    "random-kl": "random-kl:fraction=0.02,coef=0.1",
}


def jobs(family: str) -> list[dict]:
    """All runs of a family but for their seeds: a point, an arm, and fields of TrainConfig."""
    if family == "takeover":
        points = [{"regime": "trap", "think": t, "step": s} for t in (0.01, 0.03, 0.1) for s in (0.2, 0.35, 0.5)]
        return [_job(point, arm, 100, 1e-4) for point in points for arm in ARMS]
    if family == "discovery":
        points = [{"regime": "discovery", "mul": m, "habit": h} for m in (0.1, 0.4) for h in (0.0, 0.9)]
        return [_job(point, arm, 150, 1e-4) for point in points for arm in ARMS]
    return [
        _job({"regime": "discovery", "mul": 0.1, "habit": 0.0}, arm, 100, rate, updates)
        for rate in (3e-5, 1e-4, 3e-4, 1e-3)
        for updates in (1, 2, 4, 8)
        for arm in ("none", "clip-cov", "random-clip")
    ]


def _job(point: dict, arm: str, iterations: int, rate: float, updates: int = 4) -> dict:
    return {
        "point": point,
        "arm": arm,
        "control": ARMS[arm],
        "iterations": iterations,
        "learning_rate": rate,
        "updates": 1 if arm == "one-update" else updates,
    }


def policy_of(point: dict, folder: Path) -> Path:
    """The point's policy, made where it is not there."""
    style = {k: v for k, v in point.items() if k != "regime"}
    made = folder / "-".join([point["regime"], *(f"{k}{v:g}" for k, v in style.items())])
    if not (made / "made_by.json").is_file():
        flags = [part for k, v in style.items() for part in (f"--{k}", str(v))]
        script = shipped("data/policies") / "make_chain.py"
        clean = ["--clean", str(folder / "clean"), "--out", str(made)]
        subprocess.run([sys.executable, script, point["regime"], *clean, *flags], check=True)
    return made


def run(job: dict, seed: int, folder: Path) -> dict:
    """One run: its curves, and accuracy on 1,000 held-out prompts at the sampling temperature and greedily."""
    start = time.monotonic()
    config = erltool.TrainConfig(
        task=f"chain:{job['point']['regime']}", policy=str(policy_of(job["point"], folder)), lora_rank=0,
        control=erltool.parse_control(job["control"]), learning_rate=job["learning_rate"],
        steps=job["iterations"] * job["updates"], updates_per_iteration=job["updates"], max_response_tokens=28,
        eval_every=25, eval_prompts=1000, eval_samples=1, eval_temperature=0.0, record_every=0, seed=seed, device="cpu",
    )  # fmt: skip
    table = pd.DataFrame([step.metrics for step in erltool.train(config)])
    curves = table.reindex(columns=list(CURVES.values())).astype(float).groupby(table["iteration"] // EVERY).mean()
    evaluated = table.dropna(subset="eval_accuracy")
    return job | {
        "seed": seed,
        "curves": {name: curves[key].round(4).tolist() for name, key in CURVES.items()},
        "evaluated": evaluated["iteration"].tolist(),
        "accuracy": evaluated["eval_accuracy"].tolist(),
        "greedy": evaluated["eval_accuracy_tempered"].tolist(),
        "seconds": round(time.monotonic() - start, 1),
        "commit": commit(),
    }


def key(job: dict, seed: int) -> str:
    return json.dumps([job[name] for name in ("point", "control", "iterations", "learning_rate", "updates")] + [seed])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=["takeover", "discovery", "rate"])
    parser.add_argument("--policies", type=Path, required=True, help="folder of the points' policies")
    parser.add_argument("--out", type=Path, default=shipped("data/runs") / "map", help="folder of the .jsonl file")
    parser.add_argument("--seeds", default="0-5", help="first and last seed")
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--part", default="0/1", help="this process's share of the runs, as 0/2 and 1/2")
    args = parser.parse_args()
    torch.set_num_threads(1)
    first, last = map(int, args.seeds.split("-"))
    part, parts = map(int, args.part.split("/"))
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{args.family}.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    done = {key(job, job["seed"]) for job in found}
    todo = [(job, seed) for seed in range(first, last + 1) for job in jobs(args.family) if job["arm"] in args.arms]
    for job, seed in todo[part::parts]:
        if key(job, seed) in done:
            continue
        line = json.dumps(run(job, seed, args.policies))
        with file.open("a") as f:  # one write of one line: two processes do not mix theirs
            f.write(line + "\n")
        print(f"{job['arm']} {job['point']} seed {seed}: {json.loads(line)['greedy'][-1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
