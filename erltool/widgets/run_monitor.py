"""RunMonitor: a run that trains beside the notebook, watched, paused, stopped and steered from it, or one that another
program trains, followed as `erltool watch` follows it."""

import contextvars
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import traitlets
from matplotlib.figure import Figure

from erltool.errors import ErltoolError
from erltool.logs.live import Snapshot
from erltool.training.config import TrainConfig
from erltool.training.steering import Score, score_of
from erltool.widgets.followed_run import FollowedRun
from erltool.widgets.trained_run import TrainedRun
from erltool.widgets.view import CHOSEN, View, javascript, message

if TYPE_CHECKING:
    from erltool.training.step import Step  # loads transformers, which takes seconds: not before a run starts

STATES = ("ready", "running", "paused", "stopped", "done", "failed")


@dataclass(frozen=True)
class RunMonitorResult:
    """A run so far."""

    state: str
    """One of STATES."""
    metrics: pd.DataFrame
    """One row a step; the columns are runs.METRICS. Of a followed run they are those of them that it has, and
    `performance` in its own unit."""
    step: "Step | None"
    """The last update, with its tokens; None before the first, and where the run is followed"""
    config: TrainConfig | None = None
    """With what was steered so far as its controller, so that `train` repeats the run; None where there is no run"""
    snapshot: Snapshot | None = None
    """Of a followed run: law and forecast, alarms, columns and unit; None before the first look"""

    @property
    def score(self) -> Score:
        """What the run came to so far."""
        rows = self.metrics if "iteration" in self.metrics else self.metrics.assign(iteration=self.metrics["step"])
        return score_of(rows, self.config.to_dict() if self.config else {})

    @property
    def row(self) -> dict:
        """The score and the configuration, ready for JSON: what a participant hands in (lessons.workshop). None stands
        for what was not measured."""
        score = {name: None if value != value else value for name, value in asdict(self.score).items()}
        return score | {"config": self.config.to_dict() if self.config else {}}


