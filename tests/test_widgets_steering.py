"""A run steered from RunMonitor, without a browser, and participants' runs side by side."""

import json
import math
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import erltool
from erltool import ErltoolError, KLCov, NoControl, Steered, TargetEntropy, TrainConfig
from erltool.lessons import workshop
from erltool.resources import shipped
from erltool.runs.folder import METRICS, read_runs
from erltool.training.steering import GREEDY, score_of, steering_config
from erltool.widgets import RunMonitor, steering_view
from erltool.widgets.steering import Hand

SMALL = replace(
    steering_config(), steps=16, prompts_per_iteration=8, group_size=4, updates_per_iteration=2, eval_every=1,
    eval_prompts=8,
)  # fmt: skip


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def same(metrics, steps):
    """Whether a monitor's metrics are those of these steps, bit for bit."""
    alone = pd.DataFrame([s.metrics for s in steps])
    pd.testing.assert_frame_equal(
        metrics.drop(columns="tokens_per_second"), alone.drop(columns="tokens_per_second"), check_exact=True
    )
    return True


def turned_by_the_browser(monitor, **numbers):
    monitor.set_state({"dials": monitor.dials | numbers})


@pytest.fixture(scope="module")
def finished():
    """A run that was steered from the browser twice."""
    monitor = RunMonitor(SMALL, steer=True).start()
    until(lambda: len(monitor.result.metrics) >= 3)
    turned_by_the_browser(monitor, fraction=0.3)
    until(lambda: monitor.result.config.controller.changes)
    turned_by_the_browser(monitor, coef=0.03, fraction=0.1)
    assert monitor.wait(120) and monitor.state == "done", monitor.problem
    return monitor


# --- the run -----------------------------------------------------------------------------------------


def test_a_dial_acts_from_the_update_on_that_the_schedule_names(finished):
    result = finished.result
    (first, *_), (second, *_) = (result.config.controller.changes[i] for i in (0, 1))
    assert 3 < first < second and [c[1:] for c in result.config.controller.changes] == [
        ("fraction", 0.3), ("coef", 0.03), ("fraction", 0.1),
    ]  # fmt: skip
    rows = result.metrics.set_index("step")
    expected = [0.0 if step < first else 0.3 if step < second else 0.1 for step in rows.index]
    assert rows["control_fraction"].tolist() == expected
    assert rows["control_coef"].tolist() == [0.0 if step < second else 0.03 for step in rows.index]
    assert (rows.loc[: first - 1, "selected_fraction"] == 0).all() and rows.loc[first, "selected_fraction"] > 0


def test_the_recorded_schedule_repeats_the_run_bit_for_bit(finished):
    config = TrainConfig.from_dict(json.loads(json.dumps(finished.result.config.to_dict())))
    assert same(finished.result.metrics, erltool.train(config))
    untouched = [s.metrics["policy_entropy"] for s in erltool.train(replace(config, controller=Steered()))]
    assert finished.result.metrics["policy_entropy"].tolist() != untouched


def test_a_hand_that_does_nothing_makes_the_run_without_control():
    monitor = RunMonitor(SMALL, steer=True).start()
    assert monitor.wait(120) and monitor.result.config.controller == Steered()
    plain = [s.metrics for s in erltool.train(replace(SMALL, control=NoControl(), controller=None))]
    found = monitor.result.metrics
    assert found["reward"].tolist() == [r["reward"] for r in plain]
    assert found["policy_entropy"].tolist() == pytest.approx([r["policy_entropy"] for r in plain], rel=1e-4)


def test_what_is_turned_before_the_start_is_the_first_updates():
    monitor = RunMonitor(replace(SMALL, steps=4, eval_every=0), steer=True).steer(fraction=0.2)
    assert "fraction of tokens 0.2, coefficient 0" in monitor.data["steering"]["next"]
    assert monitor.start().wait(120)
    result = monitor.result
    assert result.config.controller == Steered() and result.config.control.parts[0].fraction == 0.2
    assert result.metrics["control_fraction"].tolist() == [0.2] * 4 and same(
        result.metrics, erltool.train(result.config)
    )


