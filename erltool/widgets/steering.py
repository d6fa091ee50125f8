"""The hand on a run that RunMonitor trains: what it may turn, what it has turned, and what the view shows of it."""

import dataclasses
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from erltool.controls.base import Control
from erltool.controls.controllers import Steered, steerable
from erltool.errors import ErltoolError
from erltool.runs.folder import METRICS, holds_run, read_run
from erltool.training.config import TrainConfig
from erltool.widgets import steering_view as view

if TYPE_CHECKING:
    from erltool.training.loop import Steps
    from erltool.training.step import Step

NOTCHES = {
    "fraction": (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
    "coef": (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
}
LEGIBLE = 1.0  # seconds for which sampled responses stay


class Hand:
    """The steering of one run. `config` has what was steered so far, so that `train` repeats the run.

    Dials are turned in the notebook's threads, and updates are made in the run's; `lock` is the run's.
    """

    def __init__(self, config: TrainConfig, resume: bool, lock: threading.RLock):
        self.config = ready_to_steer(config, resume)
        self._lock, self._turns, self._started = lock, dict[str, float](), False
        self.dials = self.numbers
        self.arms = view.recorded_arms(self.config)
        self.recorded = view.recorded_data(self.arms, self.config.steps)
        self._law: tuple[int, view.Forecast | None] = (-1, None)
        self._samples: tuple[float, list[dict]] = (0.0, [])

    @property
    def numbers(self) -> dict[str, float]:
        """The control's steered numbers after all changes so far, by field."""
        changes = self.config.controller.changes if isinstance(self.config.controller, Steered) else ()
        return steerable(self.config.control) | {field: value for _, field, value in changes}

    # --- turning --------------------------------------------------------------------------------------

    def accepted(self, asked: Mapping) -> dict[str, float]:
        """The dials with the numbers that are asked for, where they are the control's; others are left out. Raises
        ErltoolError where the control refuses one."""
        new = {k: float(v) for k, v in asked.items() if k in self.dials and type(v) in (int, float)}
        turned(self.config.control, new)
        return self.dials | new

    def turn(self, dials: dict[str, float]) -> bool:
        """Keeps what was turned for the next update. Returns whether anything was."""
        with self._lock:
            turns = {field: value for field, value in dials.items() if self.dials.get(field) != value}
            self._turns |= turns
            self.dials = dials
        return bool(turns)

    def _taken(self) -> dict[str, float]:
        """What was turned since it was last taken, without what is so already."""
        with self._lock:
            turns, self._turns = self._turns, {}
            return {field: value for field, value in turns.items() if self.numbers.get(field) != value}

    def begin(self, folder: Path | None) -> None:
        """Makes the configuration that of the run in the folder, if one is there to go on with; else gives the control
        the numbers that were turned before the start."""
        self._started = False
        if folder is not None and holds_run(folder):
            recorded = read_run(folder).config
            fields = self.config.to_dict() | {k: recorded.get(k) for k in ("control", "controller")}
            self.config = ready_to_steer(TrainConfig.from_dict(fields), resume=True)
        elif turns := self._taken():
            self.config = dataclasses.replace(self.config, control=turned(self.config.control, turns))

    def next(self, steps: "Steps", step: int) -> "Step":
        """The update that follows number `step`, with what was turned. Raises StopIteration at the end."""
        turns = self._taken() if self._started else {}  # a generator takes nothing before its first update
        self._started = True
        if not turns:
            return next(steps)
        with self._lock:
            self.config = self.config.steered(step + 1, turns)
        return steps.send(turns)

    # --- for the view ---------------------------------------------------------------------------------

    def data(self, rows: list[dict], last: "Step | None") -> dict:
        """What a steered run shows beside its curves."""
        metrics = pd.DataFrame(rows, columns=None if rows else list(METRICS))
        points = view.points_of_law(metrics)
        if self._law[0] != len(points[0]):  # a new evaluation
            self._law = len(points[0]), view.law_so_far(*points)
        if last is not None and time.monotonic() - self._samples[0] > LEGIBLE:
            self._samples = time.monotonic(), view.samples_of(last)
        controller = self.config.controller
        return {
            "dials": dials_of(self.config),
            "law": view.law_data(*points, self._law[1]),
            "samples": self._samples[1],
            "schedule": controller.schedule if isinstance(controller, Steered) else "",
            "next": view.numbers_text(self.dials),
            "score": view.score_sentence(metrics, self.config, self.recorded) if rows else "",
            "scores": view.score_data(metrics, self.config),
        }


def ready_to_steer(config: TrainConfig, resume: bool) -> TrainConfig:
    """The configuration with a controller that a hand can steer. Raises ErltoolError where that cannot be."""
    controller = Steered() if config.controller is None else config.controller
    if not isinstance(controller, Steered):
        raise ErltoolError(f"a hand and controller {controller.name} cannot both steer; leave out the controller")
    if controller.changes and not resume:
        raise ErltoolError("this configuration has a schedule; train it as it is, or steer one with Steered()")
    return dataclasses.replace(config, controller=controller)


def turned(control: Control, numbers: Mapping[str, float]) -> Control:
    """The control with other numbers. Raises ErltoolError where it refuses one."""
    schedule = Steered.of([(2, field, value) for field, value in numbers.items()])
    return schedule.after(control, control, 1, 0.0)


def dials_of(config: TrainConfig) -> list[dict]:
    """A dial for each steerable number: its field, its name, and the values at its notches."""
    dials = []
    for field, value in steerable(config.control).items():
        member = next(p for p in config.control.parts if any(f.name == field for f in dataclasses.fields(p)))
        notches = sorted({*NOTCHES[field], value})
        dials.append({"field": field, "name": f"{member.name}: {view.WORDS[field]}", "notches": notches})
    return dials
