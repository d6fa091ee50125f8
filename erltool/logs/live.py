"""A followed run as it stands: its series, its law and forecast, its alarms, and how long it will take.

Fitting is paid for by waiting: what took c seconds of a core is not done again before c / SHARE seconds have passed.
"""

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from erltool.errors import ErltoolError
from erltool.law.forecast import Forecast, forecast
from erltool.logs.follow import Follower
from erltool.logs.read import align_points
from erltool.runs.alarms import Alarm, Watch
from erltool.text import shown

SHARE = 0.003  # of a core, that fitting may take
RECENT = 20  # looks with a new step that the rate is measured over
ALARMED = {"entropy": "policy_entropy", "reward": "reward", "response_length": "response_length",
           "grad_norm": "grad_norm", "iteration": "iteration"}  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """A run at a moment."""

    name: str
    kind: str  # of the log, one of formats.KINDS; "" before it is known
    waits: str  # why nothing is there yet, or nothing new; "" where there is
    columns: Mapping[str, str]
    series: Mapping[str, np.ndarray]  # "step" and the roles that the log has, (n,) each; NaN where not measured
    unit: str  # of the performance
    forecast: Forecast | None  # the law of all points but the last, with its interval; None where there is no law
    no_law: str  # why there is none
    alarms: tuple[Alarm, ...]  # of the whole run
    new: tuple[Alarm, ...]  # those that this look has added
    total: int | None  # steps that the run will have, where it says so
    rate: float  # steps a second, over the last looks; NaN where nothing has come yet

    @property
    def step(self) -> int:
        """The last step; 0 before the first."""
        steps = self.series.get("step", np.array([]))
        return int(steps[-1]) if len(steps) else 0

    @property
    def seconds_left(self) -> float:
        """Until the last step, at the rate of the last looks; NaN where that is not known."""
        return max(0, self.total - self.step) / self.rate if self.total and self.rate > 0 else math.nan

    @property
    def done(self) -> bool:
        """Whether the run has all its steps."""
        return self.total is not None and self.step >= self.total

    def last(self, role: str) -> float:
        """The last value of a role, or NaN."""
        values = self.series.get(role, np.array([]))
        seen = values[np.isfinite(values)]
        return float(seen[-1]) if len(seen) else math.nan


class Live:
    """Looks at a followed log, and keeps what a look needs of the ones before."""

    def __init__(self, follower: Follower, steps: int | None = None):
        self._follower, self._steps = follower, steps
        self._watch, self._seen, self._restarts = Watch(), 0, -1
        self._alarms: list[Alarm] = []
        self._told: set[tuple[str, int]] = set()
        self._first = True
        self._times: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._forecast: Forecast | None = None
        self._no_law, self._points, self._not_before = "", 0, 0.0

    def look(self) -> tuple[bool, Snapshot]:
        """Whether anything is new, and the run as it stands. Raises ErltoolError as `Follower.look`."""
        follower = self._follower
        news = follower.look()
        series = follower.series if follower.log else {}
        raised = self._see(series, all_of_it=not news) if follower.log else ()
        if news and len(series["step"]):
            self._times.append((float(series["step"][-1]), time.monotonic()))
        refitted = bool(follower.log) and self._fit(series)
        log = follower.log
        name = f"{follower.path.name}{f' {log.run}' if log and log.run else ''}"
        snapshot = Snapshot(
            name, log.kind if log else "", follower.waits, log.columns if log else {}, series, log.unit if log else "",
            self._forecast, self._no_law, tuple(self._alarms), raised, self._steps or follower.total, self._rate(),
        )  # fmt: skip
        return bool(news or raised or refitted), snapshot

    def _see(self, series: Mapping[str, np.ndarray], all_of_it: bool) -> tuple[Alarm, ...]:
        """New alarms. The last step may still get metrics, so it is seen when a later one is there, or nothing new."""
        if self._follower.restarts != self._restarts:
            self._watch, self._seen, self._restarts, self._alarms = Watch(), 0, self._follower.restarts, []
        raised: list[Alarm] = []
        count = len(series["step"])
        for at in range(self._seen, count if all_of_it else count - 1):
            row = {name: float(series[role][at]) for role, name in ALARMED.items() if role in series}
            raised += self._watch.see(row | {"step": float(series["step"][at])})
            self._seen = at + 1
        self._alarms += raised
        new = tuple(a for a in raised if (a.kind, a.step) not in self._told)
        self._told |= {(a.kind, a.step) for a in raised}
        old, self._first = self._first and bool(count), self._first and not count
        return () if old else new  # what was there before the first look is not new

    def _rate(self) -> float:
        if len(self._times) < 2:
            return math.nan
        (first, began), (last, now) = self._times[0], self._times[-1]
        return (last - first) / (now - began) if last > first and now > began else math.nan

    def _fit(self, series: Mapping[str, np.ndarray]) -> bool:
        """Whether the law was fitted again: there are more points, and the time since the last fit pays for it."""
        if "performance" not in series:
            self._no_law = "no performance is logged yet"
            return False
        count = int(np.isfinite(series["performance"]).sum())
        if count == self._points or time.monotonic() < self._not_before:
            return False
        log = self._follower.log
        assert log is not None
        self._points, began = count, time.process_time()
        try:
            points = align_points(series["step"], series["entropy"], series["performance"])
            h, r = points["entropy"], points["performance"]
            self._forecast = forecast(h, r, cut=0.999, unit=log.unit, entropy_average=log.entropy_average)
            self._no_law = ""
        except ErltoolError as e:
            self._forecast, self._no_law = None, shown(str(e).removeprefix("forecast: "), 120)
        self._not_before = time.monotonic() + (time.process_time() - began) / SHARE
        return True
