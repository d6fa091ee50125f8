from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from erltool import ErltoolError, read_run, read_runs
from erltool.controls.catalog import control_to_dict, parse_control
from erltool.plots import plot_seeds
from erltool.resources import shipped
from erltool.runs.compare import (
    EDGE,
    covariance_and_fall,
    differences,
    end_values,
    paired_difference,
    setting_of,
    share_by_step,
)
from erltool.runs.folder import Run

BASE = pd.Series({0: 0.30, 1: 0.34, 2: 0.32})
BETTER = pd.Series({2: 0.37, 0: 0.33, 1: 0.38})


def made_run(entropy, accuracy, control=None, seed=0, evaluation=None):
    """A run with these entropies, one update in each iteration, and an evaluation at each."""
    metrics = pd.DataFrame({
        "step": range(1, len(entropy) + 1), "iteration": range(len(entropy)), "policy_entropy": entropy,
        "eval_accuracy": accuracy, "response_length": 9.0, "mean_covariance": 0.01, "selected_fraction": 0.0,
    })  # fmt: skip
    run = Run(None, {"control": control or {"name": "none"}, "seed": seed}, {}, metrics, 0)
    vars(run)["evaluation"] = evaluation or {}
    return run


def test_a_paired_difference_by_hand():
    """Differences 0.03, 0.04, 0.05: mean 0.04, sd 0.01, half width 4.302653 * 0.01 / sqrt(3)."""
    found = paired_difference(BETTER, BASE)
    assert found.mean == pytest.approx(0.04) and found.seeds == 3
    assert found.high - found.mean == pytest.approx(4.3026527 * 0.01 / 3**0.5, rel=1e-6)
    assert found.low == pytest.approx(2 * found.mean - found.high) and found.excludes_zero


def test_only_common_seeds_count_and_pairing_beats_noise_that_seeds_share(rng):
    luck = pd.Series(rng.normal(0, 1, 8))
    found = paired_difference(luck + 0.1 + rng.normal(0, 0.01, 8), luck[:6])
    assert found.seeds == 6 and found.excludes_zero and found.high - found.low < 0.1


def test_the_interval_covers_as_often_as_it_says(rng):
    hits = 0
    for _ in range(2000):
        d = paired_difference(pd.Series(rng.normal(0.3, 1, 5)), pd.Series(np.zeros(5)))
        hits += d.low <= 0.3 <= d.high
    assert 0.935 < hits / 2000 < 0.965


def test_one_seed_has_no_interval_and_bad_input_is_one_line():
    one = paired_difference(BETTER[[0]], BASE)
    assert (one.low, one.high) == (-np.inf, np.inf) and not one.excludes_zero
    for bad, message in [
        (pd.Series({7: 0.1}), "no seed is in both"),
        (pd.Series([0.1, 0.2], index=[0, 0]), "twice"),
        (pd.Series({0: np.nan}), "not finite"),
    ]:
        with pytest.raises(ErltoolError, match=message):
            paired_difference(bad, BASE)
    with pytest.raises(ErltoolError, match="level"):
        paired_difference(BETTER, BASE, 95)


def test_end_values_of_a_made_run():
    entropy = np.r_[np.full(5, 0.5), np.linspace(0.5, 0.1, 10), np.full(5, 0.1)]
    run = made_run(entropy, np.linspace(0.1, 0.29, 20), evaluation={"average": 0.3, "pass@8": 0.6, "right": [1]})
    row = end_values({"a": run}).loc["a"]
    assert row["entropy_start"] == pytest.approx(0.5) and row["entropy_spent"] == pytest.approx(0.8)
    assert row["accuracy_late"] == pytest.approx(0.245) and row["accuracy_best"] == pytest.approx(0.29)
    assert row["average"] == 0.3 and row["pass@8"] == 0.6 and "right" not in row
    assert np.isnan(row["tempered_late"]) and "average@0" not in row  # neither was measured


