"""TRL's settings and trainers with which a control could not act, or would act wrongly."""

import inspect
import warnings
from types import SimpleNamespace

import torch

from erltool.controls.base import ENTROPY, SURROGATE, Control
from erltool.errors import ErltoolError

try:
    import trl
    from trl import GRPOConfig
except ImportError as e:
    raise ErltoolError(f"erltool.engines.trl needs TRL ({e}): pip install 'erltool[trl]'") from e

TESTED = "1.16"  # of TRL, any patch release
PRIVATE = {  # methods of the trainer that we call or extend, with the parameters that we pass by name
    "_generate_and_score_completions": (),
    "_calculate_rewards": (),
    "_get_per_token_logps_and_entropies": ("batch_size", "compute_entropy"),
    "_compute_loss": (),
    "_save_checkpoint": (),
}
LOSSES = ("grpo", "dr_grpo", "dapo")


def check_trainer(base) -> None:
    """Raises ErltoolError where the trainer `base` lacks a method or a parameter; warns for an untested TRL version."""
    for name, parameters in PRIVATE.items():
        method = getattr(base, name, None)
        missing = [p for p in parameters if method and p not in inspect.signature(method).parameters]
        if method is None or missing:
            fault = f"{name} takes no {missing[0]}" if missing else f"the trainer has no {name}"
            raise ErltoolError(f"trl {trl.__version__}: {fault}, which erltool.engines.trl needs; use trl=={TESTED}.*")
    if trl.__version__.split(".")[:2] != TESTED.split("."):
        tested = f"erltool.engines.trl was tested with trl {TESTED}.* only"
        warnings.warn(f"trl {trl.__version__}: {tested}; compare a short run first", stacklevel=4)


def check_settings(args: GRPOConfig, control: Control) -> None:
    """Raises ErltoolError, naming the setting to change, where the control could not act or would act wrongly."""
    micro_batches = (args.steps_per_generation or 1) * args.num_iterations
    unscaled = str(args.scale_rewards) in ("none", "False")
    _check_conflicts(control, advantages="dr_grpo" if unscaled else "grpo", scale_rewards=args.scale_rewards)
    owners = [member.name for member in control.parts if SURROGATE in member.roles]
    corrects = args.use_vllm and args.vllm_importance_sampling_correction
    refused = (
        (args.loss_type not in LOSSES, "loss_type", f"weights tokens differently; use one of {', '.join(LOSSES)}"),
        (control.mean_of_responses and args.loss_type != "grpo", "loss_type",
         f"control {control.name} is a mean of responses; use grpo"),
        (args.importance_sampling_level != "token", "importance_sampling_level",
         "a dropped token would get a gradient through its response's ratio; use token, and control gspo"),
        (args.use_liger_kernel, "use_liger_kernel",
         "its loss has no control; use model_init_kwargs={'use_kernels': True}"),
        (args.top_entropy_quantile < 1, "top_entropy_quantile",
         "it masks by the entropies of a micro-batch; use 1.0, and control high-entropy-mask"),
        ((args.entropy_coef or args.use_adaptive_entropy) and any(ENTROPY in m.roles for m in control.parts),
         "entropy_coef", f"control {control.name} rewards entropy too; use 0"),
        ("ref_log_probs" in control.needs, "beta", "control reference-kl is TRL's own here; set beta to its coef"),
        (micro_batches < control.min_updates * args.gradient_accumulation_steps, "num_iterations",
         f"control {control.name} cannot act on the first update after sampling, where pi = pi_old; use "
         f"num_iterations={control.min_updates}, or steps_per_generation of at least {control.min_updates} * "
         "gradient_accumulation_steps"),
        (owners and args.delta is not None, "delta", f"clips the surrogate of control {', '.join(owners)}; use None"),
        (not control.owner.clipped_ratio and (args.off_policy_mask_threshold is not None or corrects),
         "vllm_importance_sampling_correction" if corrects else "off_policy_mask_threshold",
         f"has no effect on the surrogate of control {control.name}; turn it off"),
    )  # fmt: skip
    for is_refused, name, why in refused:
        if is_refused:
            raise ErltoolError(f"{name}={getattr(args, name)}: {why}")


def check_dropout(model, control: Control) -> None:
    """Raises ErltoolError for a model with dropout under a control that this would mislead."""
    dropout = max((m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)), default=0.0)
    _check_conflicts(control, lora_dropout=dropout, disable_dropout=False)


def _check_conflicts(control: Control, advantages: str = "grpo", lora_dropout: float = 0.0, **setting) -> None:
    """Raises ErltoolError where the control conflicts with a `setting` of TRL's, translated into TrainConfig's."""
    if unknown := {"entropy_slope", "gradient_norm"} & set(control.needs):
        raise ErltoolError(f"control {control.name}: needs {min(unknown)}, which TRL does not give; use erltool.train")
    config = SimpleNamespace(control=control, advantages=advantages, lora_dropout=lora_dropout, chosen_at_sampling=True)
    for member in control.parts:
        for name, why in member.conflicts(config):
            where = [f"control {control.name}"] if name == "control" else [f"{k}={v}" for k, v in setting.items()]
            raise ErltoolError(f"{where[0]}: {why}")
