"""Covariance between log-probability and advantage: the engine of entropy collapse.

Cui et al. 2025 (arXiv 2505.22617) have two, and two averages of the entropy:

    token_covariance    Eq 10: per token, over the batch. What Clip-Cov and KL-Cov choose tokens by (Theorem 2).
    group_covariance    Eq 8: per prompt, over its responses, with pi * A. What is compared with -dH (Theorem 1).
    masked_mean         entropy over all response tokens alike: what frameworks log.
    response_mean       Eq 5: over a response's tokens, then over responses, then prompts: a long response counts once.

A law fitted to one entropy is not a law of the other. Everything is centred over all the tokens it is given: give
it the whole update. Centred over one response it is exactly 0, because a response has one advantage; the released
code centres over each micro-batch, which makes the answer depend on how memory was split.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from erltool.errors import ErltoolError


def token_covariance(advantages: Tensor, log_probs: Tensor, response_mask: Tensor) -> Tensor:
    """Each response token's share of Cov(log pi, A), shape (B, T), in nats (advantages are unitless).

        cov_t = (log pi_t - mean log pi) * (A_t - mean A)

    Means are over the response tokens of all B responses. `advantages` is (B, T), or (B,) for one value a
    response; `log_probs` and `response_mask` are (B, T). Outside the mask it is 0, and nothing there is
    looked at, NaN included. An empty mask gives zeros. No gradient flows. Raises ErltoolError on other shapes.
    """
    advantages = as_tokens(advantages, response_mask)
    if log_probs.shape != response_mask.shape:
        raise ErltoolError(
            f"log_probs of shape {tuple(log_probs.shape)} and response_mask of shape "
            f"{tuple(response_mask.shape)} must agree"
        )
    mask = response_mask.bool()
    centred = [(x.detach() - masked_mean(x.detach(), mask)).masked_fill(~mask, 0) for x in (log_probs, advantages)]
    return centred[0] * centred[1]


def mean_covariance(advantages: Tensor, log_probs: Tensor, response_mask: Tensor) -> Tensor:
    """Mean of `token_covariance` over response tokens, a scalar: the (biased) covariance of the batch."""
    return masked_mean(token_covariance(advantages, log_probs, response_mask), response_mask)


def group_covariance(advantages: Tensor, log_probs: Tensor, response_mask: Tensor, group_size: int) -> Tensor:
    """Cov over the responses of each prompt of (log pi(y), pi(y) A(y)), shape (prompts,): Eq 8, Theorem 1.

        log pi(y) = mean over the response's tokens,  pi(y) its exp,  Cov = mean over the group, centred on it

    `advantages` is (B,), or (B, T) and then taken at each response's first token; B = prompts * group_size.
    All-equal rewards and a group of one response give 0. No gradient flows. Raises ErltoolError on other shapes.
    """
    mask = response_mask.bool()
    if group_size < 1 or len(mask) % group_size:
        raise ErltoolError(f"group_size {group_size} does not divide the {len(mask)} responses")
    if advantages.ndim == 2:
        advantages = advantages[:, 0]
    log_pi = response_mean(log_probs, mask).view(-1, group_size)
    weighted = log_pi.exp() * advantages.detach().view(-1, group_size)
    return ((log_pi - log_pi.mean(-1, keepdim=True)) * (weighted - weighted.mean(-1, keepdim=True))).mean(-1)


def response_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over each response's tokens of x (B, T): (B,), no gradient; 0 for a response without tokens. With groups
    of one size its mean is the average of Eq 5."""
    mask = mask.bool()
    return x.detach().masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def top_means(covariance: Tensor, response_mask: Tensor, shares: Sequence[float]) -> Tensor:
    """Mean covariance of the response tokens with the highest, for each share of them: (len(shares),), nats.

    The paper's Table 1. A share holds max(1, floor(share * N)) of the N tokens; without tokens all are 0.
    """
    mask = response_mask.bool()
    ordered = covariance.masked_fill(~mask, -torch.inf).flatten().sort(descending=True).values
    count = mask.sum()
    # Summed once; padding stands behind all tokens, and adds nothing.
    summed = ordered.masked_fill(torch.isinf(ordered), 0).cumsum(0)
    held = (torch.tensor(shares, device=mask.device, dtype=torch.float64) * count + 1e-9).floor().clamp(min=1).long()
    return summed[held.clamp(max=max(1, ordered.numel())) - 1] / held


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where the mask is True, a scalar; 0 for an empty mask. What is masked is not looked at."""
    mask = mask.bool()
    return x.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def as_tokens(advantages: Tensor, response_mask: Tensor) -> Tensor:
    """Advantages (B,) or (B, T) as (B, T). Raises ErltoolError where they do not fit the mask."""
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    fits = (
        advantages.ndim == 2
        and len(advantages) == len(response_mask)
        and advantages.shape[1]
        in (
            1,
            response_mask.shape[1],
        )
    )
    if not fits:
        raise ErltoolError(
            f"advantages of shape {tuple(advantages.shape)} do not fit response_mask of shape "
            f"{tuple(response_mask.shape)}: give (B,) or (B, T)"
        )
    return advantages.expand(response_mask.shape)
