"""A table of logs: under the names that each tool gives its metrics, which column, unit, step and run is taken, and the
numbers; or the one line that asks. The files of tests/logs/cases and many of their kin, written here."""

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from erltool import read_log
from erltool.cli import command as cli
from erltool.logs.read import log_report

CASES = Path(__file__).parent / "logs" / "cases"
N = 40
STEPS = range(1, N + 1)
H = {t: round(0.1 + 0.8 * 0.93**t, 4) for t in STEPS}
R = {t: round(0.9 - 0.35 * float(np.exp(h)), 4) for t, h in H.items()}
R2 = {t: round(2 * r + 0.3, 4) for t, r in R.items()}  # a sum of rewards, that passes 1
GOOD = ("fraction", N, (H[1], R[1]), (H[N], R[N]))


@dataclass(frozen=True)
class Wanted:
    step: str
    entropy: str
    performance: str
    unit: str = "fraction"
    points: int = N
    first: tuple[float, float] = (H[1], R[1])
    last: tuple[float, float] = (H[N], R[N])
    kind: str = ""
    average: str = ""
    """A word of what is said of the entropy's average."""


def lines(row, steps=STEPS) -> str:
    """JSONL of a row a step."""
    return "\n".join(json.dumps(row(t)) for t in steps) + "\n"


def table(header: str, row, separator=",", steps=STEPS) -> str:
    return "\n".join([header, *(separator.join(map(str, row(t))) for t in steps)]) + "\n"


def trl_state(row) -> str:
    return json.dumps({"global_step": N, "log_history": [row(t) for t in STEPS]})


def every(k: int, t: int, row: dict) -> dict:
    """A row of evaluations, on each k-th step."""
    return row if t % k == 0 else {}


def page(header: list[str], row) -> str:
    """A table as transformers' NotebookProgressCallback shows it."""
    cells = ["".join(f"      <td>{html.escape(str(c))}</td>\n" for c in row(t)) for t in STEPS]
    head = "".join(f"      <th>{html.escape(c)}</th>\n" for c in header)
    return (
        "\n    <div>\n      <progress value='40' max='40' style='width:300px;'></progress>\n      [40/40 01:10]"
        f'\n    </div>\n    <table border="1" class="dataframe">\n  <thead>\n <tr style="text-align: left;">\n{head}'
        f"    </tr>\n  </thead>\n  <tbody>\n{''.join(f'    <tr>{c}    </tr>' for c in cells)}  </tbody>\n</table><p>"
    )


def notebook(*outputs: dict) -> str:
    cells = [{"cell_type": "code", "source": [], "outputs": [output]} for output in outputs]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)


def german(x: float) -> str:
    return f"{x:.4f}".replace(".", ",")


# The entropy's mean over the five steps up to the first and the last measurement on each fifth step.
FIFTH = {
    "points": N // 5,
    "first": (float(np.mean([H[t] for t in range(1, 6)])), R[5]),
    "last": (float(np.mean([H[t] for t in range(N - 4, N + 1)])), R[N]),
}
GIVEN = {"unit": "as given", "first": (H[1], R2[1]), "last": (H[N], R2[N])}
PERCENT = {"unit": "percentage points", "first": (H[1], 100 * R[1]), "last": (H[N], 100 * R[N])}
UNSLOTH = ["Step", "Training Loss", "rewards / match_format_exactly / mean", "rewards / check_answer / mean", "reward",
           "reward_std", "completions / mean_length", "kl", "entropy"]  # fmt: skip
CONSOLE = "\n".join(
    f"{{'loss': '0.0{t % 9}', 'grad_norm': 'nan', 'num_tokens': '{1e3 * t:.4g}', 'reward': '{R[t]}', "
    f"'entropy': '{H[t]}', 'epoch': '{t / N:.4g}'}}" for t in STEPS
)  # fmt: skip
EVALUATED = "\n".join(
    f"\r {t}%|###| {t}/{N} [00:0{t % 9}<00:09, 2.0it/s]{{'loss': 0.01, 'reward': np.float64({R2[t]}), "
    f"'entropy': {H[t]}, 'epoch': {t / N}}}\n"
    + (f"{{'eval_loss': 0.1, 'eval_reward': {R[t]}, 'epoch': {t / N}}}\n" if t % 5 == 0 else "")
    for t in STEPS
) + "{'train_runtime': 12.5, 'train_loss': 0.01, 'epoch': 1.0}\n"  # fmt: skip


