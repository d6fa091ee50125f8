"""Alarms on a live run: entropy that collapses or explodes, reward that stands still, lengths that run away.

`Watch` sees a run's metrics row by row and returns the alarms that a row raises. A live run, the same run read from its
folder, and a resumed one have the same alarms. `alarm_report` compares the alarms with the outcome of recorded runs,
which it judges from the whole run and by other formulas.

Levels are relative to the run's own start, because entropy has no common scale. A level is the median of the last
iterations' means. The rate of a fall is the slope of log entropy over the last part of the run so far, extrapolated
over the run's length, so that a power law looks alike early and late. A watch tests at every step, so a slope must
differ by several standard errors, or chance would raise an alarm in most runs. tests/benchmarks/alarm_rates.py measures
how often each alarm is false, and how often and how early it is right.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from erltool.runs.folder import Run
from erltool.tables import Table

KINDS = {
    "collapse": "entropy is a small fraction of its start, and soon spent at its rate",
    "explosion": "entropy is far above its start, and rises",
    "stall": "entropy is being spent, and reward does not rise",
    "runaway": "response length or gradient norm is a multiple of its start, and entropy above its own",
}
WATCHED = {"policy_entropy": "entropy", "reward": "reward", "response_length": "length", "grad_norm": "gradient norm"}
REARM = 1.25  # times the threshold that a level must come back before it can raise the same alarm again
TINY = 1e-12  # nats; below it a logarithm is all rounding


@dataclass(frozen=True)
class Alarm:
    """A warning from a run's metrics."""

    kind: str  # one of KINDS
    step: int  # the optimiser step whose metrics raised it
    message: str  # a sentence of at most 56 columns
    value: float  # nats/token (collapse, explosion), rise of reward (stall) or multiple of the start (runaway)
    threshold: float  # in the same unit

    def __str__(self) -> str:
        return f"step {self.step}: {self.kind}: {self.message}"


