"""Entropy controls: small frozen values that say which tokens to touch, and how.

The loss is built from a control's methods in this order (losses.py); `NoControl` has the default of each:

    reshape(tokens)                     advantages (B, T), no gradient
    clip_range(low, high)               the surrogate's clip range; None where it is not clipped
    select(tokens, clipped, generator)  tokens that it acts on, (B, T) bool, no gradient
    surrogate(tokens, clip)             per-token loss (B, T)
    drop(surrogate, selected)           that loss without the tokens whose gradient the control takes
    penalty(tokens, selected)           per-token loss (B, T) to add, or None
    after(policy_entropy)               the control for the next update: itself, or what a controller makes of it

`reshape` and `select` see the whole update, the others may see a micro-batch of it, in whole responses. Shares
are of the N response tokens of the update, max(1, floor(fraction * N)) of them when fraction > 0. Here are the
controls of Cui et al. 2025, arXiv 2505.22617, with those it compares them to; zoo.py has others. Clip-Cov and
KL-Cov are its Eq 11-13; the covariance is its Eq 10. `+` composes controls.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from erltool.covariance import token_covariance
from erltool.errors import ErltoolError
from erltool.tokens import Tokens, drawn_tokens, kl_estimate, token_budget, top_tokens

Clip = tuple[float, float] | None

# What only one part of a composition may do.
SURROGATE = "decide the surrogate or its clip"
DROP = "take the gradient from tokens, so either's share would be of tokens that the other has taken"
COVARIANCE = "choose tokens by covariance"
ADVANTAGES = "make the advantages from the rewards"
ENTROPY = "reward entropy"
STEER = "steer by the entropy"


def require(holds: bool, control: "NoControl", field: str, what: str) -> None:
    """Raises ErltoolError, naming the control and the field, where it does not hold."""
    if not holds:
        raise ErltoolError(f"control {control.name}: {field} must be {what}")


@dataclass(frozen=True)
class NoControl:
    """The clipped surrogate as it is: GRPO."""

    name: ClassVar[str] = "none"
    min_updates: ClassVar[int] = 1  # updates per iteration from which on the control can act
    needs: ClassVar[tuple[str, ...]] = ()  # optional fields of Tokens that it reads
    zero_advantage_acts: ClassVar[bool] = False  # whether a token of advantage 0 can get a gradient
    mean_of_responses: ClassVar[bool] = False  # loss: mean over each response's tokens first, then over responses
    roles: ClassVar[tuple[str, ...]] = ()  # what no other part of a composition may do
    steered: ClassVar[float | None] = None  # the value that `after` changes

    @property
    def parts(self) -> tuple["NoControl", ...]:
        """Itself, or what it is made of."""
        return (self,)

    def clip_range(self, low: float, high: float) -> Clip:
        return low, high

    def reshape(self, tokens: Tokens) -> Tensor:
        return tokens.advantages

    def select(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.zeros_like(tokens.response_mask, dtype=torch.bool)

    def log_ratio(self, tokens: Tokens) -> Tensor:
        return tokens.log_probs - tokens.old_log_probs

    def surrogate(self, tokens: Tokens, clip: Clip) -> Tensor:
        ratio = self.log_ratio(tokens).exp()
        loss = -tokens.advantages * ratio
        if clip is None:
            return loss
        return torch.maximum(loss, -tokens.advantages * ratio.clamp(1 - clip[0], 1 + clip[1]))

    def clipped(self, tokens: Tokens, clip: Clip) -> Tensor:
        """Tokens (B, T) whose gradient the surrogate's clip has cut: risen and wanted, or fallen and not."""
        mask = tokens.response_mask.bool()
        if clip is None:
            return torch.zeros_like(mask)
        ratio = self.log_ratio(tokens).detach().exp()
        risen = (tokens.advantages > 0) & (ratio > 1 + clip[1])
        fallen = (tokens.advantages < 0) & (ratio < 1 - clip[0])
        return mask & (risen | fallen)

    def drop(self, surrogate: Tensor, selected: Tensor) -> Tensor:
        return surrogate

    def penalty(self, tokens: Tokens, selected: Tensor) -> Tensor | None:
        return None

    def after(self, policy_entropy: float) -> Self:
        return self

    def reaches_zero_advantage(self, on_policy: bool) -> bool:
        """Whether a token of advantage 0 can get a gradient; on policy, where every ratio is 1, or later."""
        return self.zero_advantage_acts and not (on_policy and self.min_updates > 1)

    def __add__(self, other: "NoControl") -> "NoControl":
        """Both at once; `NoControl()` adds nothing. Raises ErltoolError where they cannot act together."""
        parts = tuple(p for p in (*self.parts, *other.parts) if type(p) is not NoControl)
        return Composed(parts) if len(parts) > 1 else parts[0] if parts else self


