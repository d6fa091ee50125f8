"""Any control as a policy loss of verl (0.9), chosen over the whole update. Needs verl, and erltool where its workers
run.

verl imports this module in each worker of the actor, and the loss's name is the control, as `--control` takes it:

    actor_rollout_ref.model.external_lib=erltool.engines.verl_losses
    'actor_rollout_ref.actor.policy_loss.loss_mode="erltool:kl-cov:fraction=0.002,coef=1"'

verl calls a policy loss once a micro-batch, with that micro-batch's tokens only. So its own `clip_cov` and `kl_cov`
centre the covariance and count tokens in each. Here the actor's worker scores an update (verl's mini-batch) before the
gradient, gathers it from all data-parallel ranks, and lets the control choose once. The choice travels with the data:
`advantages` as the control has reshaped them, and a column CHOSEN. The loss is registered in verl's registry by its
name. The mean over tokens (`loss_agg_mode`), the weights of a rollout correction, entropy bonus and KL loss stay
verl's.

Exact: the covariance is by the log-probs of the policy just before the update, centred over all its response tokens, as
in `erltool.train`. Neither micro-batch nor number of ranks changes the choice, or the gradient beyond rounding. Where
all log-probs of an update are within SAMPLER_IS_EXACT nats of the old ones, the policy has not moved since, and the
ratio is exactly 1 as in `erltool.train`; else it is verl's.

Differs: no dual clip (`clip_ratio_c`). `clip_cov_ratio` and verl's other keys of its own losses are not read. Random
choices are seeded by `data_loader_seed` and the number of the update since the worker began, so a resumed job draws
others.

Cost: one more forward pass without gradient an update, and four or five numbers a token gathered.

Raises ErltoolError, in one line and before the first update, for a control that asks for what verl's worker does not
have, for distillation, and for an engine other than FSDP, whose ranks hold the tokens in another way.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from erltool.controls.base import ENTROPY, Choice, Clip, Control
from erltool.controls.catalog import parse_control
from erltool.controls.loss import token_losses
from erltool.engines.verl import GIVEN
from erltool.entropy.covariance import masked_mean, mean_covariance
from erltool.entropy.tokens import Tokens
from erltool.errors import ErltoolError
from erltool.logs.check.own import LOSS_PREFIX
from erltool.training.update import CONTROL, SAMPLER_IS_EXACT, generator

try:
    from verl.single_controller.base.decorator import Dispatch, register
    from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss
    from verl.utils import tensordict_utils
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
    from verl.workers.utils.losses import ppo_loss
    from verl.workers.utils.padding import no_padding_2_padding, response_to_nested
except ImportError as e:
    raise ErltoolError(f"erltool.engines.verl_losses needs verl 0.9 ({e}): pip install 'verl>=0.9'") from e

CHOSEN = "erltool_chosen"  # column of verl's batch, (B, T): bit i is set where member i of the control acts
ENGINES = ("fsdp", "fsdp2")


@dataclass(frozen=True)
class Given:
    """What the loss needs to know of the update, and of the micro-batch that it is called for."""

    control: Control
    clip: Clip
    on_policy: bool  # the policy has not moved since the old log-probs were scored
    mean_covariance: float  # of the update
    chosen: Tensor | None = None  # (B, T, members) bool, of the micro-batch
    token_entropy: Tensor | None = None  # (B, T) with gradient, of the micro-batch


_given: ContextVar[Given | None] = ContextVar("erltool_given", default=None)


def policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """A policy loss as verl calls it for a micro-batch, (B, T) each: the scalar loss to minimise, and metrics. Raises
    ErltoolError where no choice was made for the update, because verl's worker is not this module's."""
    given = _given.get()
    if given is None or given.chosen is None:
        raise ErltoolError("loss_mode erltool: no choice was made for this update; "
                           "set actor_rollout_ref.model.external_lib=erltool.engines.verl_losses")  # fmt: skip
    old, mask = log_prob.detach() if given.on_policy else old_log_prob, response_mask.bool()
    tokens = Tokens(log_prob, old, advantages, mask, given.token_entropy)
    choice = Choice(given.control, advantages, given.chosen, given.clip, 1.0)
    per_token, clipped = token_losses(tokens, choice)
    if rollout_is_weights is not None:
        per_token = per_token * rollout_is_weights
    mode = "seq-mean-token-mean" if given.control.mean_of_responses else loss_agg_mode
    loss = agg_loss(loss_mat=per_token, loss_mask=mask, loss_agg_mode=mode, **config.global_batch_info)
    metrics = {
        "actor/pg_clipfrac": masked_mean(clipped.float(), mask).item(),
        "actor/ppo_kl": masked_mean(-tokens.log_ratio.detach(), mask).item(),
        "actor/selected_fraction": masked_mean(choice.selected.float(), mask).item(),
        "actor/mean_covariance": given.mean_covariance,
    }
    return loss, metrics


class WholeUpdate:
    """The control of the updates that one worker of verl makes: chooses before the gradient, and hands the choice to
    the loss of each micro-batch. `loss_fn` is the actor's, a partial of verl's ppo_loss with its `config`."""

    def __init__(self, engine: Any, loss_fn: Any):
        self.engine, self.loss_fn, self.config = engine, loss_fn, loss_fn.keywords["config"]
        self.control = control_of(self.config)
        check(self.control, loss_fn)
        self.updates = 0
        self.given: Given | None = None
        register_policy_loss(self.config.policy_loss.loss_mode)(policy_loss)

    def train_batch(self, data: Any, loss_function: Callable) -> Any:
        """The engine's `train_batch`, after the control has chosen."""
        self.choose(data)
        return type(self.engine).train_batch(self.engine, data, loss_function)

    @torch.no_grad()
    def choose(self, data: Any) -> None:
        """Adds the control's choice to this rank's share of an update."""
        if "token_entropy" in self.control.needs:
            tensordict_utils.assign_non_tensor(data, calculate_entropy=True)
        scored = self.engine.infer_batch(data, loss_function=None)["model_output"]
        columns = {"log_prob": no_padding_2_padding(scored["log_probs"], data)}
        if "token_entropy" in self.control.needs:
            columns["entropy"] = no_padding_2_padding(scored["entropy"], data)
        columns |= padded(data, "response_mask", "old_log_probs", "advantages", device=columns["log_prob"].device)
        x, rows = gathered(columns, self.engine.get_data_parallel_group())
        mask, log_probs = x["response_mask"].bool(), x["log_prob"]
        differs = (log_probs - x["old_log_probs"]).abs().masked_fill(~mask, 0)
        on_policy = bool((differs <= SAMPLER_IS_EXACT).all())
        old = log_probs if on_policy else x["old_log_probs"]
        tokens = Tokens(log_probs, old, x["advantages"], mask, x.get("entropy"))
        draws = generator(self.config.data_loader_seed or 0, CONTROL, self.updates, mask.device)
        choice = self.control.choose(tokens, run_clip(self.config), draws)
        covariance = mean_covariance(choice.advantages, log_probs, mask).item()
        self.given = Given(self.control, choice.clip, on_policy, covariance)
        self.updates += 1
        mine = choice.rows(rows, columns["log_prob"].shape[1])
        bits = 2 ** torch.arange(len(self.control.parts), device=mask.device)
        replace(data, "advantages", mine.advantages)
        replace(data, CHOSEN, (mine.chosen * bits).sum(-1))

    def loss(self, model_output: dict[str, Tensor], data: Any, dp_group: Any = None) -> tuple[Tensor, dict]:
        """verl's loss of a micro-batch, whose policy loss is `policy_loss` with the control's choice."""
        assert self.given is not None  # `choose` was called for the update
        chosen = padded(data, CHOSEN)[CHOSEN]
        bits = 2 ** torch.arange(len(self.control.parts), device=chosen.device)
        entropy = model_output.get("entropy")
        micro_batch = {
            "chosen": (chosen[..., None] & bits) != 0,
            "token_entropy": None if entropy is None else no_padding_2_padding(entropy, data),
        }
        token = _given.set(Given(**(vars(self.given) | micro_batch)))
        try:
            return self.loss_fn(model_output=model_output, data=data, dp_group=dp_group)
        finally:
            _given.reset(token)


