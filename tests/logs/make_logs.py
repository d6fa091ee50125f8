"""Makes the logs beside this file with the real tools: python tests/logs/make_logs.py verl openrlhf tensorboard trl
swift llamafactory unsloth prime_rl.

README.md beside it says what each needs. The numbers of all but `trl` are those of the run data/runs/demo-none,
thinned; what is under test is the writing, so they go through each tool's own logger, under the names it gives them.
"""

import ast
import importlib.util
import json
import logging
import math
import os
import sys
from contextlib import redirect_stdout
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "data"


def rows(every=25, count=24):
    """Of the recorded run: (step, entropy, reward, length, held-out accuracy on each third row, else None)."""
    lines = [json.loads(line) for line in open(DATA / "runs/demo-none/metrics.jsonl")]
    accuracy = {line["step"]: line["eval_accuracy"] for line in lines if "eval_accuracy" in line}
    for i, line in enumerate(lines[:: len(lines) // count][:count]):
        nearest = min(accuracy, key=lambda step: abs(step - line["step"]))
        held_out = accuracy[nearest] if i % 3 == 2 else None
        yield i + 1, line["policy_entropy"], line["reward"], line["response_length"], held_out


def module(package: str, path: str):
    """A module of an installed package by its file, without its package's imports."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, distribution(package).locate_file(path))
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def verl():
    """Console and JSONL, as verl's Tracking calls them: validation before the first step, then one call a step."""
    import numpy as np

    os.environ["VERL_FILE_LOGGER_PATH"] = str(HERE / "verl.jsonl")
    file = module("verl", "verl/utils/tracking.py").FileLogger("project", "experiment")
    console = module("verl", "verl/utils/logger/aggregate_logger.py").LocalLogger()
    with open(HERE / "verl_console.log", "w") as out, redirect_stdout(out):
        ray = "\x1b[36m(TaskRunner pid=4242)\x1b[0m "
        before = {"val-core/countdown/acc/mean@8": np.float64(0.1)}
        print(f"{ray}Initial validation metrics: {before}\n{ray}", end="")
        for logger in (console, file):
            logger.log(before, step=0)
        for step, entropy, reward, length, accuracy in rows():
            data = {"actor/entropy": entropy, "actor/pg_loss": np.float64(-0.01), "actor/ppo_kl": np.float64(2e-4)}
            data |= {"actor/lr": 1e-6, "training/global_step": step, "critic/rewards/mean": reward}
            data |= {"critic/values/mean": float("nan"), "response_length/mean": length}
            if accuracy is not None:
                data |= {"val-core/countdown/acc/mean@8": np.float64(accuracy), "val-aux/countdown/reward/std@8": 0.25}
            print(f"Training Progress: {step}/24 [00:{step:02}<00:10, 2.0s/it]\r{ray}", end="")
            console.log(data, step=step)
            file.log(data, step=step)
            print("(TaskRunner pid=4242) [response] step:one - by step: 3 + 4 = 7")


def openrlhf():
    """Console line and TensorBoard, as openrlhf/trainer/ppo_trainer.py calls them."""
    utils = module("openrlhf", "openrlhf/utils/logging_utils.py")
    options = SimpleNamespace(tensorboard_dir=str(HERE), wandb=SimpleNamespace(run_name="openrlhf"))
    board = utils.TensorboardLogger(SimpleNamespace(logger=options))
    logger = utils.init_logger("openrlhf.trainer.ppo_trainer")
    with open(HERE / "openrlhf_console.log", "w") as out:
        utils._default_handler.setStream(out)
        for step, entropy, reward, length, accuracy in rows():
            status = {"policy_loss": -0.01, "entropy_loss": entropy, "actor_lr": 1e-6, "ppo_kl": 2e-4}
            status |= {"reward": reward, "response_length": length, "timing/generation": 1.5}
            logger.info(f"✨ Global step {step}: {status}")
            board.log_train(step, status)
            if accuracy is not None:
                logs = {"eval_countdown_pass8": min(1.0, 2 * accuracy), "eval_countdown_pass1": accuracy}
                board.log_eval(step, logs)
                logger.info(f"✨ Evaluation completed in 0:00:01, global_step {step}, eval_metrics: {logs}")
    board.close()
    rename_events(HERE / "openrlhf")


def tensorboard():
    """verl's names through torch's SummaryWriter, which is what verl's TensorBoard logger is."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(HERE / "tensorboard"))
    for step, entropy, reward, _, accuracy in rows():
        writer.add_scalar("actor/entropy", entropy, step)
        writer.add_scalar("critic/rewards/mean", reward, step, new_style=True)  # TensorFlow 2's form, a tensor
        if accuracy is not None:
            writer.add_scalar("val-core/countdown/acc/mean@8", accuracy, step)
    writer.add_text("val/generations", "text among the scalars", 3)
    writer.close()
    rename_events(HERE / "tensorboard")


def rename_events(folder: Path):
    """The machine's name goes from the file's name."""
    for file in folder.glob("events.out.tfevents.*"):
        file.rename(folder / "events.out.tfevents.1700000000.host.1.0")


def swift():
    """What ms-swift's callback writes of GRPO with --log_entropy, and the line that its pipeline adds at the end, which
    holds all others once more."""
    from swift.trainers.patcher import ProgressCallbackNew
    from swift.utils import append_to_jsonl
    from transformers import TrainerControl, TrainerState

    folder = HERE / "swift"
    file = folder / "logging.jsonl"
    file.unlink(missing_ok=True)
    options, control = SimpleNamespace(output_dir=str(folder)), TrainerControl()
    state = TrainerState(max_steps=12, is_world_process_zero=True, is_local_process_zero=True)
    callback = ProgressCallbackNew()
    callback.on_train_begin(options, state, control)
    history = []
    for step, entropy, reward, length, accuracy in rows(count=12):
        state.global_step, state.epoch = step, step / 12
        logs = {"loss": 0.01, "grad_norm": 0.3, "learning_rate": 1e-6, "reward": reward, "reward_std": 0.3}
        logs |= {"frac_reward_zero_std": 0.25, "rewards/MathORM/mean": reward, "rewards/MathORM/std": 0.3}
        logs |= {"completions/mean_length": length, "completions/clipped_ratio": 0.0, "kl": 2e-4}
        logs |= {"entropy/mean": entropy, "entropy/max": 2 * entropy, "entropy/min": 0.0, "epoch": step / 12}
        for line in (logs, {"eval_loss": 0.01, "eval_reward": accuracy, "eval_entropy/mean": entropy / 2}):
            if line.get("eval_reward", 0) is not None:
                callback.on_log(options, state, control, logs=line)
                history.append(line | {"step": step})
    end = {"last_model_checkpoint": "checkpoint-12", "best_metric": None, "global_step": 12, "log_history": history}
    append_to_jsonl(str(file), end, strict=False)  # swift/pipelines/train/sft.py, _save_trainer_state


def llamafactory():
    """What LLaMA-Factory's callback writes of PPO: no entropy, whatever the trainer measures."""
    from llamafactory.train.callbacks import LogCallback
    from transformers import TrainerControl, TrainerState

    folder = HERE / "llamafactory"
    (folder / "trainer_log.jsonl").unlink(missing_ok=True)
    options, control = SimpleNamespace(output_dir=str(folder), should_save=True), TrainerControl()
    state, callback = TrainerState(max_steps=24), LogCallback()
    callback.on_train_begin(options, state, control)
    for step, _, reward, _, _ in rows():
        state.global_step = step
        state.log_history.append({"loss": 0.01, "reward": round(reward, 4), "learning_rate": 1e-5, "epoch": step / 24})
        callback.on_log(options, state, control)
    callback.on_train_end(options, state, control)


def unsloth():
    """The table that a notebook shows of a GRPO run under unsloth, saved in the notebook as Jupyter saves it."""
    from transformers import TrainerControl, TrainerState
    from transformers.trainer_utils import IntervalStrategy
    from transformers.utils.notebook import NotebookProgressCallback, NotebookTrainingTracker

    utils = module("unsloth_zoo", "unsloth_zoo/logging_utils.py")
    metrics = utils.get_trl_metrics()["grpo_trainer"]
    # As _PatchRLStatistics does it in a notebook.
    NotebookTrainingTracker.write_line = utils.NotebookTrainingTracker_write_line(metrics)
    NotebookProgressCallback.on_train_begin = utils.NotebookProgressCallback_on_train_begin(metrics)
    NotebookProgressCallback.on_log = utils.NotebookProgressCallback_on_log(metrics)
    options, control = SimpleNamespace(eval_strategy=IntervalStrategy.NO), TrainerControl()
    state, callback = TrainerState(max_steps=12, num_train_epochs=1), NotebookProgressCallback()
    callback.on_train_begin(options, state, control)
    for step, entropy, reward, length, _ in rows(count=12):
        state.global_step, state.epoch = step, step / 12
        logs = {"loss": 0.01, "grad_norm": 0.3, "reward": reward, "reward_std": 0.3, "entropy": entropy, "kl": 2e-4}
        logs |= {"completions/mean_length": length, "completions/clipped_ratio": 0.0}
        logs |= {"rewards/check_answer/mean": reward, "rewards/match_format/mean": 1.0}
        callback.on_log(options, state, control, logs=logs)
        callback.on_step_end(options, state, control)
    tracker = callback.training_tracker
    tracker.update(12, force_update=True)
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": [tracker.html_code]}}
    cell = {
        "cell_type": "code",
        "execution_count": 9,
        "metadata": {},
        "source": ["trainer.train()"],
        "outputs": [output],
    }
    document = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (HERE / "unsloth.ipynb").write_text(json.dumps(document, indent=1) + "\n")


def prime_rl():
    """What prime-rl's file monitor writes of its two processes to one file, the trainer a step behind the orchestrator.
    Its source is a checkout, $PRIME_RL, since it is in no registry."""
    import asyncio

    source = Path(os.environ["PRIME_RL"]) / "src/prime_rl"
    stand_in("verifiers.v1")
    stand_in("prime_rl.configs.monitors", FileMonitorConfig=object)
    stand_in("prime_rl.utils.config", BaseConfig=object)
    stand_in("prime_rl.utils.logger", get_logger=lambda: logging.getLogger("prime_rl"))
    routing = {"is_trainable": lambda trace: True, "scalar_advantage": lambda trace: 0.0}
    stand_in("prime_rl.orchestrator.algo.routing", **routing)
    of_file(source / "utils/utils.py", "prime_rl.utils.utils", only=("sanitize",))
    of_file(source / "monitors/base.py", "prime_rl.monitors.base")
    utils = source / "orchestrator/utils.py"
    of_file(utils, "prime_rl.orchestrator.utils", only=("compute_pass_metrics",), episode_env_name=None,
            episode_group_id=lambda episode: episode.group)  # fmt: skip
    metrics = of_file(source / "orchestrator/metrics.py", "prime_rl.orchestrator.metrics")
    wanted = ("_is_env_tensor_stat", "filter_rl_trainer_tensor_stats_for_wandb")
    kept = of_file(source / "trainer/utils.py", "prime_rl.trainer.utils", only=wanted)[wanted[1]]

    folder = HERE / "prime_rl"
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    monitors = [
        of_file(source / "monitors/file.py", "prime_rl.monitors.file")["FileMonitor"](
            SimpleNamespace(path=Path("metrics.jsonl"))
        )
        for _ in range(2)
    ]
    trainer, orchestrator = monitors
    for monitor in monitors:
        asyncio.run(monitor.init(folder))

    def trained(step, entropy):
        ends = ("mean", "median", "std", "min", "max")
        values = {"entropy/all": entropy, "entropy/gsm8k": entropy / 2, "loss": 0.01, "mismatch_kl/all": 2e-4}
        stats = {f"{name}/{end}": value for name, value in values.items() for end in ends}
        for data in ({"perf/throughput": 900.0}, {"optim/lr": 1e-6, "optim/grad_norm": 0.3}, kept(stats),
                     {"time/step": 1.5}):  # fmt: skip
            asyncio.run(trainer.log(data | {"step": step}, step=step))

    late = None
    for step, entropy, reward, length, accuracy in rows(count=9):
        data = episodes(metrics, "TrainMetrics", reward, length).to_wandb(prefix="train/agg", subset="all")
        asyncio.run(orchestrator.log(few(data) | {"step": step}, step=step))
        if accuracy is not None:
            held_out = episodes(metrics, "EvalMetrics", accuracy, length, 1)
            data = held_out.to_wandb(prefix="eval/gsm8k", subset="all")
            data |= held_out.to_wandb(prefix="eval/gsm8k", subset="effective")
            asyncio.run(orchestrator.log(few(data) | {"step": float(step)}, step=step))
        if late:
            trained(*late)
        late = step, entropy
    trained(*late)
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) | {"time": 1.8e9 + i} for i, line in enumerate(file.read_text().splitlines())]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def few(data: dict) -> dict:
    """A fifth of what is written: without extremes, times of phases, and most counts."""
    left_out = ("/p10", "/p90", "/min", "/max")
    counts = {name for name in data if "/num_" in name and not name.endswith("solver/num_output_tokens/mean")}
    return {k: v for k, v in data.items() if k not in counts and not k.endswith(left_out) and "timing" not in k}


