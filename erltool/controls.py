"""Entropy controls: small frozen values that say which tokens to touch, and how.

Every control has the same three methods, in which the loss is built (losses.py):

    clip_range(low, high)             the surrogate's clip range; None where it is not clipped
    select(tokens, clip, generator)   tokens of the whole update that it acts on, (B, T) bool, no gradient
    apply(surrogate, tokens, selected)   per-token loss (B, T), from the surrogate's

`select` sees the whole update, `apply` may see a micro-batch of it. Shares are of the N response tokens of
the update, max(1, floor(fraction * N)) of them when fraction > 0. Clip-Cov and KL-Cov are Cui et al. 2025,
arXiv 2505.22617, Eq 11-13; the covariance is Eq 10.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from erltool.covariance import token_covariance
from erltool.errors import ErltoolError


class Tokens(NamedTuple):
    """What is known of the tokens of an update, each (B, T); entropy and reference only where asked for."""

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    response_mask: Tensor
    token_entropy: Tensor | None = None
    ref_log_probs: Tensor | None = None


Clip = tuple[float, float] | None


def _require(holds: bool, control: "NoControl", field: str, what: str) -> None:
    if not holds:
        raise ErltoolError(f"control {control.name}: {field} must be {what}")


@dataclass(frozen=True)
class NoControl:
    """The clipped surrogate as it is: GRPO."""

    name: ClassVar[str] = "none"
    min_updates: ClassVar[int] = 1  # updates per iteration from which on the control can act
    needs: ClassVar[tuple[str, ...]] = ()  # optional fields of Tokens that `apply` reads
    reaches_zero_advantage: ClassVar[bool] = False  # whether a token of advantage 0 can get a gradient

    def clip_range(self, low: float, high: float) -> Clip:
        return low, high

    def select(self, tokens: Tokens, clip: Clip, generator: torch.Generator | None = None) -> Tensor:
        return torch.zeros_like(tokens.response_mask, dtype=torch.bool)

    def apply(self, surrogate: Tensor, tokens: Tokens, selected: Tensor) -> Tensor:
        return surrogate


@dataclass(frozen=True)
class ClipHigher(NoControl):
    """A wider clip above than below (DAPO, Yu et al. 2025, arXiv 2503.14476): rare tokens may rise further."""

    name: ClassVar[str] = "clip-higher"
    min_updates: ClassVar[int] = 2  # ratios are 1 on the first update, and nothing is clipped
    clip_eps_high: float = 0.28

    def __post_init__(self):
        _require(self.clip_eps_high > 0, self, "clip_eps_high", "above 0")

    def clip_range(self, low: float, high: float) -> Clip:
        return low, self.clip_eps_high


@dataclass(frozen=True)
class EntropyBonus(NoControl):
    """Subtracts coef * token entropy (nats) from every token's loss."""

    name: ClassVar[str] = "entropy-bonus"
    reaches_zero_advantage: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("token_entropy",)
    coef: float = 0.01

    def __post_init__(self):
        _require(math.isfinite(self.coef), self, "coef", "finite")

    def apply(self, surrogate: Tensor, tokens: Tokens, selected: Tensor) -> Tensor:
        return surrogate - self.coef * tokens.token_entropy