class ControlledWorker(TrainingWorker):
    """verl's worker of the actor. It is verl's own wherever `loss_mode` does not begin with "erltool:"."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def set_loss_fn(self, loss_fn):
        config = getattr(loss_fn, "keywords", {}).get("config")
        if config is not None and str(config.policy_loss.loss_mode).startswith(LOSS_PREFIX):
            update = WholeUpdate(self.engine, loss_fn)
            self.engine.train_batch, loss_fn = update.train_batch, update.loss
        self.loss_fn = loss_fn


ActorRolloutRefWorker.actor_worker_cls = ControlledWorker  # verl's place for another worker of the actor


def control_of(config: Any) -> Control:
    """The control that the actor's `loss_mode` names. Raises ErltoolError for one that is not known."""
    text = config.policy_loss.loss_mode
    try:
        return parse_control(text.removeprefix(LOSS_PREFIX))
    except ErltoolError as e:
        raise ErltoolError(f"loss_mode={text}: {e}") from e


def check(control: Control, loss_fn: Any) -> None:
    """Raises ErltoolError, naming verl's setting, where verl cannot give what the control needs."""
    config = loss_fn.keywords["config"]
    missing = sorted(set(control.needs) - set(GIVEN))
    bonus = any(ENTROPY in member.roles for member in control.parts)
    refused = (
        ("ref_log_probs" in missing, "loss_mode", "reference-kl is verl's own use_kl_loss; leave it out here"),
        (missing, "loss_mode", f"the control needs {', '.join(missing)}, which verl does not give; use erltool.train"),
        (loss_fn.func is not ppo_loss, "loss_mode", "distillation has another loss; use one of verl's"),
        (config.strategy not in ENGINES, "strategy", f"controls run on {' and '.join(ENGINES)}; use one of these"),
        (bonus and config.entropy_coeff, "entropy_coeff", f"control {control.name} rewards entropy too; use 0"),
    )  # fmt: skip
    for is_refused, name, why in refused:
        if is_refused:
            value = config.policy_loss.loss_mode if name == "loss_mode" else getattr(config, name)
            raise ErltoolError(f"{name}={value}: {why}")