def of_datasets(t: int) -> list[dict]:
    """What TRL logs of evaluations on two datasets, on each fifth step."""
    rewards = {"gsm8k": R[t], "math": 0.9}
    return [{f"eval_{name}_loss": 0.0, f"eval_{name}_runtime": 1.5, "eval_reward": reward, "eval_entropy": 0.7,
             "eval_rewards/f/mean": reward, "epoch": t / N, "step": t}
            for name, reward in rewards.items() if t % 5 == 0]  # fmt: skip


FILES = {
    # --- verl
    "verl.jsonl": (
        lines(lambda t: {"step": t, "data": {"actor/entropy": H[t], "critic/rewards/mean": 0.5} | every(5, t, {
            "val-core/aime24/acc/best@32/mean": 0.9, "val-core/aime24/acc/maj@32/mean": 0.8,
            "val-core/aime24/acc/mean@32": R[t], "val-aux/aime24/acc/std@32": 0.1, "val-aux/num_turns/mean": 2})}),
        Wanted("step", "actor/entropy", "val-core/aime24/acc/mean@32", **FIFTH, kind="verl JSONL", average="verl"),
    ),
    "verl-reward.jsonl": (
        lines(lambda t: {"step": t, "data": {"val-core/openai/gsm8k/reward/best@4/mean": 0.9, "actor/pg_loss": -0.1,
                                             "val-core/openai/gsm8k/reward/mean@4": R[t], "actor/entropy_loss": H[t]}}),
        Wanted("step", "actor/entropy_loss", "val-core/openai/gsm8k/reward/mean@4", average="verl"),
    ),
    "verl-old.log": (
        "\n".join(f"step:{t} - actor/entropy_loss:{H[t]} - critic/score/max:1.0 - critic/rewards/mean:0.4 - "
                  f"val/test_score/openai/gsm8k:{R[t]}" for t in STEPS),
        Wanted("step", "actor/entropy_loss", "val/test_score/openai/gsm8k", kind="verl console", average="verl"),
    ),
    "verl-best-only.jsonl": (
        lines(lambda t: {"step": t, "data": {"val-core/x/acc/best@8/mean": 0.9, "val-core/x/acc/maj@8/mean": 0.8,
                                             "actor/entropy": H[t], "critic/rewards/mean": R[t]}}),
        Wanted("step", "actor/entropy", "critic/rewards/mean"),
    ),
    "verl-tricky-source.jsonl": (
        lines(lambda t: {"step": t, "data": {"val-core/time/max_len/acc/mean@1": R[t], "actor/entropy": H[t]}}),
        Wanted("step", "actor/entropy", "val-core/time/max_len/acc/mean@1"),
    ),
    "verl-wandb.jsonl": (
        lines(lambda t: {"_step": 3 * t, "training/global_step": t, "actor/entropy": H[t], "_timestamp": 1.7e9,
                         "actor/entropy_coeff": 0.001, "_wandb": {"runtime": 5}, "val-core/x/acc/mean@8": R[t]}),
        Wanted("training/global_step", "actor/entropy", "val-core/x/acc/mean@8", kind="W&B history", average="verl"),
    ),
    # --- TRL and those that build on it
    "trl-parts.json": (
        trl_state(lambda t: {"step": t, "rewards/format_reward/mean": 0.9, "rewards/format_reward/std": 0.1,
                             "rewards/accuracy_reward/mean": 0.2, "reward": R2[t], "reward_std": 0.1, "entropy": H[t],
                             "frac_reward_zero_std": 0.5}),
        Wanted("step", "entropy", "reward", **GIVEN, kind="TRL trainer_state", average="TRL"),
    ),
    "trl-old-parts.json": (
        trl_state(lambda t: {"step": t, "rewards/soft_format_reward_func": 0.9, "rewards/correctness_reward_func": 0.2,
                             "reward": R[t], "entropy": H[t]}),
        Wanted("step", "entropy", "reward"),
    ),
    "trl-parts-alone.json": (
        trl_state(lambda t: {"step": t, "rewards/format_reward/mean": 0.9, "rewards/correctness_reward/mean": R[t],
                             "entropy": H[t]}),
        Wanted("step", "entropy", "rewards/correctness_reward/mean"),
    ),
    "trl-eval.jsonl": (
        lines(lambda t: {"step": t, "rewards/f/mean": 0.9, "eval_rewards/accuracy_reward/mean": 0.9,
                         "eval_reward": R[t], "eval_entropy": 0.7, "reward": 0.3, "entropy": H[t],
                         "mean_token_accuracy": 0.8}),
        Wanted("step", "entropy", "eval_reward", average="TRL"),
    ),
    "trl-flat-parts.csv": (
        table("step,format_reward,accuracy_reward,reward,entropy", lambda t: (t, 0.9, 0.1, R2[t], H[t])),
        Wanted("step", "entropy", "reward", **GIVEN, kind="CSV", average="not known"),
    ),
    "trl-datasets.json": (  # TRL writes eval_reward for each dataset of evaluation, and its name elsewhere in the row
        json.dumps({"log_history": [row for t in STEPS for row in (
            {"step": t, "reward": 0.3, "entropy": H[t], "frac_reward_zero_std": 0.5}, *of_datasets(t))]}),
        Wanted("step", "entropy", "eval_gsm8k/reward", **FIFTH, kind="TRL trainer_state", average="TRL"),
    ),
    "trl-datasets.log": (
        "\n".join(str({k: v for k, v in row.items() if k != "step"}) for t in STEPS for row in (
            {"loss": 0.1, "reward": 0.3, "entropy": H[t], "epoch": t / N}, *of_datasets(t))),
        Wanted("step (counted)", "entropy", "eval_gsm8k/reward", **FIFTH, kind="TRL console"),
    ),
    "the-lower-the-better.jsonl": (
        lines(lambda t: {"step": t, "entropy": H[t], "eval/math_error": 0.9, "eval/gsm8k_wrong": 0.9, "reward": R[t],
                         "val/acc_error": 0.9, "val/accuracy_gap": 0.9, "target_accuracy": 0.9, "eval/aime_failed": 1}),
        Wanted("step", "entropy", "reward"),
    ),
    "smoothed.jsonl": (
        lines(lambda t: {"step": t, "entropy": H[t], "eval/accuracy_ema": 0.9, "eval/accuracy": R[t]}),
        Wanted("step", "entropy", "eval/accuracy"),
    ),
    "trl-strings.log": (CONSOLE, Wanted("step (counted)", "entropy", "reward", kind="TRL console")),
    "trl-evaluated.log": (EVALUATED, Wanted("step (counted)", "entropy", "eval_reward", **FIFTH, kind="TRL console")),
    "trl-strings.jsonl": (CONSOLE, Wanted("step (counted)", "entropy", "reward", kind="TRL console")),
    "swift.log": (
        "\n".join(f"{{'loss': 0.01, 'reward': {R[t]}, 'rewards/Format/mean': 0.9, 'entropy/mean': {H[t]}, "
                  f"'entropy/max': 4, 'token_acc': 0.9, 'epoch': {t / N}, "
                  f"'global_step/max_steps': '{t}/{N}', 'elapsed_time': '1m 2s'}}"
                  for t in STEPS),
        Wanted("global_step/max_steps", "entropy/mean", "reward", kind="TRL console", average="Eq 5"),
    ),
    "swift.jsonl": (
        lines(lambda t: {"reward": R[t], "entropy/threshold": 2.0, "entropy/mean": H[t], "global_step/max_steps":
                         f"{10 * t}/438", "percentage": f"{t / 40:.2%}", "memory(GiB)": 4.9}),
        Wanted("global_step/max_steps", "entropy/mean", "reward", average="ms-swift"),
    ),
    "llamafactory.jsonl": (
        lines(lambda t: {"current_steps": t, "total_steps": N, "lr": 1e-6, "reward": R[t], "entropy": H[t],
                         "percentage": 2.5 * t, "elapsed_time": "0:01:02"}),
        Wanted("current_steps", "entropy", "reward"),
    ),
    "unsloth.html": (
        page(UNSLOTH, lambda t: (t, 0.01, 2.9, -1, f"{9 * R[t] - 7:.6f}", 0.1, 300.25, "No Log", f"{H[t]:.6f}")),
        Wanted("Step", "entropy", "reward", "as given", first=(H[1], 9 * R[1] - 7), last=(H[N], 9 * R[N] - 7),
               kind="HTML table", average="TRL"),
    ),
    "notebook.ipynb": (
        notebook({"output_type": "stream", "name": "stdout", "text": ["loading\n", "done\n"]},
                 {"output_type": "display_data", "data": {"text/html": page(UNSLOTH, lambda t: (
                     t, 0.01, 1, 1, R2[t], 0.1, 3, 0, H[t])).splitlines(keepends=True)}}),
        Wanted("Step", "entropy", "reward", **GIVEN, kind="notebook"),
    ),
    "printed.ipynb": (
        notebook({"output_type": "stream", "name": "stdout", "text": CONSOLE.splitlines(keepends=True)}),
        Wanted("step (counted)", "entropy", "reward", kind="notebook"),
    ),
    "page.html": (
        f"<!DOCTYPE html><html><script>if (a<b) x='<td>'</script><table><tr><td>lr</td><td>1e-6</td></tr></table>"
        f"{page(['Step', 'Validation Loss', 'Reward', 'Entropy'], lambda t: (t, 'No log', R[t], H[t]))}</html>",
        Wanted("Step", "Entropy", "Reward", kind="HTML table"),
    ),
    # --- others
    "openrlhf.log": (
        "\n".join(f"Global step {t}: {{'policy_loss': -0.1, 'entropy_loss': {H[t]}, 'reward': 0.3, "
                  f"'actor_lr': 1e-06}}\nEval, global_step {t}, eval_metrics: "
                  f"{{'eval_aime_pass16': 0.9, 'eval_aime_pass1': {R[t]}}}"
                  for t in STEPS),
        Wanted("step", "entropy_loss", "eval_aime_pass1", kind="OpenRLHF console", average="OpenRLHF"),
    ),
    "prime-rl.jsonl": (
        lines(lambda t: {"step": t, "time": 1.7e9, "entropy/all/std": 0.4, "entropy/all/mean": H[t],
                         "entropy/all/max": 9, "train/math/all/solver/rewards/format/mean": 0.9,
                         "train/math/all/solver/reward/mean": 0.4,
                         "train/math/all/solver/solved_none": 0.1, "eval/aime/effective/solver/pass@8": 0.9,
                         "eval/aime/all/solver/num_turns/mean": 1, "eval/aime/all/solver/avg@8": R[t]}),
        Wanted("step", "entropy/all/mean", "eval/aime/all/solver/avg@8", average="prime-rl"),
    ),
    "slime.jsonl": (
        lines(lambda t: {"_step": t, "train/step": 4 * t, "train/entropy_loss": H[t], "train/pg_loss": 0.1,
                         "rollout/step": t, "rollout/rewards": 0.0, "rollout/raw_reward": 0.4, "eval/step": t,
                         "eval/aime24": R[t], "eval/aime24-pass@8": 0.9, "eval/aime24-truncated_ratio": 0.1}),
        Wanted("train/step", "train/entropy_loss", "eval/aime24", kind="W&B history", average="slime"),
    ),
    "slime-apart.jsonl": (  # evaluations are rows of their own, and count rollouts, not updates
        "".join(lines(lambda t: {"_step": 2 * t, "train/step": 4 * t, "train/entropy_loss": H[t]}, [t])
                + lines(lambda t: {"_step": 2 * t + 1, "eval/step": t, "eval/aime24": R[t]}, [t]) for t in STEPS),
        Wanted("_step", "train/entropy_loss", "eval/aime24"),
    ),
    "nemo-rl.jsonl": (
        lines(lambda t: {"step": t, "train/approx_entropy": H[t], "train/reward": 0.3, "train/baseline_reward/pct_0": 9,
                         "validation/accuracy": R[t], "timing/train/total_step_time": 9}),
        Wanted("step", "train/approx_entropy", "validation/accuracy", average="estimate"),
    ),
    "open-instruct.csv": (
        table("training_step,episode,val/ratio,policy/entropy_avg,scores,eval/scores",
              lambda t: (t, 64 * t, 1, H[t], 3, R2[t])),
        Wanted("training_step", "policy/entropy_avg", "eval/scores", **GIVEN),
    ),
    "tinker.jsonl": (
        lines(lambda t: {"step": t, "optim/entropy": H[t], "env/all/reward/total": 0.3, "test/env/all/correct": R[t],
                         "progress/done_frac": 0.1}),
        Wanted("step", "optim/entropy", "test/env/all/correct", average="estimate"),
    ),
    "roll.jsonl": (
        lines(lambda t: {"system/step": t, "global_step": t, "critic/entropy/mean": H[t], "critic/score/mean": 0.3,
                         "val_correct/all/mean": R[t], "token/response_length/mean": 99}),
        Wanted("global_step", "critic/entropy/mean", "val_correct/all/mean"),
    ),
    "areal.jsonl": (
        lines(lambda t: {"global_step": t, "ppo_actor/update/entropy/max": 9, "ppo_actor/update/entropy/avg": H[t],
                         "ppo_actor/task_reward/avg": 0.3, "eval-rollout/reward": R[t]}),
        Wanted("global_step", "ppo_actor/update/entropy/avg", "eval-rollout/reward"),
    ),
    "trackio.json": (
        json.dumps([{"run": "a", "step": t, "timestamp": "2026-01-01T00:00:00", "metrics": {
            "train/entropy": H[t], "eval/accuracy": R[t]}} for t in STEPS]),
        Wanted("step", "train/entropy", "eval/accuracy", kind="JSON"),
    ),
    "nested.jsonl": (
        lines(lambda t: {"step": t, "train": {"entropy": H[t], "reward": 0.3}, "eval": {"math": {"accuracy": R[t]}}}),
        Wanted("step", "train/entropy", "eval/math/accuracy"),
    ),
    "wholly-nested.jsonl": (
        lines(lambda t: {"metrics": {"step": t, "entropy": H[t], "val": {"acc": R[t]}}}),
        Wanted("step", "entropy", "val/acc"),
    ),
    "swanlab.csv": (
        table("step,grpo-1-actor/entropy_step,grpo-1-actor/entropy_timestamp,grpo-1-val/acc_step,grpo-1-val/acc_timestamp",
              lambda t: (t, H[t], 1700000000000 + t, R[t], 1700000000000 + t)),
        Wanted("step", "grpo-1-actor/entropy_step", "grpo-1-val/acc_step", kind="SwanLab CSV"),
    ),
    "skyrl.jsonl": (
        lines(lambda t: {"trainer/global_step": t, "policy/policy_entropy": H[t], "reward/avg_pass_at_8": 0.9,
                         "reward/avg_raw_reward": R[t]}),
        Wanted("trainer/global_step", "policy/policy_entropy", "reward/avg_raw_reward"),
    ),
    "wandb-history.csv": (
        table(",_step,_runtime,_timestamp,train/global_step,actor/entropy,critic/rewards/mean",
              lambda t: (t - 1, t - 1, 10 * t, 1.7e9 + t, t, H[t], R[t])),
        Wanted("train/global_step", "actor/entropy", "critic/rewards/mean", kind="CSV"),
    ),
    **{
        f"other-accuracy-{i}.csv": (table(f"step,{name},entropy,reward", lambda t: (t, 0.9, H[t], R[t])),
                                    Wanted("step", "entropy", "reward"))
        for i, name in enumerate(["format_accuracy", "format_acc", "rm/acc", "xml_correct", "best_accuracy",
                                  "success_rate_format", "eval/majority_accuracy"])
    },
    # --- entropies that are none
    "not-entropy.jsonl": (
        lines(lambda t: {"step": t, "high_entropy_token_frac": 0.2, "entropy_threshold": 1.5, "reward_entropy": 0.6,
                         "cross_entropy": 2.0, "target_entropy": 0.5, "entropyCoef": 0.01, "entropy_std": 0.3,
                         "router/entropy": 2.0, "relative_entropy": 0.1,
                         "entropy_normalized": 0.1, "policy/token_entropy": H[t], "accuracy": R[t]}),
        Wanted("step", "policy/token_entropy", "accuracy"),
    ),
    "negative-first.jsonl": (
        lines(lambda t: {"step": t, "train/entropy": -H[t], "train/entropy_loss": H[t], "accuracy": R[t]}),
        Wanted("step", "train/entropy_loss", "accuracy"),
    ),
    "rounding.jsonl": (
        lines(lambda t: {"step": t, "entropy": H[t] if t < N else -1e-6, "accuracy": R[t]}),
        Wanted("step", "entropy", "accuracy", last=(-1e-6, R[N])),
    ),
    # --- steps
    **{
        f"step-{i}.csv": (table(f"n,{name},entropy,accuracy", lambda t: (64 * t, t, H[t], R[t])),
                          Wanted(name, "entropy", "accuracy"))
        for i, name in enumerate(["gradient_step", "current_steps", "training_step", "train/step",
                                  "trainer/global_step", "Global Step", "optimizer_step", "train_steps",
                                  "iteration", "Update", "n_updates", "step", "global_steps", "training/step"])
    },
    "of-words.csv": (table("step,entropy,accuracy", lambda t: (f"{t} of 438", H[t], R[t])),
                     Wanted("step", "entropy", "accuracy")),
    "of-total.csv": (table("global_step/max_steps,entropy,accuracy", lambda t: (f"{t}/438", H[t], R[t])),
                     Wanted("global_step/max_steps", "entropy", "accuracy")),
    "log-calls.jsonl": (
        lines(lambda t: {"_step": 7 * t, "step": 64 * t, "train/global_step": t, "entropy": H[t],
                         "eval/accuracy": R[t]}),
        Wanted("train/global_step", "entropy", "eval/accuracy"),
    ),
    "updates-only-of-training.jsonl": (
        "".join(lines(lambda t: {"_step": 2 * t, "train/global_step": t, "train/entropy": H[t]}, [t])
                + lines(lambda t: {"_step": 2 * t + 1, "eval/accuracy": R[t]}, [t]) for t in STEPS),
        Wanted("_step", "train/entropy", "eval/accuracy"),
    ),
    # --- units and numbers
    "percent-signs.csv": (
        table("step,entropy,eval_accuracy", lambda t: (t, H[t], f"{100 * R[t]:.4f} %")),
        Wanted("step", "entropy", "eval_accuracy", **PERCENT),
    ),
    "percent-signs.jsonl": (
        lines(lambda t: {"step": t, "entropy": H[t], "val/acc": f"{100 * R[t]:.4f}%"}),
        Wanted("step", "entropy", "val/acc", **PERCENT),
    ),
    "percent-by-name.csv": (
        table("step,entropy,reward (%)", lambda t: (t, H[t], 100 * R[t])),
        Wanted("step", "entropy", "reward (%)", **PERCENT),
    ),
    "weak-percent.csv": (
        table("step,entropy,val/acc", lambda t: (t, H[t], 10 * R[t])),
        Wanted("step", "entropy", "val/acc", "percentage points", first=(H[1], 10 * R[1]), last=(H[N], 10 * R[N])),
    ),
    "named-reward.csv": (
        table('"Step","reward-v2 - entropy","reward-v2 - val/acc"', lambda t: (t, H[t], 100 * R[t])),
        Wanted("Step", "reward-v2 - entropy", "reward-v2 - val/acc", **PERCENT, kind="W&B CSV"),
    ),
    "score.csv": (
        table("step,entropy,eval/score", lambda t: (t, H[t], 100 * R[t])),
        Wanted("step", "entropy", "eval/score", "as given", first=(H[1], 100 * R[1]), last=(H[N], 100 * R[N])),
    ),
    "german.csv": (
        table("Step;Entropy;eval_accuracy;tokens", lambda t: (t, german(H[t]), german(R[t]), "1.234"), ";"),
        Wanted("Step", "Entropy", "eval_accuracy", kind="CSV"),
    ),
    "german-steps.tsv": (
        table("step\tentropy\teval_accuracy", lambda t: (f"{t}.000", german(H[t]), f"{german(100 * R[t])}%"), "\t"),
        Wanted("step", "entropy", "eval_accuracy", **PERCENT),
    ),
    "excel.csv": (
        "sep=;\n" + table("step;entropy;eval_accuracy", lambda t: (t, german(H[t]), german(R[t])), ";"),
        Wanted("step", "entropy", "eval_accuracy"),
    ),
    "thousands.csv": (
        table("step,entropy,accuracy", lambda t: (f'"{t},000"', f'"{H[t]}"', R[t])),
        Wanted("step", "entropy", "accuracy"),
    ),
    "typeset.md": (
        "# Results\n\nSome | text.\n\nStep | H, entropy | **reward** | note\n:---|---:|:---:|---\n"
        + "".join(f"{t} | `{H[t]}` | **\u2212{R[t]}** | a \\| b\n" for t in STEPS) + "\nEnd.\n",
        Wanted("Step", "H, entropy", "reward", "as given", first=(H[1], -R[1]), last=(H[N], -R[N]),
               kind="Markdown table"),
    ),
    "psql.txt": (
        "+------+---------+\n| step | entropy | acc |\n+------+-----+---+\n"
        + "".join(f"| {t} | {H[t]} | {R[t]} |\n" for t in STEPS) + "+------+---------+\n",
        Wanted("step", "entropy", "acc", kind="Markdown table"),
    ),
    "spaces.csv": (
        table("step, entropy, eval accuracy", lambda t: (t, f" {H[t]}", f" {R[t]}")),
        Wanted("step", "entropy", "eval accuracy"),
    ),
    "columns.json": (
        json.dumps({"config": {"lr": 1e-6}, "metrics": {"step": list(STEPS), "entropy": list(H.values()),
                                                        "reward": list(R.values())}}),
        Wanted("step", "entropy", "reward", kind="JSON"),
    ),
    "header-again.csv": (
        table("step,entropy,accuracy", lambda t: (t, H[t], R[t]), steps=range(1, 31))
        + table("step,entropy,accuracy", lambda t: (t, H[t], R[t]), steps=range(31, N + 1)),
        Wanted("step", "entropy", "accuracy"),
    ),
    "spaced.md": (
        "| step | entropy | val_acc |\n|--:|--:|--:|\n"
        + "".join(f"| {t}\u202f000 | {german(H[t])} | {german(100 * R[t])} % |\n" for t in STEPS),
        Wanted("step", "entropy", "val_acc", **PERCENT),
    ),
}  # fmt: skip

