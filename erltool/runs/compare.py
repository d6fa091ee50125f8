"""Comparisons of runs: one row of end values a run, and differences paired by seed, with intervals.

Runs of one seed share prompts and random numbers of evaluation, so their difference is less noisy than that of means.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from erltool.errors import ErltoolError
from erltool.runs.folder import Run
from erltool.tables import Table
from erltool.text import visible

EDGE = 5  # iterations averaged at the start and at the end, because single updates are noisy
# Fields of a configuration that are no setting of training: they are named otherwise, or change only what is measured.
NO_SETTING = re.compile("control|controller|seed|device|trust_remote_code|(eval|record|checkpoint|entropy_change)_.*")


def setting_of(run: Run) -> str:
    """A run's control as `parse_control` reads it, "kl-cov:fraction=0.1,coef=2.0", and " under " its controller."""
    control, controller = control_text(run.config["control"]), run.config.get("controller")
    return f"{control} under {control_text(controller)}" if controller else control


def settings_of(runs: Mapping[str, Run]) -> dict[str, str]:
    """`setting_of` each run, and behind it each field of its configuration that differs among the runs, as
    "none, learning_rate=0.0003", but for a value that more than half of the runs have."""
    configs = {name: {k: v for k, v in run.config.items() if not NO_SETTING.fullmatch(k)} for name, run in runs.items()}
    usual = {}
    for field in {k: None for config in configs.values() for k in config}:
        value, count = Counter(str(config.get(field)) for config in configs.values()).most_common(1)[0]
        usual[field] = value if 2 * count > len(configs) else None
    return {
        name: ", ".join([setting_of(runs[name])] + [f"{k}={v}" for k, v in config.items() if str(v) != usual[k]])
        for name, config in configs.items()
    }


def control_text(control: Mapping) -> str:
    """The result of `control_to_dict` as text for `parse_control` or `parse_controller`."""
    if "members" in control:
        return "+".join(control_text(member) for member in control["members"])
    inside = ",".join(f"{k}={v}" for k, v in control.items() if k != "name" and v is not None)
    return f"{control['name']}:{inside}" if inside else control["name"]


def arm_of(name: str) -> str:
    """The arm in the name of a grid's run: "clip-cov" of "discovery-seed10-clip-cov". "" for a name without one."""
    found = re.search(r"-seed\d+-(.*)", name)
    return found[1] if found else ""


def end_values(runs: Mapping[str, Run]) -> pd.DataFrame:
    """One row a run, by name: its setting, where it began and where it ended.

    Columns: `setting` (`settings_of`), `seed`, `failed` (why, or ""), `entropy_start`, `entropy_end` (nats/token, means
    of EDGE iterations), `entropy_spent` (fraction of the start), `accuracy_start`, `accuracy_best` and `accuracy_late`
    (held-out; the latter is the mean over the second half of the steps, because a single policy's varies by more than
    controls differ), `tempered_late` (the same at `eval_temperature`), `average` and `pass@k` of the last policy's
    evaluation, `average@T` at other temperatures (0: greedy), `length_end` (tokens), `zero_spread_end` and
    `all_wrong_end` (fractions of groups), `thinking_end` (fraction of responses), `covariance_start`, `covariance_end`
    (nats), `selected` (mean fraction of tokens that the control acted on). NaN where nothing was measured.
    """
    settings = settings_of(runs)
    return Table([_end_values(run, settings[name]) for name, run in runs.items()], index=list(runs))


# The metrics whose means over the first and the last EDGE iterations are end values.
AT_START = {"entropy": "policy_entropy", "covariance": "mean_covariance"}
AT_END = AT_START | {
    "length": "response_length", "zero_spread": "zero_spread_fraction", "all_wrong": "all_wrong_fraction",
    "thinking": "thinking_fraction",
}  # fmt: skip


