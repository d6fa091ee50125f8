"""Each framework's keys and defaults as Settings.

The keys and defaults are those of verl 0.9.0 (verl/trainer/config), TRL 1.16.0 (GRPOConfig, ModelConfig), SkyRL a956457
of 2026-08-21 (skyrl/train/config/config.py), prime-rl 0.8.1.dev67 (prime_rl/configs) and this package's TrainConfig.
"""

import importlib.metadata
import math
from collections.abc import Callable

from erltool.errors import ErltoolError
from erltool.logs.check.own import LOSS_PREFIX, LOSSES, of_control, parts_of
from erltool.logs.check.reading import Raw
from erltool.logs.check.scripts import UNKNOWN
from erltool.logs.check.settings import Settings
from erltool.resources import POLICIES

RELEASES = {"verl": "0.9.0", "TRL": "1.16.0", "SkyRL": "a956457", "prime-rl": "0.8.1.dev67", "erltool": ""}
PACKAGES = {"verl": "verl", "TRL": "trl"}  # whose installed release holds where none is named


class _Keys:
    """Reads fields of Settings from keys, and notes which key was read and whether it was set."""

    def __init__(self, raw: Raw):
        self.raw = raw
        self.keys: dict[str, str] = {}
        self.values: dict[str, object] = {}
        self.chosen: set[str] = set()
        self.unknown: set[str] = set()
        self.found = False  # whether any key was there

    def value(self, field: str, default: object, *names: str) -> object:
        """The value of the first of these keys that is set; None where it is not known."""
        name = next((n for n in names if n in self.raw.values), None)
        self.keys[field] = name or names[0]
        self.found |= name is not None
        value = self.raw.values[name] if name else default if self.raw.complete else UNKNOWN
        if value is UNKNOWN:
            self.unknown.add(field)
        # A file may be a dump of all settings, so there a default is no choice.
        if name and (self.raw.typed or not _same(value, default)):
            self.chosen.add(field)
        return None if value is UNKNOWN else value

    def number(self, field: str, default: float | None, *names: str) -> float | None:
        value = self.value(field, default, *names)
        if value is not None and _number(value) is None:  # such as 20% or 1e-5,1e-6
            self.unknown.add(field)
        return _number(value)

    def text(self, field: str, default: str | None, *names: str) -> str | None:
        value = self.value(field, default, *names)
        self.values[field] = value
        return value.strip() if isinstance(value, str) else None

    def flag(self, field: str, default: bool | None, *names: str) -> bool | None:
        value = self.value(field, default, *names)
        self.values[field] = value
        return {"true": True, "false": False}.get(str(value).lower())

    def made(self, **fields) -> Settings:
        chosen, unknown = frozenset(self.chosen), frozenset(self.unknown)
        known = {"keys": self.keys, "values": self.values, **fields}
        return Settings(self.raw.framework, chosen=chosen, unknown=unknown, **known)


