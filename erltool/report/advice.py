"""Advice on a run in one paragraph: what the run measured, and what recorded runs showed in such a place.

Every number is measured: in the run, or in data/runs/. The recorded runs are of one small task, and the advice says so.
"""

import functools

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.law.fit import fit_law
from erltool.resources import shipped
from erltool.runs import compare
from erltool.runs.folder import Run, read_runs
from erltool.runs.microscope import Microscope, quadrants
from erltool.widgets.points import points_of

LAST = 20  # iterations whose means are "now"
STUCK = 0.05  # fraction of groups that are all wrong from which on something is left to find
SILENT = 0.8  # fraction of groups with equal rewards from which on most have no gradient
BENDS = 0.95  # R² below which the law's ceiling says little
CUT = 0.2  # fraction of cut responses from which on somebody should read some
RISEN = 1.5  # times its start: the entropy has exploded


def advise(run: Run, point: Microscope | None = None) -> str:
    """One paragraph: how much entropy is left and what it is worth, which tokens spend it, what an update does now, and
    which control at which dose, with the evidence. `point` is a microscope's at the run's last policy, if there is one.

    Raises ErltoolError for a run of fewer than 2 * LAST iterations, and for an imported one, whose control is unknown.
    """
    if missing := [field for field in ("control", "updates_per_iteration") if field not in run.config]:
        raise ErltoolError(f"advise: run {run.name} has no {missing[0]} in its config.json; give a run of erltool")
    rows = run.metrics.groupby("iteration").mean(numeric_only=True)
    if len(rows) < 2 * LAST:
        raise ErltoolError(f"advise: run {run.name} has {len(rows)} iterations; it needs at least {2 * LAST}")
    parts = [_entropy(rows), _worth(run), _cut(rows), _groups(rows), _spenders(run), _update(rows, run, point)]
    return " ".join(part for part in [*parts, _control(run, rows)] if part)