def run_clip(config: Any) -> Clip:
    """The clip of the actor's configuration, below and above 1."""
    low, high = config.clip_ratio_low, config.clip_ratio_high
    return config.clip_ratio if low is None else low, config.clip_ratio if high is None else high


def padded(data: Any, *names: str, device: torch.device | None = None) -> dict[str, Tensor]:
    """Columns of verl's batch, (B, T) each, padded with 0."""
    selected = data.select(*names).to_padded_tensor()
    return {name: selected[name].to(device) for name in names}


def replace(data: Any, name: str, values: Tensor) -> None:
    """Sets a column (B, T) of verl's batch, in the form, nested or padded, of its response mask."""
    like = data["response_mask"]
    values = values.to(like.device)
    data[name] = response_to_nested(values, like) if like.is_nested else values


def gathered(columns: dict[str, Tensor], group: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Columns (B, T) of all ranks of the group, one below the other, and the rows of this rank. Each rank has as many
    rows; the widths may differ."""
    rows, width = next(iter(columns.values())).shape
    first, ranks = dist.get_rank(group), dist.get_world_size(group)
    stacked = torch.stack([column.float() for column in columns.values()])
    widest = torch.tensor(width, device=stacked.device)
    dist.all_reduce(widest, dist.ReduceOp.MAX, group=group)
    stacked = torch.nn.functional.pad(stacked, (0, int(widest) - width)).contiguous()
    parts = [torch.empty_like(stacked) for _ in range(ranks)]
    dist.all_gather(parts, stacked, group=group)
    mine = torch.arange(first * rows, (first + 1) * rows, device=stacked.device)
    return dict(zip(columns, torch.cat(parts, 1), strict=True)), mine
