"""A run that another program writes, as RunMonitor follows it: its thread, and what the view shows of it.

What is read and said is what `erltool watch` reads and says (logs.live, logs.said). The thread only reads, and sleeps
between two looks, so that the notebook's cells run meanwhile.
"""

import atexit
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from erltool.errors import ErltoolError
from erltool.logs.folders import NotChosen
from erltool.logs.follow import Follower
from erltool.logs.live import Live, Snapshot
from erltool.logs.read import align_points
from erltool.logs.said import NAMES, columns_text, last_text, law_texts, one_line, roles_of, steps_text
from erltool.plots import COLOURS, as_text, new_rows
from erltool.text import shown, visible
from erltool.widgets.control_explorer import binned, middles
from erltool.widgets.steering_view import law_data

LOOK_EVERY = 0.5  # seconds
LAST_LOOK = 10  # seconds that Python's end waits for a look's end
METRIC = {"entropy": "policy_entropy", "reward": "reward", "performance": "performance",
          "response_length": "response_length", "grad_norm": "grad_norm", "iteration": "iteration"}  # fmt: skip
UNITS = {"fraction": " (fraction)", "percentage points": " (%)"}
_log = logging.getLogger(__name__)


class FollowedRun:
    """A run's folder, a log or a metrics store that grows. `show` is told each change of the widget's traits, by name.

    `choices` are `columns`, `unit` and `run` of `read_log`, and `steps` is how many the run will have. Where the log
    holds several runs and none is chosen, `runs` names them, and `choose` takes one. Methods return what is wrong, ""
    where nothing is.
    """

    hand = last = config = None
    problem = ""

    def __init__(self, path: Path, choices: Mapping, steps: int | None, show: Callable[..., None]):
        self.state, self.alarms, self.lock = "ready", list[str](), threading.RLock()
        self.snapshot: Snapshot | None = None
        self.runs: tuple[str, ...] = ()
        self._path, self._choices, self._steps, self._show = path, dict(choices), steps, show
        self._live: Live | None = None
        self._looking = threading.Lock()
        self._stopping, self.at_rest = threading.Event(), threading.Event()  # a thread has a _stopping of its own
        self.at_rest.set()
        self._law: tuple[tuple, dict] = ((), {})

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a step: `step`, what the log has of METRIC's values, NaN where it was not measured."""
        snapshot = self.snapshot
        series = snapshot.series if snapshot and snapshot.series else {"step": np.empty(0), "entropy": np.empty(0)}
        return pd.DataFrame({METRIC.get(role, role): values for role, values in series.items()})

    # --- what the buttons do --------------------------------------------------------------------------

    def start(self) -> str:
        """Begins to follow, or goes on with what was read so far."""
        with self.lock:
            if self.state in ("running", "done"):
                return f"the run is {'followed already' if self.state == 'running' else 'done'}"
            self._stopping = threading.Event()
            self._to("running")
            atexit.register(self._leave)
            threading.Thread(target=self._work, args=(self._stopping,), name="RunMonitor", daemon=True).start()
        return ""

    def pause(self) -> str:
        return self._rest("pause", "paused", ("running",))

    def resume(self) -> str:
        return self.start() if self.state == "paused" else f"nothing to resume; the run is {self.state}"

    def stop(self) -> str:
        """No longer looks at the log; the run itself goes on."""
        return self._rest("stop", "stopped", ("running", "paused"))

    def _rest(self, what: str, state: str, where: tuple[str, ...]) -> str:
        with self.lock:
            if self.state not in where:
                return f"nothing to {what}; the run is {self.state}"
            self._stopping.set()
            self._to(state)
        return ""

    def choose(self, at: int) -> None:
        """Follows one of `runs` by its position, from its first row on."""
        with self.lock:
            if not 0 <= at < len(self.runs):
                return
            self._stopping.set()
            self._choices["run"] = self.runs[at]
            self._live, self.snapshot, self.state, self.alarms = None, None, "ready", []
            self.start()

    def close(self) -> None:
        """Nobody sees what is followed any more."""
        self._stopping.set()

    # --- the thread -----------------------------------------------------------------------------------

    def _work(self, stopping: threading.Event) -> None:
        end, problem, runs = "failed", "", self.runs
        try:
            end = self._follow(stopping)
        except NotChosen as e:
            runs, problem = e.names, str(e)
        except ErltoolError as e:
            problem = str(e)
        except Exception as e:
            _log.exception("RunMonitor: the log cannot be followed")
            problem = f"{type(e).__name__}: {' '.join(str(e).split())}"
        with self.lock:
            if not stopping.is_set():
                self.runs = runs
                self._to(end, visible(problem))
        atexit.unregister(self._leave)

    def _follow(self, stopping: threading.Event) -> str:
        """Looks again and again until the run is done; the state then."""
        with self.lock:
            live = self._live = self._live or Live(Follower(self._path, **self._choices), self._steps)
        told, first = "", True
        while not stopping.is_set():
            with self._looking:
                news, snapshot = live.look()
            with self.lock:
                if stopping.is_set():
                    break
                self.snapshot, self.alarms = snapshot, [visible(str(alarm)) for alarm in snapshot.alarms]
                if news or first or snapshot.waits != told:
                    self._show(alarms=self.alarms)
                told, first = snapshot.waits, False
            if snapshot.done and not news:
                return "done"
            stopping.wait(LOOK_EVERY)
        return "stopped"

    def _leave(self) -> None:
        """Python is ending, and a look may be inside a database or a fit."""
        self._stopping.set()
        self._looking.acquire(timeout=LAST_LOOK)

    def _to(self, state: str, problem: str = "") -> None:
        """Changes the state; the lock is held."""
        self.state = state
        self._show(state=state, problem=problem, alarms=self.alarms)
        self.at_rest.clear() if state == "running" else self.at_rest.set()

    # --- what is shown --------------------------------------------------------------------------------

    def data(self) -> dict:
        """For the view, as following.js reads it."""
        snapshot = self.snapshot
        there = snapshot is not None and bool(snapshot.columns)
        steps = max(snapshot.total or 0, snapshot.step) if snapshot and there else 0
        data = {
            "about": f"{shown(self._path)}, followed while it is written", "startable": True, "asked": "",
            "step": snapshot.step if snapshot else 0, "steps": steps,
            "known": bool(snapshot and snapshot.total), "head": "", "curves": [],
            "runs": [visible(name) for name in self.runs], "run": self._position,
        }  # fmt: skip
        if snapshot is None or not there:
            waits = (snapshot.waits if snapshot else "") or "for the first row"
            return data | {"said": [["waits", visible(waits)]] if self.state != "failed" else []}
        return data | {
            "head": f"{shown(snapshot.name, 30)} ({snapshot.kind}): {steps_text(snapshot)}",
            "said": self._said(snapshot), "at": (middles(steps + 1) - 1).astype(np.float32).tobytes(),
            "curves": [{"role": role, "title": title_of(snapshot, role), "last": last_text(snapshot, role),
                        "y": _reduced(snapshot, role, steps).tobytes()}
                       for role in roles_of(snapshot)],
            "law": self._law_of(snapshot),
        }  # fmt: skip

    @property
    def _position(self) -> int:
        """Of the run that is followed among `runs`; -1 where none is chosen."""
        run = self._choices.get("run")
        return self.runs.index(run) if run in self.runs else -1

    def _law_of(self, snapshot: Snapshot) -> dict:
        measured = snapshot.series.get("performance", np.empty(0))
        key = (id(snapshot.forecast), int(np.isfinite(measured).sum()), snapshot.unit)
        if self._law[0] != key:  # a new point, or a new fit
            self._law = key, law_of(snapshot)
        return self._law[1]

    def _said(self, snapshot: Snapshot) -> list[list[str]]:
        """Names and texts, as `erltool watch` has them."""
        said = [[NAMES[role], last_text(snapshot, role)] for role in roles_of(snapshot)]
        said += [[name, text] for name, text in law_texts(snapshot).items()]
        said += [] if snapshot.alarms else [["alarms", "none"]]
        said += [["waits", visible(snapshot.waits)]] if snapshot.waits else []
        return [*said, ["columns", columns_text(snapshot)]]

    @property
    def sentence(self) -> str:
        """The run so far."""
        snapshot = self.snapshot
        if snapshot is None or not snapshot.columns:
            waits = snapshot.waits if snapshot else ""
            return visible(f"{self._path}: {self.state}, {f'waits: {waits}' if waits else 'no row yet'}")
        return f"{shown(snapshot.name, 30)} ({snapshot.kind}): {one_line(snapshot)}"

    def picture(self) -> Figure | None:
        """The curves by step, and the law; None before there is anything to draw."""
        snapshot = self.snapshot
        if snapshot is None or not snapshot.columns:
            return None
        roles = roles_of(snapshot)
        axes = new_rows(-(-(len(roles) + 1) // 3), 3, width=4.4, height=2.8)
        for index, (ax, role) in enumerate(zip(axes, roles, strict=False)):
            seen = np.isfinite(snapshot.series[role])
            x, y = snapshot.series["step"][seen], snapshot.series[role][seen]
            ax.plot(x, y, color=COLOURS[index % 4], marker="." if len(x) < 50 else None)
            ax.set(xlabel="step", ylabel=as_text(title_of(snapshot, role)))
            ax.grid(alpha=0.25)
        _draw_law(axes[len(roles)], snapshot)
        for ax in axes[len(roles) + 1 :]:
            ax.set_axis_off()
        return axes[0].figure


def title_of(snapshot: Snapshot, role: str) -> str:
    """A curve's name with its unit."""
    unit = " (nats)" if role == "entropy" else UNITS.get(snapshot.unit, "") if role == "performance" else ""
    return NAMES[role] + unit


def _reduced(snapshot: Snapshot, role: str, steps: int) -> np.ndarray:
    """A role's values from step 0, before training, to the last: means of few spans."""
    counted = snapshot.series["step"] >= 0
    return binned(snapshot.series["step"][counted] + 1, snapshot.series[role][counted], steps + 1).astype(np.float32)


def points_of(snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray]:
    """Entropy (nats) and performance of the points that the law is fitted to, (n,) each."""
    series = snapshot.series
    if "performance" not in series or not np.isfinite(series["performance"]).any():
        return np.empty(0), np.empty(0)
    try:
        points = align_points(series["step"], series["entropy"], series["performance"])
    except ErltoolError:  # none of them has an entropy
        return np.empty(0), np.empty(0)
    return points["entropy"].to_numpy(), points["performance"].to_numpy()


def law_of(snapshot: Snapshot) -> dict:
    """The law's points, line and band for the view."""
    h, r = points_of(snapshot)
    top = {"fraction": 1.0, "percentage points": 100.0}.get(snapshot.unit)
    low, high = (0.0, top) if top else (float(r.min()), float(r.max())) if len(r) else (0.0, 1.0)
    pad = 0.0 if top else 0.05 * (high - low) or 0.5
    titles = {"title": f"the law: performance{UNITS.get(snapshot.unit, '')}", "across": "entropy (nats)"}
    return law_data(h, r, snapshot.forecast) | titles | {"span": [low - pad, high + pad]}


def _draw_law(ax, snapshot: Snapshot) -> None:
    h, r = points_of(snapshot)
    f = snapshot.forecast
    if f is not None and len(h):
        at = np.linspace(0.0, float(h.max()), 40)
        low, high = f.at(at)
        ax.plot(at, f.law.predict(at), color=COLOURS[0])
        ax.fill_between(at, low, high, color=COLOURS[0], alpha=0.16, linewidth=0)
    ax.plot(h, r, "o", color=COLOURS[0], markersize=4)
    if len(r):
        pad = 0.2 * float(r.max() - r.min()) or 0.1
        ax.set_ylim(float(r.min()) - pad, float(r.max()) + pad)  # a band of few points is wide
    ax.set(xlabel="entropy (nats)", ylabel=f"performance{UNITS.get(snapshot.unit, '')}")
    ax.grid(alpha=0.25)
