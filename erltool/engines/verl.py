"""A configuration as a command line of verl (0.9), and what of it has another meaning there or none.

verl trains on many nodes; the control, its values, the algorithm and the data come along. Every key is one of verl's
own `ppo_trainer` configuration, which tests/test_export.py composes where verl is installed.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from erltool.controls.base import Control, NoControl
from erltool.controls.others import CISPO, GSPO
from erltool.controls.paper import ClipCov, ClipHigher, EntropyBonus, KLCov, ReferenceKL
from erltool.errors import ErltoolError
from erltool.files import write_whole, writing
from erltool.resources import POLICIES
from erltool.runs.folder import read_run
from erltool.tasks.task import load_task
from erltool.text import shown
from erltool.training.config import TrainConfig
from erltool.training.start import config_of

VERL = "0.9"
ACTOR = "actor_rollout_ref.actor."
ROLLOUT = "actor_rollout_ref.rollout."
NO_DUAL_CLIP = 1e6  # verl's vanilla loss bounds the loss of A < 0 at this ratio; here nothing does
ESTIMATORS = {
    "grpo": ("grpo", True),
    "dr_grpo": ("grpo", False),
    "rloo": ("rloo", None),
    "reinforce++": ("reinforce_plus_plus", None),
    "reinforce++-baseline": ("reinforce_plus_plus_baseline", None),
}  # name in verl, whether it divides by the group's standard deviation
KL_TYPES = {"k1": "kl", "k2": "mse", "k3": "low_var_kl"}
REWARD = '''"""The task's own verifier, for verl."""

import erltool

TASK = erltool.load_task({task!r})


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    problems = TASK.train if extra_info["split"] == "train" else TASK.held_out
    return float(TASK.reward(problems[int(extra_info["index"])], solution_str))