def _entropy(rows: pd.DataFrame) -> str:
    start, now = (edge["policy_entropy"].mean() for edge in (rows.head(LAST // 4), rows.tail(LAST)))
    if now > RISEN * start:
        return f"The entropy has risen from {start:.3f} to {now:.3f} nats/token: the policy is losing what it knew."
    return f"The entropy went from {start:.3f} to {now:.3f} nats/token; {max(now / start, 0):.0%} of it is left."


def _worth(run: Run) -> str:
    """What is left, by the law."""
    try:
        points = points_of(run, "eval_accuracy")
        law = fit_law(points.entropy, points.performance)
    except ErltoolError:
        return ""
    last, n = float(points.performance[-3:].mean()), len(points.performance)
    fit = f"R = -a exp(H) + b fits {n} evaluations with R² {law.r_squared:.2f}"
    if law.r_squared < BENDS or law.a <= 0:
        return (
            f"Accuracy is {last:.3f}. {fit}, too low to trust its ceiling: entropy alone does not decide accuracy here."
        )
    return f"Accuracy is {last:.3f}. {fit}; its ceiling at zero entropy is {law.ceiling:.3f}."


def _cut(rows: pd.DataFrame) -> str:
    """A verifier may take the end of a cut response for an answer, and the policy learns to be cut."""
    now = rows.tail(LAST).mean()
    if now.get("truncated_fraction", 0) < CUT:
        return ""
    return (
        f"{now['truncated_fraction']:.0%} of the responses are cut by max_response_tokens, and the mean reward is "
        f"{now['reward']:.2f}: read some of them before you trust it."
    )


def _groups(rows: pd.DataFrame) -> str:
    now = rows.tail(LAST).mean()
    if "zero_spread_fraction" not in now or "all_wrong_fraction" not in now:
        return ""
    return (
        f"{now['zero_spread_fraction']:.0%} of the groups have equal rewards and give no gradient; "
        f"{now['all_wrong_fraction']:.0%} are all wrong."
    )


def _spenders(run: Run) -> str:
    """Which quadrant holds most of the predicted fall, in the recorded tokens."""
    try:
        tokens = run.tokens
    except ErltoolError:
        return ""
    if "push" not in tokens or not (tokens["push"] < 0).any():
        return ""
    recent = tokens[tokens["step"].isin(tokens["step"].unique()[-5:])]
    side = pd.Series("", recent.index)
    for _, update in recent.groupby("step"):
        side[update.index] = quadrants(update["log_prob"].to_numpy(), update["advantage"].to_numpy())
    fall = (-recent["push"].clip(upper=0)).groupby(side).sum()
    if not fall.sum() > 0:
        return ""
    rarity, answer = fall.idxmax().split("_")
    return (
        f"In the last recorded updates, {fall.max() / fall.sum():.0%} of the predicted fall of the entropy comes from "
        f"{rarity} tokens of {answer} responses, which are {(side == fall.idxmax()).mean():.0%} of the tokens."
    )


def _update(rows: pd.DataFrame, run: Run, point: Microscope | None) -> str:
    if point is not None:
        table = point.prices()
        usable = table[(table["share"] == 0.2) & ~table["criterion"].str.startswith("oracle")]
        best, (entropy, reward) = usable.loc[usable["saved"].idxmax()], point.whole()
        return (
            f"The microscope: an update changes the entropy by {1000 * entropy:+.2f} mnats and the reward by "
            f"{reward:+.4f}; without the fifth of its dose that criterion {best['criterion']} puts first it keeps "
            f"{1000 * best['saved']:.2f} mnats ({1000 * best['saved_low']:.2f} to {1000 * best['saved_high']:.2f}) and "
            f"loses {best['lost']:.0%} of the gain ({best['lost_low']:.0%} to {best['lost_high']:.0%})."
        )
    recent, updates = rows.tail(2 * LAST), run.config["updates_per_iteration"]
    slopes = [np.polyfit(np.arange(len(recent)), recent[name], 1)[0] / updates for name in ("policy_entropy", "reward")]
    return f"An update now changes the entropy by {slopes[0]:+.5f} nats/token and the reward by {slopes[1]:+.5f}."


@functools.cache
def _evidence(regime: str, value: str) -> dict[str, compare.Difference]:
    """Each arm of a recorded regime minus no control, paired by seed."""
    grids = ("discovery", "criterion") if regime == "discovery" else (regime,)
    runs = {name: run for grid in grids for name, run in read_runs(shipped(f"data/runs/{grid}")).items()}
    table = compare.end_values(runs).assign(arm=[compare.arm_of(name) for name in runs])
    return compare.differences(table, value, "none", by="arm")


def _said(regime: str, arm: str) -> str:
    d = _evidence(regime, "average@0")[arm]
    return f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f}, {d.seeds} seeds)"


def _control(run: Run, rows: pd.DataFrame) -> str:
    now, start = rows.tail(LAST).mean(), rows.head(LAST // 4).mean()
    name = run.config["control"]["name"]
    if now["policy_entropy"] > RISEN * start["policy_entropy"]:
        return f"Halve the dose of {name}, or lower the learning rate, and start from an earlier checkpoint."
    only = "This rests on one small task."
    if now.get("zero_spread_fraction", 0) >= SILENT and now.get("all_wrong_fraction", 0) >= STUCK:
        arms = ("clip-cov", "annealed-clip-cov", "one-update", "two-updates")
        held, released, slow, two = (_said("discovery", arm) for arm in arms)
        return (
            "Something is left to find, and hardly a group has the spread to find it. In `discovery`, which ended so, "
            f"Clip-Cov (2 % of the tokens, covariance from 0.5) differed from no control by {held} in greedy accuracy, "
            f"released after 70 % of the run by {released}, one update per iteration by {slow}, and two by {two}. "
            f"Start again with Clip-Cov at that dose, and lower it to 0 at the end. {only}"
        )
    held, slow = (_said("sharpening", arm) for arm in ("clip-cov", "one-update"))
    return (
        "Nothing shows that exploration is what is missing. In `sharpening`, where nothing had to be found, Clip-Cov "
        f"differed from no control by {held} in greedy accuracy, and one update per iteration by {slow}. Try one "
        f"update per iteration without control first. {only}"
    )
