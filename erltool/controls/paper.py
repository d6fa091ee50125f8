"""The controls of Cui et al. 2025 (arXiv 2505.22617), their rivals there, and their random baselines.

Clip-Cov and KL-Cov are Eq 11-13. They choose tokens by the covariance of Eq 10.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from erltool.controls.base import COVARIANCE, DROP, ENTROPY, SURROGATE, UNCLIPPED, Control
from erltool.entropy.covariance import masked_mean, token_covariance
from erltool.entropy.tokens import Tokens, kl_estimate, random_tokens, token_budget, top_tokens


@dataclass(frozen=True)
class ClipHigher(Control):
    """A wider clip above than below, so that rare tokens may rise further (DAPO, Yu et al. 2025, arXiv 2503.14476)."""

    name: ClassVar[str] = "clip-higher"
    min_updates: ClassVar[int] = 2  # on the first update all ratios are 1, so nothing is clipped
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)
    clip_eps_high: float = 0.28

    def __post_init__(self):
        self.require(self.clip_eps_high > 0, "clip_eps_high", "above 0")

    @property
    def own_clip(self) -> tuple[None, float]:
        return None, self.clip_eps_high


@dataclass(frozen=True)
class EntropyBonus(Control):
    """Subtracts coef * token entropy (nats) from every token's loss.

    With `below` (nats/token) it acts only in updates with at most that mean entropy, and selects all their tokens.
    Without `below` it selects none.
    """

    name: ClassVar[str] = "entropy-bonus"
    acts_without_advantage: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("token_entropy",)
    roles: ClassVar[tuple[str, ...]] = (ENTROPY,)
    coef: float = 0.01
    below: float | None = None

    def __post_init__(self):
        self.require(math.isfinite(self.coef), "coef", "finite")
        self.require(self.below is None or self.below > 0, "below", "above 0")

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.below is None:
            return super().choose_tokens(tokens, clipped, generator)
        return tokens.response_mask & (masked_mean(tokens.known("token_entropy"), tokens.response_mask) <= self.below)

    def term(self, tokens: Tokens, chosen: Tensor) -> Tensor:
        bonus = -self.coef * tokens.known("token_entropy")
        return bonus if self.below is None else bonus.masked_fill(~chosen, 0)


@dataclass(frozen=True)
class ReferenceKL(Control):
    """Adds coef * KL(pi || reference) per token, by Schulman's k1 or k3, or k2 = log_ratio^2 / 2 (nats).

    All three values estimate the KL, but on policy only k2's gradient is the KL's. k3's is close to it near the
    reference. k1's has mean 0; the literature has tried it all the same.
    """

    name: ClassVar[str] = "reference-kl"
    acts_without_advantage: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("ref_log_probs",)
    coef: float = 0.01
    estimator: str = "k3"

    def __post_init__(self):
        self.require(0 <= self.coef < math.inf, "coef", "at least 0 and finite")
        self.require(self.estimator in ("k1", "k2", "k3"), "estimator", "k1, k2 or k3")

    def term(self, tokens: Tokens, chosen: Tensor) -> Tensor:
        return self.coef * kl_estimate(tokens.log_probs - tokens.known("ref_log_probs"), self.estimator)


@dataclass(frozen=True)
class ClipCov(Control):
    """Clip-Cov: tokens with low < covariance < high, chosen at random, get no gradient.

    It chooses a `fraction` of the response tokens without replacement, among those that the clip has not already cut.
    The dropped tokens stay in the denominator. An empty band drops nothing. `bounds` is "absolute" (nats, as in the
    paper, whose band assumes advantages divided by their standard deviation) or "quantile" (low and high are fractions
    of the response tokens, ordered by covariance; 0 includes the lowest and 1 the highest). `clip_eps` is the clip on
    both sides (1 in the paper's scripts), None for the run's.
    """

    name: ClassVar[str] = "clip-cov"
    fraction: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    bounds: str = "absolute"
    clip_eps: float | None = None

    def __post_init__(self):
        self.require(0 <= self.fraction <= 1, "fraction", "in [0, 1]")
        self.require(self.low < self.high, "low", "below high")
        self.require(self.bounds in ("absolute", "quantile"), "bounds", "absolute or quantile")
        if self.bounds == "quantile":
            self.require(0 <= self.low and self.high <= 1, "low and high", "quantiles in [0, 1]")
        self.require(self.clip_eps is None or self.clip_eps > 0, "clip_eps", "above 0")

    @property
    def roles(self) -> tuple[str, ...]:
        return (DROP, COVARIANCE) if self.clip_eps is None else (DROP, COVARIANCE, SURROGATE)

    @property
    def own_clip(self) -> tuple[float | None, float | None]:
        return self.clip_eps, self.clip_eps

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        mask = tokens.response_mask
        covariance = token_covariance(tokens.advantages, tokens.log_probs, mask)
        low: float | Tensor = self.low
        high: float | Tensor = self.high
        if self.bounds == "quantile" and mask.any():
            ordered = covariance[mask].sort().values
            low, high = (ordered[int(q * (len(ordered) - 1))] for q in (self.low, self.high))
            low = low if self.low > 0 else -math.inf
            high = high if self.high < 1 else math.inf
        band = mask & (covariance > low) & (covariance < high) & ~clipped
        return random_tokens(band, token_budget(self.fraction, int(mask.sum())), generator)

    def conflicts(self, config) -> Iterable[tuple[str, str]]:
        why = (
            f"the band ({self.low:g}, {self.high:g}) of clip-cov assumes advantages divided by their standard "
            "deviation; use such advantages, or bounds=quantile"
        )
        if self.bounds == "quantile":
            return
        if config.advantages in ("dr_grpo", "rloo"):
            yield "advantages", why
        if any(member.name == "negative-reinforcement" for member in config.control.parts):
            yield "control", why


@dataclass(frozen=True)
class KLCov(Control):
    """KL-Cov: the fraction of tokens with the highest covariance pays a penalty, coef * KL from the sampling policy.

        loss_t = -A_t ratio_t + [t is chosen] * coef * |log_ratio_t|      (Eq 12, 13)

    The surrogate is unclipped on all tokens, as in the released code, so fraction 0 is the plain surrogate without
    clip. With log_ratio = log pi - log pi_old, `estimator` "k1" is |log_ratio| (the paper's), "k2" log_ratio^2 / 2, and
    "k3" exp(-log_ratio) - 1 + log_ratio. On the first update after sampling all are 0 with gradient 0, so one update
    per iteration has no penalty. A token whose |log_ratio| is at most `dead_zone` (nats) pays nothing: in bf16 or on 4
    bits so much may be rounding, and `erltool doctor` measures how much. The paper has none.
    """

    name: ClassVar[str] = "kl-cov"
    acts_without_advantage: ClassVar[bool] = True
    min_updates: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = (COVARIANCE, SURROGATE)
    own_clip: ClassVar[tuple[float, float]] = UNCLIPPED
    fraction: float = 2e-3
    coef: float = 1.0
    estimator: str = "k1"
    dead_zone: float | None = None

    def __post_init__(self):
        self.require(0 <= self.fraction <= 1, "fraction", "in [0, 1]")
        self.require(0 <= self.coef < math.inf, "coef", "at least 0 and finite")
        self.require(self.estimator in ("k1", "k2", "k3"), "estimator", "k1, k2 or k3")
        self.require(self.dead_zone is None or 0 < self.dead_zone < math.inf, "dead_zone", "above 0 and finite")

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        mask = tokens.response_mask
        covariance = token_covariance(tokens.advantages, tokens.log_probs, mask)
        return top_tokens(covariance, mask, token_budget(self.fraction, int(mask.sum())))

    def term(self, tokens: Tokens, chosen: Tensor) -> Tensor:
        kl = tokens.log_ratio.abs() if self.estimator == "k1" else kl_estimate(tokens.log_ratio, self.estimator)
        pays = chosen if self.dead_zone is None else chosen & (tokens.log_ratio.abs() > self.dead_zone)
        return self.coef * kl.masked_fill(~pays, 0)

    def conflicts(self, config) -> Iterable[tuple[str, str]]:
        if config.lora_dropout:
            why = f"control {self.name} penalises every difference between log pi and log pi_old"
            yield "lora_dropout", f"{why}, and dropout adds random ones; use no dropout"


@dataclass(frozen=True)
class RandomClip(Control):
    """The random baseline of Clip-Cov: drops the same fraction of tokens, chosen at random.

    It chooses among all tokens with positive advantage that the clip has not cut, so what Clip-Cov gains
    is due to the covariance.
    """

    name: ClassVar[str] = "random-clip"
    fraction: float = 2e-4
    clip_eps: float | None = None

    def __post_init__(self):
        self.require(0 <= self.fraction <= 1, "fraction", "in [0, 1]")
        self.require(self.clip_eps is None or self.clip_eps > 0, "clip_eps", "above 0")

    @property
    def roles(self) -> tuple[str, ...]:
        return (DROP,) if self.clip_eps is None else (DROP, SURROGATE)

    own_clip = ClipCov.own_clip

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        candidates = tokens.response_mask & (tokens.advantages > 0) & ~clipped
        return random_tokens(candidates, token_budget(self.fraction, int(tokens.response_mask.sum())), generator)


@dataclass(frozen=True)
class RandomKL(KLCov):
    """The random baseline of KL-Cov: the same number of tokens with the same penalty, chosen at random.

    It chooses among all response tokens, with KL-Cov's surrogate and penalty, so what KL-Cov gains is due to the
    covariance.
    """

    name: ClassVar[str] = "random-kl"
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        mask = tokens.response_mask
        return random_tokens(mask, token_budget(self.fraction, int(mask.sum())), generator)
