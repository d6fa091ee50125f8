"""The policy of a configuration or a run, and the versions and machine that make a run."""

import logging
import platform
import re
from dataclasses import replace
from pathlib import Path

import torch
import transformers

import erltool
from erltool.errors import ErltoolError
from erltool.policies.load import load_policy
from erltool.policies.policy import Policy
from erltool.resources import commit
from erltool.runs.checkpoints import checkpoint_steps, was_ever_saved
from erltool.runs.folder import Run, holds_run, read_run
from erltool.tasks.task import Task, load_task
from erltool.training.config import BASES, DEVICE, TEMPLATES, TrainConfig
from erltool.training.memory import check_fits
from erltool.training.saved import load_saved

PROMPT_TOKENS = 128  # assumed for the memory plan, which precedes the tokenizer
_log = logging.getLogger(__name__)


def configured_policy(config: TrainConfig, task: Task) -> Policy:
    """The policy of a configuration, as before the first step. Raises ErltoolError, before it loads anything, where the
    memory plan exceeds the free memory."""
    check_fits(config, PROMPT_TOKENS)
    policy = load_policy(
        config.policy, base=config.base, dtype=config.dtype, device=config.device, seed=config.seed,
        lora_rank=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
        gradient_checkpointing=config.gradient_checkpointing, compile=config.compile,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    return policy.with_template(config.template, task.examples(config.shots))


def policy_for_evaluation(
    source: str, base: str = "none", template: str | None = None, device: str = "auto", trust_remote_code: bool = False
) -> tuple[Policy, TrainConfig | None]:
    """The policy of a run's folder as last saved, with its configuration; or any other policy, with None.

    Where a run's adapter/ is not of the newest checkpoint, it is made again from that one, with a warning. A policy
    without `template` gets "boxed" where it has a chat template. A model's own code runs only with `trust_remote_code`,
    whatever the run's config.json says. Raises ErltoolError, also for a run without a checkpoint.
    """
    _check_arguments(base, template, device)
    run = Path(source)
    if not (run / "metrics.jsonl").is_file() and not holds_run(run):
        policy = load_policy(
            source, base=base, lora_rank=0, dtype="stored", device=device, trust_remote_code=trust_remote_code
        )
        chosen = template or ("boxed" if policy.tokenizer.chat_template else "none")
        return policy.with_template(chosen), None
    read = read_run(run)
    config = replace(config_of(read, trust_remote_code), device=device)
    if base not in ("none", config.base):
        raise ErltoolError(f"base={base}: run {source} was trained on base={config.base}; leave it out")
    if not was_ever_saved(run) and not checkpoint_steps(run):
        raise ErltoolError(
            f"run {source}: holds no adapter: it stopped before its first checkpoint, or was recorded without; train it"
        )
    policy = configured_policy(config, load_task(config.task))
    _check_base(policy, read)
    load_saved(policy, run, config.control)
    if template:
        policy = policy.with_template(template, policy.template.shots)
    return policy, config


def _check_base(policy: Policy, run: Run) -> None:
    """Raises ErltoolError where the run's base has other weights now. In another type, or quantised on another device,
    the same weights have other bytes: a difference is then a warning."""
    was, known = run.made_by, run.made_by.get("policy_fingerprint")
    if not policy.has_adapter or known is None or known == policy.fingerprint():  # last, since it reads all weights
        return
    if was.get("dtype") == str(policy.causal_lm.dtype) and not policy.quantised:
        raise ErltoolError(
            f"run {run.path}: its adapter was trained on other weights than {policy.source!r} has now; restore that "
            "base, or train again"
        )
    _log.warning(
        "run %s: its base had other bytes when it was trained (%s on %s), so its numbers may differ",
        run.path, was.get("dtype", "type unknown"), was.get("device", "a device unknown"),
    )  # fmt: skip


def config_of(run: Run, trust_remote_code: bool = False) -> TrainConfig:
    """The configuration of a run. Raises ErltoolError where its config.json has another form, and where that lets the
    model run its own code and `trust_remote_code` does not."""
    try:
        return TrainConfig.from_dict(run.config, trust_remote_code=trust_remote_code)
    except ErltoolError as e:
        raise ErltoolError(f"{run.path / 'config.json'}: {e}") from e


def _check_arguments(base: str, template: str | None, device: str) -> None:
    """Raises ErltoolError, before a policy loads, for values that no policy accepts."""
    for name, value, known in (("base", base, BASES), ("template", template, (None, "auto", *TEMPLATES))):
        if value not in known:
            raise ErltoolError(f"{name}={value!r}: must be {', '.join(filter(None, known))}")
    if not re.fullmatch(DEVICE, device):
        raise ErltoolError(f"device={device!r}: must be auto, cpu, cuda or cuda:NUMBER")


def versions(*modules) -> dict[str, str]:
    """Versions of modules, of Python, and of the code, for config.json."""
    known = {module.__name__: module.__version__ for module in modules}
    return known | {"commit": commit(), "python": platform.python_version()}


def made_by(policy: Policy) -> dict:
    """The versions and the machine that make a run, for config.json."""
    import bitsandbytes  # not above: lora.py sets its logger first
    import peft

    return versions(erltool, torch, transformers, peft, bitsandbytes) | {
        "device": torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "policy_fingerprint": policy.fingerprint(),
        "dtype": str(policy.causal_lm.dtype),
        "log_probs": str(policy.path),
    }
