"""What the view and the picture of a steered run show: recorded runs beside it, its law, responses, and the score."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from erltool.controls.controllers import steerable
from erltool.errors import ErltoolError
from erltool.law.forecast import FEWEST, Forecast, forecast
from erltool.logs.read import align_points
from erltool.plots import COLOURS, as_text
from erltool.resources import shipped
from erltool.runs.compare import NO_SETTING, arm_of
from erltool.runs.folder import Run, read_runs
from erltool.text import visible
from erltool.training.config import TrainConfig
from erltool.training.steering import GREEDY, SAMPLED, score_of
from erltool.widgets.control_explorer import axis_label, binned

if TYPE_CHECKING:
    from erltool.training.step import Step

RECORD = "data/runs/steering"
DRAWN = ("policy_entropy", GREEDY, "reward", "thinking_fraction")
TITLES = {GREEDY: "greedy held-out accuracy", "thinking_fraction": "works step by step (in [0, 1])"}
ARMS = {"none": "no control", "best": "best", "random-clip": "at random"}
LINES = ("none", "best")  # drawn beside the run
LOOKS: dict[str, dict[str, Any]] = {
    "none": {"color": "#767676", "linestyle": "--"},
    "best": {"color": COLOURS[2], "linestyle": "-."},
}
WORDS = {"fraction": "fraction of tokens", "coef": "coefficient"}
LEVEL = 0.9  # of the law's band
SAMPLES = 5  # responses on show
GRID = 40  # points of the law's line


# --- recorded runs of the same setting -------------------------------------------------------------


def recorded_arms(config: TrainConfig) -> dict[str, list[Run]]:
    """The recorded runs of this setting, by arm; {} where none were recorded."""
    setting = _setting(config.to_dict())
    arms: dict[str, list[Run]] = {}
    for name, run in read_runs(shipped(RECORD)).items():
        arm = arm_of(name)
        if arm in ARMS and _setting(run.config) == setting:
            arms.setdefault(arm, []).append(run)
    return {arm: arms[arm] for arm in ARMS if arm in arms}


def _setting(config: Mapping) -> dict:
    return {k: v for k, v in config.items() if not NO_SETTING.fullmatch(k)}


def mean_of(runs: Sequence[Run]) -> pd.DataFrame:
    """The means over runs, a row a step."""
    return pd.concat([run.metrics for run in runs]).groupby("step").mean(numeric_only=True).reset_index()


def recorded_data(arms: Mapping[str, Sequence[Run]], steps: int) -> list[dict]:
    """Each arm's curves as means over its seeds, its points of the law, and its scores' means, for the view."""
    return [_arm_data(arm, runs, steps) for arm, runs in arms.items()]


def _arm_data(arm: str, runs: Sequence[Run], steps: int) -> dict:
    mean = mean_of(runs)
    h, r = points_of_law(mean)
    scores = [dataclasses.asdict(score_of(run.metrics, run.config)) for run in runs]
    return {
        "arm": arm, "label": ARMS[arm], "seeds": len(runs), "drawn": arm in LINES,
        "curves": {m: _bytes(binned(mean["step"].to_numpy(float), mean[m].to_numpy(float), steps)) for m in DRAWN
                   if m in mean},
        "law": {"entropy": _bytes(h), "performance": _bytes(r)},
        "score": {k: float(np.mean([s[k] for s in scores])) for k in ("greedy_accuracy", "entropy_left")},
    }  # fmt: skip


def _bytes(values) -> bytes:
    return np.asarray(values, np.float32).tobytes()


# --- the law ----------------------------------------------------------------------------------------


def points_of_law(metrics: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Entropy (nats/token) and held-out accuracy of each evaluation, (n,) each."""
    if SAMPLED not in metrics:
        return np.empty(0), np.empty(0)
    points = align_points(metrics["step"], metrics["policy_entropy"], metrics[SAMPLED])
    return points["entropy"].to_numpy(), points["performance"].to_numpy()


def law_so_far(h: np.ndarray, r: np.ndarray) -> Forecast | None:
    """The law fitted to all points but the last; None while it cannot be fitted."""
    if len(h) <= FEWEST:
        return None
    try:
        return forecast(h, r, cut=1 - 1 / (2 * len(h)), level=LEVEL, unit="fraction")
    except ErltoolError:
        return None


def law_data(h: np.ndarray, r: np.ndarray, law: Forecast | None) -> dict:
    """Points, and where there is a law its line with the band for a measurement from entropy 0 on, for the view."""
    data = {"entropy": _bytes(h), "performance": _bytes(r), "level": LEVEL}
    if law is None:
        return data
    at = np.linspace(0.0, float(h.max()), GRID)
    low, high = law.at(at)
    line = {"at": _bytes(at), "line": _bytes(law.law.predict(at)), "low": _bytes(low), "high": _bytes(high)}
    return data | line | {"ceiling": float(law.law.ceiling)}