def test_a_steered_run_in_a_folder_is_stopped_and_goes_on_in_another_monitor(tmp_path):
    config = replace(SMALL, steps=400, eval_every=0, checkpoint_every=1, control=KLCov(0.1, 1.0))
    first = RunMonitor(config, tmp_path / "run", steer=True).start()
    until(lambda: len(first.result.metrics) >= 2)
    first.steer(fraction=0.4, coef=2)
    until(lambda: first.result.config.controller.changes)
    assert first.stop().wait(120) and first.state == "stopped", first.problem
    recorded = TrainConfig.from_dict(erltool.read_run(tmp_path / "run").config)
    assert recorded == first.result.config
    made = len(first.result.metrics)
    again = RunMonitor(config, tmp_path / "run", resume=True, steer=True).start()
    until(lambda: len(again.result.metrics) >= made + 4 or again.state != "running")
    assert again.stop().wait(120) and again.state == "stopped", again.problem
    rows = again.result.metrics
    assert rows["control_fraction"].iloc[-1] == 0.4 and rows["control_coef"].iloc[-1] == 2
    whole = erltool.train(replace(again.result.config, steps=400))
    assert same(rows, [next(whole) for _ in range(len(rows))])


def test_the_notebook_is_answered_while_an_update_is_made(monkeypatch):
    inside, go_on = threading.Event(), threading.Event()

    def slow(*args):
        inside.set()
        go_on.wait(60)
        yield from ()

    monkeypatch.setattr("erltool.training.loop.train", slow)
    monitor = RunMonitor(SMALL, steer=True).start()
    assert inside.wait(60)
    answered = threading.Event()

    def ask():
        turned_by_the_browser(monitor, fraction=0.5)
        assert monitor.dials["fraction"] == 0.5 and monitor.result.state == "running" and monitor.sentence
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    assert answered.wait(30)
    go_on.set()
    assert monitor.wait(60)


def test_what_a_dial_cannot_be_is_a_line_in_the_panel_or_nothing():
    monitor = RunMonitor(SMALL, steer=True)
    monitor.steer(fraction=7)
    assert monitor.dials == {"fraction": 0.0, "coef": 0.0} and "fraction must be in [0, 1]" in monitor.problem
    for nothing in ({"fraction": "<b>"}, {"low": 0.1}, {"fraction": True}, {"coef": None}):
        monitor.set_state({"dials": nothing})
        assert monitor.dials == {"fraction": 0.0, "coef": 0.0}
    monitor.steer(coef=math.nan)
    assert monitor.dials["coef"] == 0 and "schedule has '2:coef:nan'" in monitor.problem
    assert monitor.steer(fraction=0.1).dials == {"fraction": 0.1, "coef": 0.0} and not monitor.problem


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(SMALL, control=NoControl(), controller=None), "no fraction or coef to steer; use kl-cov"),
        (replace(SMALL, control=KLCov(0.1), controller=TargetEntropy()), "target-entropy cannot both steer"),
        (replace(SMALL, controller=Steered("3:coef:0.1")), "has a schedule; train it as it is"),
        ({}, "give a TrainConfig, or the path of a run or a log, not dict"),
    ],
)
def test_a_run_that_no_hand_can_steer_says_why(config, words):
    monitor = RunMonitor(config, steer=True)
    assert words in monitor.problem and monitor.dials == {}
    assert words in monitor.start().steer(fraction=0.1).problem and monitor.state == "ready"
    assert words in monitor._repr_mimebundle_()[0]["text/plain"]


def test_a_run_that_is_only_watched_has_no_dials():
    monitor = RunMonitor(replace(SMALL, controller=Steered("3:coef:0.1")))
    assert monitor.dials == {} and "steering" not in monitor.data and monitor.steer(coef=1).dials == {}


# --- what is shown -----------------------------------------------------------------------------------