'''


@dataclass(frozen=True)
class Export:
    """A configuration in verl's terms."""

    overrides: dict[str, object]
    """Keys of verl's ppo_trainer configuration, dotted, with their values."""
    differs: tuple[tuple[str, str], ...]
    """What has another meaning in verl, or cannot be carried over: (what, how)."""

    def command(self, folder: str | Path = ".") -> str:
        """The command line, with the data files that `write_export` puts into `folder`."""
        words = [f"{key}={_word(value)}" for key, value in self.overrides.items()]
        files = {"data.train_files": "train.parquet", "data.val_files": "test.parquet",
                 "reward.custom_reward_function.path": "reward.py"}  # fmt: skip
        words += [f"{key}={Path(folder) / name}" for key, name in files.items()]
        return " \\\n    ".join(["python -m verl.trainer.main_ppo", *map(shlex.quote, words)])

    def table(self) -> str:
        """`differs`, one a line, as a Markdown table."""
        rows = [f"| {what} | {how} |" for what, how in self.differs]
        return "\n".join([f"| here | in verl {VERL} |", "|---|---|", *rows])


def read_config(source: str | Path, trust_remote_code: bool = False) -> TrainConfig:
    """The configuration of a run's folder, or of a JSON file of TrainConfig's fields. Raises ErltoolError; also where
    these let a model run code of its own, unless `trust_remote_code` says the same."""
    path = Path(source)
    if path.is_dir():
        return config_of(read_run(path), trust_remote_code)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        reason = shown(e, 120)
        raise ErltoolError(f"{path}: neither a run's folder nor a JSON file of TrainConfig's fields ({reason})") from e
    if not isinstance(fields, dict):
        raise ErltoolError(f"{path}: must hold an object with TrainConfig's fields")
    try:
        return TrainConfig.from_dict(fields.get("config", fields), trust_remote_code=trust_remote_code)
    except ErltoolError as e:
        raise ErltoolError(f"{path}: {e}") from e


def export_verl(config: TrainConfig, gpus: int = 8, prompt_tokens: int = 512) -> Export:
    """The configuration for verl on `gpus` devices of one node, with prompts of at most `prompt_tokens` tokens.

    Raises ErltoolError for a control that verl has not, and for a value of one that would mean something else there.
    """
    c = config
    responses = c.prompts_per_update * c.group_size
    if gpus < 1 or responses % gpus:
        raise ErltoolError(f"gpus={gpus}: must divide the {responses} responses of an update")
    micro = min(c.micro_batch or responses, responses // gpus)
    while responses // gpus % micro:  # verl splits a device's share evenly
        micro -= 1
    if c.controller is not None:
        raise ErltoolError(f"controller {c.controller.name}: verl {VERL} changes no control from update to update")
    estimator, scaled = ESTIMATORS[c.advantages]
    overrides = {
        "algorithm.adv_estimator": estimator,
        "algorithm.use_kl_in_reward": False,
        "data.train_batch_size": c.prompts_per_iteration,
        "data.max_prompt_length": prompt_tokens,
        "data.max_response_length": c.max_response_tokens,
        "data.seed": c.seed,
        "actor_rollout_ref.model.path": c.policy,
        "actor_rollout_ref.model.trust_remote_code": c.trust_remote_code,
        "actor_rollout_ref.model.enable_gradient_checkpointing": c.gradient_checkpointing,
        "actor_rollout_ref.model.lora_rank": c.lora_rank,
        "actor_rollout_ref.model.lora_alpha": c.lora_alpha,
        ACTOR + "ppo_mini_batch_size": c.prompts_per_update,
        ACTOR + "ppo_micro_batch_size_per_gpu": micro,
        ACTOR + "ppo_epochs": 1,
        ACTOR + "optim.lr": c.learning_rate,
        ACTOR + "optim.weight_decay": 0.0,
        ACTOR + "grad_clip": c.max_grad_norm,
        ACTOR + "clip_ratio_low": c.clip_eps_low,
        ACTOR + "clip_ratio_high": c.clip_eps_high,
        ACTOR + "clip_ratio_c": NO_DUAL_CLIP,
        ACTOR + "loss_agg_mode": "token-mean",
        ACTOR + "calculate_entropy": True,
        ROLLOUT + "name": "vllm",
        ROLLOUT + "tensor_model_parallel_size": 1,
        ROLLOUT + "n": c.group_size,
        ROLLOUT + "temperature": c.temperature,
        ROLLOUT + "top_p": c.top_p,
        ROLLOUT + "log_prob_micro_batch_size_per_gpu": micro,
        ROLLOUT + "val_kwargs.n": c.eval_samples,
        ROLLOUT + "val_kwargs.temperature": c.temperature,
        ROLLOUT + "val_kwargs.do_sample": True,
        "trainer.n_gpus_per_node": gpus,
        "trainer.nnodes": 1,
        "trainer.total_training_steps": c.steps // c.updates_per_iteration,
        "trainer.test_freq": c.eval_every or -1,
        "trainer.save_freq": c.checkpoint_every,
        "trainer.logger": ["console"],
    }
    if scaled is not None:
        overrides["algorithm.norm_adv_by_std_in_grpo"] = scaled
    for part in c.control.parts:
        overrides |= _of_control(part)
    return Export(overrides, tuple(_differences(c, overrides)))


def _of_control(part: Control) -> dict[str, object]:
    """verl's keys for one control. Raises ErltoolError where it has none."""
    mode, loss = ACTOR + "policy_loss.loss_mode", ACTOR + "policy_loss."
    clip = lambda low, high: {ACTOR + "clip_ratio_low": low, ACTOR + "clip_ratio_high": high}  # noqa: E731
    found: dict[type, Callable[[], dict[str, object]]] = {
        NoControl: lambda: {mode: "vanilla"},
        ClipHigher: lambda: {ACTOR + "clip_ratio_high": part.clip_eps_high},
        EntropyBonus: lambda: {ACTOR + "entropy_coeff": part.coef},
        ReferenceKL: lambda: {
            ACTOR + "use_kl_loss": True,
            ACTOR + "kl_loss_coef": part.coef,
            ACTOR + "kl_loss_type": KL_TYPES[part.estimator],
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 1,
        },
        ClipCov: lambda: {
            mode: "clip_cov",
            loss + "clip_cov_ratio": part.fraction,
            loss + "clip_cov_lb": part.low,
            loss + "clip_cov_ub": part.high,
            **(clip(part.clip_eps, part.clip_eps) if part.clip_eps is not None else {}),
        },
        KLCov: lambda: {mode: "kl_cov", loss + "kl_cov_ratio": part.fraction, loss + "ppo_kl_coef": part.coef},
        GSPO: lambda: {
            mode: "gspo",
            ACTOR + "loss_agg_mode": "seq-mean-token-mean",
            **clip(part.clip_eps_low, part.clip_eps_high),
        },
        CISPO: lambda: {mode: "cispo", **clip(part.clip_eps_low, part.clip_eps_high)},
    }
    if type(part) not in found:
        known = ", ".join(kind.name for kind in found)
        raise ErltoolError(f"control {part.name}: verl {VERL} has none like it; it has {known}")
    if isinstance(part, EntropyBonus) and part.below is not None:
        raise ErltoolError(f"control entropy-bonus: verl {VERL} gives it in every update; use no below")
    if isinstance(part, ClipCov) and part.bounds != "absolute":
        raise ErltoolError("control clip-cov: verl knows bounds in nats only; use bounds=absolute")
    if isinstance(part, KLCov) and part.estimator != "k1":
        raise ErltoolError(f"control kl-cov: verl has |log ratio| only, not {part.estimator}; use estimator=k1")
    if isinstance(part, ClipCov | KLCov) and not part.fraction:
        raise ErltoolError(f"control {part.name}: verl takes at least one token; use control none for fraction=0")
    return found[type(part)]()


def _differences(c: TrainConfig, overrides: dict[str, object]):
    """(what, how) of everything that is not the same there."""
    covariance = [part for part in c.control.parts if isinstance(part, ClipCov | KLCov)]
    micro = overrides[ACTOR + "ppo_micro_batch_size_per_gpu"]
    for part in covariance:
        yield (f"{part.name}: covariance centred over the update", f"over a micro-batch of {micro} responses on a GPU; "
               "one response alone has covariance 0, so give as many as fit")  # fmt: skip
        yield f"{part.name}: share of the update's tokens", "share of a micro-batch's tokens, at least one in each"
        yield (f"{part.name}: fraction={part.fraction:g}", "the same number, a fraction; in the paper's released "
               "scripts k_percent is in percent, a hundred times as large")  # fmt: skip
    if any(isinstance(part, KLCov) for part in covariance):
        yield "kl-cov: coef 1 by default", "ppo_kl_coef 0.1 by default; it is set here"
        yield "kl-cov: ratio exactly 1 on an iteration's first update", "about 1: rounding there is pushed at too"
    if any(isinstance(part, ClipCov) for part in covariance):
        yield "clip-cov: draws seeded by the step", "torch.randperm, not seeded by the step"
    if c.advantages == "reinforce++":
        yield "advantages reinforce++: scaled over responses", "whitened over tokens: a long response counts more"
    if any(isinstance(part, EntropyBonus) for part in c.control.parts):
        yield "entropy-bonus: mean over the update's tokens", "mean by loss_agg_mode, which token-mean makes the same"
    if any(isinstance(part, ReferenceKL) for part in c.control.parts):
        yield "reference-kl: not bounded", "k3 is clamped to 10 a token; the reference is a model of its own"
    yield "step: an optimiser update", f"an iteration, {c.updates_per_iteration} updates"
    yield (f"template {c.template}, {c.shots} worked examples",
           "the tokenizer's chat template around the prompt; without one set model.custom_chat_template")  # fmt: skip
    yield "old log-probs: the sampler's where they agree", "made again by the actor, in its own micro-batches"
    if c.policy in (*POLICIES, "smollm2-135m"):
        yield f"policy {c.policy}", "a folder in Hugging Face's format: give its path as actor_rollout_ref.model.path"
    lost = {"base": "none", "dtype": "auto", "lora_dropout": 0.0, "mask_truncated": False, "dynamic_sampling": False,
            "compile": False}  # fmt: skip
    for name, default in lost.items():
        if getattr(c, name) != default:
            yield f"{name}={getattr(c, name)}", "not carried over"
    yield "seed", "of the data's order only; sampling and draws have their own"
    yield "metrics of covariance, tokens.parquet", "none; erltool import reads its console log, erltool fit fits it"


def write_export(export: Export, config: TrainConfig, folder: str | Path) -> list[Path]:
    """Writes verl.sh, train.parquet, test.parquet and reward.py; returns them. Raises ErltoolError.

    The parquets have verl's columns (data_source, prompt, ability, reward_model, extra_info); reward.py checks
    responses by the task's own verifier, which needs erltool where verl runs.
    """
    folder, task = Path(folder).absolute(), load_task(config.task)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _rows(task.train, config.task, "train").to_parquet(folder / "train.parquet", index=False)
        held_out = task.held_out[: config.eval_prompts]
        _rows(held_out, config.task, "test").to_parquet(folder / "test.parquet", index=False)
        write_whole(folder / "reward.py", REWARD.format(task=config.task).encode())
        comments = "".join(f"# {line}\n" for line in export.table().splitlines())
        write_whole(folder / "verl.sh", f"{comments}{export.command(folder)}\n".encode())
    return [folder / name for name in ("verl.sh", "train.parquet", "test.parquet", "reward.py")]


def _rows(problems, source: str, split: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": p.prompt}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(getattr(p, "answer", ""))},
            "extra_info": {"index": i, "split": split},
        }
        for i, p in enumerate(problems)
    )


def _word(value: object) -> str:
    """A value as Hydra reads it; text that is not a plain word is quoted."""
    if isinstance(value, bool) or isinstance(value, list):
        return json.dumps(value, separators=(",", ":"))
    text = str(value)
    plain = all(sign.isalnum() or sign in "._-/+" for sign in text)
    return text if plain else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