OF_CASES = {  # the first and last H and R of the 60 steps that these files were made with
    "cross_entropy_first.jsonl": Wanted("step", "actor/token_entropy", "val/acc"),
    "german.csv": Wanted("step", "entropy", "eval_accuracy", kind="CSV", average="not known"),
    "llamafactory.jsonl": Wanted("current_steps", "entropy", "reward"),
    "mlflow": Wanted("step", "entropy", "eval_accuracy", kind="MLflow"),
    "notebook_table.html": Wanted("Step", "entropy", "reward", kind="HTML table"),
    "notebook_table.md": Wanted("Step", "entropy", "reward", kind="Markdown table"),
    "percent_signs.csv": Wanted(
        "step", "entropy", "eval_accuracy", "percentage points", 60, (0.8484, 8.2), (0.1147, 50.7)
    ),
    "prime_rl.jsonl": Wanted(
        "step", "entropy/mean", "eval/aime2024/avg@32", "fraction", 6, (0.66464, 0.3167), (0.12015, 0.5075)
    ),
    "reward_from_small_to_above_1.json": Wanted(
        "step", "entropy", "reward", "as given", 60, (0.8484, 0.9), (0.1147, 0.9)
    ),
    "swift.jsonl": Wanted("global_step/max_steps", "entropy/mean", "reward", average="Eq 5"),
    "trackio.jsonl": Wanted("step", "entropy", "eval/accuracy"),
    "trl_console.log": Wanted("step (counted)", "entropy", "reward", kind="TRL console"),
    "trl_console_strings.log": Wanted("step (counted)", "entropy", "reward", kind="TRL console"),
    "trl_format_first.json": Wanted(
        "step", "entropy", "reward", "as given", 60, (0.8484, 1.0324), (0.1147, 1.4575), average="TRL"
    ),
    "trl_sum_of_rewards.json": Wanted(
        "step", "entropy", "reward", "as given", 60, (0.8484, 1.0649), (0.1147, 1.915), average="TRL"
    ),
    "two_step_columns.jsonl": Wanted("global_step", "entropy", "eval_accuracy"),
}