@dataclass
class Watch:
    """Watches a run's metrics, one row a step. Thresholds are relative to the run's start; lengths are iterations.

    A metric that is missing or not finite in a row is skipped. No alarm comes before `level` iterations, or where
    entropy starts at 0. An alarm of entropy also needs a level `sigmas` standard deviations of an iteration's mean away
    from the start. For explosion and runaway the start is at least the first level, which is less noisy.
    """

    collapse: float = 0.5
    """Collapse: entropy is at most this fraction of its start, and would reach `floor` within the run's length again,
    at its rate less `doubt` standard errors ..."""
    floor: float = 0.1
    """... or is at most this fraction, whatever its rate."""
    doubt: float = 1.5
    explosion: float = 1.3
    """Explosion: entropy is at least this multiple of its start, and rises by `doubt` standard errors."""
    sigmas: float = 3.0  # by the changes between the first `noise` iterations, and their median absolute deviation
    rise: float = 0.02
    """Stall: reward rises by less than this in `stall` iterations, even with `sigmas` standard errors added to its
    slope over the last `stall` iterations, or the last 1.5, 2.25, ... times as many ..."""
    spent: float = 0.2
    """... and entropy falls by at least this fraction over the same iterations; both `hold` times in a row."""
    hold: int = 5
    runaway: float = 2.0
    """Runaway: length or gradient norm is at least this multiple of its start, and entropy half way to `explosion`."""
    start: int = 2
    level: int = 5
    noise: int = 40
    trend: int = 10
    """The rate is over the last `trend` iterations, or the last fraction `recent` of all where that is more."""
    recent: float = 0.25
    stall: int = 40
    _means: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in WATCHED}, init=False, repr=False)
    _open: dict[str, tuple[float, int]] = field(default_factory=dict, init=False, repr=False)
    _raised: set[str] = field(default_factory=set, init=False, repr=False)
    _standing: float = field(default=math.inf, init=False, repr=False)

    def see(self, row: Mapping[str, float]) -> tuple[Alarm, ...]:
        """The alarms that the metrics of the next step raise; keys are those of METRICS.

        A kind is raised once, and again only after its level has come back past the threshold by a quarter.
        """
        for name in WATCHED:
            self._add(name, row.get("iteration", row["step"]), row.get(name))
        entropy = self._means["policy_entropy"]
        if len(entropy) < self.level or (start := self._start("policy_entropy")) < TINY:
            return ()
        alarms = []
        for kind in KINDS:
            on, off, *values = getattr(self, f"_{kind}")(entropy, start, row["step"])
            if on and kind not in self._raised:
                self._raised.add(kind)
                alarms.append(Alarm(kind, int(row["step"]), *values))
            elif off:
                self._raised.discard(kind)
        return tuple(alarms)

    def _add(self, name: str, iteration: float, value: float | None) -> None:
        if value is None or not math.isfinite(value):
            return
        means, (last, count) = self._means[name], self._open.get(name, (math.nan, 0))
        if iteration != last:
            means.append(0.0)
            count = 0
        means[-1] += (float(value) - means[-1]) / (count + 1)
        self._open[name] = (iteration, count + 1)

    def _start(self, name: str) -> float:
        return statistics.fmean(self._means[name][: self.start]) if self._means[name] else 0.0

    def _high_start(self, name: str) -> float:
        """The start or the first level, whichever is higher; 0 without values."""
        first = self._means[name][: self.level]
        return max(self._start(name), statistics.median(first)) if first else 0.0

    def _level(self, name: str) -> float:
        return statistics.median(self._means[name][-self.level :]) if self._means[name] else 0.0

    def _noise(self, entropy: list[float]) -> float:
        """`sigmas` standard deviations of a level, and more while iterations are few."""
        first = entropy[: self.noise]
        return self.sigmas * (1 + 4 / len(first)) * noise(first)

    def _recent(self, entropy: list[float]) -> np.ndarray:
        return np.array(entropy[-max(self.trend, int(self.recent * len(entropy))) :])

    # --- each kind: whether it holds, whether it is over, message, value, threshold --------------------

    def _collapse(self, entropy: list[float], start: float, step: int) -> tuple:
        level, threshold = self._level("policy_entropy"), self.collapse * start
        message, off = f"entropy {level:.3g} of {start:.3g} nats", level > REARM * threshold
        if off or level > start - self._noise(entropy):
            return False, off
        left = math.log(max(level, TINY) / (self.floor * start))  # of log entropy, down to the floor
        slope, error = line(np.log(self._recent(entropy).clip(TINY)))
        soon = level <= threshold and 0 < left <= -(slope + self.doubt * error) * len(entropy)
        if soon:
            message += f", {self.floor:.0%} by step {step * (1 - left / slope / len(entropy)):.0f}"
        return soon or left <= 0, off, message, level, threshold

    def _explosion(self, entropy: list[float], start: float, step: int) -> tuple:
        level, start = self._level("policy_entropy"), self._high_start("policy_entropy")
        if level < self.explosion * start / REARM:
            return False, True
        threshold = max(self.explosion * start, start + self._noise(entropy))
        slope, error = line(self._recent(entropy))
        on = level >= threshold and slope > self.doubt * error
        message = f"entropy {level:.3g} nats/token, {level / start:.3g} times its start"
        return on, level < threshold / REARM, message, level, threshold

    def _stall(self, entropy: list[float], start: float, step: int) -> tuple:
        reward = np.array(self._means["reward"])
        if min(len(reward), len(entropy)) < self.stall:
            return False, False
        stretch = self._standing_still(entropy, reward)
        self._standing = min(self._standing, len(reward)) if stretch else math.inf
        on = len(reward) - self._standing >= self.hold - 1
        slope, error = line(reward[-self.stall :])
        rises = (slope - self.doubt * error) * (self.stall - 1) > self.rise
        return on, rises, *(stretch or ("", math.nan, self.rise))

    def _standing_still(self, entropy: list[float], reward: np.ndarray) -> tuple | None:
        """Message, rise and threshold of the shortest stretch in which reward stands still while entropy falls."""
        length, now = self.stall, self._level("policy_entropy")
        while length <= min(len(reward), len(entropy)):
            before = statistics.median(entropy[-length:][: self.level])
            slope, error = line(reward[-length:])
            if now <= (1 - self.spent) * before and (slope + self.sigmas * error) * (self.stall - 1) < self.rise:
                value, threshold = (v * (length - 1) for v in (slope, self.rise / (self.stall - 1)))
                fall = f"entropy fell by {1 - now / before:.0%}"
                return f"reward {value:+.3f} in {length} iterations, {fall}", value, threshold
            length = length * 3 // 2
        return None

    def _runaway(self, entropy: list[float], start: float, step: int) -> tuple:
        raised = self._level("policy_entropy") / self._high_start("policy_entropy")
        starts = {name: self._high_start(name) for name in ("response_length", "grad_norm")}
        times, name = max((self._level(n) / s if s > 0 else 0.0, n) for n, s in starts.items())
        on = times >= self.runaway and raised >= (1 + self.explosion) / 2
        message = f"{WATCHED[name]} {times:.3g} times its start, entropy {raised:.3g} times"
        return on, times < self.runaway / REARM, message, times, self.runaway


