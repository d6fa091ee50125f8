"""What a control is, how controls compose, and what they decide for an update.

    tokens = Tokens(log_probs, old_log_probs, advantages, response_mask, ...)   (B, T): the whole update
    choice = control.choose(tokens, clip, generator)                            decided once
    loss = control_loss(tokens.rows(r), choice.rows(r))                         of micro-batch r; they sum to the whole

A control is a frozen dataclass below `Control`. It overrides a few of these methods, each a step of the loss:

    advantages(tokens)                          (B, T), of the whole update, no gradient
    choose_tokens(tokens, clipped, generator)   (B, T) bool, of the whole update: the tokens that it acts on
    surrogate(tokens, clip)                     (B, T) loss of each token; (B, T) bool, whose gradient the clip has cut
    adapted_clip(tokens, clip)                  the surrogate's clip, where the update decides it
    term(tokens, chosen)                        (B, T) loss of each token to add, or None

A `fraction` of the N response tokens of the update is max(1, floor(fraction * N)) tokens; 0 is none.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from erltool.entropy.tokens import OF_RESPONSES, Tokens
from erltool.errors import ErltoolError

Clip = tuple[float, float]
CLIP: Clip = (0.2, 0.2)  # of the ratio, below and above 1
UNCLIPPED: Clip = (torch.inf, torch.inf)

# Roles that only one member of a composition may have.
SURROGATE = "decide the surrogate or its clip"
DROP = "drop tokens, and the second would select from those that the first has already dropped"
COVARIANCE = "choose tokens by covariance"
ADVANTAGES = "make the advantages from the rewards"
ENTROPY = "reward entropy"


@dataclass(frozen=True)
class Control:
    """The clipped surrogate as it is; each control below changes a step of it. `a + b` composes two."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # optional fields of Tokens that it reads
    min_updates: ClassVar[int] = 1  # updates per iteration from which on it can act
    acts_without_advantage: ClassVar[bool] = False  # whether a token of advantage 0 can get a gradient
    mean_of_responses: ClassVar[bool] = False  # loss: mean over each response's tokens first, then over responses
    clipped_ratio: ClassVar[bool] = True  # whether its surrogate is max(-A ratio, -A clip(ratio))

    @property
    def roles(self) -> tuple[str, ...]:
        """What no other member of a composition may do. A control with the role DROP drops its chosen tokens."""
        return ()

    @property
    def own_clip(self) -> tuple[float | None, float | None]:
        """Its clip, below and above 1; None for that of the run."""
        return None, None

    # --- the formula ----------------------------------------------------------------------------------

    def advantages(self, tokens: Tokens) -> Tensor:
        return tokens.advantages

    def choose_tokens(self, tokens: Tokens, clipped: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.zeros_like(tokens.response_mask)

    def surrogate(self, tokens: Tokens, clip: Clip) -> tuple[Tensor, Tensor]:
        return clipped_surrogate(tokens.advantages, tokens.log_ratio, clip)

    def adapted_clip(self, tokens: Tokens, clip: Clip) -> Clip:
        return clip

    def term(self, tokens: Tokens, chosen: Tensor) -> Tensor | None:
        return None

    def conflicts(self, config) -> Iterable[tuple[str, str]]:
        """Fields of a TrainConfig that it cannot go together with, each with the reason and the remedy."""
        return ()

    # --- what all share -------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple["Control", ...]:
        """Itself, or the members of a composition."""
        return (self,)

    @property
    def owner(self) -> "Control":
        """The member whose surrogate and clip count."""
        return next((member for member in self.parts if SURROGATE in member.roles), NoControl())

    def clip_of(self, run: Clip) -> Clip:
        """The surrogate's clip where the run's is `run`."""
        low, high = (theirs if own is None else own for own, theirs in zip(self.owner.own_clip, run, strict=True))
        return low, high

    @torch.no_grad()
    def choose(self, tokens: Tokens, clip: Clip = CLIP, generator: torch.Generator | None = None) -> "Choice":
        """What the control decides for a whole update. `clip` is the run's; random choices take `generator`.

        Raises ErltoolError for shapes that disagree and for a missing input that the control needs.
        """
        check_tokens(tokens, self.name, self.needs)
        tokens = tokens._replace(response_mask=tokens.response_mask.bool())
        for member in sorted(self.parts, key=lambda member: ADVANTAGES not in member.roles):
            tokens = tokens._replace(advantages=member.advantages(tokens))
        clip = self.owner.adapted_clip(tokens, self.clip_of(clip))
        clipped = self.owner.surrogate(tokens, clip)[1] & tokens.response_mask
        chosen = [member.choose_tokens(tokens, clipped, generator) for member in self.parts]
        counted = tokens.response_mask.any(-1) if self.mean_of_responses else tokens.response_mask
        return Choice(self, tokens.advantages, torch.stack(chosen, -1), clip, counted.sum().clamp(min=1))

    def __add__(self, other: "Control") -> "Control":
        """Both at once; `NoControl()` adds nothing. Raises ErltoolError where they cannot act together."""
        members = tuple(member for member in (*self.parts, *other.parts) if member != NoControl())
        return Composed(members) if len(members) > 1 else members[0] if members else self

    def require(self, holds: bool, field: str, condition: str) -> None:
        """Raises ErltoolError, naming the control and the field, where the condition does not hold."""
        if not holds:
            raise ErltoolError(f"control {self.name}: {field} must be {condition}")


@dataclass(frozen=True)
class NoControl(Control):
    """GRPO without entropy control."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True)
class Composed(Control):
    """Several controls at once, as in `KLCov() + EntropyBonus()`.

    Advantages are made from rewards first, then reshaped by one member after the other. Tokens that a member drops lose
    the surrogate only. Terms are added. Raises ErltoolError for two controls of a kind or with the same role.
    """

    members: tuple[Control, ...]

    def __post_init__(self):
        members = tuple(part for member in self.members for part in member.parts)
        name = "+".join(member.name for member in members)
        done: dict[str, Control] = {}
        for member in members:
            for role in (f"are {member.name}", *member.roles):
                if role in done:
                    both = f"{done[role].name} and {member.name}"
                    raise ErltoolError(f"control {name}: {both} cannot act together: both {role}")
                done[role] = member
        # What a single control says of its class, a composition says of itself.
        vars(self).update(
            members=members,
            name=name,
            needs=tuple(dict.fromkeys(need for member in members for need in member.needs)),
            min_updates=max(member.min_updates for member in members),
            mean_of_responses=any(member.mean_of_responses for member in members),
        )

    @property
    def parts(self) -> tuple[Control, ...]:
        return self.members


@dataclass(frozen=True)
class Choice:
    """What a control has decided for a whole update: everything that must not depend on the micro-batch."""

    control: Control
    advantages: Tensor  # (B, T), as the control has reshaped them
    chosen: Tensor  # (B, T, members) bool: the tokens that each member of the control acts on
    clip: Clip  # of the ratio, below and above 1
    normalizer: Tensor | float
    """Divides the summed loss, at least 1: the update's response tokens, or responses for a mean of responses."""

    @property
    def selected(self) -> Tensor:
        """(B, T) bool: tokens that any member acts on."""
        return self.chosen.any(-1)

    @property
    def dropped(self) -> Tensor:
        """(B, T) bool: tokens that lose the surrogate and stay in the denominator."""
        gone = torch.zeros_like(self.chosen[..., 0])
        for member, chosen in zip(self.control.parts, self.chosen.unbind(-1), strict=True):
            if DROP in member.roles:  # not by a list as index, which the host would have to send to the device
                gone = gone | chosen
        return gone

    def rows(self, rows: Tensor | slice, width: int | None = None) -> "Choice":
        """The same for a micro-batch: these responses, up to `width` tokens."""
        return replace(self, advantages=self.advantages[rows, :width], chosen=self.chosen[rows, :width])


def clipped_surrogate(advantages: Tensor, log_ratio: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), (B, T), and the tokens whose gradient the clip has cut, (B, T)
    bool: risen with A > 0, or fallen with A < 0. Schulman et al. 2017 (arXiv 1707.06347), Eq 7."""
    low, high = 1 - clip[0], 1 + clip[1]
    ratio = log_ratio.exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    ratio = ratio.detach()
    return loss, ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))


def reaches_zero_advantage(control: Control, on_policy: bool) -> bool:
    """Whether a token of advantage 0 can get a gradient. On policy every ratio is 1, so a penalty on it is silent."""
    return any(p.acts_without_advantage and not (on_policy and p.min_updates > 1) for p in control.parts)


def check_tokens(tokens: Tokens, name: str, needs: Iterable[str]) -> None:
    """Raises ErltoolError for shapes that disagree and for a missing input that control `name` needs."""
    mask = tokens.response_mask
    for field, value in zip(Tokens._fields, tokens, strict=True):
        if value is None and field in needs:
            raise ErltoolError(f"control {name} needs {field}: pass it to the loss")
        if isinstance(value, Tensor) and value.shape != (mask.shape[:1] if field in OF_RESPONSES else mask.shape):
            shapes = f"{tuple(value.shape)} and response_mask of shape {tuple(mask.shape)}"
            raise ErltoolError(f"{field} of shape {shapes} must agree")
    if tokens.group_size is not None and (tokens.group_size < 1 or len(mask) % tokens.group_size):
        raise ErltoolError(f"group_size {tokens.group_size} does not divide the {len(mask)} responses")
