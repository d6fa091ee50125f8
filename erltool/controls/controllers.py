"""Controllers change a control from update to update, by the entropy of each update (`TrainConfig.controller`).

    control = controller.after(control, configured, step, policy_entropy)

`control` has acted in update number `step`, whose entropy was `policy_entropy` (nats/token); `configured` is the
control in the run's configuration. The control that is returned acts in the next update. A controller is a frozen value
and changes one number of the control, so a checkpoint needs the control only.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from erltool.controls.base import Composed, Control
from erltool.errors import ErltoolError


@dataclass(frozen=True)
class Controller:
    """Changes the number `field` of one member of a control."""

    name: ClassVar[str]
    steers: ClassVar[tuple[str, ...]] = ()  # names of the controls that it can steer; any that has the field if empty

    @property
    def field(self) -> str:
        return "fraction"

    def moved(self, value: float, configured: float, step: int, policy_entropy: float) -> float:
        """The number for the next update, from its value in this one and in the run's configuration."""
        raise NotImplementedError

    def after(self, control: Control, configured: Control, step: int, policy_entropy: float) -> Control:
        """The control for the next update."""
        steered = self.part_of(control)
        value = self.moved(self.value(control), self.value(configured), step, policy_entropy)
        changed = dataclasses.replace(steered, **{self.field: value})
        members = tuple(changed if member is steered else member for member in control.parts)
        return members[0] if len(members) == 1 else Composed(members)

    def value(self, control: Control) -> float:
        """The number that it changes, as it is now."""
        return getattr(self.part_of(control), self.field)

    def part_of(self, control: Control) -> Control:
        """The member that it steers. Raises ErltoolError where the control has none, or several."""
        candidates = [p for p in control.parts if p.name in self.steers] if self.steers else control.parts
        members = [
            member
            for member in candidates
            if any(f.name == self.field and f.type is float for f in dataclasses.fields(member))
        ]
        if len(members) != 1:
            which = f" of {' or '.join(self.steers)}" if self.steers else ""
            raise ErltoolError(
                f"controller {self.name}: needs one number {self.field}{which} to steer, and control {control.name} "
                f"has {len(members) or 'none'}"
            )
        return members[0]

    def check(self, control: Control) -> None:
        """Raises ErltoolError where it cannot steer this control."""
        self.part_of(control)

    def require(self, holds: bool, field: str, condition: str) -> None:
        if not holds:
            raise ErltoolError(f"controller {self.name}: {field} must be {condition}")


@dataclass(frozen=True)
class TargetEntropy(Controller):
    """Holds the entropy at a target by steering the fraction of tokens that a control acts on.

        fraction <- fraction * exp(rate * clip((target - H) / target, -1, 1)),  held in [min_fraction, max_fraction]

    after every update, with its entropy H in nats/token. A larger fraction of Clip-Cov, KL-Cov or their random
    baselines preserves more entropy. This integral controller in log fraction is ours. It needs no model of how entropy
    answers. Where the fraction is at a bound, the entropy does not reach the target.
    """

    name: ClassVar[str] = "target-entropy"
    steers: ClassVar[tuple[str, ...]] = ("clip-cov", "kl-cov", "random-clip", "random-kl")
    target: float = 0.3
    rate: float = 0.1
    min_fraction: float = 1e-4
    max_fraction: float = 0.5

    def __post_init__(self):
        self.require(0 < self.target < math.inf, "target", "above 0")
        self.require(0 < self.rate < math.inf, "rate", "above 0")
        self.require(0 < self.min_fraction <= self.max_fraction <= 1, "min_fraction", "in (0, max_fraction]")

    def check(self, control: Control) -> None:
        bounds = f"in [min_fraction, max_fraction] = [{self.min_fraction:g}, {self.max_fraction:g}]"
        inside = self.min_fraction <= self.value(control) <= self.max_fraction
        self.require(inside, f"the fraction of control {control.name}", bounds)

    def moved(self, value: float, configured: float, step: int, policy_entropy: float) -> float:
        off = min(max((self.target - policy_entropy) / self.target, -1.0), 1.0)
        return min(max(value * math.exp(self.rate * off), self.min_fraction), self.max_fraction)


@dataclass(frozen=True)
class AdaptiveBonus(Controller):
    """Raises an entropy bonus while the entropy is below a target, and lowers it otherwise (Skywork-OR1).

        coef_{k+1} = coef_k + delta where H_k < target, else coef_k - delta;  held in [0, max_coef]

    He et al. 2025, arXiv 2505.22312, Section 3.2.5. H is over all response tokens; H and `target` are in nats/token.
    Values and the bound max_coef are those of the released scripts (the paper's ablations use delta = 0.005). There the
    bonus acts only in updates with at most the target entropy: `EntropyBonus(coef=0, below=target)`.
    """

    name: ClassVar[str] = "adaptive-bonus"
    field = "coef"
    steers: ClassVar[tuple[str, ...]] = ("entropy-bonus",)
    target: float = 0.2
    delta: float = 1e-4
    max_coef: float = 5e-3

    def __post_init__(self):
        self.require(self.target > 0, "target", "above 0")
        self.require(self.delta > 0, "delta", "above 0")
        self.require(0 < self.max_coef < math.inf, "max_coef", "above 0 and finite")

    def check(self, control: Control) -> None:
        bounds = f"in [0, max_coef={self.max_coef:g}]"
        self.require(0 <= self.value(control) <= self.max_coef, "the bonus's coef", bounds)

    def moved(self, value: float, configured: float, step: int, policy_entropy: float) -> float:
        moved = value + (self.delta if policy_entropy < self.target else -self.delta)
        return min(max(moved, 0.0), self.max_coef)


@dataclass(frozen=True)
class Doubling(Controller):
    """Doubles `zeta` of REPO-R while the entropy is below a target, and halves it otherwise, within bounds.

    arXiv 2603.11682. H and `target` are in nats/token, H over all response tokens. The bounds are ours.
    """

    name: ClassVar[str] = "doubling"
    steers: ClassVar[tuple[str, ...]] = ("repo-r",)
    field = "zeta"
    target: float = 0.2
    min_zeta: float = 1e-4
    max_zeta: float = 1.0

    def __post_init__(self):
        self.require(self.target > 0, "target", "above 0")
        self.require(0 < self.min_zeta <= self.max_zeta < math.inf, "min_zeta", "above 0, at most max_zeta")

    def moved(self, value: float, configured: float, step: int, policy_entropy: float) -> float:
        return min(max(value * (2.0 if policy_entropy < self.target else 0.5), self.min_zeta), self.max_zeta)


@dataclass(frozen=True)
class Schedule(Controller):
    """Explore, then commit: moves a number of a control to `to`.

        as configured for `start` updates, then along a line over `length` updates, then `to`

    This schedule is ours. Clip-Cov at fraction 0 does nothing; KL-Cov at fraction 0 still has an unclipped surrogate.
    """

    name: ClassVar[str] = "schedule"
    field: str = "fraction"
    start: float = 400
    length: float = 200
    to: float = 0.0

    def __post_init__(self):
        self.require(0 <= self.start < math.inf, "start", "at least 0")
        self.require(0 < self.length < math.inf, "length", "above 0")
        self.require(math.isfinite(self.to), "to", "finite")

    def check(self, control: Control) -> None:
        dataclasses.replace(self.part_of(control), **{self.field: self.to})  # raises where the control refuses it

    def moved(self, value: float, configured: float, step: int, policy_entropy: float) -> float:
        left = min(max(1 - (step - self.start) / self.length, 0.0), 1.0)
        return configured * left + self.to * (1 - left)
