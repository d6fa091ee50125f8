"""Makes data/runs/through-trl: the same 60 iterations by `erltool.train` and by TRL's GRPOTrainer with our control.

    pip install -e '.[trl]'
    python data/runs/through_trl.py FOLDER      # 20 minutes on 2 cores
    python data/runs/through_trl.py             # the README's figure and numbers, from what is recorded here

The embedded policy, without control and with KL-Cov, three seeds each: 64 prompts x 8 responses an iteration, in the
same order for both, then 4 updates of 128 responses; LoRA of rank 16 on all linear layers, learning rate, AdamW, clip
range and advantages are the same. What stays different is what erltool/trl.py names: TRL shuffles responses into
updates, the control's share is of the generation batch, and random draws are each engine's own.

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
from erltool.runs import Run, read_runs, record_runs

HERE = Path(__file__).parent
RECORD, FIGURE = HERE / "through-trl", HERE.parent / "figures" / "through-trl.png"
CONTROLS = {"none": erltool.NoControl(), "kl-cov": erltool.preset("kl-cov", "embedded")}
SEEDS = (0, 1, 2)
ENGINES = ("erltool", "trl")
ITERATIONS, LAST = 60, 20
SHOWN = {"policy_entropy": "policy entropy (nats/token)", "reward": "training reward"}


def config(control: str, seed: int) -> erltool.TrainConfig:
    return erltool.TrainConfig(
        control=CONTROLS[control], seed=seed, steps=ITERATIONS * 4, updates_per_iteration=4, eval_every=0, device="cpu"
    )


def with_erltool(config: erltool.TrainConfig, folder: Path) -> None:
    for _ in erltool.train(config, folder):
        pass


def with_trl(config: erltool.TrainConfig, folder: Path) -> None:
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig

    from erltool.policy import find_model
    from erltool.training import _Trainer, configured_policy
    from erltool.trl import EntropyControlGRPOTrainer

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
    trainer.train()


def make(out: Path) -> None:
    names = [f"{engine}-{control}-seed{seed}" for seed, control, engine in itertools.product(SEEDS, CONTROLS, ENGINES)]
    for name in names:
        engine, control, seed = name.split("-", 1)[0], name.split("-", 1)[1].rsplit("-", 1)[0], int(name[-1])
        folder = out / name
        if (folder / "metrics.jsonl").is_file():
            if len(erltool.read_run(folder).metrics) == ITERATIONS * 4:
                continue
            shutil.rmtree(folder)
        (with_trl if engine == "trl" else with_erltool)(config(control, seed), folder)
        last = erltool.read_run(folder).metrics.tail(4 * LAST)
        print(f"{name}: entropy {last['policy_entropy'].mean():.3f}, reward {last['reward'].mean():.3f}", flush=True)
    record_runs({name: erltool.read_run(out / name) for name in names}, RECORD)


def curves(runs: dict[str, Run], engine: str, control: str, metric: str) -> np.ndarray:
    """(seeds, iterations)."""
    return np.stack([runs[f"{engine}-{control}-seed{seed}"].metrics[metric].to_numpy() for seed in SEEDS])


def difference(runs: dict[str, Run], control: str, metric: str) -> tuple[float, float, float]:
    """TRL less ours over the last iterations, mean of the seeds, with the 95 % interval of Welch's t test."""
    theirs, ours = (curves(runs, e, control, metric)[:, -LAST:].mean(1) for e in ("trl", "erltool"))
    interval = stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval()
    return float(theirs.mean() - ours.mean()), float(interval.low), float(interval.high)


def figure(runs: dict[str, Run]):
    axes = new_axes(len(SHOWN), width=4.6, height=3.4)
    for ax, (metric, label) in zip(axes, SHOWN.items(), strict=True):
        for (i, control), (j, engine) in itertools.product(enumerate(CONTROLS), enumerate(ENGINES)):
            found = curves(runs, engine, control, metric)
            at = np.arange(1, found.shape[1] + 1)
            colour = COLOURS[2 * i + j]
            name = f"{'TRL with our control' if j else 'erltool'}, {control}"
            ax.plot(at, found.mean(0), color=colour, linestyle=LINES[j], linewidth=1.4, label=name)
            ax.fill_between(at, found.min(0), found.max(0), color=colour, alpha=0.15, linewidth=0)
        ax.set(xlabel="iteration", ylabel=label)
        ax.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    axes[0].figure.suptitle(
        f"embedded policy, {ITERATIONS} iterations of 4 updates: mean and range of {len(SEEDS)} seeds", fontsize=10
    )
    return axes[0].figure


def report() -> None:
    runs = read_runs(RECORD)
    figure(runs).savefig(FIGURE)
    for control, metric in itertools.product(CONTROLS, SHOWN):
        ours, theirs = (curves(runs, e, control, metric)[:, -LAST:].mean() for e in ENGINES)
        change, low, high = difference(runs, control, metric)
        print(f"{control:7} {metric:15} erltool {ours:.3f}  TRL {theirs:.3f}  difference {change:+.3f} "
              f"({low:+.3f} to {high:+.3f})")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make(Path(sys.argv[1]))
    report()