def test_end_values_of_other_temperatures():
    run = made_run(np.full(20, 0.5), np.linspace(0.1, 0.29, 20), evaluation={"tempered": {"0": {"average": 0.4}}})
    run.metrics["eval_accuracy_tempered"] = run.metrics["eval_accuracy"] + 0.1
    row = end_values({"a": run}).loc["a"]
    assert row["tempered_late"] == pytest.approx(row["accuracy_late"] + 0.1) and row["average@0"] == 0.4


def test_differences_are_against_the_baseline_of_the_same_seed():
    kl = {"name": "kl-cov", "fraction": 0.1, "coef": 2.0}
    runs = {f"n{s}": made_run([0.5] * 4, [0.3 + s / 10] * 4, seed=s) for s in range(3)}
    runs |= {f"k{s}": made_run([0.5] * 4, [0.35 + s / 10] * 4, kl, s) for s in range(3)}
    found = differences(end_values(runs), "accuracy_late", "none")
    assert set(found) == {"kl-cov:fraction=0.1,coef=2.0"}
    (only,) = found.values()
    assert only.mean == pytest.approx(0.05) and only.excludes_zero
    with pytest.raises(ErltoolError, match="no runs of 'clip-cov'"):
        differences(end_values(runs), "accuracy_late", "clip-cov")


def test_runs_that_differ_in_more_than_their_control_are_no_one_setting():
    """One update per iteration has no control, and is not the same as none."""
    runs = {f"none-{seed}": made_run([0.5], [0.3], seed=seed) for seed in range(3)}
    runs |= {f"one-{seed}": made_run([0.5], [0.4], seed=seed) for seed in range(3, 5)}
    for name, run in runs.items():
        run.config["updates_per_iteration"] = 1 if name.startswith("one") else 4
        run.config["eval_every"] = run.config["seed"]  # changes what is measured, not the setting
    one = "none, updates_per_iteration=1"
    assert end_values(runs)["setting"].tolist() == ["none"] * 3 + [one] * 2
    with pytest.raises(ErltoolError, match="no seed is in both"):
        differences(end_values(runs), "accuracy_late", "none")
    del runs["none-0"]  # no value is the usual one: each is said
    assert end_values(runs)["setting"].tolist() == ["none, updates_per_iteration=4"] * 2 + [one] * 2


def test_a_setting_is_text_that_parses_back():
    run = read_run(shipped("data/runs/demo-clip-cov"))
    assert parse_control(setting_of(run)).fraction == run.config["control"]["fraction"] == 0.02
    assert setting_of(read_run(shipped("data/runs/demo-none"))) == "none"
    both = parse_control("kl-cov:fraction=0.1,coef=2+entropy-bonus:coef=0.01")
    run = made_run([0.5], [0.3], control_to_dict(both))
    assert parse_control(setting_of(run)) == both
    run.config["controller"] = {"name": "schedule", "field": "fraction", "start": 4.0}
    assert setting_of(run) == setting_of(made_run([0.5], [0.3], control_to_dict(both))) + (
        " under schedule:field=fraction,start=4.0"
    )


def test_shares_by_step_of_a_run_that_spends_first_and_of_a_steady_one():
    accuracy = np.linspace(0.1, 0.5, 100)
    early = made_run(np.exp(-np.arange(100) / 8), accuracy)
    steady = made_run(np.linspace(1, 0, 100), accuracy)
    early, steady = (share_by_step(r, [0.2, 1.0], smooth=1) for r in (early, steady))
    assert early["entropy_spent"][0] > 0.85 and steady["entropy_spent"][0] == pytest.approx(0.19, abs=0.02)
    assert early["accuracy_gained"][0] == pytest.approx(0.19, abs=0.02)
    assert early["entropy_spent"][1] == pytest.approx(1) and early["accuracy_gained"][1] == pytest.approx(1)
    assert share_by_step(made_run([0.5] * 9, accuracy[:9]), [0.5])["entropy_spent"].isna().all()
    with pytest.raises(ErltoolError, match="at least 4"):
        share_by_step(made_run([0.5] * 3, accuracy[:3]), [0.5])