REFUSED = {
    "coefficient.jsonl": "no column found for entropy; name it with --entropy COL",
    "negative_entropy_loss.jsonl": "'actor/entropy_loss' lies below 0, .* --entropy=-COL",
    "appended_second_run.jsonl": r"holds 2 runs; choose one with --run NAME or run=NAME: 1 \(steps 1 to 60\), 2 ",
    "small-negative.csv": (
        table("step,entropy_loss,accuracy", lambda t: (t, -0.001 * H[t], R[t])),
        "'entropy_loss' lies below 0",
    ),
    "small-loss.jsonl": (
        lines(lambda t: {"step": t, "train/entropy_loss": 0.001 * H[t], "val/acc": R[t]}),
        "'train/entropy_loss' is a loss by its name and never exceeds 0.000844 nats, .*name it with --entropy COL",
    ),
    "coefs.jsonl": (
        lines(lambda t: {"step": t, "ent_coef": 0.01, "entropy_coeff": 0.01, "alpha_entropy": 1, "accuracy": R[t]}),
        "no column found for entropy",
    ),
    "cross.jsonl": (
        lines(lambda t: {"step": t, "crossEntropy": H[t], "categorical_crossentropy": 1.0, "accuracy": R[t]}),
        "no column found for entropy",
    ),
    "sum-over-tokens.csv": (
        table("step,entropy,accuracy", lambda t: (t, 300 * H[t], R[t])),
        "'entropy' is about .*, more nats a token than any vocabulary allows",
    ),
    "relative.jsonl": (
        lines(lambda t: {"step": t, "relative_entropy": H[t], "entropy_drop": 0.1, "accuracy": R[t]}),
        "no column found for entropy",
    ),
    "bits.jsonl": (
        lines(lambda t: {"step": t, "token_entropy_bits": H[t], "entropy_log2": H[t], "entropy_base2": H[t],
                         "entropy (bit)": H[t], "accuracy": R[t]}),
        "no column found for entropy",
    ),
    "tokens.jsonl": (
        lines(lambda t: {"step": t, "entropy": H[t], "mean_token_accuracy": 0.9, "token_acc": R[t], "reward_std": 0.1}),
        "no column found for performance",
    ),
    "totals.jsonl": (
        lines(lambda t: {"total_steps": N, "max_steps": N, "epoch": 0.1, "entropy": H[t], "accuracy": R[t]}),
        "no column found for step",
    ),
    "mixed.csv": (
        table("step,entropy,eval_accuracy", lambda t: (t, H[t], R[t] if t < 20 else 100 * R[t])),
        "jumps from .*fractions and percentage points are mixed",
    ),
    "mixed-rewards.csv": (table("step,entropy,reward", lambda t: (t, H[t], 0.31 if t < 20 else 31)), "jumps from 0.31"),
    "some-signs.csv": (
        table("step,entropy,eval_accuracy", lambda t: (t, H[t], f"{30 + t}%" if t % 2 else 0.3)),
        "a percent sign in some rows and none in 20 others",
    ),
    "unclear.csv": (
        table("step;entropy;eval_accuracy", lambda t: (t, f"1,{900 - t}", f"2,{300 + t}"), ";"),
        "'entropy' does not tell whether 1,234 is 1.234 or 1234",
    ),
    "two-signs.csv": (
        table("step;entropy;eval_accuracy", lambda t: (t, german(H[t]) if t % 2 else H[t], R[t]), ";"),
        "'entropy' does not tell whether",
    ),
    "apart.jsonl": (
        lines(lambda t: {"train/step": t, "entropy": H[t]}) + lines(lambda t: {"rollout/step": t, "val/acc": R[t]}),
        "no column of steps stands beside both",
    ),
    "little-percent.csv": (
        table("step,entropy,accuracy_pct", lambda t: (t, H[t], R[t])),
        "never exceeds .*, which is low for a percentage; state the unit",
    ),
}  # fmt: skip


