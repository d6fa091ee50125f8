"""What a report is made of: runs and other tools' logs, as rows named alike, and what is missing in each."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.law.fit import LawFit, fit_law
from erltool.logs.read import Log
from erltool.report.advice import advise
from erltool.runs.alarms import WATCHED, Alarm, Watch
from erltool.runs.compare import EDGE, setting_of
from erltool.runs.folder import METRICS, Run
from erltool.text import visible
from erltool.widgets.points import points_of

QUANTILES = {  # metrics of METRICS, and the tokens of the update that they average over
    "covariance_top_0.0002": "top 0.02 %", "covariance_top_0.002": "top 0.2 %", "covariance_top_0.02": "top 2 %",
    "covariance_top_0.2": "top 20 %", "covariance_top_0.5": "top 50 %", "mean_covariance": "all tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A run or a log, with the name that a reader sees."""

    name: str
    data: Run | Log
    window: float | None = None
    """Steps up to an evaluation over which a log's entropy is averaged; None for the gap between evaluations."""
    performance: str = "eval_accuracy"
    """What a run's law ties to entropy: `eval_accuracy`, or `reward` where no run was evaluated."""

    @property
    def run(self) -> Run | None:
        return self.data if isinstance(self.data, Run) else None

    @property
    def log(self) -> Log | None:
        return self.data if isinstance(self.data, Log) else None

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row a step; columns are keys of METRICS. A log's performance is `eval_accuracy`, in fractions."""
        if isinstance(self.data, Run):
            return self.data.metrics.apply(pd.to_numeric, errors="coerce")  # a damaged file may hold text
        log = self.data
        rows = pd.DataFrame({
            role: log.metrics[column] / (100 if column in log.percents else 1)
            for role, column in log.columns.items() if role in METRICS
        })  # fmt: skip
        scale = 100 if log.unit == "percentage points" else 1
        rows["policy_entropy"] = log.metrics[log.columns["entropy"]]
        rows["eval_accuracy"] = log.metrics[log.columns["performance"]] / scale
        return rows

    @property
    def control(self) -> str:
        """The run's control and its parameters; "" where the source does not say."""
        try:
            return visible(setting_of(self.data)) if isinstance(self.data, Run) else ""
        except (KeyError, TypeError, AttributeError):  # an imported log, or a damaged file
            return ""

    @cached_property
    def law(self) -> LawFit | str:
        """The law fitted to the source's points, or why there is none."""
        try:
            if isinstance(self.data, Run):
                p = points_of(self.data, self.performance)
                return fit_law(p.entropy, p.performance, unit=p.unit, entropy_average=p.entropy_average)
            log, points = self.data, self.data.points(self.window)
            h, r = points["entropy"].to_numpy(), points["performance"].to_numpy()
            return fit_law(h, r, unit=log.unit, entropy_average=log.entropy_average)
        except ErltoolError as e:
            return str(e)

    @cached_property
    def alarms(self) -> tuple[Alarm, ...]:
        """What the watch of a live run would have said."""
        watch, found = Watch(), list[Alarm]()
        known = [c for c in ("step", "iteration", *WATCHED) if c in self.rows]
        for row in self.rows[known].to_dict("records"):
            found += watch.see({k: v for k, v in row.items() if np.isfinite(v)}) if np.isfinite(row["step"]) else ()
        return tuple(found)

    @cached_property
    def advice(self) -> str:
        """The paragraph of `erltool advise`; "" where there is none."""
        try:
            return advise(self.data) if isinstance(self.data, Run) else ""
        except ErltoolError:
            return ""

    @cached_property
    def missing(self) -> list[str]:
        """What a report could show and this source does not have, a sentence each, with the remedy."""
        rows, said = self.rows, []
        if rows.empty:
            return ["It has no steps yet."]
        if "reward" not in rows:
            said.append("No reward: the log has no column that is one.")
        if isinstance(self.law, str):
            said.append(f"No law: {visible(self.law)}.")
        if not self.quantiles:
            said.append("No covariance: only erltool's trainers, its own and that for TRL, record it.")
        if self.run is None:
            said.append("No tokens, no configuration and no versions: a log has none.")
        elif not self.advice:
            said.append("No advice: that needs 40 iterations of a run of erltool.")
        return said

    @property
    def quantiles(self) -> dict[str, str]:
        """Those of QUANTILES that were measured."""
        return {k: v for k, v in QUANTILES.items() if k in self.rows and self.rows[k].notna().any()}

    def by_iteration(self, metric: str) -> pd.Series:
        """A metric's mean over each iteration where it was measured, by the iteration's last step."""
        if metric not in self.rows:
            return pd.Series(dtype=float)
        rows = self.rows.dropna(subset=["step", metric])
        groups = rows.groupby(rows["iteration"] if "iteration" in rows else rows["step"], sort=False)
        return pd.Series(groups[metric].mean().to_numpy(), index=groups["step"].max().to_numpy())

    def edges(self, metric: str) -> tuple[float, float]:
        """A metric where it began and where it ended: means of up to EDGE iterations, of an accuracy the first and last
        measurement; (nan, nan) where it was not measured."""
        values = self.by_iteration(metric)
        if not len(values):
            return np.nan, np.nan
        n = 1 if metric == "eval_accuracy" else min(EDGE, max(1, len(values) // 4))
        return float(values.head(n).mean()), float(values.tail(n).mean())


def named(sources: Mapping[str, Run | Log], window: float | None = None) -> list[Source]:
    """The sources with names that are visible and differ."""
    runs = [data for data in sources.values() if isinstance(data, Run)]
    evaluated = not runs or any(len(run.evaluated()) for run in runs)
    made: dict[str, Source] = {}
    for name, data in sources.items():
        first = shown = visible(name) or "run"
        for k in itertools.count(2):
            if shown not in made:
                break
            shown = f"{first} ({k})"
        made[shown] = Source(shown, data, window, "eval_accuracy" if evaluated else "reward")
    return list(made.values())


def settings(sources: list[Source]) -> tuple[dict[str, str], pd.DataFrame]:
    """Configuration and versions of the runs: what all have alike, and a column for each run of what differs."""
    flat = {s.name: _flat({"": s.run.config, "made by": s.run.made_by}) for s in sources if s.run}
    for s in sources:
        if s.run and s.run.continued_by:
            flat[s.name]["continued by"] = visible(list(s.run.continued_by))
    if not flat:
        return {}, pd.DataFrame()
    fields = list(dict.fromkeys(f for values in flat.values() for f in values))
    table = pd.DataFrame({name: [values.get(f, "\u2013") for f in fields] for name, values in flat.items()}, fields)
    alike = table.nunique(axis=1) == 1
    return dict(table[alike].iloc[:, 0]), table[~alike]


def _flat(document: Mapping, before: str = "") -> dict[str, str]:
    """Each value of nested objects as text, under its path."""
    values: dict[str, str] = {}
    for key, value in document.items():
        path = f"{before} {visible(key)}".strip()
        if isinstance(value, Mapping) and value:
            values |= _flat(value, path)
        else:
            values[path] = "none" if value is None else visible(value)
    return values
