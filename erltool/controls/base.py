"""What a control is, how controls compose, and what they decide for an update.

    tokens = Tokens(log_probs, old_log_probs, advantages, response_mask, ...)   (B, T): the whole update
    choice = control.choose(tokens, clip, generator)                            decided once
    loss = control_loss(tokens.rows(r), choice.rows(r))                         of micro-batch r; they sum to the whole

A control is a frozen dataclass below `Control`. It overrides at most four methods, each a part of the loss:

    advantages(tokens)                          (B, T), of the whole update, no gradient
    choose_tokens(tokens, clipped, generator)   (B, T) bool, of the whole update: the tokens that it acts on
    surrogate(tokens, clip)                     (B, T) loss of each token; (B, T) bool, whose gradient the clip has cut
    term(tokens, chosen)                        (B, T) loss of each token to add, or None

Shares are of the N response tokens of the update: max(1, floor(fraction * N)) tokens where fraction > 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from erltool.entropy.tokens import OF_RESPONSES, Tokens
from erltool.errors import ErltoolError

Clip = tuple[float, float]
CLIP: Clip = (0.2, 0.2)  # of the ratio, below and above 1
UNCLIPPED: Clip = (torch.inf, torch.inf)

# What only one part of a composition may do.
SURROGATE = "decide the surrogate or its clip"
DROP = "drop tokens, and the second would select from those that the first has already dropped"
COVARIANCE = "choose tokens by covariance"
ADVANTAGES = "make the advantages from the rewards"
ENTROPY = "reward entropy"


@dataclass(frozen=True)
class Control:
    """The clipped surrogate as it is; each control below changes a part of it. Add two to have both: `a + b`."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # optional fields of Tokens that it reads
    roles: ClassVar[tuple[str, ...]] = ()  # what no other part of a composition may do; with DROP, chosen tokens go
    min_updates: ClassVar[int] = 1  # updates per iteration from which on it can act
    acts_without_advantage: ClassVar[bool] = False  # whether a token of advantage 0 can get a gradient
    mean_of_responses: ClassVar[bool] = False  # loss: mean over each response's tokens first, then over responses
    clipped_ratio: ClassVar[bool] = True  # whether its surrogate is max(-A ratio, -A clip(ratio))
    own_clip: ClassVar[tuple[float | None, float | None]] = (None, None)  # its clip; None for that of the run

    # --- the formula ----------------------------------------------------------------------------------

    def advantages(self, tokens: Tokens) -> Tensor:
        return tokens.advantages

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.zeros_like(tokens.response_mask)

    def surrogate(self, tokens: Tokens, clip: Clip) -> tuple[Tensor, Tensor]:
        return clipped_surrogate(tokens.advantages, tokens.log_ratio, clip)

    def term(self, tokens: Tokens, chosen: Tensor) -> Tensor | None:
        return None

    def conflicts(self, config) -> Iterable[tuple[str, str]]:
        """What it cannot go together with: fields of a TrainConfig, each with the reason and what to use."""
        return ()

    # --- what all share -------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple["Control", ...]:
        """Itself, or what it is made of."""
        return (self,)

    @property
    def owner(self) -> "Control":
        """The part whose surrogate and clip count."""
        return next((part for part in self.parts if SURROGATE in part.roles), NoControl())

    def clip_of(self, run: Clip) -> Clip:
        """The surrogate's clip where the run's is `run`."""
        low, high = (theirs if own is None else own for own, theirs in zip(self.owner.own_clip, run, strict=True))
        return low, high

    @torch.no_grad()
    def choose(self, tokens: Tokens, clip: Clip = CLIP, generator: torch.Generator | None = None) -> "Choice":
        """What the control decides for a whole update; `clip` is the run's, `generator` serves random draws.

        Raises ErltoolError for shapes that disagree, and where an input that the control needs is missing.
        """
        check_tokens(tokens, self.name, self.needs)
        tokens = tokens._replace(response_mask=tokens.response_mask.bool())
        for part in sorted(self.parts, key=lambda part: ADVANTAGES not in part.roles):
            tokens = tokens._replace(advantages=part.advantages(tokens))
        clip = self.clip_of(clip)
        clipped = self.owner.surrogate(tokens, clip)[1] & tokens.response_mask
        chosen = [part.choose_tokens(tokens, clipped, generator) for part in self.parts]
        counted = tokens.response_mask.any(-1) if self.mean_of_responses else tokens.response_mask
        return Choice(self, tokens.advantages, torch.stack(chosen, -1), clip, counted.sum().clamp(min=1))

    def __add__(self, other: "Control") -> "Control":
        """Both at once; `NoControl()` adds nothing. Raises ErltoolError where they cannot act together."""
        parts = tuple(p for p in (*self.parts, *other.parts) if p != NoControl())
        return Composed(parts) if len(parts) > 1 else parts[0] if parts else self

    def require(self, holds: bool, field: str, what: str) -> None:
        """Raises ErltoolError, naming the control and the field, where it does not hold."""
        if not holds:
            raise ErltoolError(f"control {self.name}: {field} must be {what}")