@dataclass(frozen=True)
class ReferenceKL(NoControl):
    """Adds coef * KL(pi || reference) per token, by Schulman's k1 or k3, or k2 = log_ratio^2 / 2 (nats).

    The value estimates the KL for each; only k2's gradient is the KL's (on-policy), k3's is close to it near
    the reference, and k1's has mean 0: it is here because the literature tried it.
    """

    name: ClassVar[str] = "reference-kl"
    reaches_zero_advantage: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("ref_log_probs",)
    coef: float = 0.01
    estimator: str = "k3"

    def __post_init__(self):
        _require(self.coef >= 0, self, "coef", "at least 0")
        _require(self.estimator in ("k1", "k2", "k3"), self, "estimator", "k1, k2 or k3")

    def apply(self, surrogate: Tensor, tokens: Tokens, selected: Tensor) -> Tensor:
        log_ratio = tokens.log_probs - tokens.ref_log_probs
        return surrogate + self.coef * kl_estimate(log_ratio, self.estimator)


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
        _require(0 <= self.fraction <= 1, self, "fraction", "in [0, 1]")
        _require(self.low < self.high, self, "low", "below high")
        _require(self.bounds in ("absolute", "quantile"), self, "bounds", "absolute or quantile")
        if self.bounds == "quantile":
            _require(0 <= self.low and self.high <= 1, self, "low and high", "quantiles in [0, 1]")
        _require(self.clip_eps is None or self.clip_eps > 0, self, "clip_eps", "above 0")

    def clip_range(self, low: float, high: float) -> Clip:
        return (low, high) if self.clip_eps is None else (self.clip_eps, self.clip_eps)

    def select(self, tokens: Tokens, clip: Clip, generator: torch.Generator | None = None) -> Tensor:
        mask = tokens.response_mask.bool()
        covariance = token_covariance(tokens.advantages, tokens.log_probs, mask)
        low, high = self.low, self.high
        if self.bounds == "quantile" and mask.any():
            ordered = covariance[mask].sort().values
            low, high = (ordered[int(q * (len(ordered) - 1))] for q in (low, high))
        band = mask & (covariance > low) & (covariance < high) & ~is_clipped(tokens, clip)
        return _draw(band, token_budget(self.fraction, int(mask.sum())), generator)

    def apply(self, surrogate: Tensor, tokens: Tokens, selected: Tensor) -> Tensor:
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
    reaches_zero_advantage: ClassVar[bool] = True
    min_updates: ClassVar[int] = 2
    fraction: float = 2e-3
    coef: float = 1.0
    estimator: str = "k1"

    def __post_init__(self):
        _require(0 <= self.fraction <= 1, self, "fraction", "in [0, 1]")
        _require(self.coef >= 0, self, "coef", "at least 0")
        _require(self.estimator in ("k1", "k2", "k3"), self, "estimator", "k1, k2 or k3")

    def clip_range(self, low: float, high: float) -> Clip:
        return None

    def select(self, tokens: Tokens, clip: Clip, generator: torch.Generator | None = None) -> Tensor:
        mask = tokens.response_mask.bool()
        covariance = token_covariance(tokens.advantages, tokens.log_probs, mask)
        return _top(covariance, mask, token_budget(self.fraction, int(mask.sum())))

    def apply(self, surrogate: Tensor, tokens: Tokens, selected: Tensor) -> Tensor:
        log_ratio = tokens.log_probs - tokens.old_log_probs
        kl = log_ratio.abs() if self.estimator == "k1" else kl_estimate(log_ratio, self.estimator)
        return surrogate + self.coef * kl.masked_fill(~selected, 0)


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
        _require(0 <= self.fraction <= 1, self, "fraction", "in [0, 1]")
        _require(self.clip_eps is None or self.clip_eps > 0, self, "clip_eps", "above 0")

    clip_range = ClipCov.clip_range
    apply = ClipCov.apply

    def select(self, tokens: Tokens, clip: Clip, generator: torch.Generator | None = None) -> Tensor:
        mask = tokens.response_mask.bool()
        candidates = mask & (tokens.advantages > 0) & ~is_clipped(tokens, clip)
        return _draw(candidates, token_budget(self.fraction, int(mask.sum())), generator)


CONTROLS = {c.name: c for c in (NoControl, ClipHigher, EntropyBonus, ReferenceKL, ClipCov, KLCov, RandomClip)}

# The clip of the paper's Clip-Cov scripts is 1, verl's and SkyRL's 0.2. `embedded` was chosen on the embedded
# policy with seed 100 (data/README.md); the others are those projects' defaults.
PRESETS = {
    "paper-7b": (ClipCov(2e-4, 1.0, 5.0, clip_eps=1.0), KLCov(2e-3, 1.0)),
    "paper-32b": (ClipCov(2e-4, 1.0, 5.0, clip_eps=1.0), KLCov(2e-4, 1.0)),
    "verl": (ClipCov(2e-4, 1.0, 5.0, clip_eps=0.2), KLCov(2e-4, 0.1)),
    "skyrl": (ClipCov(2e-4, 1.0, 5.0, clip_eps=0.2), KLCov(0.2, 1.0)),
    "embedded": (ClipCov(2e-2, 0.5, 5.0), KLCov(0.1, 2.0)),
}


