"""A run that a hand steers: the configuration that teaches most in a minute, and what the run came to.

The policy `discovery` guesses products of two or three digits, and has learned nearly all of them wrong. What it finds
is right more often than what it knew, so a control that keeps the entropy pays, and pays within a minute: without one
the entropy is spent after a quarter of the run. (`sharpening` has nothing to find; there a hand can only delay.) The
control is Clip-Cov with an entropy bonus, both at 0: a hand that does nothing has GRPO without control.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from erltool.controls.controllers import Steered
from erltool.controls.paper import ClipCov, EntropyBonus
from erltool.runs.compare import EDGE
from erltool.training.config import TrainConfig

GREEDY, SAMPLED = "eval_accuracy_tempered", "eval_accuracy"


def steering_config(seed: int = 0) -> TrainConfig:
    """The run to steer: 80 iterations of 256 responses, half a minute to a minute on two cores."""
    return TrainConfig(
        task="chain:numbers=2-3,ops=*", policy="discovery", lora_rank=0, learning_rate=3e-4, steps=320, seed=seed,
        prompts_per_iteration=32, eval_every=4, eval_prompts=500, eval_samples=1, eval_temperature=0.0, device="cpu",
        control=ClipCov(fraction=0.0, low=0.5, high=50.0) + EntropyBonus(coef=0.0), controller=Steered(),
    )  # fmt: skip


@dataclass(frozen=True)
class Score:
    """What a run came to. NaN for what was not measured."""

    greedy_accuracy: float
    """In [0, 1], held-out, greedy: the last measured one."""
    sampled_accuracy: float
    """The same, sampled at the temperature of training."""
    entropy_left: float
    """nats/token, mean over the updates of the last EDGE iterations."""
    changes: int
    """Of the schedule that was steered."""
    steps: int
    """Updates that were made."""


def score_of(metrics: pd.DataFrame, config: Mapping) -> Score:
    """The score of a run with these rows and this configuration (`TrainConfig.to_dict`)."""
    greedy = config.get("eval_temperature") == 0
    changes = len(Steered((config.get("controller") or {}).get("schedule", "")).changes)
    if metrics.empty:
        return Score(math.nan, math.nan, math.nan, changes, 0)
    late = metrics[metrics["iteration"] > metrics["iteration"].max() - EDGE]
    left, steps = float(late["policy_entropy"].mean()), int(metrics["step"].max())
    return Score(_last(metrics, GREEDY) if greedy else math.nan, _last(metrics, SAMPLED), left, changes, steps)


def _last(metrics: pd.DataFrame, name: str) -> float:
    measured = metrics.reindex(columns=[name])[name].dropna()
    return float(measured.iloc[-1]) if len(measured) else math.nan
