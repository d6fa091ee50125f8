"""RunMonitor: a run that trains beside the notebook, watched, paused, stopped and steered from it."""

import atexit
import contextlib
import contextvars
import logging
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from erltool.errors import ErltoolError
from erltool.plots import COLOURS, new_axes, new_rows
from erltool.runs.folder import METRICS, read_run
from erltool.text import visible
from erltool.training.config import TrainConfig
from erltool.training.steering import GREEDY, Score, score_of, steering_config
from erltool.widgets import steering_view
from erltool.widgets.control_explorer import binned, label_of, middles, parts_of
from erltool.widgets.steering import Hand
from erltool.widgets.steering_view import title_of
from erltool.widgets.view import CHOSEN, View, javascript, message

if TYPE_CHECKING:
    from erltool.training.loop import Steps
    from erltool.training.step import Step  # loads transformers, which takes seconds: not before a run starts

DRAWN = ("policy_entropy", "reward", "eval_accuracy", "mean_covariance")
STATES = ("ready", "running", "paused", "stopped", "done", "failed")
APART = 0.1  # seconds between messages to the browser
LAST_ITERATION = 30  # seconds that Python's end waits for an iteration's end
RECENT = 20  # steps that the rate is measured over
# Runs take turns, an update each: loading a policy sets the default dtype of the whole process for a moment, and two
# updates at once would only share the cores.
_TURN = threading.Lock()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunMonitorResult:
    """A run so far."""

    state: str
    """One of STATES."""
    metrics: pd.DataFrame
    """One row a step; the columns are runs.METRICS"""
    step: "Step | None"
    """The last update, with its tokens; None before the first"""
    config: TrainConfig | None = None
    """With what was steered so far as its controller, so that `train` repeats the run; None where there is no run"""

    @property
    def score(self) -> Score:
        """What the run came to so far."""
        return score_of(self.metrics, self.config.to_dict() if self.config else {})

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
        self, config: TrainConfig | None = None, out: str | Path | None = None, resume: bool = False,
        steer: bool = False,
    ):  # fmt: skip
        self._out, self._resume = out, resume
        self._rows: list[dict] = []
        self._last: Step | None = None
        self._times: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._sent = 0.0
        self._lock = threading.RLock()
        self._may_run, self._stopping, self._at_rest = threading.Event(), threading.Event(), threading.Event()
        self._at_rest.set()
        self._alone = _without_parent()
        self._given = steering_config() if steer and config is None else config
        self._hand: Hand | None = None
        self._no_run = self._taken_in_hand(steer)
        self._drawn = steering_view.DRAWN if self._hand else DRAWN
        super().__init__(problem=self._no_run)
        if self._hand:
            self.recorded, self.dials = self._hand.recorded, self._hand.numbers
        self.observe(self._on_turn, "dials")
        self.on_msg(lambda _, content, buffers: self._on_button(content))
        self._show()

    def _taken_in_hand(self, steer: bool) -> str:
        """Why there is no run with this configuration, "" where there is one."""
        if not isinstance(self._given, TrainConfig):
            return f"RunMonitor: give a TrainConfig, not {type(self._given).__name__}"
        try:
            self._hand = Hand(self._given, self._resume, self._lock) if steer else None
        except ErltoolError as e:
            return f"RunMonitor: {e}"
        return ""

    @property
    def _config(self) -> TrainConfig:
        return self._hand.config if self._hand else cast("TrainConfig", self._given)

    # --- from the notebook and the view ---------------------------------------------------------------

    def start(self) -> "RunMonitor":
        """Begins the run, or goes on with one that is paused, or that was stopped and has a folder."""
        with self._lock:
            if self.state == "paused":
                return self.resume()
            if self.state in ("running", "done"):
                return self._say(f"the run is {self.state}; make another RunMonitor for another run")
            if not self._startable:
                return self._say(f"a {self.state} run without out= cannot go on; make another RunMonitor")
            self._times.clear()
            self._stopping.clear()
            self._may_run.set()
            self._to("running")
            atexit.register(self._leave)
            threading.Thread(target=self._work, name="RunMonitor", daemon=True).start()
        return self

    def pause(self) -> "RunMonitor":
        """Halts the run at the end of the iteration."""
        with self._lock:
            if self.state != "running":
                return self._say(f"nothing to pause; the run is {self.state}")
            self._may_run.clear()
            return self._say("")

    def resume(self) -> "RunMonitor":
        """Goes on after a pause."""
        with self._lock:
            if self.state not in ("running", "paused") or self._may_run.is_set():
                return self._say(f"nothing to resume; the run is {self.state}")
            self._times.clear()
            self._may_run.set()
            self._to("running")
        return self

    def stop(self) -> "RunMonitor":
        """Ends the run at the end of the iteration; one with a folder leaves a checkpoint there."""
        with self._lock:
            if self.state not in ("running", "paused"):
                return self._say(f"nothing to stop; the run is {self.state}")
            self._stopping.set()
            self._may_run.set()
            self._at_rest.clear()
            return self._say("")

    def steer(self, **numbers: float) -> "RunMonitor":
        """Turns dials: `fraction`, `coef`, or both."""
        self.dials = self.dials | numbers
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the run is not running, or for `timeout` seconds. Returns whether it is not."""
        return self._at_rest.wait(timeout)

    @property
    def result(self) -> RunMonitorResult:
        """The run so far, at any moment."""
        with self._lock:
            rows = list(self._rows)
            metrics = pd.DataFrame(rows, columns=None if rows else list(METRICS))
            return RunMonitorResult(self.state, metrics, self._last, None if self._no_run else self._config)

    @property
    def sentence(self) -> str:
        with self._lock:
            state, d = self.state, self._data()
        about, steps, latest = d["about"], d["steps"], d["latest"]
        if not latest:
            return f"{about}: {state}, no step yet of {steps}."
        names = {"eval_accuracy": "held-out accuracy", GREEDY: "greedy accuracy"}
        accuracy = "".join(f", {name} {latest[m]:.3f}" for m, name in names.items() if m in latest)
        numbers = f"entropy {latest['policy_entropy']:.3f} nats/token, reward {latest['reward']:.3f}{accuracy}"
        said = f"{about}: {state} at step {d['step']} of {steps}; {numbers}."
        return f"{said} {d['steering']['score']}" if self._hand else said

    def picture(self) -> Figure:
        """The view's metrics by step."""
        metrics = self.result.metrics
        if metrics.empty and not (self._hand and self._hand.arms):
            return message(self.problem or self.sentence)
        if self._hand:
            axes = new_rows(2, 3, width=4.4, height=2.8)
            steering_view.draw(axes, metrics, self._hand.arms, self._config)
            return axes[0].figure
        axes = new_axes(len(DRAWN), width=3.3, height=2.6)
        for index, (ax, name) in enumerate(zip(axes, DRAWN, strict=True)):
            rows = metrics.reindex(columns=["step", name]).dropna()
            ax.plot(rows["step"], rows[name], color=COLOURS[index % 4], marker="." if len(rows) < 50 else None)
            ax.set(xlabel="optimiser step", ylabel=title_of(name), xlim=(0, self._steps))
            ax.grid(alpha=0.25)
        return axes[0].figure

    # --- the thread -----------------------------------------------------------------------------------

    def _work(self) -> None:
        end, problem = "failed", ""
        try:
            with _TURN:
                from erltool.training.loop import train

                if self._hand:
                    self._hand.begin(Path(self._out) if self._resume and self._out is not None else None)
                steps = train(self._config, self._out, self._resume)
                if self._resume and self._out is not None:
                    self._read_back(self._out)
                self._resume = self._out is not None  # from here on the folder holds this run
            with contextlib.closing(steps):
                while self._goes_on():
                    with _TURN:
                        step = self._next(steps)
                    if step is None:
                        break
                    self._take(step)
            end = "done" if self._rows and self._rows[-1]["step"] >= self._config.steps else "stopped"
        except ErltoolError as e:
            problem = str(e)
        except Exception as e:
            _log.exception("RunMonitor: the run failed")
            problem = f"{type(e).__name__}: {' '.join(str(e).split())}"
        with self._lock:
            self._to(end, visible(problem))
        atexit.unregister(self._leave)

    def _next(self, steps: "Steps") -> "Step | None":
        try:
            return (
                self._hand.next(steps, int(self._rows[-1]["step"]) if self._rows else 0) if self._hand else next(steps)
            )
        except StopIteration:
            return None

    def _leave(self) -> None:
        """Python is ending: a thread that is inside PyTorch then would abort the process."""
        self.stop()
        self.wait(LAST_ITERATION)

    def _goes_on(self) -> bool:
        """Whether another step follows; waits while the run is paused. Always true within an iteration."""
        if self._rows and self._rows[-1]["step"] % self._config.updates_per_iteration:
            return True
        if not self._may_run.is_set():
            with self._lock:
                if not self._may_run.is_set():  # not resumed since
                    self._to("paused")
            self._may_run.wait()
        return not self._stopping.is_set()

    def _read_back(self, folder: str | Path) -> None:
        rows = read_run(folder).metrics.to_dict("records")
        with self._lock:
            self._rows, self._last = [{k: v for k, v in row.items() if v == v} for row in rows], None

    def _take(self, step: "Step") -> None:
        with self._lock:
            self._rows.append(step.metrics)
            self._last = step
            self._times.append((step.metrics["step"], time.monotonic()))
            new = [visible(str(alarm)) for alarm in step.alarms]
            if new or time.monotonic() - self._sent >= APART:
                self._show(alarms=[*self.alarms, *new])

    # --- the dials ------------------------------------------------------------------------------------

    @traitlets.validate("dials")
    def _as_numbers(self, proposal) -> dict[str, float]:
        """The dials with what was turned, if the control can have it; else the panel says why not."""
        try:
            return self._hand.accepted(proposal.value) if self._hand else {}
        except ErltoolError as e:
            self._say(str(e))
            return dict(self._hand.dials) if self._hand else {}

    def _on_turn(self, change) -> None:
        if self._hand and self._hand.turn(change.new):
            with self._lock:
                self._show(problem=self._no_run)

    # --- to the view ----------------------------------------------------------------------------------

    def _on_button(self, content) -> None:
        command = content.get("command") if isinstance(content, dict) else None
        if command in ("start", "pause", "stop"):
            getattr(self, command)()

    def _say(self, problem: str) -> "RunMonitor":
        """Shows what is wrong; "" where nothing is."""
        self._show(problem=self._no_run or problem and f"RunMonitor: {problem}")
        return self

    def _to(self, state: str, problem: str = "") -> None:
        """Changes the state; the lock is held."""
        self._show(state=state, problem=problem)
        self._at_rest.clear() if state == "running" else self._at_rest.set()

    def _show(self, **traits) -> None:
        """Sends traits with the run so far, as one message."""
        self._sent = time.monotonic()
        with self.hold_sync():
            for name, value in traits.items():
                setattr(self, name, value)
            self.data = self._data()

    @property
    def _startable(self) -> bool:
        return not self._no_run and (self._out is not None or not self._rows)

    @property
    def _steps(self) -> int:
        return 0 if self._no_run else self._config.steps

    def _data(self) -> dict:
        steps = np.array([r["step"] for r in self._rows], float)
        shown = [*self._drawn, *(f"control_{field}" for field in self.dials)]
        curves = {m: binned(steps, np.array([r.get(m, np.nan) for r in self._rows], float), self._steps) for m in shown}
        rate = 0.0
        if len(self._times) > 1:
            (first, began), (last, now) = self._times[0], self._times[-1]
            rate = (last - first) / max(now - began, 1e-9)
        asked = "stop" if self._stopping.is_set() else "" if self._may_run.is_set() else "pause"
        latest = {m: float(self._rows[-1][m]) for m in self._drawn if self._rows and m in self._rows[-1]}
        for m in (m for m in self._drawn if m.startswith("eval_")):  # measured now and then
            if measured := [r[m] for r in self._rows if m in r]:
                latest[m] = float(measured[-1])
        steered = {"steering": self._hand.data(self._rows, self._last)} if self._hand else {}
        return steered | {
            "about": "no run" if self._no_run else _about(self._config, bool(self._hand)),
            "startable": self._startable,
            "asked": asked if self.state == "running" else "",
            "step": len(steps) and int(steps[-1]),
            "steps": self._steps,
            "rate": rate,
            "latest": latest,
            "metrics": {m: title_of(m) for m in self._drawn},
            "at": middles(self._steps).astype(np.float32).tobytes(),
            "curves": {m: v.astype(np.float32).tobytes() for m, v in curves.items()},
        }

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


def _about(config: TrainConfig, by_hand: bool) -> str:
    fields = config.to_dict()
    control = label_of(*parts_of(fields["control"], fields["controller"]))
    control = f"{config.control.name} steered by hand" if by_hand else control
    return visible(f"{config.policy} on {config.task}, {control}, seed {config.seed}")