def line(y: np.ndarray) -> tuple[float, float]:
    """Slope of the least-squares line through y at 0, 1, 2, ... and its standard error; (0, 0) below 3 points."""
    if len(y) < 3:
        return 0.0, 0.0
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = x @ y / (x @ x)
    rest = y - y.mean() - slope * x
    return float(slope), float(np.sqrt(rest @ rest / (len(y) - 2) / (x @ x)))


def noise(y: Sequence[float]) -> float:
    """Standard deviation of a value about a drift: 1.4826 / sqrt(2) * the median absolute deviation of differences of
    neighbours, in which a jump does not count; 0 for less than 3 values."""
    if len(y) < 3:
        return 0.0
    changes = [b - a for a, b in itertools.pairwise(y)]
    middle = statistics.median(changes)
    return 1.4826 / math.sqrt(2) * statistics.median(abs(c - middle) for c in changes)


def alarm_report(
    runs: Sequence[Run], watch: Callable[[], Watch] = Watch, *, collapsed: float = 0.1, exploded: float = 1.5,
    sustained: int = 20,
) -> pd.DataFrame:  # fmt: skip
    """One row a run: what became of its entropy, and when the alarms came.

    The outcome is judged without the watch, from iteration means and their centred mean over 10 iterations. Entropy
    collapsed if the mean of its last tenth is below `collapsed` times that of its first two iterations, at the step
    from which it stayed below. It exploded at the first of `sustained` iterations in a row above `exploded` times the
    start. Columns: run, control, seed, steps, start (nats/token), last and peak (fractions of the start); for each kind
    `KIND_alarm`, the step of its first alarm; `collapse_at`, `explosion_at`, steps; `gain_after_stall`, the further
    rise of reward (mean over 10 iterations) after that alarm. NaN means never, or not measured.
    """
    return Table([_judge(run, watch(), collapsed, exploded, sustained) for run in runs])


def _judge(run: Run, watch: Watch, collapsed: float, exploded: float, sustained: int) -> dict:
    alarms = [a for row in run.metrics.to_dict("records") for a in watch.see(row)]
    first = {kind: next((a.step for a in alarms if a.kind == kind), math.nan) for kind in KINDS}
    by = run.metrics.groupby("iteration")
    entropy, steps = by["policy_entropy"].mean(), by["step"].max()
    smooth = entropy.rolling(10, center=True, min_periods=1).mean()
    start, last = entropy.iloc[:2].mean(), entropy.iloc[-max(5, len(entropy) // 10) :].mean()
    high = (smooth > exploded * start).astype(int)
    long = high.rolling(sustained).sum().eq(sustained).to_numpy()
    at = {"collapse_at": math.nan, "explosion_at": math.nan}
    if last < collapsed * start:
        above = np.flatnonzero(smooth >= collapsed * start)
        at["collapse_at"] = steps.iloc[min(above[-1] + 1, len(steps) - 1)]
    if long.any():
        at["explosion_at"] = steps.iloc[long.argmax() - sustained + 1]
    reward = by["reward"].mean().rolling(10).mean()
    after = reward[steps >= first["stall"]]
    return {
        "run": run.name, "control": run.config["control"]["name"], "seed": run.config["seed"],
        "steps": len(run.metrics), "start": start, "last": last / start, "peak": smooth.max() / start,
        **{f"{kind}_alarm": step for kind, step in first.items()}, **at,
        "gain_after_stall": after.max() - after.iloc[0] if len(after) else math.nan, "alarms": len(alarms),
    }  # fmt: skip


def alarm_summary(report: pd.DataFrame) -> pd.DataFrame:
    """How often the alarms of collapse and explosion were right, one row each, from the rows of `alarm_report`.

    Columns: runs, happened, hits, misses, false_alarms, counts of runs; false_alarm_rate, of the runs in which it did
    not happen (NaN without such runs); lead, the median steps by which the alarm came first.
    """
    rows = {}
    for kind in ("collapse", "explosion"):
        happened, raised = report[f"{kind}_at"].notna(), report[f"{kind}_alarm"].notna()
        calm = (~happened).sum()
        rows[kind] = {
            "runs": len(report), "happened": happened.sum(), "hits": (happened & raised).sum(),
            "misses": (happened & ~raised).sum(), "false_alarms": (raised & ~happened).sum(),
            "false_alarm_rate": (raised & ~happened).sum() / calm if calm else math.nan,
            "lead": (report[f"{kind}_at"] - report[f"{kind}_alarm"]).dropna().median(),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")