def _number(value: object) -> float | None:
    """A finite number; YAML reads 1e-6 as text."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _same(value: object, default: object) -> bool:
    numbers = _number(value), _number(default)
    return value == default if None in numbers else numbers[0] == numbers[1]


def _over(top: float | None, *under: float | None) -> float | None:
    """top divided by all of `under`; None where one is not known or 0."""
    for number in under:
        top = None if top is None or not number else top / number
    return top


def _times(*numbers: float | None) -> float | None:
    return math.prod(n for n in numbers if n is not None) if None not in numbers else None


def _loss(name: str | None) -> str | None:
    return name.replace("-", "_").lower() if name else None


def _dtype(name: str | None) -> str | None:
    return {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16"}.get(
        (name or "").removeprefix("torch."), "fp32" if name else None
    )


def settings_of(raw: Raw, release: str | None = None) -> Settings:
    """The settings in one form. `release` is the framework's, for what differs between releases; without it that of
    the installed package holds, else the newest that is known here.

    Raises ErltoolError where somebody else's settings were said to be the framework's, so that all would be defaults.
    """
    if release is None:
        try:
            release = importlib.metadata.version(PACKAGES[raw.framework])
        except (KeyError, importlib.metadata.PackageNotFoundError):
            release = RELEASES[raw.framework]
    keys = _Keys(raw)
    made = MAKERS[raw.framework](keys)
    if not raw.recognised and not keys.found:
        one = next(iter(keys.keys.values()))
        raise ErltoolError(
            f"check: none of its keys is {raw.framework}'s, such as {one}; give the trainer's settings or command"
        )
    return Settings(**{**vars(made), "release": release})


def _verl(k: _Keys) -> Settings:
    actor, rollout, model = (f"actor_rollout_ref.{part}." for part in ("actor", "rollout", "model"))
    policy_loss, correction = actor + "policy_loss.", "algorithm.rollout_correction."
    estimator = k.text("estimator", "gae", "algorithm.adv_estimator")
    by_std = k.flag("scaled", True, "algorithm.norm_adv_by_std_in_grpo")
    families = ("grpo", "rloo", "opo", "gpg", "baseline")
    distilled = k.flag("distilled", False, "distillation.enabled")  # a teacher's signal needs no group
    grouped = None if not estimator or distilled is not False else any(part in estimator for part in families)
    unscaled = {"rloo": False, "rloo_vectorized": False, "opo": False, "remax": False, "gae": True,
                "reinforce_plus_plus": True, "reinforce_plus_plus_baseline": True}  # fmt: skip
    group = k.number("group_size", 1, rollout + "n")
    mini = k.number("mini_batch", 256, actor + "ppo_mini_batch_size")
    epochs, prompts = k.number("epochs", 1, actor + "ppo_epochs"), k.number("prompts", 1024, "data.train_batch_size")
    devices = _times(k.number("devices", 8, "trainer.n_gpus_per_node"), k.number("nodes", 1, "trainer.nnodes"))
    megatron = k.text("strategy", "fsdp", actor + "strategy") == "megatron"
    width = None if megatron else k.number("width", 1, actor + "ulysses_sequence_parallel_size")
    bypass = k.flag("sampler_old", False, correction + "bypass_mode")
    corrected = [k.value("sampler_ratio", None, correction + name) for name in ("rollout_rs", "rollout_is")]
    entropy = k.number("entropy_coef", 0.0, actor + "entropy_coeff")
    measured = k.flag("entropy_measured", False, actor + "calculate_entropy")
    clip = 0.2 if (both := k.number("clip", 0.2, actor + "clip_ratio")) is None else both
    percent = k.number("kl_cov_percent", None, actor + "k_percent", policy_loss + "k_percent")
    loss = k.text("loss", "vanilla", policy_loss + "loss_mode", actor + "loss_mode")
    made = k.made(
        loss=_loss(loss),
        clip_cov_fraction=k.number("clip_cov_fraction", 2e-4, policy_loss + "clip_cov_ratio"),
        clip_cov_low=k.number("clip_cov_low", 1.0, policy_loss + "clip_cov_lb"),
        kl_cov_fraction=k.number("kl_cov_fraction", 2e-4, policy_loss + "kl_cov_ratio") if percent is None else None,
        kl_cov_percent=percent,
        kl_cov_coef=k.number("kl_cov_coef", 0.1, policy_loss + "ppo_kl_coef", actor + "ppo_kl_coef"),
        estimator=estimator,
        grouped=grouped,
        per_token=estimator == "gae",
        scaled=by_std if estimator and "grpo" in estimator else unscaled.get(estimator or ""),
        group_size=group,
        updates_per_rollout=_over(_times(epochs, prompts), mini),
        micro_batch=k.number("micro_batch", None, actor + "ppo_micro_batch_size_per_gpu"),
        update_share=_over(_times(mini, group, width), devices),
        dynamic_batch=k.flag("dynamic_batch", False, actor + "use_dynamic_bsz"),
        clip_low=k.number("clip_low", clip, actor + "clip_ratio_low"),
        clip_high=k.number("clip_high", clip, actor + "clip_ratio_high"),
        entropy_coef=entropy,
        entropy_measured=True if measured or entropy or not bypass else measured,
        learning_rate=k.number("learning_rate", 1e-6, actor + "optim.lr"),
        lora_rank=k.number("lora_rank", 0, model + "lora_rank", model + "lora.rank"),
        lora_dropout=k.number("lora_dropout", 0.0, model + "lora.dropout"),
        temperature=k.number("temperature", 1.0, rollout + "temperature"),
        top_p=k.number("top_p", 1.0, rollout + "top_p"),
        top_k=k.number("top_k", -1, rollout + "top_k"),
        sampler_ratio=bool(bypass) or any(c not in (None, "null", "") for c in corrected),
        sampler_old=bypass,
        dtype=_dtype(k.text("dtype", "bfloat16", actor + "fsdp_config.dtype")),
    )
    if loss is None or not loss.startswith(LOSS_PREFIX):
        return made
    k.keys["registered"] = model + "external_lib"
    modules = k.raw.values.get(k.keys["registered"], "" if k.raw.complete else UNKNOWN)
    return _inside(k, made, loss, None if modules is UNKNOWN else LOSSES in str(modules))


OF_COV = ("clip_cov_fraction", "clip_cov_low", "kl_cov_fraction", "kl_cov_percent", "kl_cov_coef")


def _inside(k: _Keys, made: Settings, loss: str, registered: bool | None) -> Settings:
    """The same where the framework's loss is this package's, whose control is in the loss's name."""
    control = of_control(parts_of({"control": loss.removeprefix(LOSS_PREFIX)}))
    numbers = {name: _number(value) for name, value in control.items() if name != "loss"}
    unread = made.chosen.intersection(OF_COV)
    keys = {name: k.keys["loss"] for name in numbers if name not in unread}
    values = {name: loss for name in keys} | {name: getattr(made, name) for name in unread}
    changed = {
        "loss": str(control["loss"]), "whole_update": True, "registered": registered,
        "keys": {**made.keys, **keys}, "values": {**made.values, **values},
    }  # fmt: skip
    return Settings(**{**vars(made), **dict.fromkeys(OF_COV), **numbers, **changed})


