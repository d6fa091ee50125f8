"""What of TRL's settings and trainers is refused, because a control could not act there, or would act wrongly."""

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
PRIVATE = {  # methods of the trainer that are called or extended, with the parameters that are given by name
    "_generate_and_score_completions": (),
    "_calculate_rewards": (),
    "_get_per_token_logps_and_entropies": ("batch_size", "compute_entropy"),
    "_compute_loss": (),
    "_save_checkpoint": (),
}
LOSSES = ("grpo", "dr_grpo", "dapo")


def check_trainer(base) -> None:
    """Raises ErltoolError, naming it, where the trainer `base` has no method that is needed, or it takes no parameter
    of this name; warns where TRL's version is none of those tested."""
    for name, parameters in PRIVATE.items():
        method = getattr(base, name, None)
        lacks = [p for p in parameters if method and p not in inspect.signature(method).parameters]
        if method is None or lacks:
            what = f"{name} takes no {lacks[0]}" if lacks else f"the trainer has no {name}"
            raise ErltoolError(f"trl {trl.__version__}: {what}, which erltool.engines.trl needs; use trl=={TESTED}.*")
    if trl.__version__.split(".")[:2] != TESTED.split("."):
        text = (
            f"trl {trl.__version__}: erltool.engines.trl was tested with trl {TESTED}.* only; compare a short run first"
        )
        warnings.warn(text, stacklevel=4)


def check_settings(args: GRPOConfig, control: Control) -> None:
    """Raises ErltoolError, naming the setting to change, where the control could not act or would act wrongly."""
    micro_batches = args.steps_per_generation * args.num_iterations
    unscaled = str(args.scale_rewards) in ("none", "False")
    _check_conflicts(control, advantages="dr_grpo" if unscaled else "grpo", scale_rewards=args.scale_rewards)
    owns = [part.name for part in control.parts if SURROGATE in part.roles]
    corrects = args.use_vllm and args.vllm_importance_sampling_correction
    refused = (
        (args.loss_type not in LOSSES, "loss_type", f"weights tokens otherwise; use one of {', '.join(LOSSES)}"),
        (control.mean_of_responses and args.loss_type != "grpo", "loss_type",
         f"control {control.name} is a mean of responses; use grpo"),
        (args.importance_sampling_level != "token", "importance_sampling_level",
         "a token without a gradient would get one through its response's ratio; use token, and control gspo"),
        (args.use_liger_kernel, "use_liger_kernel", "its loss knows no control; use model_init_kwargs={'use_kernels': "
         "True}"),
        (args.top_entropy_quantile < 1, "top_entropy_quantile",
         "it masks by the entropies of a micro-batch; use 1.0, and control high-entropy-mask"),
        ((args.entropy_coef or args.use_adaptive_entropy) and any(ENTROPY in p.roles for p in control.parts),
         "entropy_coef", f"control {control.name} rewards entropy too; use 0"),
        ("ref_log_probs" in control.needs, "beta", "control reference-kl is TRL's own here; set beta to its coef"),
        (micro_batches < control.min_updates * args.gradient_accumulation_steps, "num_iterations",
         f"control {control.name} cannot act, because an update that is the first after sampling has pi = pi_old and "
         f"what it acts on is 0; use num_iterations={control.min_updates}, or steps_per_generation of at least "
         f"{control.min_updates} * gradient_accumulation_steps"),
        (owns and args.delta is not None, "delta", f"clips the surrogate of control {', '.join(owns)}; use None"),
        (not control.owner.clipped_ratio and (args.off_policy_mask_threshold is not None or corrects),
         "vllm_importance_sampling_correction" if corrects else "off_policy_mask_threshold",
         f"it is not applied to the surrogate of control {control.name}; turn it off"),
    )  # fmt: skip
    for holds, name, why in refused:
        if holds:
            raise ErltoolError(f"{name}={getattr(args, name)}: {why}")


def check_dropout(model, control: Control) -> None:
    """Raises ErltoolError for a model that drops at random under a control that this would mislead."""
    drops = max((m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)), default=0.0)
    _check_conflicts(control, lora_dropout=drops, disable_dropout=False)


def _check_conflicts(control: Control, advantages: str = "grpo", lora_dropout: float = 0.0, **setting) -> None:
    """Raises ErltoolError where the control cannot go together with what `setting` of TRL's amounts to in ours."""
    config = SimpleNamespace(control=control, advantages=advantages, lora_dropout=lora_dropout)
    for part in control.parts:
        for name, why in part.conflicts(config):
            where = [f"control {control.name}"] if name == "control" else [f"{k}={v}" for k, v in setting.items()]
            raise ErltoolError(f"{where[0]}: {why}")
