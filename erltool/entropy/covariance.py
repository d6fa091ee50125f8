"""Covariance between log-probability and advantage: what makes entropy fall.

Cui et al. 2025 (arXiv 2505.22617) define two covariances and two averages of the entropy:

    token_covariance    Eq 10: per token, over the batch. Clip-Cov and KL-Cov choose tokens by it (Theorem 2).
    group_covariance    Eq 8: per prompt, over its responses, with pi * A. Theorem 1 compares it with -dH.
    masked_mean         mean entropy over all response tokens. Frameworks log this one.
    response_mean       Eq 5: mean over a response's tokens, then over responses, then over prompts.

A law fitted to one average of the entropy does not hold for the other. Give each function the whole update: means are
over all the tokens it gets. Over one response alone the token covariance is exactly 0, because a response has one
advantage. The released code centres over each micro-batch, so its selection depends on the micro-batch size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from erltool.errors import ErltoolError


def token_covariance(advantages: Tensor, log_probs: Tensor, response_mask: Tensor) -> Tensor:
    """Each response token's term of Cov(log pi, A), shape (B, T), in nats (advantages are unitless).

        cov_t = (log pi_t - mean log pi) * (A_t - mean A)

    Means are over the response tokens of all B responses. `advantages` is (B, T), or (B,) for one value a response;
    `log_probs` and `response_mask` are (B, T). The result is 0 outside the mask, whatever stands there (NaN too), and
    0 everywhere for an empty mask. No gradient flows. Raises ErltoolError for other shapes.
    """
    advantages = as_tokens(advantages, response_mask)
    if log_probs.shape != response_mask.shape:
        shapes = f"{tuple(log_probs.shape)} and response_mask of shape {tuple(response_mask.shape)}"
        raise ErltoolError(f"log_probs of shape {shapes} must agree")
    mask = response_mask.bool()
    centred = [(x.detach() - masked_mean(x.detach(), mask)).masked_fill(~mask, 0) for x in (log_probs, advantages)]
    return centred[0] * centred[1]


def mean_covariance(advantages: Tensor, log_probs: Tensor, response_mask: Tensor) -> Tensor:
    """Mean of `token_covariance` over response tokens, a scalar: the (biased) covariance of the batch."""
    return masked_mean(token_covariance(advantages, log_probs, response_mask), response_mask)


def group_covariance(advantages: Tensor, log_probs: Tensor, response_mask: Tensor, group_size: int) -> Tensor:
    """Covariance of (log pi(y), pi(y) A(y)) over the responses of each prompt, shape (prompts,): Eq 8, Theorem 1.

        log pi(y) = mean over the response's tokens,  pi(y) its exp,  Cov = mean over the group, centred on it

    `advantages` is (B,), or (B, T) of which each response's first token counts; B = prompts * group_size. A response
    without tokens does not count. Equal rewards in a group give 0, and so does a group of one. No gradient flows.
    Raises ErltoolError for other shapes.
    """
    mask = response_mask.bool()
    if group_size < 1 or len(mask) % group_size:
        raise ErltoolError(f"group_size {group_size} does not divide the {len(mask)} responses")
    if advantages.ndim == 2:
        advantages = advantages[:, 0]
    log_pi = response_mean(log_probs, mask).view(-1, group_size)
    weighted = log_pi.exp() * advantages.detach().view(-1, group_size)
    there = mask.any(-1).view(-1, group_size)
    count = there.sum(-1, keepdim=True).clamp(min=1)
    log_pi, weighted = (x - x.masked_fill(~there, 0).sum(-1, keepdim=True) / count for x in (log_pi, weighted))
    return (log_pi * weighted).masked_fill(~there, 0).sum(-1) / count[:, 0]


def response_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B, T) over each response's tokens: (B,), no gradient; 0 for a response without tokens. Where all
    groups have one size, the mean of the result is Eq 5's average."""
    mask = mask.bool()
    return x.detach().masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def top_means(covariance: Tensor, response_mask: Tensor, fractions: Sequence[float]) -> Tensor:
    """Mean covariance of the top fraction of response tokens, for each fraction: (len(fractions),), nats (Table 1).

    A fraction takes max(1, floor(fraction * N)) of the N tokens. Without tokens all means are 0.
    """
    mask = response_mask.bool()
    ordered = covariance.masked_fill(~mask, -torch.inf).flatten().sort(descending=True).values
    count = mask.sum()
    # One cumulative sum serves all fractions. Padding comes after all tokens and adds nothing.
    summed = ordered.masked_fill(torch.isinf(ordered), 0).cumsum(0)
    held = (torch.tensor(fractions, device=mask.device, dtype=torch.float64) * count + 1e-9).floor().clamp(min=1).long()
    return summed[held.clamp(max=max(1, ordered.numel())) - 1] / held


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where the mask is True, a scalar; 0 for an empty mask. Values outside the mask do not matter."""
    mask = mask.bool()
    return x.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def as_tokens(advantages: Tensor, response_mask: Tensor) -> Tensor:
    """Advantages (B,) or (B, T) as (B, T). Raises ErltoolError where they do not fit the mask."""
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    rows, width = response_mask.shape
    if advantages.shape not in ((rows, 1), (rows, width)):
        raise ErltoolError(
            f"advantages of shape {tuple(advantages.shape)} do not fit response_mask of shape "
            f"{tuple(response_mask.shape)}: give (B,) or (B, T)"
        )
    return advantages.expand(response_mask.shape)