def _trl(k: _Keys) -> Settings:
    steps, accumulated = (
        k.value("steps", None, "steps_per_generation"),
        k.number("accumulated", 1, "gradient_accumulation_steps"),
    )
    batch = k.value("generation_batch", None, "generation_batch_size")
    reuse = _number(steps) if steps is not None else accumulated if batch is None else None
    loss = k.text("loss", "dapo", "loss_type")
    clip = k.number("clip_low", 0.2, "epsilon")
    high = k.number("clip_high", clip, "epsilon_high")
    scaled = k.value("scaled", "group", "scale_rewards")
    adaptive = k.flag("entropy_on", False, "use_adaptive_entropy")
    peft = k.flag("peft", k.raw.peft, "use_peft")
    rank = k.number("lora_rank", 16, "lora_r") if peft else None if peft is None else 0
    bf16, fp16 = k.flag("dtype", None, "bf16"), k.flag("fp16", False, "fp16")
    return k.made(
        loss=_loss(loss),
        estimator="grpo",
        grouped=True,
        scaled=None if scaled is None else str(scaled).lower() not in ("none", "false"),
        group_size=k.number("group_size", 8, "num_generations"),
        updates_per_rollout=_over(_times(k.number("iterations", 1, "num_iterations"), reuse), accumulated),
        clip_low=clip,
        # In these losses epsilon_high bounds a weight, and is no clip of the ratio.
        clip_high=None if _loss(loss) in ("cispo", "sapo", "vespo", None) else clip if high is None else high,
        entropy_coef=k.number("entropy_coef", 0.0, "entropy_coef"),
        entropy_on=True if adaptive else None,
        learning_rate=k.number("learning_rate", 1e-6, "learning_rate"),
        lora_rank=rank,
        lora_dropout=k.number("lora_dropout", 0.05, "lora_dropout") if peft else None if peft is None else 0.0,
        temperature=k.number("temperature", 1.0, "temperature"),
        top_p=k.number("top_p", 1.0, "top_p"),
        top_k=k.number("top_k", 0, "top_k"),
        min_p=k.number("min_p", None, "min_p"),
        sampler_ratio=_both(k.flag("vllm", False, "use_vllm"),
                            k.flag("sampler_ratio", True, "vllm_importance_sampling_correction")),
        sampler_old=False,
        dtype="bf16" if bf16 else "fp16" if fp16 else None,
    )  # fmt: skip


