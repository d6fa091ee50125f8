"""Entropy controls of papers from late 2025 on, one class each: formula, paper, and where the class differs from it.

Each docstring says what it follows. Where no code was released, the formula is the paper's as this project knows it,
and a default that the paper does not fix is marked as ours.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from erltool.controls.base import DROP, SURROGATE, Clip, Control, clipped_surrogate
from erltool.entropy.covariance import masked_mean
from erltool.entropy.tokens import Tokens, token_budget, top_tokens


def chosen_too_early(config) -> Iterable[tuple[str, str]]:
    """The conflict of a control that decides by how far the policy has moved with an engine that asks it only once in a
    sampling round, before the first update."""
    if getattr(config, "chosen_at_sampling", False):
        yield "control", "it decides by how far the policy has moved, and is asked before that; use erltool.train"


@dataclass(frozen=True)
class OPEFO(Control):
    """Balances the tokens that raise the entropy against those that lower it.

        d_t = push_t,  U = sum of d > 0,  D = sum of |d < 0|,  lambda = (D - U) / (D + U)
        A_t <- A_t (1 + lambda) where d_t > 0, else A_t (1 - lambda)

    arXiv 2605.11491. The sums are over the update, whose predicted change of entropy, the sum of the pushes, becomes 0.
    Without push (U + D = 0) nothing changes.
    """

    name: ClassVar[str] = "opefo"
    needs: ClassVar[tuple[str, ...]] = ("entropy_slope",)

    def advantages(self, tokens: Tokens) -> Tensor:
        push = tokens.push
        up, down = push.clamp(min=0).sum(), -push.clamp(max=0).sum()
        balance = (down - up) / (down + up).clamp(min=torch.finfo(push.dtype).tiny)
        return tokens.advantages * torch.where(push > 0, 1 + balance, 1 - balance)


@dataclass(frozen=True)
class ClipV(Control):
    """Tokens of wrong responses whose suppression would lower the entropy most get no gradient.

        dropped: A_t < 0 and slope_t > mu std(slope),  slope_t = sum_i p_i S_i - S_y  (entropy/push.py)

    arXiv 2602.03392 (Clip_V), as in Trinity-RFT: one tail, negative advantages only, std over the update's response
    tokens, at most a `fraction` of them, the largest first. Its mu is 2 or 8.5, in two places. There dropped tokens
    leave the denominator; here they stay in it, as in Clip-Cov.
    """

    name: ClassVar[str] = "clip-v"
    needs: ClassVar[tuple[str, ...]] = ("entropy_slope",)
    mu: float = 2.0
    fraction: float = 1e-4

    def __post_init__(self):
        self.require(0 <= self.mu < math.inf, "mu", "at least 0")
        self.require(0 <= self.fraction <= 1, "fraction", "in [0, 1]")

    @property
    def roles(self) -> tuple[str, ...]:
        return (DROP,)

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        slope, mask = tokens.known("entropy_slope"), tokens.response_mask
        deviation = masked_mean((slope - masked_mean(slope, mask)).square(), mask).sqrt()
        outliers = mask & (tokens.advantages < 0) & (slope > self.mu * deviation)
        return top_tokens(slope, outliers, token_budget(self.fraction, int(mask.sum())))


@dataclass(frozen=True)
class PositiveReweighting(Control):
    """Tokens with positive advantage count less (or more): A_t <- weight A_t where A_t > 0.

    arXiv 2511.05993 (Positive-Advantage Reweighting), which holds that these tokens spend the entropy. The paper's
    weights are not known to this project; the default is ours.
    """

    name: ClassVar[str] = "positive-reweighting"
    weight: float = 0.5

    def __post_init__(self):
        self.require(0 <= self.weight < math.inf, "weight", "at least 0")

    def advantages(self, tokens: Tokens) -> Tensor:
        return torch.where(tokens.advantages > 0, self.weight * tokens.advantages, tokens.advantages)


@dataclass(frozen=True)
class REPO(Control):
    """Rare tokens count more in right responses, and less in wrong ones.

        A_t <- A_t (1 - zeta log pi_t) where A_t > 0,  A_t (1 + zeta log pi_t) where A_t < 0

    arXiv 2603.11682 (REPO-R). No code was released. The paper doubles zeta below a target entropy and halves it above:
    controller `doubling`. Below log pi = -1 / zeta the second factor would change its sign; here it stops at 0. The
    default of zeta is ours.
    """

    name: ClassVar[str] = "repo-r"
    zeta: float = 0.01

    def __post_init__(self):
        self.require(0 <= self.zeta < math.inf, "zeta", "at least 0")

    def advantages(self, tokens: Tokens) -> Tensor:
        surprise = -self.zeta * tokens.log_probs.detach()
        factor = torch.where(tokens.advantages > 0, 1 + surprise, (1 - surprise).clamp(min=0))
        return tokens.advantages * factor


@dataclass(frozen=True)
class EntropyRatioClip(Control):
    """Only tokens whose context kept its entropy since sampling get a gradient.

        kept: low < H_t / H_old_t < high,  each entropy + 1e-8

    arXiv 2512.05591 (ERC) and its released code, with the bounds of the released scripts. H is the exact entropy of the
    context under the policy before this update, H_old that under the sampling policy. Dropped tokens stay in the
    denominator, as there. On the first update after sampling all ratios are 1.
    """

    name: ClassVar[str] = "erc"
    needs: ClassVar[tuple[str, ...]] = ("token_entropy", "old_token_entropy")
    min_updates: ClassVar[int] = 2
    low: float = 0.95
    high: float = 1.05

    def __post_init__(self):
        self.require(0 <= self.low < 1, "low", "in [0, 1)")
        self.require(1 < self.high < math.inf, "high", "above 1")

    @property
    def roles(self) -> tuple[str, ...]:
        return (DROP,)

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        now, before = (tokens.known(name) + 1e-8 for name in ("token_entropy", "old_token_entropy"))
        return tokens.response_mask & ((now / before <= self.low) | (now / before >= self.high))

    def conflicts(self, config) -> Iterable[tuple[str, str]]:
        return chosen_too_early(config)


@dataclass(frozen=True)
class DCPO(Control):
    """The clip is wider for tokens that were rare when sampled.

        low(q) = 1/2 + 1/2 sqrt(max(0, 1 - 4 eps_low / q)),  high(q) = min(1/2 + 1/2 sqrt(1 + 4 eps_high / q), 10)

    with q = pi_old: the ratios r at which |(r - 1) r| q is eps. arXiv 2509.02333 (DCPO, dynamic adaptive clipping) and
    its released code, without its dual clip. Its README has these eps, the code's function 0.1 and 0.2.
    """

    name: ClassVar[str] = "dcpo"
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)
    eps_low: float = 0.16
    eps_high: float = 0.2

    def __post_init__(self):
        self.require(0 <= self.eps_low < math.inf, "eps_low", "at least 0")
        self.require(0 <= self.eps_high < math.inf, "eps_high", "at least 0")

    def surrogate(self, tokens: Tokens, clip: Clip) -> tuple[Tensor, Tensor]:
        old = tokens.old_log_probs.detach().exp().clamp(min=1e-12)
        low = 0.5 + 0.5 * (1 - 4 * self.eps_low / old).clamp(min=0).sqrt()
        high = (0.5 + 0.5 * (1 + 4 * self.eps_high / old).sqrt()).clamp(max=10.0)
        ratio, advantages = tokens.log_ratio.exp(), tokens.advantages
        loss = torch.maximum(-advantages * ratio, -advantages * torch.minimum(torch.maximum(ratio, low), high))
        ratio = ratio.detach()
        return loss, ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))


@dataclass(frozen=True)
class BAPO(Control):
    """The clip moves in each update until right responses hold a share of the surrogate.

        P = sum of min(r, high) A over A >= 0,  N = sum of max(r, low) |A| over A < 0,  P / (P + N) >= target

    arXiv 2510.18927 (BAPO). As in the released code, the bounds begin at `low` and `high` in every update; first low
    rises by `low_step` up to `low_most`, then high by `high_step` up to `high_most`, and both stop where the target is
    met. The code's target is P / N, the paper's this share, 0.4; steps and bounds are those of the code's README and
    configuration. A larger low makes N larger, not smaller: wherever the target is missed at first, low ends at
    `low_most`. Without the code's dual clip. Where every ratio is 1 the bounds change no gradient.
    """

    name: ClassVar[str] = "bapo"
    min_updates: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)
    target: float = 0.4
    low: float = 0.6
    low_most: float = 0.9
    low_step: float = 0.05
    high: float = 1.2
    high_most: float = 3.0
    high_step: float = 0.05

    def __post_init__(self):
        self.require(0 < self.target < 1, "target", "in (0, 1)")
        self.require(0 < self.low <= self.low_most < 1, "low", "above 0, at most low_most, and that below 1")
        self.require(1 < self.high <= self.high_most < math.inf, "high", "above 1, at most high_most")
        self.require(self.low_step > 0 and self.high_step > 0, "low_step and high_step", "above 0")

    def adapted_clip(self, tokens: Tokens, clip: Clip) -> Clip:
        ratio, mask = tokens.log_ratio.detach().exp().masked_fill(~tokens.response_mask, 0), tokens.response_mask
        rewarded = tokens.advantages.masked_fill(~mask, 0)

        def short(low: float, high: float) -> bool:
            right = (ratio.clamp(max=high) * rewarded.clamp(min=0)).sum()
            wrong = (ratio.clamp(min=low) * -rewarded.clamp(max=0)).sum()
            return bool(right < self.target * (right + wrong))

        low, high = self.low, self.high
        while low < self.low_most and short(low, high):
            low = min(low + self.low_step, self.low_most)
        while high < self.high_most and short(low, high):
            high = min(high + self.high_step, self.high_most)
        return 1 - low, high - 1

    def surrogate(self, tokens: Tokens, clip: Clip) -> tuple[Tensor, Tensor]:
        return clipped_surrogate(tokens.advantages, tokens.log_ratio, clip)

    def conflicts(self, config) -> Iterable[tuple[str, str]]:
        return chosen_too_early(config)