def _end_values(run: Run, setting: str) -> dict:
    values = {"setting": visible(setting), "seed": run.config["seed"]}
    values["failed"] = visible(run.evaluation.get("failed", ""))
    if not len(run.metrics):
        return values
    rows = _by_iteration(run.metrics, [*AT_END.values(), "selected_fraction"])
    start = {f"{name}_start": _mean(rows[m][:EDGE]) for name, m in AT_START.items()}
    end = {f"{name}_end": _mean(rows[m][-EDGE:]) for name, m in AT_END.items()}
    # Names in the order of the docstring.
    values |= {"entropy_start": start["entropy_start"], "entropy_end": end["entropy_end"]}
    values["entropy_spent"] = 1 - end["entropy_end"] / start["entropy_start"] if start["entropy_start"] else np.nan
    values |= _accuracies(run.metrics) | {f"{name}_end": end[f"{name}_end"] for name in AT_END if name not in AT_START}
    values |= {"covariance_start": start["covariance_start"], "covariance_end": end["covariance_end"]}
    values["selected"] = _mean(rows["selected_fraction"])
    measured = {k: v for k, v in run.evaluation.items() if k == "average" or k.startswith("pass@")}
    tempered = {f"average@{t}": result["average"] for t, result in run.evaluation.get("tempered", {}).items()}
    return values | measured | tempered


def _accuracies(metrics: pd.DataFrame) -> dict[str, float]:
    """Held-out accuracy at the start, at its best, and late: over the second half of the steps."""
    step = metrics["step"].to_numpy(float)
    accuracy, tempered = (_column(metrics, name) for name in ("eval_accuracy", "eval_accuracy_tempered"))
    there = np.isfinite(accuracy)
    late, evaluated = there & (step > step.max() / 2), accuracy[there]
    return {
        "accuracy_start": float(evaluated[0]) if len(evaluated) else np.nan, "accuracy_late": _mean(accuracy[late]),
        "tempered_late": _mean(tempered[late]), "accuracy_best": float(evaluated.max()) if len(evaluated) else np.nan,
    }  # fmt: skip


# Arrays and not tables: a grid has hundreds of runs, and pandas takes a millisecond for each small step.
def _column(metrics: pd.DataFrame, name: str) -> np.ndarray:
    """A column of metrics, float64; NaN throughout where the run lacks it."""
    return metrics[name].to_numpy(float) if name in metrics else np.full(len(metrics), np.nan)


def _by_iteration(metrics: pd.DataFrame, names: list[str]) -> dict[str, np.ndarray]:
    """These columns, each the mean over every iteration's updates."""
    iteration = metrics["iteration"]
    if not (iteration.is_unique and iteration.is_monotonic_increasing):
        metrics = metrics.groupby("iteration")[[n for n in names if n in metrics]].mean()
    return {name: _column(metrics, name) for name in names}


def _mean(values: np.ndarray) -> float:
    """Mean of what is measured; NaN without any."""
    measured = values[np.isfinite(values)]
    return float(measured.mean()) if len(measured) else np.nan


@dataclass(frozen=True)
class Difference:
    """A mean difference over n seeds, with the interval of Student's t, n - 1 degrees of freedom."""

    mean: float
    low: float
    high: float
    seeds: int
    level: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f}, {self.seeds} seeds)"