# --- words and pictures -----------------------------------------------------------------------------


def samples_of(step: "Step") -> list[dict]:
    """The first response to each of the update's first prompts."""
    samples = []
    for i in range(0, len(step.rollouts), step.group_size)[:SAMPLES]:
        strategy = step.described.responses[i].strategy if step.described else ""
        prompt, response = step.rollouts.prompts[i], step.rollouts.responses[i]
        samples.append(
            {"prompt": visible(prompt), "response": visible(response), "reward": float(step.rewards[i]),
             "strategy": visible(strategy)}
        )  # fmt: skip
    return samples


def title_of(metric: str) -> str:
    return TITLES.get(metric) or axis_label(metric)


def numbers_text(numbers: Mapping[str, float]) -> str:
    """Steered numbers for a reader."""
    return ", ".join(f"{WORDS[field]} {value:g}" for field, value in numbers.items())


def score_sentence(metrics: pd.DataFrame, config: TrainConfig, recorded: Sequence[Mapping]) -> str:
    """What the run came to, beside the recorded ones."""
    score = score_of(metrics, config.to_dict())
    measured = math.isfinite(score.greedy_accuracy)
    beside = {arm["label"]: arm["score"] for arm in recorded}

    def among(field: str) -> str:
        others = ", ".join(f"{label} {values[field]:.3f}" for label, values in beside.items())
        return f" ({others})" if others else ""

    times = f"{score.changes} change{'' if score.changes == 1 else 's'}"
    greedy = f"Greedy accuracy {score.greedy_accuracy:.3f}{among('greedy_accuracy')}; " if measured else ""
    return f"{greedy}entropy left {score.entropy_left:.3f} nats/token{among('entropy_left')}; {times} by hand."


def score_data(metrics: pd.DataFrame, config: TrainConfig) -> dict[str, float | None]:
    """The score for the view; None for what was not measured."""
    score = score_of(metrics, config.to_dict())
    return {
        field: value if math.isfinite(value := getattr(score, field)) else None
        for field in ("greedy_accuracy", "entropy_left")
    }


def draw(axes: np.ndarray, metrics: pd.DataFrame, arms: Mapping[str, Sequence[Run]], config: TrainConfig) -> None:
    """The steered run and the recorded ones: a panel for each of DRAWN, the law, and what was steered."""
    beside = {arm: mean_of(arms[arm]) for arm in LINES if arm in arms}
    for ax, name in zip(axes, DRAWN, strict=False):
        for arm, mean in beside.items():
            rows = mean.reindex(columns=["step", name]).dropna()
            ax.plot(rows["step"], rows[name], label=as_text(ARMS[arm]), **LOOKS[arm])
        rows = metrics.reindex(columns=["step", name]).dropna()
        ax.plot(rows["step"], rows[name], color=COLOURS[0], label="this run")
        ax.set(xlabel="optimiser step", ylabel=title_of(name), xlim=(0, config.steps))
    axes[0].legend(fontsize=8)
    _draw_law(axes[len(DRAWN)], metrics, beside)
    hand = axes[len(DRAWN) + 1]
    for index, field in enumerate(steerable(config.control)):
        rows = metrics.reindex(columns=["step", f"control_{field}"]).dropna()
        hand.step(rows["step"], rows[f"control_{field}"], where="post", color=COLOURS[index], label=WORDS[field])
    hand.set(xlabel="optimiser step", ylabel="as steered", xlim=(0, config.steps))
    hand.legend(fontsize=8)
    for ax in axes:
        ax.grid(alpha=0.25)


def _draw_law(ax: Axes, metrics: pd.DataFrame, beside: Mapping[str, pd.DataFrame]) -> None:
    h, r = points_of_law(metrics)
    if (law := law_so_far(h, r)) is not None:
        at = np.linspace(0.0, float(h.max()), GRID)
        low, high = law.at(at)
        ax.plot(at, law.law.predict(at), color=COLOURS[0])
        ax.fill_between(at, low, high, color=COLOURS[0], alpha=0.16, linewidth=0)
    for arm, mean in beside.items():
        ax.plot(*points_of_law(mean), **LOOKS[arm])
    ax.plot(h, r, "o", color=COLOURS[0], markersize=4)
    ax.set(xlabel="policy entropy (nats/token)", ylabel="held-out accuracy (sampled)", ylim=(0, 1))
