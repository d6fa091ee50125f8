"""Makes data/runs/through-trl: the same 60 iterations by `erltool.train` and by TRL's GRPOTrainer with our control.

    pip install -e '.[trl]'
    python data/runs/through_trl.py FOLDER      # 20 minutes on 2 cores
    python data/runs/through_trl.py             # data/RESULTS.md's figure and table, from what is recorded here

The policy `countdown`, without control and with KL-Cov, three seeds each: 64 prompts x 8 responses an iteration, in the
same order for both, then 4 updates of 128 responses; LoRA of rank 16 on all linear layers, learning rate, AdamW, clip
range and advantages are the same. TRL deals an iteration's responses out to its updates at random, where an update of
ours is of whole groups: "trl" is TRL as it is, and "trl-in-order" is TRL with that shuffle taken out, which was added
after "trl" had shown a lower entropy than ours without control. What stays different is what erltool/engines/trl.py
names: the control's share is of the generation batch, and random draws are each engine's own.

A run that is whole is kept in FOLDER, and skipped by the next call; one that was cut is begun again.
"""

import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
from scipy import stats

import erltool
from erltool.plots import COLOURS, LINES, new_axes
from erltool.runs.folder import Run, read_runs, record_runs

HERE = Path(__file__).parent
RECORD, FIGURE = HERE / "through-trl", HERE.parent / "figures" / "through-trl.png"
CONTROLS = {"none": erltool.NoControl(), "kl-cov": erltool.KLCov(0.1, 2.0)}
SEEDS = (0, 1, 2)
ENGINES = {"erltool": "erltool", "trl-in-order": "TRL, updates of whole groups", "trl": "TRL, shuffled as it is"}
ITERATIONS, LAST = 60, 20
SHOWN = {"policy_entropy": "policy entropy (nats/token)", "reward": "training reward"}


def config(control: str, seed: int) -> erltool.TrainConfig:
    return erltool.TrainConfig(
        task="countdown", policy="countdown", max_response_tokens=12, control=CONTROLS[control], seed=seed,
        steps=ITERATIONS * 4, updates_per_iteration=4, eval_every=0, device="cpu",
    )  # fmt: skip


def with_erltool(config: erltool.TrainConfig, folder: Path) -> None:
    for _ in erltool.train(config, folder):
        pass


def with_trl(config: erltool.TrainConfig, folder: Path, shuffled: bool) -> None:
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig
    from trl.trainer import grpo_trainer

    from erltool.engines.trl import EntropyControlGRPOTrainer
    from erltool.policies.sources import find_model
    from erltool.training.loop import _Trainer
    from erltool.training.start import configured_policy

    task = erltool.load_task(config.task)
    order = _Trainer(config, task, configured_policy(config, task))
    problems = order.next_problems(config.prompts_per_iteration * ITERATIONS)
    place, known = find_model(config.policy), {p.prompt: p for p in problems}

    def verifier(prompts, completions, **_):
        return [task.reward(known[p], c) for p, c in zip(prompts, completions, strict=True)]

    settings = GRPOConfig(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.prompts_per_iteration * config.group_size // config.updates_per_iteration,
        gradient_accumulation_steps=1,
        steps_per_generation=config.updates_per_iteration,
        num_generations=config.group_size,
        num_iterations=1,
        max_completion_length=config.max_response_tokens,
        temperature=config.temperature,
        epsilon=config.clip_eps_low,
        epsilon_high=config.clip_eps_high,
        beta=0.0,
        loss_type="dapo",
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        seed=config.seed,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = EntropyControlGRPOTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(place, attn_implementation="sdpa"),
        verifier,
        settings,
        control=config.control,
        train_dataset=Dataset.from_dict({"prompt": [p.prompt for p in problems]}),
        processing_class=transformers.AutoTokenizer.from_pretrained(place, padding_side="left"),
        peft_config=LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    as_it_is = grpo_trainer.shuffle_sequence_dict
    grpo_trainer.shuffle_sequence_dict = as_it_is if shuffled else lambda batch: batch
    try:
        trainer.train()
    finally:
        grpo_trainer.shuffle_sequence_dict = as_it_is


def name_of(engine: str, control: str, seed: int) -> str:
    return f"{engine}-{control}-seed{seed}"


def make(out: Path) -> None:
    runs = {}
    for seed, control, engine in itertools.product(SEEDS, CONTROLS, ENGINES):
        name, wanted = name_of(engine, control, seed), config(control, seed)
        folder = out / name
        whole = (folder / "metrics.jsonl").is_file() and len(erltool.read_run(folder).metrics) == wanted.steps
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)
            if engine == "erltool":
                with_erltool(wanted, folder)
            else:
                with_trl(wanted, folder, shuffled=engine == "trl")
        runs[name] = erltool.read_run(folder)
        last = runs[name].metrics.tail(wanted.updates_per_iteration * LAST)
        print(f"{name}: entropy {last['policy_entropy'].mean():.3f}, reward {last['reward'].mean():.3f}", flush=True)
    record_runs(runs, RECORD)


