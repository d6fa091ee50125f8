"""Entropy controls of other papers, one class each: the formula, the paper, and where the class differs from it.

Default values are the papers', chosen for models of billions of parameters. To add a control, write a class below;
`catalog` finds it by its `name`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from erltool.controls.base import ADVANTAGES, COVARIANCE, DROP, SURROGATE, Clip, Control, clipped_surrogate
from erltool.entropy.advantages import EPS
from erltool.entropy.covariance import masked_mean, token_covariance
from erltool.entropy.tokens import Tokens, token_budget, top_tokens


@dataclass(frozen=True)
class HighEntropyMask(Control):
    """Only the fraction of tokens with the highest entropy gets a gradient: forks, not the text between them.

        sum_t [H_t >= tau] surrogate_t / N,  tau such that a `fraction` of the update's N tokens is above

    Wang et al. 2025, arXiv 2506.01939 ("Beyond the 80/20 Rule"), fraction = 0.2. The dropped tokens, 1 - fraction of
    them, are the selected ones; they stay in the denominator. tau is of the whole update, and ties at tau are cut to
    the fraction.
    """

    name: ClassVar[str] = "high-entropy-mask"
    needs: ClassVar[tuple[str, ...]] = ("token_entropy",)
    roles: ClassVar[tuple[str, ...]] = (DROP,)
    fraction: float = 0.2

    def __post_init__(self):
        self.require(0 < self.fraction <= 1, "fraction", "in (0, 1]")

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        mask = tokens.response_mask
        return mask & ~top_tokens(tokens.known("token_entropy"), mask, token_budget(self.fraction, int(mask.sum())))


@dataclass(frozen=True)
class EntropyShapedAdvantage(Control):
    """Tokens of high entropy get a higher advantage.

        A_t + min(alpha * H_t, |A_t| / kappa),  no gradient through H_t (nats)

    Cheng et al. 2025, arXiv 2506.14758 ("Reasoning with Exploration"), alpha = 0.4, kappa = 2. Because kappa > 1, no
    advantage changes its sign, and 0 stays 0. Covariances are measured with the shaped advantages; a group's (Eq 8)
    with each first token's.
    """

    name: ClassVar[str] = "entropy-shaped-advantage"
    needs: ClassVar[tuple[str, ...]] = ("token_entropy",)
    alpha: float = 0.4
    kappa: float = 2.0

    def __post_init__(self):
        self.require(0 <= self.alpha < math.inf, "alpha", "at least 0")
        self.require(self.kappa > 1, "kappa", "above 1")

    def advantages(self, tokens: Tokens) -> Tensor:
        bonus = self.alpha * tokens.known("token_entropy")
        return tokens.advantages + torch.minimum(bonus, tokens.advantages.abs() / self.kappa)


@dataclass(frozen=True)
class CISPO(Control):
    """The clip bounds each token's weight but cuts no gradient.

        -sg(clip(ratio_t, 1 - clip_eps_low, 1 + clip_eps_high)) * A_t * log pi_t,  sg: no gradient

    MiniMax 2025, arXiv 2506.13585 (MiniMax-M1), Eq 4-5, with one normaliser for all tokens. The paper sets no lower
    bound (clip_eps_low = 1) and does not name its clip_eps_high; 4 is our choice, for weights of at most 5. On the
    first update after sampling all weights are 1, and the gradient is that of REINFORCE and GRPO. Only the gradient of
    the loss has a meaning, not its value. `clip_fraction` is 0.
    """

    name: ClassVar[str] = "cispo"
    min_updates: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)
    clipped_ratio: ClassVar[bool] = False
    clip_eps_low: float = 1.0
    clip_eps_high: float = 4.0

    def __post_init__(self):
        self.require(0 < self.clip_eps_low <= 1, "clip_eps_low", "in (0, 1]")
        self.require(self.clip_eps_high > 0, "clip_eps_high", "above 0")

    def surrogate(self, tokens: Tokens, clip: Clip) -> tuple[Tensor, Tensor]:
        weight = tokens.log_ratio.detach().exp().clamp(1 - self.clip_eps_low, 1 + self.clip_eps_high)
        return -weight * tokens.advantages * tokens.log_probs, torch.zeros_like(tokens.response_mask)


@dataclass(frozen=True)
class GSPO(Control):
    """Each response has one ratio, which is clipped as a whole. Responses of all lengths count the same.

        s = exp(mean_t log_ratio_t);  mean over responses of max(-A s, -A clip(s, 1 - low, 1 + high))

    Zheng et al. 2025, arXiv 2507.18071, Eq 5-7, in the form of Eq 13-14: each token carries the value s and the
    gradient of its own log-prob. With one advantage a response, value and gradient are the same. The paper's clip
    (3e-4, 4e-4) is small because s averages over thousands of tokens. Short responses need a wider one.
    """

    name: ClassVar[str] = "gspo"
    mean_of_responses: ClassVar[bool] = True
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)
    clipped_ratio: ClassVar[bool] = False
    clip_eps_low: float = 3e-4
    clip_eps_high: float = 4e-4

    def __post_init__(self):
        self.require(0 < self.clip_eps_low <= 1, "clip_eps_low", "in (0, 1]")
        self.require(self.clip_eps_high > 0, "clip_eps_high", "above 0")

    @property
    def own_clip(self) -> Clip:
        return self.clip_eps_low, self.clip_eps_high

    def surrogate(self, tokens: Tokens, clip: Clip) -> tuple[Tensor, Tensor]:
        mask = tokens.response_mask
        per_token = tokens.log_ratio.detach().masked_fill(~mask, 0)
        mean = per_token.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return clipped_surrogate(tokens.advantages, mean + tokens.log_probs - tokens.log_probs.detach(), clip)

    def conflicts(self, config) -> Iterable[tuple[str, str]]:
        if config.lora_dropout:
            why = "control gspo clips whole responses at ratios close to 1, and dropout changes the ratios at random"
            yield "lora_dropout", f"{why}; use no dropout"


@dataclass(frozen=True)
class CEGPPO(Control):
    """Tokens beyond the clip keep a bounded gradient.

        inside:  -ratio_t A_t;   above, A > 0:  -beta_high (1 + eps_high) sg(1 / ratio_t) ratio_t A_t
                                 below, A < 0:  -beta_low (1 - eps_low) sg(1 / ratio_t) ratio_t A_t

    Su et al. 2025, arXiv 2509.20712 (CE-GPPO), with beta_low = beta_1 = 0.75 and beta_high = beta_2 = 1 of the released
    code, but without its dual clip (3); sg: no gradient. On the first update after sampling no ratio is beyond the
    clip, and the control is GRPO. `clip_fraction` counts the tokens beyond the clip.
    """

    name: ClassVar[str] = "ce-gppo"
    min_updates: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)
    clipped_ratio: ClassVar[bool] = False
    beta_low: float = 0.75
    beta_high: float = 1.0

    def __post_init__(self):
        self.require(0 <= self.beta_low < math.inf, "beta_low", "at least 0")
        self.require(0 <= self.beta_high < math.inf, "beta_high", "at least 0")

    def surrogate(self, tokens: Tokens, clip: Clip) -> tuple[Tensor, Tensor]:
        _, beyond = clipped_surrogate(tokens.advantages, tokens.log_ratio, clip)
        ratio = tokens.log_ratio.exp()
        bound = torch.where(tokens.advantages > 0, self.beta_high * (1 + clip[1]), self.beta_low * (1 - clip[0]))
        weight = torch.where(beyond, bound / ratio.detach(), 1.0)
        return -tokens.advantages * weight * ratio, beyond


@dataclass(frozen=True)
class CovarianceKernel(Control):
    """Tokens of extreme covariance, of either sign, get a smaller advantage.

        w_t = exp(-c_t^2 / (2 sigma^2)),  A_t <- A_t w_t N / sum w

    CW-GRPO, arXiv 2605.11538 ("Taming Extreme Tokens"), without a parameter. c_t is the covariance (Eq 10) and sigma
    its standard deviation over the whole update. Where sigma is 0 the advantages stay. Covariances are those of the new
    advantages.
    """

    name: ClassVar[str] = "cw-grpo"
    roles: ClassVar[tuple[str, ...]] = (COVARIANCE,)

    def advantages(self, tokens: Tokens) -> Tensor:
        mask = tokens.response_mask
        covariance = token_covariance(tokens.advantages, tokens.log_probs, mask)
        variance = masked_mean((covariance - masked_mean(covariance, mask)).square(), mask)
        square = covariance.square()
        # Ratios of weights count, so the largest is 1: else all vanish where every covariance is far from 0.
        nearest = square.masked_fill(~mask, torch.inf).amin()
        weight = ((nearest - square) / (2 * variance)).clamp(max=0).exp()
        varies = variance > torch.finfo(square.dtype).eps * masked_mean(square, mask)
        weight = torch.where(varies, weight, 1.0)
        return tokens.advantages * weight / masked_mean(weight, mask)


def makes_advantages(control: Control, config) -> Iterable[tuple[str, str]]:
    """The conflict of a control that makes the advantages from the rewards, in place of the run's estimator."""
    if config.advantages != "grpo":
        why = f"control {control.name} makes the advantages itself, from the rewards; leave the default estimator"
        yield "advantages", why


