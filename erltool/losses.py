"""The clipped surrogate and a control, made into one loss.

    surrogate_t = max(-A_t * ratio_t, -A_t * clip(ratio_t, 1 - eps_low, 1 + eps_high))
    loss        = sum_t control(surrogate)_t / N,   N = response tokens of the whole update

Schulman et al. 2017 (arXiv 1707.06347), Eq 7, with one normaliser for all tokens as in DAPO. Left out: the
dual clip, sequence-level ratios, per-response means. For a micro-batch pass the update's `selected` slice
and `normalizer`; the sum over micro-batches is then the update's loss, whatever their size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from erltool.controls import Clip, NoControl, Tokens, is_clipped
from erltool.covariance import as_tokens
from erltool.errors import ErltoolError


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
    selected: Tensor | None = None,
    normalizer: float | None = None,
    generator: torch.Generator | None = None,
) -> PolicyLoss:
    """Loss of an update, or of a micro-batch of it, with a control.

    All tensors are (B, T), log-probs in nats; `advantages` may be (B,). What lies outside `response_mask` is
    never looked at. Without `selected` the control selects here, over all B responses, which must then be
    the whole update; `generator` serves its random draws. `normalizer` defaults to the number of response
    tokens; with none the loss is 0. Raises ErltoolError for shapes that disagree or a missing input.
    """
    tokens = Tokens(
        log_probs,
        old_log_probs,
        as_tokens(advantages, response_mask),
        response_mask.bool(),
        token_entropy,
        ref_log_probs,
    )
    check_tokens(tokens, control)
    tokens = _without_padding(tokens)
    clip = control.clip_range(clip_eps_low, clip_eps_high)
    if selected is None:
        selected = select_tokens(tokens, control, clip_eps_low, clip_eps_high, generator)
    if normalizer is None:
        normalizer = tokens.response_mask.sum().clamp(min=1)
    per_token = control.apply(surrogate_loss(tokens, clip), tokens, selected)
    per_token = per_token.masked_fill(~tokens.response_mask, 0)
    return PolicyLoss(per_token.sum() / normalizer, per_token.detach(), selected, is_clipped(tokens, clip))


def select_tokens(
    tokens: Tokens,
    control: NoControl,
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Tokens of the whole update that the control acts on: (B, T) bool, to be sliced into micro-batches."""
    return control.select(tokens, control.clip_range(clip_eps_low, clip_eps_high), generator)


def surrogate_loss(tokens: Tokens, clip: Clip) -> Tensor:
    """Per-token loss of the (clipped) surrogate, (B, T); unclipped where clip is None."""
    ratio = torch.exp(tokens.log_probs - tokens.old_log_probs)
    loss = -tokens.advantages * ratio
    if clip is None:
        return loss
    return torch.maximum(loss, -tokens.advantages * ratio.clamp(1 - clip[0], 1 + clip[1]))


def check_tokens(tokens: Tokens, control: NoControl) -> None:
    """Raises ErltoolError where shapes disagree or the control lacks an input."""
    for name, value in zip(Tokens._fields, tokens, strict=True):
        if value is None and name in control.needs:
            raise ErltoolError(f"control {control.name} needs {name}: pass it to the loss")
        if value is not None and value.shape != tokens.response_mask.shape:
            raise ErltoolError(
                f"{name} of shape {tuple(value.shape)} and response_mask of shape "
                f"{tuple(tokens.response_mask.shape)} must agree"
            )


def _without_padding(tokens: Tokens) -> Tokens:
    """The same with 0 outside the mask, so that NaN or inf there reaches neither value nor gradient."""
    return Tokens(
        *(x if x is None or x.dtype == torch.bool else x.masked_fill(~tokens.response_mask, 0) for x in tokens)
    )