def preset(control: str, name: str) -> ClipCov | KLCov:
    """The Clip-Cov ("clip-cov") or KL-Cov ("kl-cov") of a preset by name. Raises ErltoolError."""
    if name not in PRESETS or control not in (ClipCov.name, KLCov.name):
        raise ErltoolError(
            f"preset {control}:{name} is not known: use clip-cov or kl-cov with one of {', '.join(PRESETS)}"
        )
    return PRESETS[name][control == KLCov.name]


def parse_control(text: str) -> NoControl:
    """The control that a text names: "kl-cov", "kl-cov:embedded" or "kl-cov:fraction=0.1,coef=2".

    Raises ErltoolError for an unknown control, preset or field, or a value of the wrong type.
    """
    name, _, rest = text.partition(":")
    if rest and "=" not in rest:
        return preset(name, rest)
    pairs = [part.partition("=") for part in rest.split(",") if part]
    return control_from_dict({"name": name} | {key.strip(): _value(raw) for key, _, raw in pairs})


def control_from_dict(fields: dict) -> NoControl:
    """The control with these fields, "name" among them: the inverse of `control_to_dict`."""
    fields = dict(fields)
    name = fields.pop("name", None)
    if name not in CONTROLS:
        raise ErltoolError(f"control {name!r} is not known: use one of {', '.join(CONTROLS)}")
    kinds = {f.name: f.type for f in dataclasses.fields(CONTROLS[name])}
    for key, value in fields.items():
        if key not in kinds:
            known = f"its fields are {', '.join(kinds)}" if kinds else "it has no fields"
            raise ErltoolError(f"control {name} has no field {key!r}: {known}")
        wanted = (str,) if kinds[key] is str else (int, float)
        optional = value is None and kinds[key] not in (str, float)
        if not optional and (isinstance(value, bool) or not isinstance(value, wanted)):
            what = "text" if wanted == (str,) else "a number"
            raise ErltoolError(f"control {name}: {key} is {value!r}, it must be {what}")
    return CONTROLS[name](**fields)


def control_to_dict(control: NoControl) -> dict:
    """Name and fields of a control, ready for JSON."""
    return {"name": control.name} | dataclasses.asdict(control)


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


def is_clipped(tokens: Tokens, clip: Clip) -> Tensor:
    """Tokens (B, T) whose gradient the surrogate's clip has cut: risen and wanted, or fallen and not."""
    mask = tokens.response_mask.bool()
    if clip is None:
        return torch.zeros_like(mask)
    ratio = torch.exp(tokens.log_probs - tokens.old_log_probs).detach()
    risen = (tokens.advantages > 0) & (ratio > 1 + clip[1])
    fallen = (tokens.advantages < 0) & (ratio < 1 - clip[0])
    return mask & (risen | fallen)


def token_budget(fraction: float, count: int) -> int:
    """max(1, floor(fraction * count)) of `count` response tokens; 0 when the fraction or the count is 0."""
    # 0.29 * 100 is 28.999999999999996; it means 29.
    return min(count, max(1, math.floor(fraction * count + 1e-9))) if fraction > 0 else 0


def _top(values: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Mask of the `count` candidates with the highest values, fewer where there are fewer candidates."""
    flat = values.masked_fill(~candidates, -torch.inf).flatten()
    selected = torch.zeros_like(flat, dtype=torch.bool)
    selected[flat.topk(min(count, flat.numel())).indices] = True
    return selected.view(values.shape) & candidates


def _draw(candidates: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Mask of `count` candidates drawn uniformly without replacement, all of them where they are fewer."""
    device = generator.device if generator is not None else candidates.device
    keys = torch.rand(candidates.shape, generator=generator, device=device).to(candidates.device)
    return _top(keys, candidates, count)


def _value(raw: str) -> float | str | None:
    raw = raw.strip()
    if raw.lower() == "none":
        return None
    try:
        return float(raw)
    except ValueError:
        return raw
