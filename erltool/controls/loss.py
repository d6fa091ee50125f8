"""One loss made of a surrogate and a control.

    loss = sum_t (w surrogate_t where t is not dropped, plus the control's terms) / N, N = the update's response tokens

All tokens share one normaliser, as in DAPO; a mean of responses (GSPO) has 1 / (length * responses). No dual clip. w is
`Tokens.sampler_weight`, else 1. The control's terms have no weight, like TRL's KL, and verl's KL and entropy bonus;
verl weighs KL-Cov's penalty too.
"""

from dataclasses import dataclass
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from erltool.controls.base import CLIP, Choice, Clip, Control, NoControl, check_tokens
from erltool.entropy.covariance import as_tokens
from erltool.entropy.tokens import Tokens


@dataclass(frozen=True)
class PolicyLoss:
    """A loss, token by token too, and the tokens that control and clip act on."""

    loss: Tensor  # scalar with gradient, to minimise
    token_loss: Tensor  # (B, T), no gradient, 0 outside the mask; sums to loss * normalizer
    selected: Tensor  # (B, T) bool: tokens that the control acts on
    clipped: Tensor  # (B, T) bool: tokens whose gradient the surrogate's clip has cut


class Known(TypedDict, total=False):
    """The optional fields of `Tokens`."""

    token_entropy: Tensor | None
    ref_log_probs: Tensor | None
    rewards: Tensor | None
    group_size: int | None
    entropy_slope: Tensor | None
    gradient_norm: Tensor | None
    old_token_entropy: Tensor | None
    sampler_weight: Tensor | None


def control_loss(tokens: Tokens, choice: Choice) -> PolicyLoss:
    """The loss of an update, or of a micro-batch of whole responses: `tokens.rows(r)` with `choice.rows(r)`.

    The losses of micro-batches, whatever their size, sum to the update's. Advantages are the choice's.
    """
    per_token, clipped = token_losses(tokens, choice)
    mask = tokens.response_mask.bool()
    if choice.control.mean_of_responses:
        per_token = per_token / mask.sum(-1, keepdim=True).clamp(min=1)
    loss = per_token.sum() / choice.normalizer
    return PolicyLoss(loss, per_token.detach(), choice.selected, clipped)


def token_losses(tokens: Tokens, choice: Choice) -> tuple[Tensor, Tensor]:
    """The loss of each token before any mean, (B, T) with gradient, 0 outside the mask; and the tokens whose gradient
    the surrogate's clip has cut, (B, T) bool. For a trainer that takes the mean itself. Advantages are the choice's."""
    tokens = tokens._replace(advantages=choice.advantages).without_padding()
    surrogate, clipped = choice.control.owner.surrogate(tokens, choice.clip)
    if tokens.sampler_weight is not None:
        surrogate = surrogate * tokens.sampler_weight
    per_token = surrogate.masked_fill(choice.dropped, 0)
    if (added := added_terms(tokens, choice)) is not None:
        per_token = per_token + added
    return per_token.masked_fill(~tokens.response_mask, 0), clipped & tokens.response_mask


def added_terms(tokens: Tokens, choice: Choice) -> Tensor | None:
    """Sum of the terms that the control's members add to each token's loss, (B, T); None where none adds any."""
    members = zip(choice.control.parts, choice.chosen.unbind(-1), strict=True)
    terms = [term for member, chosen in members if (term := member.term(tokens, chosen)) is not None]
    return sum(terms[1:], terms[0]) if terms else None


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    control: Control = NoControl(),
    clip: Clip = CLIP,
    generator: torch.Generator | None = None,
    **known: Unpack[Known],
) -> PolicyLoss:
    """Loss of a whole update with a control.

    All tensors are (B, T), log-probs in nats; `advantages` may be (B,). Values outside `response_mask` do not matter.
    `clip` is the surrogate's, below and above ratio 1. The control's random choices take `generator`. A control may
    need further fields of `Tokens`: those of `Known`, each (B, T) but `rewards` (B,) and `group_size`. Without tokens
    the loss is 0. For an update in micro-batches use `Control.choose` and `control_loss`. Raises ErltoolError for
    shapes that disagree or a missing input.
    """
    of_tokens = as_tokens(advantages, response_mask)
    tokens = Tokens(log_probs, old_log_probs, of_tokens, response_mask.bool(), **known)
    check_tokens(tokens, control.name, control.needs)
    tokens = tokens.without_padding()
    return control_loss(tokens, control.choose(tokens, clip, generator))