@dataclass(frozen=True)
class NoControl(Control):
    """GRPO without entropy control."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True)
class Composed(Control):
    """Several controls at once, as in `KLCov() + EntropyBonus()`.

    Advantages are made from rewards first, then reshaped by one part after the other; tokens that a part drops lose the
    surrogate only; terms are added. Raises ErltoolError for two of a kind, and where two parts would do what only one
    can (`Control.roles`).
    """

    members: tuple[Control, ...]

    def __post_init__(self):
        object.__setattr__(self, "members", tuple(part for member in self.members for part in member.parts))
        done: dict[str, Control] = {}
        for part in self.members:
            for role in (f"are {part.name}", *part.roles):
                if role in done:
                    both = f"{done[role].name} and {part.name}"
                    raise ErltoolError(f"control {self.name}: {both} cannot act together: both {role}")
                done[role] = part

    @property
    def parts(self) -> tuple[Control, ...]:
        return self.members

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(need for part in self.parts for need in part.needs))

    @property
    def min_updates(self) -> int:
        return max(part.min_updates for part in self.parts)

    @property
    def mean_of_responses(self) -> bool:
        return any(part.mean_of_responses for part in self.parts)


@dataclass(frozen=True)
class Choice:
    """What a control has decided for a whole update: all that must not depend on the micro-batch."""

    control: Control
    advantages: Tensor
    """(B, T), as the control has reshaped them"""
    chosen: Tensor
    """(B, T, parts) bool: the tokens that each part of the control acts on"""
    clip: Clip
    """Of the ratio, below and above 1."""
    normalizer: Tensor | float
    """What the summed loss is divided by, at least 1: the update's response tokens, or its responses that have any
    where the control's loss is a mean of responses."""

    @property
    def selected(self) -> Tensor:
        """(B, T) bool: tokens that any part acts on."""
        return self.chosen.any(-1)

    @property
    def dropped(self) -> Tensor:
        """(B, T) bool: tokens that lose the surrogate, and stay in the denominator."""
        drops = [DROP in part.roles for part in self.control.parts]
        return self.chosen[..., drops].any(-1)

    def rows(self, rows: Tensor, width: int | None = None) -> Self:
        """The same for a micro-batch: these responses, up to `width` tokens."""
        return Choice(
            self.control, self.advantages[rows, :width], self.chosen[rows, :width], self.clip, self.normalizer
        )


def clipped_surrogate(advantages: Tensor, log_ratio: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), Schulman et al. 2017 (arXiv 1707.06347), Eq 7, (B, T); and the
    tokens whose gradient the clip has cut, (B, T) bool: risen and wanted, or fallen and not."""
    low, high = 1 - clip[0], 1 + clip[1]
    ratio = log_ratio.exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    ratio = ratio.detach()
    return loss, ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))


def reaches_zero_advantage(control: Control, on_policy: bool) -> bool:
    """Whether a token of advantage 0 can get a gradient; on policy, where every ratio is 1, or later."""
    return any(p.acts_without_advantage and not (on_policy and p.min_updates > 1) for p in control.parts)


def check_tokens(tokens: Tokens, name: str, needs: Iterable[str]) -> None:
    """Raises ErltoolError where shapes disagree, or an input that control `name` needs is missing."""
    mask = tokens.response_mask
    for field, value in zip(Tokens._fields, tokens, strict=True):
        if value is None and field in needs:
            raise ErltoolError(f"control {name} needs {field}: pass it to the loss")
        if value is None or field == "group_size":
            continue
        if value.shape != (mask.shape[:1] if field in OF_RESPONSES else mask.shape):
            raise ErltoolError(
                f"{field} of shape {tuple(value.shape)} and response_mask of shape {tuple(mask.shape)} must agree"
            )
    if tokens.group_size is not None and (tokens.group_size < 1 or len(mask) % tokens.group_size):
        raise ErltoolError(f"group_size {tokens.group_size} does not divide the {len(mask)} responses")