@dataclass(frozen=True)
class Composed(NoControl):
    """Several controls at once, as in `KLCov() + EntropyBonus()`.

    Advantages are reshaped by one part after the other, those that make them from rewards first; tokens that a
    part drops lose the surrogate only; penalties are added. What each part selects is kept apart, (B, T, parts).
    Raises ErltoolError for two of a kind, and where two parts would do what only one can (`NoControl.roles`).
    """

    members: tuple[NoControl, ...]

    def __post_init__(self):
        object.__setattr__(self, "members", tuple(part for member in self.members for part in member.parts))
        done: dict[str, NoControl] = {}
        for part in self.members:
            for role in (f"are {part.name}", *part.roles):
                if role in done:
                    both = f"{done[role].name} and {part.name}"
                    raise ErltoolError(f"control {self.name}: {both} cannot act together: both {role}")
                done[role] = part

    @property
    def parts(self) -> tuple[NoControl, ...]:
        return self.members

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)

    @property
    def min_updates(self) -> int:
        return max(part.min_updates for part in self.parts)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(need for part in self.parts for need in part.needs))

    @property
    def mean_of_responses(self) -> bool:
        return any(part.mean_of_responses for part in self.parts)

    @property
    def steered(self) -> float | None:
        return next((part.steered for part in self.parts if part.steered is not None), None)

    @property
    def _owner(self) -> NoControl:
        return next((part for part in self.parts if SURROGATE in part.roles), NoControl())

    def clip_range(self, low: float, high: float) -> Clip:
        return self._owner.clip_range(low, high)

    def reshape(self, tokens: Tokens) -> Tensor:
        for part in sorted(self.parts, key=lambda part: ADVANTAGES not in part.roles):
            tokens = tokens._replace(advantages=part.reshape(tokens))
        return tokens.advantages

    def select(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.stack([part.select(tokens, clipped, generator) for part in self.parts], -1)

    def surrogate(self, tokens: Tokens, clip: Clip) -> Tensor:
        return self._owner.surrogate(tokens, clip)

    def clipped(self, tokens: Tokens, clip: Clip) -> Tensor:
        return self._owner.clipped(tokens, clip)

    def drop(self, surrogate: Tensor, selected: Tensor) -> Tensor:
        for part, chosen in zip(self.parts, selected.unbind(-1), strict=True):
            surrogate = part.drop(surrogate, chosen)
        return surrogate

    def penalty(self, tokens: Tokens, selected: Tensor) -> Tensor | None:
        found = [part.penalty(tokens, chosen) for part, chosen in zip(self.parts, selected.unbind(-1), strict=True)]
        found = [penalty for penalty in found if penalty is not None]
        return sum(found[1:], found[0]) if found else None

    def after(self, policy_entropy: float) -> Self:
        return Composed(tuple(part.after(policy_entropy) for part in self.parts))

    def reaches_zero_advantage(self, on_policy: bool) -> bool:
        return any(part.reaches_zero_advantage(on_policy) for part in self.parts)


@dataclass(frozen=True)
class ClipHigher(NoControl):
    """A wider clip above than below (DAPO, Yu et al. 2025, arXiv 2503.14476): rare tokens may rise further."""

    name: ClassVar[str] = "clip-higher"
    min_updates: ClassVar[int] = 2  # ratios are 1 on the first update, and nothing is clipped
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)
    clip_eps_high: float = 0.28

    def __post_init__(self):
        require(self.clip_eps_high > 0, self, "clip_eps_high", "above 0")

    def clip_range(self, low: float, high: float) -> Clip:
        return low, self.clip_eps_high