def _both(one: bool | None, other: bool | None) -> bool | None:
    return False if False in (one, other) else None if None in (one, other) else True


def _skyrl(k: _Keys) -> Settings:
    algorithm, sampling, policy = "trainer.algorithm.", "generator.sampling_params.", "trainer.policy."
    correction = algorithm + "off_policy_correction."
    loss = _loss(k.text("loss", "regular", algorithm + "policy_loss_type"))
    estimator = k.text("estimator", "grpo", algorithm + "advantage_estimator")
    by_std = k.flag("scaled", True, algorithm + "grpo_norm_by_std")
    whitened = k.flag("whitened", False, algorithm + "advantage_batch_normalize")
    scaled = {"grpo": by_std, "rloo": False, "gae": True, "reinforce++": True}.get(estimator or "")
    group = k.number("group_size", 5, "generator.n_samples_per_prompt")
    mini = k.number("mini_batch", 256, "trainer.policy_mini_batch_size")
    epochs, prompts = (k.number("epochs", 1, "trainer.update_epochs_per_batch"),
                       k.number("prompts", 1024, "trainer.train_batch_size"))  # fmt: skip
    devices = _times(k.number("devices", 1, "trainer.placement.policy_num_gpus_per_node"),
                     k.number("nodes", 1, "trainer.placement.policy_num_nodes"))  # fmt: skip
    megatron = k.text("strategy", "fsdp", "trainer.strategy") == "megatron"
    width = None if megatron else k.number("width", 1, policy + "sequence_parallel_size")
    packed = k.number("dynamic_batch", -1, "trainer.max_tokens_per_microbatch")
    kinds = [k.value("sampler_ratio", None, correction + name) for name in ("sequence_mask_metric", "tis_ratio_type")]
    old_switch = k.flag("use_tis", False, algorithm + "use_tis")
    by_sampler = loss in ("rollout_is", "dppo", "importance_sampling")
    bf16 = k.flag("dtype", True, "trainer.bf16")
    return k.made(
        loss=loss,
        clip_cov_fraction=k.number("clip_cov_fraction", 2e-4, algorithm + "clip_cov.clip_ratio"),
        clip_cov_low=k.number("clip_cov_low", 1.0, algorithm + "clip_cov.clip_cov_lb"),
        kl_cov_fraction=k.number("kl_cov_fraction", 0.2, algorithm + "kl_cov.kl_cov_frac"),
        kl_cov_coef=k.number("kl_cov_coef", 1.0, algorithm + "kl_cov.ppo_kl_coef"),
        estimator=estimator,
        grouped=None if estimator is None else estimator in ("grpo", "rloo", "maxrl"),
        per_token=estimator == "gae",
        scaled=True if whitened else scaled,
        group_size=group,
        updates_per_rollout=_over(_times(epochs, prompts), mini),
        micro_batch=k.number("micro_batch", 1, "trainer.micro_train_batch_size_per_gpu"),
        update_share=_over(_times(mini, group, width), devices),
        dynamic_batch=None if packed is None else packed > 0,
        clip_low=k.number("clip_low", 0.2, algorithm + "eps_clip_low"),
        clip_high=k.number("clip_high", 0.2, algorithm + "eps_clip_high"),
        entropy_coef=k.number("entropy_coef", 0.01, algorithm + "entropy_loss_coef"),
        entropy_on=k.flag("entropy_on", False, algorithm + "use_entropy_loss"),
        learning_rate=k.number("learning_rate", 1e-6, policy + "optimizer_config.lr"),
        lora_rank=k.number("lora_rank", 0, policy + "model.lora.rank"),
        lora_dropout=k.number("lora_dropout", 0.0, policy + "model.lora.dropout"),
        temperature=k.number("temperature", 1.0, sampling + "temperature"),
        loss_temperature=k.number("loss_temperature", None, algorithm + "temperature"),
        top_p=k.number("top_p", 1.0, sampling + "top_p"),
        top_k=k.number("top_k", -1, sampling + "top_k"),
        min_p=k.number("min_p", 0.0, sampling + "min_p"),
        sampler_ratio=by_sampler or bool(old_switch) or any(kind not in (None, "null", "") for kind in kinds),
        sampler_old=by_sampler,
        dtype=None if bf16 is None else "bf16" if bf16 else "fp32",
    )