def test_a_steered_run_is_shown_beside_the_recorded_ones():
    monitor = RunMonitor(steer=True)
    assert not monitor.problem and monitor.dials == {"fraction": 0.0, "coef": 0.0}
    assert [(arm["label"], arm["seeds"], arm["drawn"]) for arm in monitor.recorded] == [
        ("no control", 10, True), ("best", 10, True), ("at random", 10, False),
    ]  # fmt: skip
    assert all(set(arm["curves"]) == set(steering_view.DRAWN) for arm in monitor.recorded)
    none = np.frombuffer(monitor.recorded[0]["curves"]["policy_entropy"], np.float32)
    runs = [r for n, r in read_runs(shipped("data/runs/steering")).items() if n.endswith("-none")]
    last = np.mean([r.metrics["policy_entropy"].iloc[-1] for r in runs])
    assert none[np.isfinite(none)][-1] == pytest.approx(last, rel=1e-5) and len(monitor.data["at"]) == len(none) * 4
    other = RunMonitor(replace(SMALL, learning_rate=1e-4), steer=True)
    assert other.recorded == [] and not other.problem


def test_the_recorded_best_finds_more_than_no_control_and_chance_does_not():
    """Schedule and setting were chosen on other seeds (data/README.md)."""
    scores = {
        arm: [score_of(r.metrics, r.config) for r in runs]
        for arm, runs in steering_view.recorded_arms(steering_config()).items()
    }
    greedy = {arm: np.mean([s.greedy_accuracy for s in found]) for arm, found in scores.items()}
    assert greedy["best"] > greedy["none"] + 0.15 and greedy["random-clip"] < greedy["none"] + 0.05
    assert {s.changes for s in scores["best"]} == {3} and {s.changes for s in scores["none"]} == {0}


def test_its_data_are_json_and_its_notches_are_numbers_that_the_control_can_have(finished):
    data = finished.data["steering"]
    json.dumps({k: v for k, v in data.items() if k != "law"}, allow_nan=False)
    json.dumps([{k: v for k, v in arm.items() if k not in ("curves", "law")} for arm in finished.recorded])
    assert [dial["name"] for dial in data["dials"]] == ["clip-cov: fraction of tokens", "entropy-bonus: coefficient"]
    for dial in data["dials"]:
        assert dial["notches"] == sorted(set(dial["notches"])) and dial["notches"][0] == 0
        for value in dial["notches"]:
            SMALL.steered(2, {dial["field"]: value})
    odd = Hand(replace(SMALL, control=KLCov(0.07, 1.5)), False, threading.RLock()).data([], None)
    assert 0.07 in odd["dials"][0]["notches"] and 1.5 in odd["dials"][1]["notches"]
    assert data["schedule"] == finished.result.config.controller.schedule and "3 changes by hand" in data["score"]


def test_the_law_has_a_band_down_to_entropy_0_once_it_has_points(finished):
    law = finished.data["steering"]["law"]
    line = {k: np.frombuffer(law[k], np.float32) for k in ("at", "line", "low", "high", "entropy", "performance")}
    assert len(line["entropy"]) == 9 and line["at"][0] == 0 and line["at"][-1] == pytest.approx(line["entropy"].max())
    assert (line["low"] < line["line"]).all() and (line["line"] < line["high"]).all()
    assert law["ceiling"] == pytest.approx(line["line"][0], rel=1e-5)
    few = steering_view.law_data(*(v := steering_view.points_of_law(finished.result.metrics.head(6))), None)
    assert "line" not in few and len(np.frombuffer(few["entropy"], np.float32)) == len(v[0]) == 3


def test_responses_are_shown_inert(finished):
    step = finished.result.step
    hostile = ["\x1b[31m<img src=x onerror=alert(1)>\u202e$x$"] * len(step.rollouts)
    samples = steering_view.samples_of(replace(step, rollouts=replace(step.rollouts, responses=hostile)))
    assert len(samples) == len({s["prompt"] for s in samples}) > 1
    assert all("\x1b" not in s["response"] and "\u202e" not in s["response"] for s in samples)
    assert samples[0]["strategy"] == step.described.responses[0].strategy