def written(tmp_path, name, text) -> Path:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


def check(log, wanted: Wanted, tolerance=1e-9):
    assert tuple(log.columns[role] for role in ("step", "entropy", "performance")) == (
        wanted.step, wanted.entropy, wanted.performance)  # fmt: skip
    assert log.unit == wanted.unit and wanted.kind in ("", log.kind) and wanted.average in log.entropy_average
    points = log.points()[["entropy", "performance"]].to_numpy()
    assert len(points) == wanted.points
    assert points[0] == pytest.approx(wanted.first, abs=tolerance)
    assert points[-1] == pytest.approx(wanted.last, abs=tolerance)


@pytest.mark.parametrize("name", FILES)
def test_each_tools_names_give_the_right_columns_unit_and_numbers(tmp_path, name):
    text, wanted = FILES[name]
    check(read_log(written(tmp_path, name, text)), wanted, 1e-6)


def test_a_choice_among_equals_is_said(tmp_path):
    """Several evaluations, several entropies, several values at a step: none is more likely than another."""
    rows = lines(
        lambda t: (
            {"step": t, "actor/entropy": H[t]}
            | every(
                5,
                t,
                {
                    "val-core/gsm8k/acc/mean@1": R[t],
                    "val-core/aime/acc/mean@32": 0.3,
                    "val-core/aime/acc/best@32/mean": 0.4,
                },
            )
        )
    )
    notes = read_log(written(tmp_path, "two.jsonl", rows)).notes
    assert "performance: val-core/gsm8k/acc/mean@1 is the first of 2 that fit as well" in notes
    rows = lines(lambda t: {"step": t, "rollout/entropy": 2.0, "train/entropy": H[t], "accuracy": R[t]})
    notes = read_log(written(tmp_path, "two.jsonl", rows)).notes
    assert notes == ("entropy: rollout/entropy is the first of 2 that fit as well",)
    rows = "".join(lines(lambda t: {"step": t, "entropy": H[t], "eval/reward": R[t]}, [t])
                   + lines(lambda t: {"step": t, "eval/reward": 0.9}, [t]) for t in STEPS)  # fmt: skip
    notes = read_log(written(tmp_path, "two.jsonl", rows)).notes
    assert notes == (f"performance: {N} steps have several values of it, of which the last counts",)