@dataclass(frozen=True)
class EntropyBonus(NoControl):
    """Subtracts coef * token entropy (nats) from every token's loss."""

    name: ClassVar[str] = "entropy-bonus"
    zero_advantage_acts: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("token_entropy",)
    roles: ClassVar[tuple[str, ...]] = (ENTROPY,)
    coef: float = 0.01

    def __post_init__(self):
        require(math.isfinite(self.coef), self, "coef", "finite")

    def penalty(self, tokens: Tokens, selected: Tensor) -> Tensor:
        return -self.coef * tokens.token_entropy


@dataclass(frozen=True)
class ReferenceKL(NoControl):
    """Adds coef * KL(pi || reference) per token, by Schulman's k1 or k3, or k2 = log_ratio^2 / 2 (nats).

    The value estimates the KL for each; only k2's gradient is the KL's (on-policy), k3's is close to it near
    the reference, and k1's has mean 0: it is here because the literature tried it.
    """

    name: ClassVar[str] = "reference-kl"
    zero_advantage_acts: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("ref_log_probs",)
    coef: float = 0.01
    estimator: str = "k3"

    def __post_init__(self):
        require(self.coef >= 0, self, "coef", "at least 0")
        require(self.estimator in ("k1", "k2", "k3"), self, "estimator", "k1, k2 or k3")

    def penalty(self, tokens: Tokens, selected: Tensor) -> Tensor:
        return self.coef * kl_estimate(tokens.log_probs - tokens.ref_log_probs, self.estimator)


