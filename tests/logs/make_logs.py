"""Makes the logs beside this file with the real tools: python tests/logs/make_logs.py verl openrlhf tensorboard trl.

README.md beside it says what each needs. The numbers of all but `trl` are those of the run data/runs/demo-none,
thinned; what is under test is the writing, so they go through each tool's own logger, under the names it gives them.
"""

import importlib.util
import json
import logging
import os
import sys
from contextlib import redirect_stdout
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

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
        {"trl": trl, "verl": verl, "openrlhf": openrlhf, "tensorboard": tensorboard}[name]()
