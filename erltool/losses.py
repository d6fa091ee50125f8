"""The surrogate and a control, made into one loss.

    loss = sum_t (drop(surrogate)_t + penalty_t) / N,   N = response tokens of the whole update
    surrogate_t = max(-A_t * ratio_t, -A_t * clip(ratio_t, 1 - eps_low, 1 + eps_high)),  if the control has no other

Schulman et al. 2017 (arXiv 1707.06347), Eq 7, with one normaliser for all tokens as in DAPO; a control whose
loss is a mean of responses (GSPO) has 1 / (length * responses) in its place. Left out: the dual clip. For a
micro-batch, in whole responses, pass what the whole update says: `reshape_advantages`, `select_tokens` and
`loss_normalizer`; the sum over micro-batches is then the update's loss, whatever their size.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from erltool.controls import NoControl
from erltool.covariance import as_tokens
from erltool.errors import ErltoolError
from erltool.tokens import OF_RESPONSES, Tokens


@dataclass(frozen=True)
class PolicyLoss:
    """A loss and its parts."""

    loss: Tensor
    """Scalar with gradient: what to minimise."""
    token_loss: Tensor
    """(B, T), no gradient, 0 outside the mask; sums to loss * normalizer."""
    selected: Tensor
    """(B, T) bool: tokens that the control acts on."""
    clipped: Tensor
    """(B, T) bool: tokens whose gradient the surrogate's clip has cut."""


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    control: NoControl = NoControl(),
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
    token_entropy: Tensor | None = None,
    ref_log_probs: Tensor | None = None,
    rewards: Tensor | None = None,
    group_size: int | None = None,
    selected: Tensor | None = None,
    normalizer: float | None = None,
    generator: torch.Generator | None = None,
) -> PolicyLoss:
    """Loss of an update, or of a micro-batch of it, with a control.

    All tensors are (B, T), log-probs in nats; `advantages` may be (B,), `rewards` is (B,), one a response. What
    lies outside `response_mask` is never looked at. Without `selected` the control reshapes the advantages and
    selects here, over all B responses, which must then be the whole update; `generator` serves its random draws.
    With `selected` the advantages are taken as they are. `normalizer` defaults to `loss_normalizer`; without
    tokens the loss is 0. Raises ErltoolError for shapes that disagree or a missing input.
    """
    tokens = Tokens(
        log_probs,
        old_log_probs,
        as_tokens(advantages, response_mask),
        response_mask.bool(),
        token_entropy,
        ref_log_probs,
        rewards,
        group_size,
    )
    check_tokens(tokens, control, needs=control.needs if selected is None else set(control.needs) - set(OF_RESPONSES))
    tokens = _without_padding(tokens)
    if selected is None:
        tokens = reshape_advantages(tokens, control)
        selected = select_tokens(tokens, control, clip_eps_low, clip_eps_high, generator)
    mask = tokens.response_mask
    if normalizer is None:
        normalizer = loss_normalizer(mask, control)
    clip = control.clip_range(clip_eps_low, clip_eps_high)
    per_token = control.drop(control.surrogate(tokens, clip), selected)
    penalty = control.penalty(tokens, selected)
    if penalty is not None:
        per_token = per_token + penalty
    if control.mean_of_responses:
        per_token = per_token / mask.sum(-1, keepdim=True).clamp(min=1)
    per_token = per_token.masked_fill(~mask, 0)
    loss = per_token.sum() / normalizer
    return PolicyLoss(loss, per_token.detach(), by_any_part(selected), control.clipped(tokens, clip))


def reshape_advantages(tokens: Tokens, control: NoControl) -> Tokens:
    """The whole update's tokens with the advantages that the control makes of them. Raises ErltoolError where it
    lacks an input."""
    check_tokens(tokens, control, needs=control.needs)
    return tokens._replace(advantages=control.reshape(tokens))


def select_tokens(
    tokens: Tokens,
    control: NoControl,
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Tokens of the whole update that the control acts on: (B, T) bool, to be sliced into micro-batches.

    Of composed controls (B, T, parts): `by_any_part` merges them.
    """
    clip = control.clip_range(clip_eps_low, clip_eps_high)
    return control.select(tokens, control.clipped(tokens, clip), generator)


def by_any_part(selected: Tensor) -> Tensor:
    """What any part of a control selects, (B, T) bool."""
    return selected.any(-1) if selected.ndim == 3 else selected


def loss_normalizer(response_mask: Tensor, control: NoControl) -> Tensor:
    """What the summed loss of the whole update is divided by, a scalar of at least 1: its response tokens, or its
    responses that have any where the control's loss is a mean of responses."""
    mask = response_mask.bool()
    return (mask.any(-1) if control.mean_of_responses else mask).sum().clamp(min=1)


def check_tokens(tokens: Tokens, control: NoControl, needs: Iterable[str]) -> None:
    """Raises ErltoolError where shapes disagree or the control lacks an input."""
    mask = tokens.response_mask
    for name, value in zip(Tokens._fields, tokens, strict=True):
        if value is None and name in needs:
            raise ErltoolError(f"control {control.name} needs {name}: pass it to the loss")
        if value is None or name == "group_size":
            continue
        if value.shape != (mask.shape[:1] if name in OF_RESPONSES else mask.shape):
            raise ErltoolError(
                f"{name} of shape {tuple(value.shape)} and response_mask of shape {tuple(mask.shape)} must agree"
            )
    if tokens.group_size is not None and (tokens.group_size < 1 or len(mask) % tokens.group_size):
        raise ErltoolError(f"group_size {tokens.group_size} does not divide the {len(mask)} responses")


def _without_padding(tokens: Tokens) -> Tokens:
    """The same with 0 outside the mask, so that NaN or inf there reaches neither value nor gradient."""
    floats = {
        name: value.masked_fill(~tokens.response_mask, 0)
        for name, value in tokens._asdict().items()
        if value is not None and name not in ("response_mask", *OF_RESPONSES)
    }
    return tokens._replace(**floats)