def test_its_picture_and_sentence_say_the_same_without_a_kernel(finished):
    axes = finished.picture().axes
    assert len(axes) == 6 and axes[4].get_xlabel() == "policy entropy (nats/token)"
    own = axes[0].lines[-1]
    assert (
        own.get_label() == "this run" and own.get_ydata().tolist() == finished.result.metrics["policy_entropy"].tolist()
    )
    assert axes[5].lines[0].get_ydata().tolist() == finished.result.metrics["control_fraction"].tolist()
    score = finished.result.score
    assert (
        f"Greedy accuracy {score.greedy_accuracy:.3f}" in finished.sentence and "3 changes by hand" in finished.sentence
    )
    beside = RunMonitor(steer=True)
    assert [line.get_label() for line in beside.picture().axes[0].lines] == ["no control", "best", "this run"]
    assert "no step yet of 320" in beside.sentence and beside._repr_mimebundle_()[0]["image/png"][:4] == b"\x89PNG"


def test_a_score_is_the_last_greedy_accuracy_and_the_entropy_of_the_last_iterations(finished):
    metrics, config = finished.result.metrics, finished.result.config
    score = finished.result.score
    assert score.greedy_accuracy == metrics[GREEDY].dropna().iloc[-1] and (score.changes, score.steps) == (3, 16)
    assert score.entropy_left == pytest.approx(metrics["policy_entropy"].tail(10).mean())
    sampled = score_of(metrics, replace(config, eval_temperature=None).to_dict())
    assert math.isnan(sampled.greedy_accuracy) and sampled.entropy_left == score.entropy_left
    none = score_of(pd.DataFrame(columns=list(METRICS)), config.to_dict())
    assert none.steps == 0 and math.isnan(none.entropy_left)


# --- participants ------------------------------------------------------------------------------------


def test_participants_runs_are_a_table_whose_rows_train_again(finished, tmp_path):
    list(erltool.train(replace(finished.result.config, record_every=0), tmp_path / "Ada"))
    row = finished.result.row
    (tmp_path / "Bo.json").write_text(json.dumps(row | {"greedy_accuracy": 1.0}))
    by_hand = {"Ada": tmp_path / "Ada", "Bo": json.dumps(row | {"greedy_accuracy": 1.0})}
    for results in (by_hand, tmp_path, by_hand | {"Bo": row | {"greedy_accuracy": 1}}):
        found = workshop.steered_runs(results)
        assert list(found.table.index) == ["Bo", "Ada"] and found.table["changes"].tolist() == [3, 3]
        ada = found.table.loc["Ada"]
        assert ada["greedy_accuracy"] == row["greedy_accuracy"] and ada["entropy_left"] == row["entropy_left"]
        assert ada["schedule"] == finished.result.config.controller.schedule
    assert found.configs["Bo"] == finished.result.config
    assert same(finished.result.metrics, erltool.train(found.configs["Ada"]))
    assert "<table" in found._repr_html_() and "entropy_left" in repr(found)


def test_what_a_participant_hands_in_may_be_anything(finished, tmp_path):
    row = finished.result.row
    for result, words in (
        ({}, "monitor.result.row"),
        (3, "monitor.result.row"),
        ("{", "Expecting"),
        ("{" * 200_000, "at most 100000"),
        (tmp_path / "nothing", "no such folder"),
        ("\0", "no such folder"),
        (row | {"greedy_accuracy": "<b>1</b>"}, "which is no such number"),
        (row | {"steps": None}, "which is no such number"),
        (row | {"config": row["config"] | {"trust_remote_code": True}}, "cannot let a model run its own code"),
        (row | {"config": row["config"] | {"seed": "zero"}}, "must be int"),
    ):
        with pytest.raises(ErltoolError, match=f"participant E.*: .*{words}") as refused:
            workshop.steered_runs({"E\x1b[31mve": result})
        assert "\x1b" not in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ErltoolError, match="holds no steered runs"):
        workshop.steered_runs(tmp_path)
    found = workshop.steered_runs({"<script>\x1b": row | {"changes": 99}})
    assert "<script>" not in found._repr_html_() and "\x1b" not in repr(found)
    assert found.table["changes"].tolist() == [3]
