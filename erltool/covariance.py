"""Covariance between a token's log-probability and its advantage: the engine of entropy collapse.

Cui et al. 2025 (arXiv 2505.22617), Eq 10. Everything is centred over all the tokens it is given: give it the
whole update. Centred over one response it is exactly 0, because a response has one advantage; the released
code centres over each micro-batch, which makes the answer depend on how memory was split.
"""

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
