"""The policy that a configuration or a run asks for, and what a run was made by."""

import logging
import platform
import re
from dataclasses import replace
from pathlib import Path

import torch

from erltool.errors import ErltoolError
from erltool.policies.load import load_policy
from erltool.policies.policy import Policy
from erltool.runs.checkpoints import checkpoint_steps, was_ever_saved
from erltool.runs.folder import Run, holds_run, read_run
from erltool.tasks.task import Task, load_task
from erltool.training.config import BASES, DEVICE, TEMPLATES, TrainConfig
from erltool.training.memory import check_fits
from erltool.training.saved import load_saved

PROMPT_TOKENS = 128  # of a prompt, for the memory plan that is made before there is a tokenizer
_log = logging.getLogger(__name__)


def configured_policy(config: TrainConfig, task: Task) -> Policy:
    """The policy that a configuration asks for, as it is before the first step.

    Raises ErltoolError before anything is loaded where its memory plan is above what is free.
    """
    check_fits(config, PROMPT_TOKENS)
    policy = load_policy(
        config.policy,
        base=config.base,
        dtype=config.dtype,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        gradient_checkpointing=config.gradient_checkpointing,
        compile=config.compile,
        trust_remote_code=config.trust_remote_code,
        device=config.device,
        seed=config.seed,
    )
    return policy.with_template(config.template, task.examples(config.shots))


def policy_for_evaluation(
    what: str, base: str = "none", template: str | None = None, device: str = "auto", trust_remote_code: bool = False
) -> tuple[Policy, TrainConfig | None]:
    """The policy of a run as it was last saved, with its configuration; or a policy as it is, and None.

    A run's adapter/ that is not of its newest checkpoint, as a kill or a full disk leaves it, is made again from that
    one, which is said in a warning. A policy without template of its own choosing is asked to reason and box where it
    has a chat template. A model's own code runs only with `trust_remote_code`, whatever a run's config.json says.
    Raises ErltoolError, also for a run that was cut before its first checkpoint.
    """
    _check_asked(base, template, device)
    run = Path(what)
    if not (run / "metrics.jsonl").is_file() and not holds_run(run):
        policy = load_policy(
            what, base=base, lora_rank=0, dtype="stored", device=device, trust_remote_code=trust_remote_code
        )
        chosen = template or ("boxed" if policy.tokenizer.chat_template else "none")
        return policy.with_template(chosen), None
    read = read_run(run)
    config = replace(config_of(read, trust_remote_code), device=device)
    if base not in ("none", config.base):
        raise ErltoolError(f"base={base}: run {what} was trained on base={config.base}; leave it out")
    if not was_ever_saved(run) and not checkpoint_steps(run):
        raise ErltoolError(f"run {what}: holds no adapter; it was cut before its first checkpoint, or recorded without")
    policy = configured_policy(config, load_task(config.task))
    _check_base(policy, read)
    load_saved(policy, run, config.control)
    if template:
        policy = policy.with_template(template, policy.template.shots)
    return policy, config


def _check_base(policy: Policy, run: Run) -> None:
    """Raises ErltoolError where the run's base has other weights now, and warns where that cannot be told: in another
    type, or quantised by another device, the same weights have other bytes."""
    was, known = run.made_by, run.made_by.get("policy_fingerprint")
    if not policy.has_adapter or known is None or known == policy.fingerprint():  # which reads all weights
        return
    if was.get("dtype") == str(policy.causal_lm.dtype) and not policy.quantised:
        raise ErltoolError(
            f"run {run.path}: its adapter was trained on other weights than those of {policy.source!r} now; "
            "restore the base that it was trained on, or train again"
        )
    _log.warning(
        "run %s: its base had other bytes when it was trained (%s on %s), so that its numbers may differ",
        run.path, was.get("dtype", "type unknown"), was.get("device", "a device unknown"),
    )  # fmt: skip


def config_of(run: Run, trust_remote_code: bool = False) -> TrainConfig:
    """The configuration that a run was trained with. Raises ErltoolError where its config.json has another form, and
    where it lets the model run code of its own, unless `trust_remote_code` says the same."""
    try:
        return TrainConfig.from_dict(run.config, trust_remote_code=trust_remote_code)
    except ErltoolError as e:
        raise ErltoolError(f"{run.path / 'config.json'}: {e}") from e


def _check_asked(base: str, template: str | None, device: str) -> None:
    """Raises ErltoolError, before a policy is loaded, for what no policy can be evaluated by."""
    for name, value, known in (("base", base, BASES), ("template", template, (None, "auto", *TEMPLATES))):
        if value not in known:
            raise ErltoolError(f"{name}={value!r}: must be {', '.join(filter(None, known))}")
    if not re.fullmatch(DEVICE, device):
        raise ErltoolError(f"device={device!r}: must be auto, cpu, cuda or cuda:NUMBER")


def made_by(policy: Policy) -> dict:
    """Versions and machine that a run is made by, for config.json."""
    import bitsandbytes
    import peft
    import transformers

    import erltool
    from erltool.resources import commit

    return {
        "erltool": erltool.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "bitsandbytes": bitsandbytes.__version__,
        "device": torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "policy_fingerprint": policy.fingerprint(),
        "dtype": str(policy.causal_lm.dtype),
        "log_probs": str(policy.path),
    }