def test_the_fall_is_the_slope_of_the_entropy_and_the_covariance_is_around_it():
    """Entropy 1 - t / 100 - t^2 / 20000: its fall an iteration is 1 / 100 + t / 10000 in the middle of two windows."""
    t = np.arange(90)
    run = made_run(1 - t / 100 - t**2 / 20000, np.full(90, 0.3))
    run.metrics["mean_covariance"] = run.metrics["group_covariance"] = 3 * (1 / 100 + t / 10000)
    found = covariance_and_fall(run, window=10)
    assert len(found) == 90 - 19 and np.corrcoef(found["fall"], found["token_covariance"])[0, 1] > 0.9999
    at = found["step"].to_numpy() - 1
    assert found["fall"].to_numpy() == pytest.approx(1 / 100 + (at + 0.5) / 10000, rel=1e-9)
    with pytest.raises(ErltoolError, match="at least 300"):
        covariance_and_fall(run, window=100)


def test_seeds_are_drawn_thin_and_their_mean_thick():
    runs = [made_run([0.5, 0.4, 0.3], [0.1, 0.2, 0.3], seed=0), made_run([0.3, 0.2, 0.1], [0.1, 0.2, 0.3], seed=1)]
    ax = plot_seeds(runs, "policy_entropy", label="none", smooth=2)
    thin, mean = ax.get_lines()[:2], ax.get_lines()[2]
    assert [line.get_ydata().tolist() for line in thin] == [
        pytest.approx([0.5, 0.45, 0.35]),
        pytest.approx([0.3, 0.25, 0.15]),
    ]
    assert mean.get_ydata() == pytest.approx([0.4, 0.35, 0.25]) and mean.get_xdata().tolist() == [1, 2, 3]
    assert mean.get_linewidth() > thin[0].get_linewidth() and "nats/token" in ax.get_ylabel()
    assert len(plot_seeds(runs[:1], "eval_accuracy").get_lines()) == 1
    with pytest.raises(ErltoolError, match="none of 2 runs has"):
        plot_seeds(runs, "grad_norm")
    with pytest.raises(ErltoolError, match="must be step or iteration"):
        plot_seeds(runs, by="epoch")
    by_iteration = plot_seeds(runs, by="iteration")
    assert by_iteration.get_xlabel() == "iteration" and by_iteration.get_lines()[-1].get_xdata()[0] == 0


def test_end_values_are_the_means_of_the_first_and_last_iterations_that_pandas_has():
    """Arrays instead of tables, for speed: the same numbers, for runs with an update a row and for records."""
    runs = {"demo": read_run(shipped("data/runs/demo-none"))} | read_runs(shipped("data/runs/bonus"))
    table = end_values(runs)
    for name, run in runs.items():
        rows = run.metrics.groupby("iteration").mean(numeric_only=True)
        last, accuracy = rows.tail(EDGE).mean(), run.evaluated().set_index("step")["eval_accuracy"]
        expected = {
            "entropy_start": rows["policy_entropy"].head(EDGE).mean(), "entropy_end": last["policy_entropy"],
            "length_end": last["response_length"], "thinking_end": last["thinking_fraction"],
            "selected": rows["selected_fraction"].mean(), "accuracy_best": accuracy.max(),
            "accuracy_late": accuracy[accuracy.index > run.metrics["step"].max() / 2].mean(),
        }  # fmt: skip
        assert table.loc[name, [*expected]].astype(float).to_dict() == pytest.approx(expected, rel=1e-6)


def test_end_values_of_a_run_that_measured_little_are_unknown():
    run = read_run(shipped("data/runs/demo-none"))
    bare = replace(run, metrics=run.metrics[["step", "iteration", "policy_entropy", "response_length"]].head(8))
    none = replace(run, metrics=run.metrics.head(0))
    row = end_values({"bare": bare, "none": none}).loc["bare"]
    assert row["entropy_end"] == pytest.approx(bare.metrics["policy_entropy"].mean())
    assert row[["accuracy_best", "accuracy_late", "thinking_end", "covariance_end"]].isna().all()
    assert end_values({"none": none}).loc["none", "setting"] == "none"