def curves(runs: dict[str, Run], engine: str, control: str, metric: str) -> np.ndarray:
    """(seeds, iterations)."""
    return np.stack([runs[name_of(engine, control, seed)].metrics[metric].to_numpy() for seed in SEEDS])


def late(runs: dict[str, Run], engine: str, control: str, metric: str) -> np.ndarray:
    """Mean of the last iterations, (seeds,)."""
    return curves(runs, engine, control, metric)[:, -LAST:].mean(1)


def difference(runs: dict[str, Run], engine: str, control: str, metric: str) -> tuple[float, float, float]:
    """An engine's less ours over the last iterations, mean of the seeds, with the 95 % interval of Welch's t test."""
    theirs, ours = (late(runs, e, control, metric) for e in (engine, "erltool"))
    interval = stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval()
    return float(theirs.mean() - ours.mean()), float(interval.low), float(interval.high)


def figure(runs: dict[str, Run]):
    axes = new_axes(len(SHOWN), width=4.6, height=3.6)
    for ax, (metric, label) in zip(axes, SHOWN.items(), strict=True):
        for (i, control), (j, engine) in itertools.product(enumerate(CONTROLS), enumerate(ENGINES)):
            found = curves(runs, engine, control, metric)
            at = np.arange(1, found.shape[1] + 1)
            ax.plot(at, found.mean(0), color=COLOURS[j], linestyle=LINES[i], linewidth=1.4)
            ax.fill_between(at, found.min(0), found.max(0), color=COLOURS[j], alpha=0.15, linewidth=0)
        ax.set(xlabel="iteration", ylabel=label)
        ax.grid(alpha=0.25)
    for j, name in enumerate(ENGINES.values()):
        axes[0].plot([], [], color=COLOURS[j], label=name)
    for i, control in enumerate(CONTROLS):
        axes[0].plot([], [], color="black", linestyle=LINES[i], label=f"control {control}")
    axes[0].legend(fontsize=8)
    axes[0].figure.suptitle(
        f"Embedded policy, {ITERATIONS} iterations of 4 updates: mean and range of {len(SEEDS)} seeds", fontsize=10
    )
    return axes[0].figure


def table(runs: dict[str, Run]) -> list[str]:
    """data/RESULTS.md's table, a line each: means of the last iterations, and differences with their 95 % intervals."""
    lines = [
        "| control | last 20 iterations | " + " | ".join(ENGINES.values()) + " |",
        "|---|---|" + "---|" * len(ENGINES),
    ]
    for control, metric in [*itertools.product(CONTROLS, SHOWN), ("none", "clip_fraction")]:
        cells = []
        for engine in ENGINES:
            value = f"{late(runs, engine, control, metric).mean():.4f}"
            if engine != "erltool":
                value += ": {:+.4f} ({:+.4f} to {:+.4f})".format(*difference(runs, engine, control, metric))
            cells.append(value)
        lines.append(f"| `{control}` | {metric.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return lines


def report() -> None:
    runs = read_runs(RECORD)
    figure(runs).savefig(FIGURE)
    print("\n".join(table(runs)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make(Path(sys.argv[1]))
    report()