class RunMonitor(View):
    """`RunMonitor(config)`: trains in a thread when started; `.result` is the run so far, for the next cell.

    Start, Pause and Stop are buttons of the view and methods here; the notebook's cells run meanwhile. A run pauses and
    stops at the end of an iteration. With `out` the run is written there as by `train`, and a stop leaves a checkpoint;
    `start` goes on from it, in another monitor with `resume`. Monitors of one kernel take turns, an update each.

    With `steer` there is a dial for the control's fraction and for its coef, and `steer(fraction=0.05)` turns one from
    Python. A turn acts on the next update (after `start` went on with a stopped run, on the second one), and before the
    start on the first. The run is then drawn beside the recorded ones of its setting, and `result.config` repeats it.
    Without a configuration it is that of training.steering, which takes a minute.

    `RunMonitor(path)` follows what another program writes, as `erltool watch` does and in its words: a run's folder, a
    log, or a metrics store, which need not be there yet. `columns`, `unit` and `run` are those of `read_log`, and
    `steps` is how many the run will have, if it does not say so. It follows at once, until the run has all its steps,
    or `stop()` or `close()`; the run itself is not touched. Where there are several runs, the view asks for one.

    Nothing here raises: the view shows what is wrong (a configuration that cannot train, a full disk, stopping what
    does not run) in one line, `problem`.
    """

    _esm = javascript("run_monitor.js")
    state = traitlets.Enum(STATES, "ready").tag(sync=True)
    data = traitlets.Dict().tag(sync=True)
    alarms = traitlets.List(traitlets.Unicode()).tag(sync=True)
    dials = traitlets.Dict().tag(**CHOSEN)
    """The steered numbers for the next update, by field; {} where the run is not steered."""
    recorded = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(
        self, config: TrainConfig | str | os.PathLike | None = None, out: str | Path | None = None,
        resume: bool = False, steer: bool = False, *, columns: Mapping[str, str] | None = None,
        unit: str | None = None, run: str | None = None, steps: int | None = None,
    ):  # fmt: skip
        choices = {"columns": columns, "unit": unit, "run": run}
        self._alone = _without_parent()
        self._run: TrainedRun | FollowedRun
        if isinstance(config, str | os.PathLike):
            self._run = FollowedRun(Path(config), choices, steps, self._show)
            of_the_other: tuple = (out, resume, steer)
            mixed = "out, resume and steer are for a run that is trained here; leave them out, or give a TrainConfig"
        else:
            self._run = TrainedRun(config, out, resume, steer, self._show)
            of_the_other = (*choices.values(), steps)
            mixed = "columns, unit, run and steps are for a run that is followed; leave them out, or give its path"
        self._no_run = (
            f"RunMonitor: {problem}" if (problem := mixed if any(of_the_other) else self._run.problem) else ""
        )
        super().__init__(problem=self._no_run)
        if self._run.hand and not self._no_run:
            self.recorded, self.dials = self._run.hand.recorded, self._run.hand.numbers
        self.observe(self._on_turn, "dials")
        self.on_msg(lambda _, content, buffers: self._on_button(content))
        self._show()
        if isinstance(self._run, FollowedRun):
            self.start()

    # --- from the notebook and the view ---------------------------------------------------------------

    def start(self) -> "RunMonitor":
        """Begins the run, or goes on with one that is paused, or that was stopped and has a folder."""
        return self._do("start")

    def pause(self) -> "RunMonitor":
        """Halts the run at the end of the iteration; a followed run itself goes on."""
        return self._do("pause")

    def resume(self) -> "RunMonitor":
        """Goes on after a pause."""
        return self._do("resume")

    def stop(self) -> "RunMonitor":
        """Ends the run at the end of the iteration; one with a folder leaves a checkpoint there. A followed run is no
        longer followed, and itself goes on."""
        return self._do("stop")

    def steer(self, **numbers: float) -> "RunMonitor":
        """Turns dials: `fraction`, `coef`, or both."""
        self.dials = self.dials | numbers
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the run is not running, or for `timeout` seconds. Returns whether it is not."""
        return self._run.at_rest.wait(timeout)

    def close(self) -> None:
        """Takes the view away; what was followed no longer is."""
        self._run.close()
        super().close()

    @property
    def result(self) -> RunMonitorResult:
        """The run so far, at any moment."""
        run = self._run
        with run.lock:
            return RunMonitorResult(self.state, run.metrics, run.last, run.config, run.snapshot)

    @property
    def sentence(self) -> str:
        return self._run.sentence

    def picture(self) -> Figure:
        """The view's metrics by step."""
        return self._run.picture() or message(self.problem or self.sentence)

    def _do(self, what: str) -> "RunMonitor":
        problem = self._no_run or getattr(self._run, what)()
        if problem:
            self._show(problem=self._no_run or f"RunMonitor: {problem}")
        return self

    # --- the dials ------------------------------------------------------------------------------------

    @traitlets.validate("dials")
    def _as_numbers(self, proposal) -> dict[str, float]:
        """The dials with what was turned, if the control can have it; else the panel says why not."""
        hand = self._run.hand
        try:
            return hand.accepted(proposal.value) if hand else {}
        except ErltoolError as e:
            self._show(problem=self._no_run or f"RunMonitor: {e}")
            return dict(hand.dials) if hand else {}

    def _on_turn(self, change) -> None:
        if self._run.hand and self._run.hand.turn(change.new):
            with self._run.lock:
                self._show(problem=self._no_run)

    # --- to the view ----------------------------------------------------------------------------------

    def _on_button(self, content) -> None:
        command = content.get("command") if isinstance(content, dict) else None
        if command in ("start", "pause", "stop"):
            getattr(self, command)()
        elif command == "choose" and isinstance(self._run, FollowedRun) and type(content.get("run")) is int:
            self._run.choose(content["run"])

    def _show(self, **traits) -> None:
        """Sends traits with the run so far, as one message."""
        with self._run.lock, self.hold_sync():
            for name, value in traits.items():
                setattr(self, name, value)
            self.data = self._run.data()

    def open(self) -> None:
        self._alone.copy().run(super().open)

    def _send(self, msg, buffers=None) -> None:
        self._alone.copy().run(super()._send, msg, buffers)


def _without_parent() -> contextvars.Context:
    """A context whose messages answer no request, neither a cell's nor another widget's.

    ipykernel handles a widget's messages in the thread of the request that the widget last answered. After a cell has
    touched the widget this is the main thread, where a button waits until the cells end. The messages of a widget that
    answers none are handled beside the cells, where JupyterLab asks for it.
    """
    context = contextvars.copy_context()
    for variable in list(context):
        if variable.name == "shell_parent":
            context.run(variable.set, {})
    return context