def paired_difference(values: pd.Series, baseline: pd.Series, level: float = 0.95) -> Difference:
    """Mean of values - baseline over the seeds that both have, each a Series indexed by seed.

    The interval assumes that differences are normal over seeds, which few seeds cannot show, so read it as a measure of
    spread. With one seed it is (-inf, inf). Raises ErltoolError for no common seed, a repeated seed, a level outside
    (0, 1), or NaN.
    """
    if not 0 < level < 1:
        raise ErltoolError(f"paired_difference: level {level} must be between 0 and 1, as 0.95")
    if values.index.has_duplicates or baseline.index.has_duplicates:
        raise ErltoolError("paired_difference: a seed occurs twice; give one value a seed")
    difference = (values.astype(float) - baseline.astype(float)).reindex(values.index.intersection(baseline.index))
    if not len(difference):
        raise ErltoolError("paired_difference: no seed is in both; give runs of the same seeds")
    if not np.isfinite(difference).all():
        raise ErltoolError("paired_difference: a value is not finite; leave failed runs out, and say how many")
    mean, n = float(difference.mean()), len(difference)
    quantile = special.stdtrit(n - 1, (1 + level) / 2) if n > 1 else np.inf
    half = float(quantile * difference.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf
    return Difference(mean, mean - half, mean + half, n, level)


def differences(
    table: pd.DataFrame, value: str, baseline: str, by: str = "setting", level: float = 0.95
) -> dict[str, Difference]:
    """`paired_difference` of a column of `end_values`, for each group `by`, against the group `baseline`."""
    groups = {str(name): rows.set_index("seed")[value].dropna() for name, rows in table.groupby(by, sort=False)}
    if baseline not in groups:
        raise ErltoolError(f"no runs of {baseline!r} to compare with; there are {', '.join(groups)}")
    return {n: paired_difference(v, groups[baseline], level) for n, v in groups.items() if n != baseline and len(v)}


def share_by_step(run: Run, shares: Iterable[float], smooth: int = 10) -> pd.DataFrame:
    """Entropy spent and accuracy gained by each share of a run's steps (Fig 1 left, Fig 2).

    One row a share in (0, 1]: `share`, `entropy_spent` (fraction of the run's whole fall) and `accuracy_gained`
    (fraction of the rise to its best), from means of `smooth` iterations and of three evaluations. NaN where entropy
    never fell, or accuracy never rose. Raises ErltoolError for a run with fewer than four evaluations.
    """
    accuracy = run.evaluated().set_index("step")["eval_accuracy"]
    if len(accuracy) < 4:
        raise ErltoolError(f"share_by_step: {len(accuracy)} evaluations; give a run with at least 4")
    entropy = run.metrics.groupby("iteration")[["step", "policy_entropy"]].mean().set_index("step")["policy_entropy"]
    smoothed = (entropy.rolling(smooth, min_periods=1).mean(), accuracy.rolling(3, min_periods=1).mean())
    steps, rows = run.metrics["step"].max(), []
    for share in shares:
        at = [s[s.index <= max(share * steps, s.index[0])].iloc[-1] for s in smoothed]
        fall, rise = smoothed[0].iloc[0] - smoothed[0].iloc[-1], smoothed[1].max() - smoothed[1].iloc[0]
        rows.append({
            "share": share,
            "entropy_spent": (smoothed[0].iloc[0] - at[0]) / fall if fall > 0 else np.nan,
            "accuracy_gained": (at[1] - smoothed[1].iloc[0]) / rise if rise > 0 else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def covariance_and_fall(run: Run, window: int = 20) -> pd.DataFrame:
    """Covariance beside the fall of the entropy, smoothed (Fig 8, left): one row an iteration with full windows.

    Columns: `step`; `token_covariance` (Eq 10) and `group_covariance` (Eq 8), nats, means of the `window` iterations
    around it; `fall`, nats/token an iteration: mean entropy of the `window` iterations before minus those after, over
    `window`. Iterations have different prompts, so without windows the difference is mostly noise. Raises ErltoolError
    below 3 * window iterations.
    """
    rows = run.metrics.groupby("iteration").mean(numeric_only=True)
    if len(rows) < 3 * window:
        raise ErltoolError(f"covariance_and_fall: {len(rows)} iterations; give a run with at least {3 * window}")
    mean = rows.rolling(window).mean()
    before, after = mean["policy_entropy"], mean["policy_entropy"].shift(-window)
    around = mean[["mean_covariance", "group_covariance"]].shift(-(window // 2))
    table = pd.DataFrame({
        "step": run.metrics.groupby("iteration")["step"].max(), "token_covariance": around["mean_covariance"],
        "group_covariance": around["group_covariance"], "fall": (before - after) / window,
    })  # fmt: skip
    return table.dropna().reset_index(drop=True)