@pytest.mark.parametrize("name", OF_CASES)
def test_logs_that_were_read_wrongly_are_read_right(name):
    wanted = OF_CASES[name]
    if wanted.points == N:
        wanted = Wanted(wanted.step, wanted.entropy, wanted.performance, "fraction", 60, (0.8484, 0.0824),
                        (0.1147, 0.5075), wanted.kind, wanted.average)  # fmt: skip
    check(read_log(CASES / name), wanted)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_known_is_asked_in_one_line(tmp_path, capsys, name):
    case = REFUSED[name]
    file, message = (CASES / name, case) if isinstance(case, str) else (written(tmp_path, name, case[0]), case[1])
    for command in ("import", "fit"):
        assert cli.main([command, str(file)]) == 2
        out = capsys.readouterr()
        assert re.fullmatch(rf"erltool: [^\n]*{message}[^\n]*\n", out.err) and not out.out


@pytest.mark.parametrize("name", [*FILES, *OF_CASES])
def test_what_is_said_of_a_log_fits_80_columns(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path if name in FILES else CASES)
    if name in FILES:
        written(tmp_path, name, FILES[name][0])
    log = read_log(name)
    said = log_report(log)
    assert max(map(len, said.splitlines())) <= 80
    for role in ("step", "entropy", "performance"):
        assert log.columns[role] in said
