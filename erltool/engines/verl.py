"""A configuration as a command line of verl (0.9), and a list of the differences.

verl trains on many nodes. The command carries the control, its values, the algorithm and the data. Every key is one of
verl's `ppo_trainer` configuration, which tests/test_export.py composes where verl is installed. A control is one of
verl's own losses where it has the control, else erltool's inside verl's workers (verl_losses.py).
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from erltool.controls.base import Control, NoControl
from erltool.controls.catalog import control_to_dict, parse_control
from erltool.controls.others import CISPO, GSPO
from erltool.controls.paper import ClipCov, ClipHigher, EntropyBonus, KLCov, ReferenceKL
from erltool.errors import ErltoolError
from erltool.files import write_whole, writing
from erltool.logs.check.own import LOSS_PREFIX, LOSSES
from erltool.resources import POLICIES
from erltool.runs.compare import control_text
from erltool.runs.folder import read_run
from erltool.tasks.task import load_task
from erltool.text import shown
from erltool.training.config import TrainConfig
from erltool.training.start import config_of
from erltool.training.update import SAMPLER_IS_EXACT

VERL = "0.9"
ACTOR = "actor_rollout_ref.actor."
ROLLOUT = "actor_rollout_ref.rollout."
GIVEN = ("token_entropy",)  # the optional fields of Tokens that verl's workers have
OWN = (NoControl, ClipHigher, EntropyBonus, ReferenceKL, ClipCov, KLCov, GSPO, CISPO)  # what verl has itself
NO_DUAL_CLIP = 1e6  # the ratio at which verl's vanilla loss bounds the loss of A < 0, which ours never does
ESTIMATORS = {
    "grpo": ("grpo", True),
    "dr_grpo": ("grpo", False),
    "rloo": ("rloo", None),
    "reinforce++": ("reinforce_plus_plus", None),
    "reinforce++-baseline": ("reinforce_plus_plus_baseline", None),
}  # name in verl, and whether it divides by the group's standard deviation
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
    """Settings with another meaning in verl or none: (setting here, meaning there)."""

    def command(self, folder: str | Path = ".") -> str:
        """The command line, for the data files that `write_export` writes to `folder`."""
        words = [f"{key}={_word(value)}" for key, value in self.overrides.items()]
        files = {"data.train_files": "train.parquet", "data.val_files": "test.parquet",
                 "reward.custom_reward_function.path": "reward.py"}  # fmt: skip
        words += [f"{key}={Path(folder) / name}" for key, name in files.items()]
        return " \\\n    ".join(["python -m verl.trainer.main_ppo", *map(shlex.quote, words)])

    def table(self) -> str:
        """`differs`, one a line, as a Markdown table."""
        rows = [f"| {ours} | {theirs} |" for ours, theirs in self.differs]
        return "\n".join([f"| here | in verl {VERL} |", "|---|---|", *rows])


def read_config(source: str | Path, trust_remote_code: bool = False) -> TrainConfig:
    """The configuration of a run's folder, or of a JSON file of TrainConfig's fields. Raises ErltoolError, also where
    it lets a model run its own code and the argument `trust_remote_code` does not."""
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


def export_verl(config: TrainConfig, gpus: int = 8, prompt_tokens: int = 512, whole_update: bool = False) -> Export:
    """The configuration for verl on `gpus` devices of one node, with prompts of at most `prompt_tokens` tokens.

    A control that verl has is verl's own, whose Clip-Cov and KL-Cov choose within each micro-batch. One that verl
    lacks, or has with another meaning, is erltool's inside verl's workers, and with `whole_update` every control is.
    Raises ErltoolError for a control that needs what verl does not have, and for a value with another meaning there.
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
        **_under("data.", {
            "train_batch_size": c.prompts_per_iteration, "max_prompt_length": prompt_tokens,
            "max_response_length": c.max_response_tokens, "seed": c.seed,
        }),
        **_under("actor_rollout_ref.model.", {
            "path": c.policy, "trust_remote_code": c.trust_remote_code,
            "enable_gradient_checkpointing": c.gradient_checkpointing,
            "lora_rank": c.lora_rank, "lora_alpha": c.lora_alpha,
        }),
        **_under(ACTOR, {
            "ppo_mini_batch_size": c.prompts_per_update, "ppo_micro_batch_size_per_gpu": micro, "ppo_epochs": 1,
            "optim.lr": c.learning_rate, "optim.weight_decay": 0.0, "grad_clip": c.max_grad_norm,
            "clip_ratio_low": c.clip_eps_low, "clip_ratio_high": c.clip_eps_high, "clip_ratio_c": NO_DUAL_CLIP,
            "loss_agg_mode": "token-mean", "calculate_entropy": True,
        }),
        **_under(ROLLOUT, {
            "name": "vllm", "tensor_model_parallel_size": 1, "n": c.group_size, "temperature": c.temperature,
            "top_p": c.top_p, "log_prob_micro_batch_size_per_gpu": micro, "val_kwargs.n": c.eval_samples,
            "val_kwargs.temperature": c.temperature, "val_kwargs.do_sample": True,
        }),
        **_under("trainer.", {
            "n_gpus_per_node": gpus, "nnodes": 1, "total_training_steps": c.steps // c.updates_per_iteration,
            "test_freq": c.eval_every or -1, "save_freq": c.checkpoint_every, "logger": ["console"],
        }),
    }  # fmt: skip
    if scaled is not None:
        overrides["algorithm.norm_adv_by_std_in_grpo"] = scaled
    if c.sampler_correction:
        overrides |= _under(
            "algorithm.rollout_correction.", {"rollout_is": "token", "rollout_is_threshold": c.sampler_correction}
        )
    own, inside = _split(c.control, whole_update)
    for member in own:
        overrides |= _of_control(member)
    if inside != NoControl():
        overrides[ACTOR + "policy_loss.loss_mode"] = LOSS_PREFIX + _text_of(inside)
        overrides["actor_rollout_ref.model.external_lib"] = LOSSES
    return Export(overrides, tuple(_differences(c, own, inside, overrides)))


