"""What one token's gradient does to the entropy of its own context, to first order.

The gradient of log pi(y) in the logits z of a context is e_y - pi. A step along w * (e_y - pi) changes the entropy H of
that context by

    dH = w * entropy_slope + O(w^2),    entropy_slope = sum_i pi_i S_i - S_y,    S_i = pi_i (H + log pi_i),

because dH / dz_i = -S_i (Lemma 1 of Cui et al. 2025, arXiv 2505.22617, for this step). The weight of a token in an
update is w = ratio * A, so its push is ratio * A * entropy_slope, and its dose the length of the step, |w| |e_y - pi|.

Unlike the covariance of Eq 10, the slope compares the token with the other tokens of its context, and not with the
tokens of other contexts: reinforcing a likely token lowers the entropy, and so does suppressing a rare one. Neither
counts what the update of one context does to another through the shared weights.
"""

import torch
from torch import Tensor

from erltool.entropy.covariance import as_tokens


def entropy_slope(logits: Tensor, tokens: Tensor) -> Tensor:
    """Entropy slope of chosen tokens, (...), nats, from all logits (..., V), in their type.

    `token_statistics` computes the same in chunks. A token with logit -inf has the slope of one with probability 0.
    """
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    entropy = torch.special.entr(p).sum(-1, keepdim=True)
    score = p * entropy - torch.special.entr(p)
    return (p * score).sum(-1) - score.gather(-1, tokens[..., None])[..., 0]


def token_push(
    advantages: Tensor, entropy_slope: Tensor, response_mask: Tensor, log_ratio: Tensor | None = None
) -> Tensor:
    """Predicted change of the entropy of each token's context by its own gradient, (B, T), nats for a unit step.

        push_t = ratio_t * A_t * entropy_slope_t

    The loss is to be minimised by a plain gradient step on the logits; a learning rate and the loss's normaliser scale
    all tokens alike. `advantages` is (B,) or (B, T); without `log_ratio` every ratio is 1. The result is 0 outside the
    mask and for an advantage of 0. No gradient flows. Raises ErltoolError for shapes that disagree.
    """
    return _weight(advantages, response_mask, log_ratio) * entropy_slope.detach().masked_fill(~response_mask.bool(), 0)


def token_dose(
    advantages: Tensor, gradient_norm: Tensor, response_mask: Tensor, log_ratio: Tensor | None = None
) -> Tensor:
    """Length of the step that each token asks of its logits, ratio * |A| * |e_y - pi|, (B, T); unitless, as A is.

    Arguments, zeros and errors are those of `token_push`. Equal numbers of tokens are unequal doses: a token of
    probability 0.99 has a gradient of length 0.01.
    """
    weight = _weight(advantages, response_mask, log_ratio).abs()
    return weight * gradient_norm.detach().masked_fill(~response_mask.bool(), 0)


def _weight(advantages: Tensor, response_mask: Tensor, log_ratio: Tensor | None) -> Tensor:
    weight = as_tokens(advantages, response_mask).detach()
    if log_ratio is not None:
        weight = weight * log_ratio.detach().exp()
    return weight.masked_fill(~response_mask.bool(), 0)