@dataclass(frozen=True)
class ClipCov(NoControl):
    """Clip-Cov: a random share of the tokens with low < covariance < high gets no gradient.

    Drawn uniformly, without replacement, among those that the clip has not already cut; the dropped tokens
    stay in the denominator. An empty band drops nothing. `bounds` is "absolute" (nats, as in the paper, whose
    band presumes advantages divided by their standard deviation) or "quantile" (low and high are fractions
    of the response tokens ordered by covariance). `clip_eps` is the surrogate's clip on both sides, None for
    that of the run: the paper's scripts use 1.
    """

    name: ClassVar[str] = "clip-cov"
    fraction: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    bounds: str = "absolute"
    clip_eps: float | None = None

    def __post_init__(self):
        require(0 <= self.fraction <= 1, self, "fraction", "in [0, 1]")
        require(self.low < self.high, self, "low", "below high")
        require(self.bounds in ("absolute", "quantile"), self, "bounds", "absolute or quantile")
        if self.bounds == "quantile":
            require(0 <= self.low and self.high <= 1, self, "low and high", "quantiles in [0, 1]")
        require(self.clip_eps is None or self.clip_eps > 0, self, "clip_eps", "above 0")

    @property
    def roles(self) -> tuple[str, ...]:
        return (DROP, COVARIANCE) if self.clip_eps is None else (DROP, COVARIANCE, SURROGATE)

    def clip_range(self, low: float, high: float) -> Clip:
        return (low, high) if self.clip_eps is None else (self.clip_eps, self.clip_eps)

    def select(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mask = tokens.response_mask.bool()
        covariance = token_covariance(tokens.advantages, tokens.log_probs, mask)
        low, high = self.low, self.high
        if self.bounds == "quantile" and mask.any():
            ordered = covariance[mask].sort().values
            low, high = (ordered[int(q * (len(ordered) - 1))] for q in (low, high))
        band = mask & (covariance > low) & (covariance < high) & ~clipped
        return drawn_tokens(band, token_budget(self.fraction, int(mask.sum())), generator)

    def drop(self, surrogate: Tensor, selected: Tensor) -> Tensor:
        return surrogate.masked_fill(selected, 0)


@dataclass(frozen=True)
class KLCov(NoControl):
    """KL-Cov: the share of tokens with the highest covariance pays coef * KL from the sampling policy.

    The surrogate is unclipped on all tokens, as released, so fraction 0 is the plain surrogate without clip.
    `estimator` is "k1" for |log_ratio|, the paper's, "k2" for log_ratio^2 / 2, "k3" for
    exp(-log_ratio) - 1 + log_ratio, with log_ratio = log pi - log pi_old. All are 0 with gradient 0 on the
    first update after sampling, so with one update per iteration it never acts.
    """

    name: ClassVar[str] = "kl-cov"
    zero_advantage_acts: ClassVar[bool] = True
    min_updates: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = (COVARIANCE, SURROGATE)
    fraction: float = 2e-3
    coef: float = 1.0
    estimator: str = "k1"

    def __post_init__(self):
        require(0 <= self.fraction <= 1, self, "fraction", "in [0, 1]")
        require(self.coef >= 0, self, "coef", "at least 0")
        require(self.estimator in ("k1", "k2", "k3"), self, "estimator", "k1, k2 or k3")

    def clip_range(self, low: float, high: float) -> Clip:
        return None

    def select(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mask = tokens.response_mask.bool()
        covariance = token_covariance(tokens.advantages, tokens.log_probs, mask)
        return top_tokens(covariance, mask, token_budget(self.fraction, int(mask.sum())))

    def penalty(self, tokens: Tokens, selected: Tensor) -> Tensor:
        log_ratio = tokens.log_probs - tokens.old_log_probs
        kl = log_ratio.abs() if self.estimator == "k1" else kl_estimate(log_ratio, self.estimator)
        return self.coef * kl.masked_fill(~selected, 0)


@dataclass(frozen=True)
class RandomClip(NoControl):
    """The null control: as many tokens lose their gradient as under Clip-Cov, drawn at random.

    Drawn among all tokens with positive advantage that the clip has not cut, whatever their covariance: what
    Clip-Cov gains over this is due to the covariance.
    """

    name: ClassVar[str] = "random-clip"
    fraction: float = 2e-4
    clip_eps: float | None = None

    def __post_init__(self):
        require(0 <= self.fraction <= 1, self, "fraction", "in [0, 1]")
        require(self.clip_eps is None or self.clip_eps > 0, self, "clip_eps", "above 0")

    @property
    def roles(self) -> tuple[str, ...]:
        return (DROP,) if self.clip_eps is None else (DROP, SURROGATE)

    clip_range = ClipCov.clip_range
    drop = ClipCov.drop

    def select(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mask = tokens.response_mask.bool()
        candidates = mask & (tokens.advantages > 0) & ~clipped
        return drawn_tokens(candidates, token_budget(self.fraction, int(mask.sum())), generator)


@dataclass(frozen=True)
class RandomKL(KLCov):
    """KL-Cov's null control: as many tokens as under KL-Cov pay coef * KL, drawn at random.

    Drawn among all response tokens, whatever their covariance; surrogate and penalty are KL-Cov's, so what KL-Cov
    gains over this is due to the covariance.
    """

    name: ClassVar[str] = "random-kl"
    roles: ClassVar[tuple[str, ...]] = (SURROGATE,)

    def select(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mask = tokens.response_mask.bool()
        return drawn_tokens(mask, token_budget(self.fraction, int(mask.sum())), generator)
