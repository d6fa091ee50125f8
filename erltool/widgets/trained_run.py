"""A run that RunMonitor trains: its thread, its rows so far, and what the view shows of them."""

import atexit
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from erltool.errors import ErltoolError
from erltool.plots import COLOURS, new_axes, new_rows
from erltool.runs.folder import METRICS, read_run
from erltool.text import visible
from erltool.training.config import TrainConfig
from erltool.training.steering import GREEDY, steering_config
from erltool.widgets import steering_view
from erltool.widgets.control_explorer import binned, label_of, middles, parts_of
from erltool.widgets.steering import Hand
from erltool.widgets.steering_view import title_of

if TYPE_CHECKING:
    from erltool.training.loop import Steps
    from erltool.training.step import Step  # loads transformers, which takes seconds: not before a run starts

DRAWN = ("policy_entropy", "reward", "eval_accuracy", "mean_covariance")
APART = 0.1  # seconds between messages to the browser
LAST_ITERATION = 30  # seconds that Python's end waits for an iteration's end
RECENT = 20  # steps that the rate is measured over
# Runs take turns, an update each: loading a policy sets the default dtype of the whole process for a moment, and two
# updates at once would only share the cores.
TURN = threading.Lock()
_log = logging.getLogger(__name__)


class TrainedRun:
    """The training of a configuration. `show` is told each change of the widget's traits, by name.

    Its methods return what is wrong, "" where nothing is.
    """

    snapshot = None

    def __init__(
        self, config: TrainConfig | None, out: str | Path | None, resume: bool, steer: bool, show: Callable[..., None]
    ):
        self.state, self.alarms, self.lock = "ready", list[str](), threading.RLock()
        self._out, self._resume, self._show = out, resume, show
        self._rows: list[dict] = []
        self.last: Step | None = None
        self._times: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._sent = 0.0
        self._may_run, self._stopping, self.at_rest = threading.Event(), threading.Event(), threading.Event()
        self.at_rest.set()
        self._given = steering_config() if steer and config is None else config
        self.hand: Hand | None = None
        self.problem = self._taken_in_hand(steer)
        self._drawn = steering_view.DRAWN if self.hand else DRAWN

    def _taken_in_hand(self, steer: bool) -> str:
        """Why there is no run with this configuration, "" where there is one."""
        if not isinstance(self._given, TrainConfig):
            return f"give a TrainConfig, or the path of a run or a log, not {type(self._given).__name__}"
        try:
            self.hand = Hand(self._given, self._resume, self.lock) if steer else None
        except ErltoolError as e:
            return str(e)
        return ""

    @property
    def _config(self) -> TrainConfig:
        return self.hand.config if self.hand else cast("TrainConfig", self._given)

    @property
    def config(self) -> TrainConfig | None:
        """With what was steered so far; None where there is no run."""
        return None if self.problem else self._config

    @property
    def metrics(self) -> pd.DataFrame:
        with self.lock:
            return pd.DataFrame(list(self._rows), columns=None if self._rows else list(METRICS))

    # --- what the buttons do --------------------------------------------------------------------------

    def start(self) -> str:
        with self.lock:
            if self.state == "paused":
                return self.resume()
            if self.state in ("running", "done"):
                return f"the run is {self.state}; make another RunMonitor for another run"
            if not self._startable:
                return f"a {self.state} run without out= cannot go on; make another RunMonitor"
            self._times.clear()
            self._stopping.clear()
            self._may_run.set()
            self._to("running")
            atexit.register(self._leave)
            threading.Thread(target=self._work, name="RunMonitor", daemon=True).start()
        return ""

    def pause(self) -> str:
        """At the end of the iteration."""
        with self.lock:
            if self.state != "running":
                return f"nothing to pause; the run is {self.state}"
            self._may_run.clear()
            self._show(problem="")
        return ""

    def resume(self) -> str:
        with self.lock:
            if self.state not in ("running", "paused") or self._may_run.is_set():
                return f"nothing to resume; the run is {self.state}"
            self._times.clear()
            self._may_run.set()
            self._to("running")
        return ""

    def stop(self) -> str:
        """At the end of the iteration."""
        with self.lock:
            if self.state not in ("running", "paused"):
                return f"nothing to stop; the run is {self.state}"
            self._stopping.set()
            self._may_run.set()
            self.at_rest.clear()
            self._show(problem="")
        return ""

    def close(self) -> None:
        """The run goes on without its widget."""

    # --- the thread -----------------------------------------------------------------------------------

    def _work(self) -> None:
        end, problem = "failed", ""
        try:
            with TURN:
                from erltool.training.loop import train

                if self.hand:
                    self.hand.begin(Path(self._out) if self._resume and self._out is not None else None)
                steps = train(self._config, self._out, self._resume)
                if self._resume and self._out is not None:
                    self._read_back(self._out)
                self._resume = self._out is not None  # from here on the folder holds this run
            with contextlib.closing(steps):
                while self._goes_on():
                    with TURN:
                        step = self._next(steps)
                    if step is None:
                        break
                    self.take(step)
            end = "done" if self._rows and self._rows[-1]["step"] >= self._config.steps else "stopped"
        except ErltoolError as e:
            problem = str(e)
        except Exception as e:
            _log.exception("RunMonitor: the run failed")
            problem = f"{type(e).__name__}: {' '.join(str(e).split())}"
        with self.lock:
            self._to(end, visible(problem))
        atexit.unregister(self._leave)

    def _next(self, steps: "Steps") -> "Step | None":
        try:
            return self.hand.next(steps, int(self._rows[-1]["step"]) if self._rows else 0) if self.hand else next(steps)
        except StopIteration:
            return None

    def _leave(self) -> None:
        """Python is ending: a thread that is inside PyTorch then would abort the process."""
        self.stop()
        self.at_rest.wait(LAST_ITERATION)

    def _goes_on(self) -> bool:
        """Whether another step follows; waits while the run is paused. Always true within an iteration."""
        if self._rows and self._rows[-1]["step"] % self._config.updates_per_iteration:
            return True
        if not self._may_run.is_set():
            with self.lock:
                if not self._may_run.is_set():  # not resumed since
                    self._to("paused")
            self._may_run.wait()
        return not self._stopping.is_set()

    def _read_back(self, folder: str | Path) -> None:
        rows = read_run(folder).metrics.to_dict("records")
        with self.lock:
            self._rows, self.last = [{k: v for k, v in row.items() if v == v} for row in rows], None

    def take(self, step: "Step") -> None:
        """Keeps an update."""
        with self.lock:
            self._rows.append(step.metrics)
            self.last = step
            self._times.append((step.metrics["step"], time.monotonic()))
            new = [visible(str(alarm)) for alarm in step.alarms]
            self.alarms = [*self.alarms, *new]
            if new or time.monotonic() - self._sent >= APART:
                self._show(alarms=self.alarms)

    def _to(self, state: str, problem: str = "") -> None:
        """Changes the state; the lock is held."""
        self.state = state
        self._show(state=state, problem=problem)
        self.at_rest.clear() if state == "running" else self.at_rest.set()

    # --- what is shown --------------------------------------------------------------------------------

    @property
    def _startable(self) -> bool:
        return not self.problem and (self._out is not None or not self._rows)

    @property
    def _steps(self) -> int:
        return 0 if self.problem else self._config.steps

    def data(self) -> dict:
        """For the view, as run_monitor.js reads it."""
        self._sent = time.monotonic()
        steps = np.array([r["step"] for r in self._rows], float)
        dials = self.hand.dials if self.hand else {}
        shown = [*self._drawn, *(f"control_{field}" for field in dials)]
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
        steered = {"steering": self.hand.data(self._rows, self.last)} if self.hand else {}
        return steered | {
            "about": "no run" if self.problem else _about(self._config, bool(self.hand)),
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

    @property
    def sentence(self) -> str:
        """The run so far."""
        with self.lock:
            state, d = self.state, self.data()
        about, steps, latest = d["about"], d["steps"], d["latest"]
        if not latest:
            return f"{about}: {state}, no step yet of {steps}."
        names = {"eval_accuracy": "held-out accuracy", GREEDY: "greedy accuracy"}
        accuracy = "".join(f", {name} {latest[m]:.3f}" for m, name in names.items() if m in latest)
        numbers = f"entropy {latest['policy_entropy']:.3f} nats/token, reward {latest['reward']:.3f}{accuracy}"
        said = f"{about}: {state} at step {d['step']} of {steps}; {numbers}."
        return f"{said} {d['steering']['score']}" if self.hand else said

    def picture(self) -> Figure | None:
        """The view's metrics by step; None before there is anything to draw."""
        metrics = self.metrics
        if metrics.empty and not (self.hand and self.hand.arms):
            return None
        if self.hand:
            axes = new_rows(2, 3, width=4.4, height=2.8)
            steering_view.draw(axes, metrics, self.hand.arms, self._config)
            return axes[0].figure
        axes = new_axes(len(DRAWN), width=3.3, height=2.6)
        for index, (ax, name) in enumerate(zip(axes, DRAWN, strict=True)):
            rows = metrics.reindex(columns=["step", name]).dropna()
            ax.plot(rows["step"], rows[name], color=COLOURS[index % 4], marker="." if len(rows) < 50 else None)
            ax.set(xlabel="optimiser step", ylabel=title_of(name), xlim=(0, self._steps))
            ax.grid(alpha=0.25)
        return axes[0].figure


def _about(config: TrainConfig, by_hand: bool) -> str:
    fields = config.to_dict()
    control = label_of(*parts_of(fields["control"], fields["controller"]))
    control = f"{config.control.name} steered by hand" if by_hand else control
    return visible(f"{config.policy} on {config.task}, {control}, seed {config.seed}")
