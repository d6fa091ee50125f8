"""An update's tokens, and masks made of them: what every control is built from."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from erltool.entropy.push import token_dose, token_push
from erltool.errors import ErltoolError


class Tokens(NamedTuple):
    """What is known of an update's tokens, (B, T) each. Optional fields are filled where a control asks for them."""

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    response_mask: Tensor
    token_entropy: Tensor | None = None
    ref_log_probs: Tensor | None = None
    rewards: Tensor | None = None  # (B,), in [0, 1]: one a response
    group_size: int | None = None  # consecutive responses that share a prompt
    entropy_slope: Tensor | None = None  # as in TokenStatistics
    gradient_norm: Tensor | None = None
    old_token_entropy: Tensor | None = None  # of the contexts under the sampling policy
    sampler_weight: Tensor | None = None  # `truncated_weights`, by which each token's surrogate is multiplied

    @property
    def log_ratio(self) -> Tensor:
        """(B, T) log pi - log pi_old, nats."""
        return self.log_probs - self.old_log_probs

    @property
    def push(self) -> Tensor:
        """`token_push`, (B, T), nats. Raises ErltoolError where `entropy_slope` is missing."""
        return token_push(self.weighted, self.known("entropy_slope"), self.response_mask, self.log_ratio)

    @property
    def dose(self) -> Tensor:
        """`token_dose`, (B, T). Raises ErltoolError where `gradient_norm` is missing."""
        return token_dose(self.weighted, self.known("gradient_norm"), self.response_mask, self.log_ratio)

    @property
    def weighted(self) -> Tensor:
        """(B, T) advantages as a token's gradient has them: times `sampler_weight`, where there is one."""
        return self.advantages if self.sampler_weight is None else self.advantages * self.sampler_weight

    def known(self, field: str) -> Tensor:
        """An optional tensor. Raises ErltoolError where it is missing."""
        value = getattr(self, field)
        if value is None:
            raise ErltoolError(f"the control needs {field}: pass it to the loss")
        return value

    def rows(self, rows: Tensor | slice, width: int | None = None) -> "Tokens":
        """A micro-batch: these responses, up to `width` tokens. It has no group_size, since it may cut a group."""

        def cut(name, value):
            if value is None or name == "group_size":
                return None
            return value[rows] if name in OF_RESPONSES else value[rows, :width]

        return Tokens(**{name: cut(name, value) for name, value in self._asdict().items()})

    def without_padding(self) -> "Tokens":
        """The same with 0 outside the mask, so that NaN or inf there reaches neither value nor gradient."""
        mask = self.response_mask.bool()
        padded = {
            name: value.masked_fill(~mask, 0)
            for name, value in self._asdict().items()
            if value is not None and name not in ("response_mask", *OF_RESPONSES)
        }
        return self._replace(response_mask=mask, **padded)


OF_RESPONSES = ("rewards", "group_size")  # the fields of Tokens that are not (B, T)


def kl_estimate(log_ratio: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(pi || q) in nats from log_ratio = log pi - log q of tokens sampled from pi.

    Schulman (2020, "Approximating KL divergence"): k1 = log_ratio; k2 = log_ratio^2 / 2;
    k3 = exp(-log_ratio) - 1 + log_ratio, which is never negative.
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


def truncated_weights(old_log_probs: Tensor, sampler_log_probs: Tensor, cap: float) -> Tensor:
    """min(pi_old / pi_sampler, cap) of each token, (B, T), unitless and without gradient; 1 where both agree.

    `old_log_probs` are those of the trainer for the weights that the sampler had. Truncated importance sampling by Yao
    et al. 2025 ("Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"), with cap 2 there. verl's
    `rollout_is: token` is the same (threshold 2; it first clamps the log-ratio to +-20). So is TRL's `token_truncate`,
    with a cap of 3 by default, where TRL's default masks whole sequences instead.
    """
    return (old_log_probs - sampler_log_probs).detach().exp().clamp(max=cap)


def token_budget(fraction: float, count: int) -> int:
    """max(1, floor(fraction * count)) of `count` response tokens; 0 when the fraction or the count is 0."""
    # In floating point 0.29 * 100 is 28.999999999999996, which should count as 29.
    return min(count, max(1, math.floor(fraction * count + 1e-9))) if fraction > 0 else 0


def top_tokens(values: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Mask of the `count` candidates with the highest values; of all candidates where there are fewer."""
    flat = values.masked_fill(~candidates, -torch.inf).flatten()
    selected = torch.zeros_like(flat, dtype=torch.bool)
    selected[flat.topk(min(count, flat.numel())).indices] = True
    return selected.view(values.shape) & candidates


def random_tokens(candidates: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Mask of `count` candidates chosen at random without replacement; of all candidates where there are fewer."""
    device = generator.device if generator is not None else candidates.device
    keys = torch.rand(candidates.shape, generator=generator, device=device).to(candidates.device)
    return top_tokens(keys, candidates, count)