def episodes(metrics: dict, kind: str, reward: float, length: float, *more):
    """prime-rl's metrics of 64 episodes of one trace each, with this mean reward."""

    class Nothing:
        duration = 0.0

    Nothing.model = Nothing.harness = Nothing
    timing = SimpleNamespace(**dict.fromkeys(("setup", "agent", "finalize", "scoring"), Nothing))
    found = []
    for i in range(64):
        right = float(i < round(64 * reward))
        trace = SimpleNamespace(
            id=str(i), reward=right, rewards={"correct": SimpleNamespace(value=right)}, metrics={}, timing=timing,
            agent=SimpleNamespace(name="solver"), num_total_tokens=length + 8, num_input_tokens=8,
            num_output_tokens=length, num_turns=1, num_branches=1, is_truncated=False, is_completed=True,
            has_error=False, stop_condition=None, last_error=None,
        )  # fmt: skip
        found.append(SimpleNamespace(id=str(i), traces=[trace], group=i // 8, ok=True))
    records = metrics["_records"](found, set(), set(), set())
    return metrics[kind](found, records, *more)


def stand_in(name: str, **contents) -> None:
    """A module of a package that is not installed, for what imports it without need."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:i]), ModuleType(".".join(parts[:i]))).__path__ = []
    sys.modules[".".join(parts[:-1])].__dict__.setdefault(parts[-1], sys.modules[name])
    sys.modules[name].__dict__.update(contents)


def of_file(path: Path, name: str, only: tuple[str, ...] = (), **contents) -> dict:
    """What a file of source defines, or some of its functions alone."""
    tree = ast.parse(path.read_text())
    if only:
        tree.body = [n for n in tree.body if getattr(n, "name", "") in only]
        contents |= {"Any": object, "math": math}
    stand_in(name, **contents, __name__=name)
    exec(compile(tree, str(path), "exec"), sys.modules[name].__dict__)
    return sys.modules[name].__dict__


def trl():
    """A GRPO run of four steps on a random policy, evaluated every second step: what it prints, and its state."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(DATA / "policies/countdown", padding_side="left")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    prompts = Dataset.from_dict({"prompt": ["1,2=3:", "2,4=6:", "1,5=4:", "3,4=7:"]})
    with tempfile.TemporaryDirectory() as folder:
        options = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=4, per_device_eval_batch_size=4, num_generations=4,
            max_completion_length=8, max_steps=4, logging_steps=1, eval_strategy="steps", eval_steps=2, save_steps=4,
            use_cpu=True, report_to="none", seed=0,
        )  # fmt: skip

        def even(completions, **_):
            return [float(len(c) % 2 == 0) for c in completions]

        trainer = GRPOTrainer(
            model=LlamaForCausalLM(config), reward_funcs=even, args=options, train_dataset=prompts,
            eval_dataset=prompts, processing_class=tokenizer,
        )  # fmt: skip
        with open(HERE / "trl_console.log", "w") as out, redirect_stdout(out):
            trainer.train()
        state = json.loads((Path(folder) / "checkpoint-4/trainer_state.json").read_text())
    (HERE / "trainer_state.json").write_text(json.dumps(state, indent=2) + "\n")


if __name__ == "__main__":
    logging.captureWarnings(True)
    for name in sys.argv[1:]:
        known = (trl, verl, openrlhf, tensorboard, swift, llamafactory, unsloth, prime_rl)
        {make.__name__: make for make in known}[name]()
