"""Silencing tokens by a criterion until a share of the update's dose is gone: criteria compared at equal strength.

Controls usually count tokens, but tokens are unequal: one of probability 0.99 has a gradient of length 0.01, and one
whose advantage is 0 has none. So a criterion that picks rare tokens removes more of the update than another that picks
as many likely ones. The dose of a token is the length of its step, ratio * |A| * |e_y - pi| (entropy/push.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from erltool.controls.base import DROP, Control
from erltool.entropy.covariance import token_covariance
from erltool.entropy.tokens import Tokens

BAND = 0.5, 50.0  # nats: Clip-Cov's band in this project's small world


def _covariance(tokens: Tokens) -> Tensor:
    return token_covariance(tokens.advantages, tokens.log_probs, tokens.response_mask)


def _band(tokens: Tokens) -> Tensor:
    covariance = _covariance(tokens)
    return _where((covariance > BAND[0]) & (covariance < BAND[1]))


def _where(holds: Tensor) -> Tensor:
    return torch.zeros(holds.shape, device=holds.device).masked_fill(~holds, -torch.inf)


CRITERIA: dict[str, Callable[[Tokens], Tensor]] = {
    "covariance": _covariance,  # highest covariance (Eq 10)
    "band": _band,  # at random in Clip-Cov's band of covariance
    "push": lambda t: -t.push,  # largest predicted fall of the entropy
    "push-rate": lambda t: -t.push / t.dose.clamp(min=1e-12),  # largest predicted fall for its dose
    "rare": lambda t: -t.log_probs,  # lowest log-prob
    "likely": lambda t: t.log_probs,  # highest log-prob
    "uncertain": lambda t: t.known("token_entropy"),  # highest entropy
    "certain": lambda t: -t.known("token_entropy"),  # lowest entropy
    "right": lambda t: _where(t.advantages > 0),  # at random, advantage above 0
    "wrong": lambda t: _where(t.advantages < 0),  # at random, advantage below 0
    "rare-wrong": lambda t: _where(t.advantages < 0) - t.log_probs,  # lowest log-prob, advantage below 0
    "random": lambda t: torch.zeros_like(t.log_probs),  # at random
}
"""Scores (B, T) of an update's tokens, by criterion: tokens with the highest go first, equal ones in random order, and
those of -inf never."""


def by_dose(scores: Tensor, dose: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Mask (B, T) of the tokens with the highest scores that together hold the share of the summed dose.

    A token at the border is taken where half of it or more fits. Equal scores come in random order. A token without
    dose is never taken, nor is one with score -inf, so fewer may be taken.
    """
    device = generator.device if generator is not None else scores.device
    order = torch.randperm(scores.numel(), generator=generator, device=device).to(scores.device)
    order = order[scores.flatten()[order].sort(descending=True, stable=True).indices]
    in_order = dose.flatten()[order].double()
    candidates = (in_order > 0) & (scores.flatten()[order] > -torch.inf)
    gone = torch.where(candidates, in_order, 0.0).cumsum(0)
    taken = candidates & (gone - in_order / 2 <= share * dose.double().sum())
    return torch.zeros_like(taken).index_put((order,), taken).view(scores.shape)


@dataclass(frozen=True)
class Silence(Control):
    """Drops the tokens that a criterion puts first, until a share `dose` of the update's dose is gone.

    The criteria are those of CRITERIA. "random" is the baseline of them all: the same dose, from any token. The dropped
    tokens stay in the denominator, as in Clip-Cov. Ours.
    """

    name: ClassVar[str] = "silence"
    needs: ClassVar[tuple[str, ...]] = ("token_entropy", "entropy_slope", "gradient_norm")
    criterion: str = "push"
    dose: float = 0.1

    def __post_init__(self):
        self.require(self.criterion in CRITERIA, "criterion", f"one of {', '.join(CRITERIA)}")
        self.require(0 <= self.dose <= 1, "dose", "in [0, 1]")

    @property
    def roles(self) -> tuple[str, ...]:
        return (DROP,)

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        dose = tokens.dose.masked_fill(clipped, 0)
        scores = CRITERIA[self.criterion](tokens).masked_fill(~tokens.response_mask, -torch.inf)
        return by_dose(scores, dose, self.dose, generator)
