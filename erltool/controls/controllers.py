"""Controllers change a control from update to update, by the entropy of each update (`TrainConfig.controller`).

    control = controller.after(control, configured, step, policy_entropy)

`control` has acted in update number `step`, whose entropy was `policy_entropy` (nats/token); `configured` is the
control in the run's configuration. The control that is returned acts in the next update. A controller is a frozen value
and changes numbers of the control, so a checkpoint needs the control only.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
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
        value = self.moved(self.value(control), self.value(configured), step, policy_entropy)
        return _changed(control, self.part_of(control), self.field, value)

    def value(self, control: Control) -> float:
        """The number that it changes, as it is now."""
        return getattr(self.part_of(control), self.field)

    def values(self, control: Control) -> dict[str, float]:
        """What it has set for this update, as runs.METRICS name it."""
        return {"control_value": self.value(control)}

    def part_of(self, control: Control) -> Control:
        """The member that it steers. Raises ErltoolError where the control has none, or several."""
        candidates = [p for p in control.parts if p.name in self.steers] if self.steers else control.parts
        members = _with_number(candidates, self.field)
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


def _with_number(members: Iterable[Control], field: str) -> list[Control]:
    return [m for m in members if any(f.name == field and f.type is float for f in dataclasses.fields(m))]


def _changed(control: Control, part: Control, field: str, value: float) -> Control:
    """The control with another number in one of its members. Raises ErltoolError where the member refuses it."""
    changed = dataclasses.replace(part, **{field: value})
    members = tuple(changed if member is part else member for member in control.parts)
    return members[0] if len(members) == 1 else Composed(members)


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

    def check(self, control: Control) -> None:
        bounds = f"in [min_zeta, max_zeta] = [{self.min_zeta:g}, {self.max_zeta:g}]"
        inside = self.min_zeta <= self.value(control) <= self.max_zeta
        self.require(inside, f"the zeta of control {control.name}", bounds)

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


STEERED = ("fraction", "coef")  # the numbers of a control that a hand can steer


def steerable(control: Control) -> dict[str, float]:
    """The numbers of STEERED that exactly one member of the control has, as they are now."""
    found = {field: _with_number(control.parts, field) for field in STEERED}
    return {field: getattr(members[0], field) for field, members in found.items() if len(members) == 1}


@dataclass(frozen=True)
class Steered(Controller):
    """A control's share and coefficient as a hand has steered them (ours): what a steered run records, and repeats.

        schedule = "41:fraction:0.05/81:coef:2.0"     from update 41 on fraction 0.05, from update 81 on coef 2

    Update 1 has the configured control, so the first change is at update 2 or later. `Steered.of` takes the changes as
    (update, field, value). Without changes the control stays as configured, and the run can be steered as it goes
    (`train`).
    """

    name: ClassVar[str] = "steered"
    schedule: str = ""

    def __post_init__(self):
        self.require(isinstance(self.schedule, str), "schedule", "text; give changes to Steered.of")
        object.__setattr__(self, "schedule", _schedule_text(_parsed(self.schedule)))

    @classmethod
    def of(cls, changes: Iterable[Sequence]) -> "Steered":
        """From (update, field, value) each; of two changes of a field at one update the later one counts."""
        return cls("/".join(":".join(map(str, change)) for change in changes))

    @property
    def changes(self) -> tuple[tuple[int, str, float], ...]:
        """(update, field, value) of each change, in the order of the updates."""
        return _parsed(self.schedule)

    def then(self, step: int, numbers: Mapping[str, float]) -> "Steered":
        """The same with these numbers from update `step` on."""
        return self.of([*self.changes, *((step, field, float(value)) for field, value in numbers.items())])

    def values(self, control: Control) -> dict[str, float]:
        return {f"control_{field}": value for field, value in steerable(control).items()}

    def after(self, control: Control, configured: Control, step: int, policy_entropy: float) -> Control:
        for at, field, value in self.changes:
            if at == step + 1:
                control = _changed(control, self._part(control, field), field, value)
        return control

    def check(self, control: Control) -> None:
        if not steerable(control):
            raise ErltoolError(
                f"controller {self.name}: control {control.name} has no {' or '.join(STEERED)} to steer; use kl-cov, "
                "or clip-cov+entropy-bonus"
            )
        for _, field, value in self.changes:
            _changed(control, self._part(control, field), field, value)  # raises where the control refuses it

    def _part(self, control: Control, field: str) -> Control:
        members = _with_number(control.parts, field)
        if len(members) != 1:
            raise ErltoolError(
                f"controller {self.name}: needs one number {field} to steer, and control {control.name} has "
                f"{len(members) or 'none'}"
            )
        return members[0]


def _schedule_text(changes: Iterable[tuple[int, str, float]]) -> str:
    return "/".join(f"{step}:{field}:{value!r}" for step, field, value in changes)


def _parsed(schedule: str) -> tuple[tuple[int, str, float], ...]:
    """The changes in a schedule's text. Raises ErltoolError where it is none."""
    changes: dict[tuple[int, str], float] = {}
    for entry in filter(None, schedule.split("/")):
        try:
            step, field, value = entry.split(":")
            at, number = int(step), float(value)
            if at < 2 or field not in STEERED or not math.isfinite(number):
                raise ValueError(entry)
        except ValueError:
            shown = entry if len(entry) <= 40 else f"{entry[:39]}\u2026"
            raise ErltoolError(
                f"controller steered: schedule has {shown!r}; it must be changes UPDATE:FIELD:VALUE with an update "
                f"from 2 on and a field {' or '.join(STEERED)}, joined by /, as 41:fraction:0.05/81:coef:2"
            ) from None
        changes[at, field] = number
    return tuple((at, field, number) for (at, field), number in sorted(changes.items()))