@dataclass(frozen=True)
class NegativeReinforcement(Control):
    """W-REINFORCE: wrong responses become less likely, right ones only a little more likely.

        A = coef * r - (1 - r):  coef for a right response, -1 for a wrong one, without a baseline

    Zhu et al. 2025, arXiv 2506.01347, lambda = coef = 0.1; 0 is its NSR, negative samples alone. It replaces the
    advantage estimator, so equal rewards have a gradient too. Ours: rewards between 0 and 1 are interpolated.
    """

    name: ClassVar[str] = "negative-reinforcement"
    acts_without_advantage: ClassVar[bool] = True  # of the estimator's advantages, which it replaces
    needs: ClassVar[tuple[str, ...]] = ("rewards",)
    roles: ClassVar[tuple[str, ...]] = (ADVANTAGES,)
    coef: float = 0.1

    def __post_init__(self):
        self.require(0 <= self.coef < math.inf, "coef", "at least 0")

    def advantages(self, tokens: Tokens) -> Tensor:
        rewards = tokens.known("rewards").to(tokens.advantages.dtype)
        return (self.coef * rewards - (1 - rewards))[:, None].expand(tokens.advantages.shape)

    conflicts = makes_advantages


@dataclass(frozen=True)
class QuantileAdvantage(Control):
    """A group's quantile is its baseline, so that only rare successes or remaining failures have an advantage.

        A = (r - Q_K) / (std_group + eps),  Q_K the smallest reward with at least a fraction K of the group at or below

    Wu et al. 2025, arXiv 2509.22611, K = `quantile` = 0.4. With rewards 0 and 1 and a fraction p of the group right,
    Q_K is 0 for p <= 1 - K, which leaves the right responses, else 1, which leaves the wrong ones. Standard deviation
    and eps are those of `grpo`; only its mean is replaced. A group of equal rewards has advantages 0.
    """

    name: ClassVar[str] = "quantile-advantage"
    acts_without_advantage: ClassVar[bool] = True  # of the estimator's: a mean reward may lie above Q_K
    needs: ClassVar[tuple[str, ...]] = ("rewards", "group_size")
    roles: ClassVar[tuple[str, ...]] = (ADVANTAGES,)
    quantile: float = 0.4

    def __post_init__(self):
        self.require(0 < self.quantile < 1, "quantile", "in (0, 1)")

    def advantages(self, tokens: Tokens) -> Tensor:
        assert tokens.group_size is not None  # `needs` has it
        groups = tokens.known("rewards").to(tokens.advantages.dtype).view(-1, tokens.group_size)
        # In floating point 0.7 * 10 is 7.000000000000001, which should count as 7.
        rank = math.ceil(self.quantile * tokens.group_size - 1e-9)
        baseline = groups.kthvalue(max(1, rank), -1, keepdim=True).values
        advantages = (groups - baseline) / (groups.std(-1, keepdim=True) + EPS)
        return advantages.view(-1, 1).expand(tokens.advantages.shape)

    conflicts = makes_advantages