def _under(prefix: str, settings: Mapping[str, object]) -> dict[str, object]:
    return {prefix + key: value for key, value in settings.items()}


def _split(control: Control, whole_update: bool) -> tuple[tuple[Control, ...], Control]:
    """The members that are verl's own, and the rest, which is erltool's. Both have one loss, so a control that has one
    member of erltool's is erltool's, but for the bonus and the KL that verl adds to any loss."""
    if not whole_update and all(map(_verl_has, control.parts)):
        return control.parts, NoControl()
    added = tuple(m for m in control.parts if isinstance(m, EntropyBonus | ReferenceKL) and _verl_has(m))
    return added, sum((member for member in control.parts if member not in added), NoControl())


def _verl_has(control: Control) -> bool:
    """Whether verl has the control with this meaning, but for the micro-batch. At fraction 0 it takes one token."""
    values = vars(control)
    usual = {"below": None, "bounds": "absolute", "dead_zone": None}
    usual |= {"estimator": "k1"} if isinstance(control, KLCov) else {}
    same = all(values.get(name, value) == value for name, value in usual.items())
    return type(control) in OWN and same and values.get("fraction") != 0


def _text_of(control: Control) -> str:
    """The control as verl's workers read it. Raises ErltoolError where they could not apply it."""
    if missing := sorted(set(control.needs) - set(GIVEN)):
        raise ErltoolError(f"control {control.name}: needs {', '.join(missing)}, which verl {VERL} does not have")
    text = control_text(control_to_dict(control))
    try:
        known = parse_control(text)
    except ErltoolError:
        known = None
    if known != control:
        raise ErltoolError(f"control {control.name}: is none of erltool's, so verl's workers do not know it")
    return text