def _prime(k: _Keys) -> Settings:
    sampling = ("orchestrator.train.sampling.", "train.sampling.")
    bodies = tuple(prefix + "extra_body." for prefix in sampling)

    def beside(prefixes: tuple[str, ...], name: str) -> tuple[str, ...]:
        return tuple(prefix + name for prefix in prefixes)

    algorithm = k.text("estimator", "grpo", "orchestrator.algo.type", "algo.type")
    lora = any(key.startswith(("trainer.model.lora", "model.lora")) for key in k.raw.values)
    return k.made(
        loss=_loss(k.text("loss", "default", "trainer.loss.type", "loss.type")),
        estimator=algorithm,
        grouped=None if algorithm is None else algorithm in ("grpo", "max_rl", "echo"),
        scaled=False,
        group_size=k.number("group_size", 1, "orchestrator.train.source.0.group_size", "orchestrator.group_size",
                            "train.source.0.group_size", "group_size"),
        learning_rate=k.number("learning_rate", 1e-6, "trainer.optim.lr", "optim.lr"),
        lora_rank=k.number("lora_rank", 16 if lora else 0, "trainer.model.lora.rank", "model.lora.rank"),
        lora_dropout=k.number("lora_dropout", 0.0, "trainer.model.lora.dropout", "model.lora.dropout"),
        temperature=k.number("temperature", 1.0, *beside(sampling, "temperature")),
        top_p=k.number("top_p", 1.0, *beside(bodies, "top_p")),
        top_k=k.number("top_k", -1, *beside(bodies, "top_k")),
        min_p=k.number("min_p", 0.0, *beside(bodies, "min_p")),
        sampler_ratio=True,
        sampler_old=True,
    )  # fmt: skip


def _erltool(k: _Keys) -> Settings:
    control = of_control(parts_of(k.raw.values))
    estimator = k.text("estimator", "grpo", "advantages")
    # The shipped policies are small; their learning rates are not those of language models.
    small = k.value("policy", "sharpening", "policy") in POLICIES
    high = k.number("clip_high", 0.2, "clip_eps_high")
    k.keys |= dict.fromkeys(("loss", "clip_cov_low", "kl_cov_fraction", "kl_cov_coef", "entropy_coef"), "control")
    return k.made(
        loss=str(control["loss"]),
        clip_cov_low=_number(control.get("clip_cov_low")),
        kl_cov_fraction=_number(control.get("kl_cov_fraction")),
        kl_cov_coef=_number(control.get("kl_cov_coef")),
        estimator=estimator,
        grouped=None if estimator is None else estimator != "reinforce++",
        scaled=None if estimator is None else estimator not in ("dr_grpo", "rloo"),
        group_size=k.number("group_size", 8, "group_size"),
        updates_per_rollout=k.number("updates_per_rollout", 4, "updates_per_iteration"),
        clip_low=k.number("clip_low", 0.2, "clip_eps_low"),
        clip_high=_number(control.get("clip_high", high)),
        entropy_coef=_number(control.get("entropy_coef", 0.0)),
        learning_rate=None if small else k.number("learning_rate", 1e-3, "learning_rate"),
        lora_rank=k.number("lora_rank", 16, "lora_rank"),
        lora_dropout=k.number("lora_dropout", 0.0, "lora_dropout"),
        temperature=k.number("temperature", 1.0, "temperature"),
        sampler_ratio=False,
        sampler_old=False,
        dtype=_dtype(k.text("dtype", None, "dtype")),
    )


MAKERS: dict[str, Callable[[_Keys], Settings]] = {
    "verl": _verl, "TRL": _trl, "SkyRL": _skyrl, "prime-rl": _prime, "erltool": _erltool,
}  # fmt: skip
