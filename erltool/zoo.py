"""Entropy controls of other papers, and two of our own: one holds a wanted entropy, one explores and then commits.

Each is written like those of controls.py, states its formula, and says where it differs from its paper.
Default values are the papers', which were found for models of billions of parameters.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from erltool.advantages import EPS
from erltool.controls import (
    ADVANTAGES,
    DROP,
    ENTROPY,
    STEER,
    SURROGATE,
    Clip,
    ClipCov,
    KLCov,
    NoControl,
    RandomClip,
    require,
)
from erltool.covariance import masked_mean
from erltool.errors import ErltoolError
from erltool.tokens import Tokens, token_budget, top_tokens


@dataclass(frozen=True)
class AdaptiveEntropyBonus(NoControl):
    """An entropy bonus whose coefficient rises while the entropy is below a target (Skywork-OR1).

        loss_t - coef_k * H_t  on the updates whose mean entropy H_k <= target,  loss_t on the others
        coef_{k+1} = coef_k + delta where H_k < target, else coef_k - delta;  held in [0, max_coef]

    He et al. 2025, arXiv 2505.22312, Section 3.2.5; H and `target` in nats/token. The values are those of the
    released scripts (the paper's ablations use delta = 0.005); the bound max_coef is the scripts'. H_k is over
    the tokens that count in the loss, and what moves `coef` is the entropy over all response tokens.
    It selects all tokens of an update that gets the bonus.
    """

    name: ClassVar[str] = "adaptive-entropy-bonus"
    zero_advantage_acts: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("token_entropy",)
    roles: ClassVar[tuple[str, ...]] = (ENTROPY, STEER)
    target: float = 0.2
    delta: float = 1e-4
    max_coef: float = 5e-3
    coef: float = 0.0

    def __post_init__(self):
        require(self.target > 0, self, "target", "above 0")
        require(self.delta > 0, self, "delta", "above 0")
        require(0 <= self.coef <= self.max_coef < math.inf, self, "coef", f"in [0, max_coef={self.max_coef:g}]")

    @property
    def steered(self) -> float:
        return self.coef

    def select(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mask = tokens.response_mask.bool()
        return mask & (masked_mean(tokens.token_entropy.detach(), mask) <= self.target)

    def penalty(self, tokens: Tokens, selected: Tensor) -> Tensor:
        return -self.coef * tokens.token_entropy.masked_fill(~selected, 0)

    def after(self, policy_entropy: float) -> Self:
        moved = self.coef + (self.delta if policy_entropy < self.target else -self.delta)
        return dataclasses.replace(self, coef=min(max(moved, 0.0), self.max_coef))


@dataclass(frozen=True)
class HighEntropyMask(NoControl):
    """Gradient only on the share of tokens with the highest entropy: forks, not the text between them.

        sum_t [H_t >= tau] surrogate_t / N,  tau such that a `fraction` of the update's N tokens is above

    Wang et al. 2025, arXiv 2506.01939 ("Beyond the 80/20 Rule"), fraction = 0.2; the dropped tokens stay in the
    denominator. Ties at tau are cut to the share, and tau is that of the whole update. It selects the tokens
    that it drops, 1 - fraction of them.
    """

    name: ClassVar[str] = "high-entropy-mask"
    needs: ClassVar[tuple[str, ...]] = ("token_entropy",)
    roles: ClassVar[tuple[str, ...]] = (DROP,)
    fraction: float = 0.2

    def __post_init__(self):
        require(0 < self.fraction <= 1, self, "fraction", "in (0, 1]")

    def select(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mask = tokens.response_mask.bool()
        kept = top_tokens(tokens.token_entropy.detach(), mask, token_budget(self.fraction, int(mask.sum())))
        return mask & ~kept

    drop = ClipCov.drop


@dataclass(frozen=True)
class EntropyShapedAdvantage(NoControl):
    """Tokens of high entropy get a higher advantage.

        A_t + min(alpha * H_t, |A_t| / kappa),  no gradient through H_t (nats)

    Cheng et al. 2025, arXiv 2506.14758 ("Reasoning with Exploration"), alpha = 0.4, kappa = 2. As kappa > 1, no
    advantage changes its sign; an advantage of 0 stays 0. Covariances are measured with the shaped advantages;
    that of a group (Eq 8) takes each response's at its first token.
    """

    name: ClassVar[str] = "entropy-shaped-advantage"
    needs: ClassVar[tuple[str, ...]] = ("token_entropy",)
    alpha: float = 0.4
    kappa: float = 2.0

    def __post_init__(self):
        require(0 <= self.alpha < math.inf, self, "alpha", "at least 0")
        require(self.kappa > 1, self, "kappa", "above 1")

    def reshape(self, tokens: Tokens) -> Tensor:
        advantages = tokens.advantages
        return advantages + torch.minimum(self.alpha * tokens.token_entropy.detach(), advantages.abs() / self.kappa)


@dataclass(frozen=True)
class CISPO(NoControl):
    """The clip bounds each token's weight, and takes no token's gradient.

        -sg(clip(ratio_t, 1 - clip_eps_low, 1 + clip_eps_high)) * A_t * log pi_t,  sg: no gradient

    MiniMax 2025, arXiv 2506.13585 (MiniMax-M1), Eq 4-5, with the normaliser of all tokens as there. It sets no
    lower bound, which is clip_eps_low = 1, and tunes clip_eps_high without naming it: 4 is ours, a weight of at
    most 5. On the first update after sampling all weights are 1: it then is REINFORCE, as
    GRPO is. The loss's value means nothing; its gradient does. `clip_fraction` is 0.
    """

    name: ClassVar[str] = "cispo"
    min_updates: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)
    clip_eps_low: float = 1.0
    clip_eps_high: float = 4.0

    def __post_init__(self):
        require(0 < self.clip_eps_low <= 1, self, "clip_eps_low", "in (0, 1]")
        require(self.clip_eps_high > 0, self, "clip_eps_high", "above 0")

    def clip_range(self, low: float, high: float) -> Clip:
        return None

    def surrogate(self, tokens: Tokens, clip: Clip) -> Tensor:
        weight = self.log_ratio(tokens).detach().exp().clamp(1 - self.clip_eps_low, 1 + self.clip_eps_high)
        return -weight * tokens.advantages * tokens.log_probs


@dataclass(frozen=True)
class GSPO(NoControl):
    """One ratio a response, clipped as a whole; every response counts the same, whatever its length.

        s = exp(mean_t log_ratio_t);  mean over responses of max(-A s, -A clip(s, 1 - low, 1 + high))

    Zheng et al. 2025, arXiv 2507.18071, Eq 5-7. Written token by token (its Eq 13-14): each token carries the
    value s and the gradient of its own log-prob, which with one advantage a response is the same in value and
    gradient. The clip (3e-4, 4e-4) is the paper's and small, because s averages over thousands of tokens: short
    responses need a wider one.
    """

    name: ClassVar[str] = "gspo"
    mean_of_responses: ClassVar[bool] = True
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)
    clip_eps_low: float = 3e-4
    clip_eps_high: float = 4e-4

    def __post_init__(self):
        require(0 < self.clip_eps_low <= 1, self, "clip_eps_low", "in (0, 1]")
        require(self.clip_eps_high > 0, self, "clip_eps_high", "above 0")

    def clip_range(self, low: float, high: float) -> Clip:
        return self.clip_eps_low, self.clip_eps_high

    def log_ratio(self, tokens: Tokens) -> Tensor:
        mask = tokens.response_mask.bool()
        per_token = (tokens.log_probs - tokens.old_log_probs).detach().masked_fill(~mask, 0)
        mean = per_token.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return mean + tokens.log_probs - tokens.log_probs.detach()


@dataclass(frozen=True)
class NegativeReinforcement(NoControl):
    """W-REINFORCE: what is wrong is pushed down, what is right is pushed up only a little.

        A = coef * r - (1 - r):  coef for a right response, -1 for a wrong one, without a baseline

    Zhu et al. 2025, arXiv 2506.01347, lambda = coef = 0.1; 0 is its NSR, negative samples alone. It replaces the
    advantage estimator, so groups of equal rewards teach too. A reward between 0 and 1 is interpolated, where the
    paper knows 0 and 1 only.
    """

    name: ClassVar[str] = "negative-reinforcement"
    zero_advantage_acts: ClassVar[bool] = True  # of the estimator's advantages, which it replaces
    needs: ClassVar[tuple[str, ...]] = ("rewards",)
    roles: ClassVar[tuple[str, ...]] = (ADVANTAGES,)
    coef: float = 0.1

    def __post_init__(self):
        require(0 <= self.coef < math.inf, self, "coef", "at least 0")

    def reshape(self, tokens: Tokens) -> Tensor:
        rewards = tokens.rewards.to(tokens.advantages.dtype)
        return (self.coef * rewards - (1 - rewards))[:, None].expand(tokens.advantages.shape)


@dataclass(frozen=True)
class QuantileAdvantage(NoControl):
    """A group's quantile as its baseline: only rare successes or remaining failures have an advantage.

        A = (r - Q_K) / (std_group + eps),  Q_K the smallest reward with at least a share K of the group below or at it

    Wu et al. 2025, arXiv 2509.22611, K = `quantile` = 0.4. With rewards 0 and 1 and p of the group right, Q_K is
    0 where p <= 1 - K, which leaves the right responses, else 1, which leaves the wrong ones. The standard
    deviation and eps are those of `grpo`, whose mean this replaces; a group of equal rewards has 0.
    """

    name: ClassVar[str] = "quantile-advantage"
    needs: ClassVar[tuple[str, ...]] = ("rewards", "group_size")
    roles: ClassVar[tuple[str, ...]] = (ADVANTAGES,)
    quantile: float = 0.4

    def __post_init__(self):
        require(0 < self.quantile < 1, self, "quantile", "in (0, 1)")

    def reshape(self, tokens: Tokens) -> Tensor:
        groups = tokens.rewards.to(tokens.advantages.dtype).view(-1, tokens.group_size)
        rank = math.ceil(self.quantile * tokens.group_size - 1e-9)  # 0.7 * 10 is 7.000000000000001; it means 7
        baseline = groups.kthvalue(max(1, rank), -1, keepdim=True).values
        advantages = (groups - baseline) / (groups.std(-1, keepdim=True) + EPS)
        return advantages.view(-1, 1).expand(tokens.advantages.shape)


class Steering(NoControl):
    """What the controls that steer another one share: all but how they steer is that control's."""

    control: KLCov | ClipCov | RandomClip

    def __post_init__(self):
        if not isinstance(self.control, KLCov | ClipCov | RandomClip):
            raise ErltoolError(
                f"control {self.name}: control must be kl-cov, clip-cov, random-kl or random-clip, in parentheses"
            )

    @property
    def min_updates(self) -> int:
        return self.control.min_updates

    @property
    def zero_advantage_acts(self) -> bool:
        return self.control.zero_advantage_acts

    @property
    def roles(self) -> tuple[str, ...]:
        return (*self.control.roles, STEER)

    @property
    def steered(self) -> float:
        return self.control.fraction

    def clip_range(self, low: float, high: float) -> Clip:
        return self.control.clip_range(low, high)

    def select(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.control.select(tokens, clipped, generator)

    def drop(self, surrogate: Tensor, selected: Tensor) -> Tensor:
        return self.control.drop(surrogate, selected)

    def penalty(self, tokens: Tokens, selected: Tensor) -> Tensor | None:
        return self.control.penalty(tokens, selected)

    def with_fraction(self, fraction: float, **more) -> Self:
        return dataclasses.replace(self, control=dataclasses.replace(self.control, fraction=fraction), **more)


@dataclass(frozen=True)
class TargetEntropy(Steering):
    """Holds a wanted entropy by steering the share of tokens that another control takes.

        fraction <- fraction * exp(rate * clip((target - H) / target, -1, 1)),  held in [min_fraction, max_fraction]

    after every update, with its entropy H in nats/token. `control` is KL-Cov, Clip-Cov, or their null control
    with its starting share: more of it holds more entropy. An integral controller in log share, ours; it needs
    no model of how entropy answers, and at a bound of the share the target is not reached.
    """

    name: ClassVar[str] = "target-entropy"
    target: float = 0.3
    control: KLCov | ClipCov | RandomClip = KLCov()
    rate: float = 0.1
    min_fraction: float = 1e-4
    max_fraction: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        require(0 < self.target < math.inf, self, "target", "above 0")
        require(0 < self.rate < math.inf, self, "rate", "above 0")
        require(0 < self.min_fraction <= self.max_fraction <= 1, self, "min_fraction", "in (0, max_fraction]")
        bounds = f"in [min_fraction, max_fraction] = [{self.min_fraction:g}, {self.max_fraction:g}]"
        require(self.min_fraction <= self.control.fraction <= self.max_fraction, self, "its control's fraction", bounds)

    def after(self, policy_entropy: float) -> Self:
        off = min(max((self.target - policy_entropy) / self.target, -1.0), 1.0)
        moved = self.control.fraction * math.exp(self.rate * off)
        return self.with_fraction(min(max(moved, self.min_fraction), self.max_fraction))


@dataclass(frozen=True)
class Annealed(Steering):
    """Explore, then commit: the share of tokens that another control takes is led to 0.

        fraction as given for `start` updates, then straight down to 0 over `length` updates

    Ours. `control` is KL-Cov, Clip-Cov, or their null control. At 0, Clip-Cov is no control; KL-Cov's surrogate stays
    unclipped. `done` counts the updates made, `top` is the share as it was given.
    """

    name: ClassVar[str] = "annealed"
    control: KLCov | ClipCov | RandomClip = KLCov()
    start: float = 400
    length: float = 200
    done: float = 0
    top: float | None = None

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.start < math.inf, self, "start", "at least 0")
        require(0 < self.length < math.inf, self, "length", "above 0")
        require(0 <= self.done < math.inf, self, "done", "at least 0")
        if self.top is None:
            object.__setattr__(self, "top", self.control.fraction)
        require(self.control.fraction <= self.top <= 1, self, "top", "from its control's fraction to 1")

    def after(self, policy_entropy: float) -> Self:
        done = self.done + 1
        left = min(max(1 - (done - self.start) / self.length, 0.0), 1.0)
        return self.with_fraction(self.top * left, done=done)