def _of_control(control: Control) -> dict[str, object]:
    """verl's keys for a control that it has."""
    mode, loss = ACTOR + "policy_loss.loss_mode", ACTOR + "policy_loss."
    match control:
        case ClipHigher():
            return {ACTOR + "clip_ratio_high": control.clip_eps_high}
        case EntropyBonus():
            return {ACTOR + "entropy_coeff": control.coef}
        case ReferenceKL():
            kl = {"use_kl_loss": True, "kl_loss_coef": control.coef, "kl_loss_type": KL_TYPES[control.estimator]}
            return _under(ACTOR, kl) | {"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 1}
        case ClipCov():
            clip = {} if control.clip_eps is None else _clip(control.clip_eps, control.clip_eps)
            keys = {"clip_cov_ratio": control.fraction, "clip_cov_lb": control.low, "clip_cov_ub": control.high}
            return {mode: "clip_cov"} | _under(loss, keys) | clip
        case KLCov():
            return {mode: "kl_cov", loss + "kl_cov_ratio": control.fraction, loss + "ppo_kl_coef": control.coef}
        case GSPO():
            clip = _clip(control.clip_eps_low, control.clip_eps_high)
            return {mode: "gspo", ACTOR + "loss_agg_mode": "seq-mean-token-mean", **clip}
        case CISPO():
            return {mode: "cispo", **_clip(control.clip_eps_low, control.clip_eps_high)}
    return {mode: "vanilla"}


def _clip(low: float, high: float) -> dict[str, object]:
    return {ACTOR + "clip_ratio_low": low, ACTOR + "clip_ratio_high": high}


def _differences(
    c: TrainConfig, own: tuple[Control, ...], inside: Control, overrides: dict[str, object]
) -> Iterator[tuple[str, str]]:
    """(setting here, meaning in verl) for all that differs."""
    by_covariance = [member for member in own if isinstance(member, ClipCov | KLCov)]
    micro = overrides[ACTOR + "ppo_micro_batch_size_per_gpu"]
    for control in by_covariance:
        name = control.name
        yield (f"{name}: covariance centred over the update", f"over a micro-batch of {micro} responses on a GPU; one "
               "response alone has covariance 0, so use as many as fit, or export with whole_update")  # fmt: skip
        yield f"{name}: fraction of the update's tokens", "fraction of a micro-batch's tokens, at least one in each"
        yield (f"{name}: fraction={control.fraction:g}", "the same number, a fraction; in the paper's released scripts "
               "k_percent is in percent, a hundred times as large")  # fmt: skip
    if any(isinstance(control, KLCov) for control in by_covariance):
        yield "kl-cov: coef 1 by default", "ppo_kl_coef 0.1 by default; it is set here"
        yield "kl-cov: ratio exactly 1 on an iteration's first update", "about 1: rounding noise triggers the penalty"
    if any(isinstance(control, ClipCov) for control in by_covariance):
        yield "clip-cov: random choice seeded by the step", "torch.randperm, not seeded by the step"
    if inside != NoControl():
        yield (f"control {inside.name}", "the same, over the whole update, by erltool on verl's workers: it must be "
               "installed there, and costs one more forward pass an update")  # fmt: skip
        yield ("ratio exactly 1 on an iteration's first update",
               f"where all log-probs are within {SAMPLER_IS_EXACT:g} nats of the old ones, else about 1")  # fmt: skip
        yield "random choices seeded by the step", "by data_loader_seed and the worker's updates since it began"
    if c.advantages == "reinforce++":
        yield "advantages reinforce++: scaled over responses", "whitened over tokens: a long response counts more"
    if any(isinstance(control, EntropyBonus) for control in c.control.parts):
        yield "entropy-bonus: mean over the update's tokens", "mean by loss_agg_mode, which token-mean makes the same"
    if any(isinstance(control, ReferenceKL) for control in c.control.parts):
        yield "reference-kl: not bounded", "k3 is clamped to 10 a token; the reference is a separate model"
    yield "step: an optimiser update", f"an iteration, {c.updates_per_iteration} updates"
    yield (f"template {c.template}, {c.shots} worked examples",
           "the tokenizer's chat template around the prompt; without one set model.custom_chat_template")  # fmt: skip
    yield "old log-probs: the sampler's where they agree", "computed again by the actor, in its own micro-batches"
    if c.sampler_correction and any(isinstance(control, KLCov) for control in c.control.parts):
        yield "sampler_correction: weighs the surrogate", "rollout_is weighs kl-cov's penalty, too"
    if c.policy in (*POLICIES, "smollm2-135m"):
        yield f"policy {c.policy}", "a folder in Hugging Face's format: give its path as actor_rollout_ref.model.path"
    for name in ("base", "dtype", "lora_dropout", "mask_truncated", "dynamic_sampling", "compile"):
        if getattr(c, name) != getattr(TrainConfig, name):
            yield f"{name}={getattr(c, name)}", "not carried over"
    yield "seed", "decides only the order of the data; sampling and random choices have their own seeds"
    yield "metrics of covariance, tokens.parquet", "none; erltool import reads its console log, erltool fit fits it"


def write_export(export: Export, config: TrainConfig, folder: str | Path) -> list[Path]:
    """Writes verl.sh, train.parquet, test.parquet and reward.py; returns them. Raises ErltoolError.

    The parquet files have verl's columns (data_source, prompt, ability, reward_model, extra_info). reward.py calls the
    task's verifier, so verl's machines need erltool.
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
