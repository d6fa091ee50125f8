"""ControlExplorer on recorded runs and RunMonitor on live ones, without a browser."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import erltool
from erltool import ErltoolError, TrainConfig, parse_control
from erltool.resources import shipped
from erltool.runs.alarms import Alarm
from erltool.runs.compare import end_values
from erltool.runs.folder import METRICS
from erltool.tables import Table
from erltool.widgets import ControlExplorer, RunMonitor, TokenInspector
from erltool.widgets.control_explorer import POINTS, binned, middles
from erltool.widgets.trained_run import DRAWN

STEPS = 40
ENTROPY = {"none": 0.1, "random-clip": 0.12, "kl-cov": 0.3, "clip-cov": 0.2}


def write_run(folder, control, seed, evaluate=True, level=None, **fields):
    """A run's folder whose entropy is that of its control from the start, plus a hundredth of the seed."""
    config = TrainConfig(control=parse_control(control), seed=seed, steps=STEPS, **fields)
    level = ENTROPY.get(config.control.name, 0.4) if level is None else level
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict(), "made_by": {}}))
    constant = {"policy_entropy": level + seed / 100, "mean_covariance": -0.1, "response_length": 9.0}
    rows = [{"step": i + 1, "iteration": i // 4, "selected_fraction": 0.0} | constant for i in range(STEPS)]
    for row in rows[::8] if evaluate else ():
        row["eval_accuracy"] = level / 2 + seed / 50 + row["step"] / 1000
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    out = tmp_path_factory.mktemp("grid")
    controls = ["none", "random-clip", "clip-cov", "entropy-bonus"]
    controls += [f"kl-cov:fraction={f},coef={c}" for f, c in ((0.05, 1), (0.1, 1), (0.1, 2), (0.2, 2))]
    for i, control in enumerate(controls):
        for seed in (0, 1):
            write_run(out / f"{i}-{seed}", control, seed)
    for seed in (0, 1):
        write_run(out / f"rloo-none-{seed}", "none", seed, level=0.6, advantages="rloo")
        write_run(out / f"rloo-kl-{seed}", "kl-cov:fraction=0.1,coef=1", seed, level=0.7, advantages="rloo")
    return out


# --- ControlExplorer ---------------------------------------------------------------------------------


def labels(explorer):
    return [g.label for g in explorer.shown]


def test_a_cell_stands_beside_the_run_without_control_and_the_random_baseline(grid):
    explorer = ControlExplorer(grid)
    assert not explorer.problem and explorer.data["settings"] == ["advantages grpo", "advantages rloo"]
    explorer.choose("kl-cov", setting=0).choose("entropy-bonus", beside=True)
    assert [explorer.groups[i].control for i in explorer.cells] == ["kl-cov", "entropy-bonus"]
    assert [g.control for g in explorer.shown] == ["none", "random-clip", "kl-cov", "entropy-bonus"]
    explorer.choose("clip-cov", beside=True)  # a third takes the place of the first
    assert [explorer.groups[i].control for i in explorer.cells] == ["entropy-bonus", "clip-cov"]
    assert [explorer.groups[i].control for i in explorer.choose("kl-cov").cells] == ["kl-cov"]
    explorer.cells = [99, -3]
    assert len(explorer.cells) == 2 and max(explorer.cells) < len(explorer.groups)


def test_the_random_baseline_is_that_of_the_same_kind(tmp_path):
    texts = ["none", "random-clip:fraction=0.02", "random-kl:fraction=0.1,coef=1", "kl-cov:fraction=0.1,coef=1"]
    texts += ["clip-cov:fraction=0.02,low=0.5,high=50", "entropy-bonus"]
    explorer = ControlExplorer([write_run(tmp_path / str(i), text, 0) for i, text in enumerate(texts)])
    beside = {g["control"]: explorer.groups[g["baseline"]].control for g in explorer.data["groups"]}
    assert beside["clip-cov"] == "random-clip" and beside["kl-cov"] == "random-kl"
    assert labels(explorer.choose("kl-cov"))[1].startswith("random-kl")


def test_the_map_is_control_by_regime_and_opens_where_control_does_best_and_worst(tmp_path):
    regimes, seeds = {"sharpening": (0.5, 0.52, 0.5), "trap": (0.5, 0.8, 0.4)}, (0, 1, 2)
    for regime, levels in regimes.items():
        for control, level in zip(("none", "clip-cov", "kl-cov"), levels, strict=True):
            for seed in seeds:
                fields = {"task": f"chain:{regime}", "policy": regime}
                uneven = level + 0.003 * seed * (control != "none")  # an interval of some width
                write_run(tmp_path / regime / f"{control}-{seed}", control, seed, level=uneven, **fields)
    write_run(tmp_path / "trap" / "one", "none", 0, task="chain:trap", policy="trap", updates_per_iteration=1)
    explorer = ControlExplorer([tmp_path / regime for regime in regimes])
    assert explorer.data["settings"] == ["sharpening", "trap", "trap, updates_per_iteration 1"]
    assert explorer.data["map"] == {
        "controls": ["none", "clip-cov", "kl-cov"], "settings": [0, 1], "accuracy": "late held-out accuracy"
    }  # fmt: skip
    assert [g.setting for g in explorer.shown] == [1, 1, 0, 0]  # in the trap Clip-Cov does best
    assert {explorer.groups[i].control for i in explorer.cells} == {"clip-cov"}
    end, half = explorer.data["groups"][explorer.cells[0]]["end"], 4.30265 * 0.0015 / np.sqrt(3)
    assert end["difference"] == pytest.approx([0.1515, 0.1515 - half, 0.1515 + half], abs=1e-6)
    ratios = [(0.8 + 0.013 * seed) / (0.5 + 0.01 * seed) for seed in seeds]
    assert end["held"][0] == pytest.approx(np.exp(np.mean(np.log(ratios))))
    assert end["held"][1] < end["held"][0] < end["held"][2]
    assert explorer.choose("kl-cov", setting="sharpening").sentence.count("in sharpening") == 2
    with pytest.raises(ErltoolError, match="no setting 'desert'; there are sharpening; trap"):
        explorer.choose("kl-cov", setting="desert")


def test_the_recorded_regimes_are_the_map_without_arguments():
    """Its numbers are those of the recorded runs, as data/RESULTS.md has them."""
    explorer = ControlExplorer()
    assert {explorer.data["settings"][i] for i in explorer.data["map"]["settings"]} >= {
        "sharpening",
        "discovery",
        "trap",
    }
    assert explorer.data["map"]["accuracy"] == "greedy accuracy at the end"
    at = next(i for i, g in enumerate(explorer.groups) if explorer.name_of(i).startswith("clip-cov (")
              and explorer.data["settings"][g.setting] == "discovery")  # fmt: skip
    mean, low, high = explorer.data["groups"][at]["end"]["difference"]
    assert f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" in shipped("data/RESULTS.md").read_text()


def test_only_recorded_parameters_can_be_chosen_and_the_nearest_others_follow(grid):
    explorer = ControlExplorer(grid).choose("kl-cov", fraction=0.05)
    assert labels(explorer)[-1] == "kl-cov (fraction 0.05, coef 1, estimator k1)"
    assert labels(explorer.choose("kl-cov", coef=2))[-1].startswith("kl-cov (fraction 0.1, coef 2")
    assert labels(explorer.choose("kl-cov", fraction=0.2))[-1].startswith("kl-cov (fraction 0.2, coef 2")
    for wrong in (dict(fraction=0.3), dict(fraction=0.05, coef=2), dict(colour=1)):
        with pytest.raises(ErltoolError, match="not recorded here; there are kl-cov .fraction 0.05"):
            explorer.choose("kl-cov", **wrong)
    with pytest.raises(ErltoolError, match="there are none; random-clip"):
        explorer.choose("cispo")


def test_composed_controls_have_the_parameters_of_their_parts(tmp_path):
    texts = ["none", *(f"kl-cov:fraction={f},coef=2+entropy-bonus:coef=0.01" for f in (0.1, 0.2))]
    folders = [write_run(tmp_path / str(i), text, 0) for i, text in enumerate(texts)]
    steered = write_run(tmp_path / "steered", "kl-cov:fraction=0.1,coef=2", 0)
    document = json.loads((steered / "config.json").read_text())
    document["config"]["controller"] = {"name": "target-entropy", "target": 0.3}
    (steered / "config.json").write_text(json.dumps(document))
    explorer = ControlExplorer([*folders, steered])
    under = "kl-cov under target-entropy"
    assert explorer.data["controls"] == ["none", under, "kl-cov+entropy-bonus"] and not explorer.problem
    explorer.choose("kl-cov+entropy-bonus", **{"kl-cov fraction": 0.2})
    assert explorer.shown[-1].parameters["entropy-bonus coef"] == 0.01
    explorer.choose(under, **{"kl-cov fraction": 0.1, "target-entropy target": 0.3})


def test_another_setting_shows_its_own_runs(grid):
    explorer = ControlExplorer(grid).choose("kl-cov", fraction=0.1, coef=2)
    explorer.choose("kl-cov", setting=1)
    assert labels(explorer) == ["none", "kl-cov (fraction 0.1, coef 1, estimator k1)"]
    assert explorer.result.end["entropy_end"].tolist() == pytest.approx([0.6, 0.61, 0.7, 0.71])


def test_the_setting_with_the_most_runs_is_shown_first(tmp_path):
    """A grid's one arm with another number of updates is not what one wants to see of it."""
    texts = ["none", "clip-cov", "random-clip"]
    runs = [write_run(tmp_path / text, text, 0, eval_temperature=0.0) for text in texts]
    runs.append(write_run(tmp_path / "one", "none", 0, updates_per_iteration=1))
    explorer = ControlExplorer(runs)
    assert explorer.data["settings"] == ["updates_per_iteration 4", "updates_per_iteration 1"]
    assert [g.control for g in explorer.shown] == ["none", "random-clip", "clip-cov"]
    assert explorer.data["map"]["settings"] == [0]  # one update has no control to compare


def test_its_result_is_the_end_values_and_the_recorded_curves(grid):
    explorer = ControlExplorer(grid).choose("kl-cov", setting=0, fraction=0.2)
    result = explorer.result
    runs = {n: erltool.read_run(grid / n) for n in result.end["run"]}
    assert type(result.end) is Table and len(runs) == 6
    expected = end_values(runs)
    for column in ("seed", "entropy_end", "accuracy_late", "accuracy_best", "length_end"):
        assert result.end[column].tolist() == pytest.approx(expected[column].tolist())
    one = result.curves[result.curves["run"] == "7-1"]
    assert one["policy_entropy"].tolist() == runs["7-1"].metrics["policy_entropy"].tolist()
    assert one["control"].unique().tolist() == ["kl-cov (fraction 0.2, coef 2, estimator k1)"]
    assert "kl-cov (fraction 0.2, coef 2, estimator k1) in advantages grpo, 2 seeds: 0.305 and " in explorer.sentence


def test_the_table_has_mean_range_and_the_difference_paired_by_seed(grid):
    explorer = ControlExplorer(grid)
    group = next(g for g in explorer.data["groups"] if g["control"] == "kl-cov" and g["setting"] == 0)
    assert group["end"]["entropy_end"] == pytest.approx([0.305, 0.3, 0.31])
    assert group["end"]["difference"] == pytest.approx([0.1, 0.1, 0.1])  # the same for both seeds: no spread
    assert explorer.data["groups"][0]["end"]["difference"] is None  # none against itself


def test_its_picture_has_a_thin_line_a_run_and_a_thick_mean(grid):
    explorer = ControlExplorer(grid, metrics=["policy_entropy", "eval_accuracy"])
    explorer.cells = [next(i for i, g in enumerate(explorer.groups) if g.control == c) for c in ("clip-cov", "kl-cov")]
    *columns, entropy, other, accuracy, _ = explorer.picture().axes
    assert [ax.get_title() for ax in columns] == ["advantages grpo", "advantages rloo"]
    assert len(entropy.lines) == 3 * 3 and entropy.get_ylabel() == "policy entropy (nats/token)"
    thick = [line for ax in (entropy, other) for line in ax.lines if line.get_linewidth() == 2]
    assert [line.get_ydata()[0] for line in thick] == pytest.approx([0.105, 0.125, 0.205, 0.105, 0.125, 0.305])
    assert len({(line.get_color(), str(line._dash_pattern)) for line in thick}) == 4
    assert entropy.get_ylim() == other.get_ylim() and entropy.get_xlim() == other.get_xlim()
    assert [t.get_text() for t in entropy.texts] == ["none", "random-clip", "clip-cov"]
    assert accuracy.lines[2].get_xdata().tolist() == [1, 9, 17, 25, 33]
    data, _ = explorer._repr_mimebundle_()
    assert data["image/png"][:4] == b"\x89PNG" and data["text/plain"] == explorer.sentence


def test_folders_of_runs_are_explored_together(grid, tmp_path):
    write_run(tmp_path / "more", "cispo", 0)
    explorer = ControlExplorer([grid, tmp_path, erltool.read_run(grid / "0-0")])
    assert not explorer.problem and "cispo" in explorer.data["controls"]
    assert len(explorer.groups[0].runs) == 3 and explorer.data["groups"][0]["end"]["difference"] is None


def test_what_is_sent_is_small_and_keeps_the_curves_means():
    steps, values = np.arange(1.0, 1001), np.arange(1000.0)
    values[::7] = np.nan
    curve = binned(steps, values, 1000)
    assert len(curve) == len(middles(1000)) == 250 <= POINTS and middles(1000)[0] == 2.5
    assert curve[0] == pytest.approx(np.nanmean(values[:4])) and curve[-1] == pytest.approx(np.nanmean(values[-4:]))
    assert np.isnan(binned(np.array([1.0]), np.array([0.5]), 3)[1:]).all()


def test_what_cannot_be_compared_is_said_and_the_rest_is_drawn(grid, tmp_path):
    foreign, bare = tmp_path / "foreign", tmp_path / "bare"
    foreign.mkdir()
    bare.mkdir()
    (foreign / "config.json").write_text('{"config": {"steps": 3}}')
    empty = write_run(tmp_path / "empty", "none", 0)
    (empty / "metrics.jsonl").unlink()
    blind = write_run(tmp_path / "blind", "clip-cov", 0, evaluate=False)
    cases = {
        "there are no runs": [],
        "no such folder": tmp_path / "nothing",
        "holds no runs": [bare],
        "a float is no run": [0.5],
        "not int": 3,
        "names no control": [foreign],
        "has no steps yet": [empty],
    }
    for words, runs in cases.items():
        explorer = ControlExplorer(runs)
        assert words in explorer.problem and explorer._repr_mimebundle_()[0]["text/plain"] == explorer.problem
        assert explorer.result.end.empty and explorer.result.curves.empty
    explorer = ControlExplorer([foreign, empty, blind, grid / "0-0"])
    assert "has no steps yet" in explorer.problem and "no held-out accuracy was measured in blind" in explorer.problem
    assert labels(explorer)[0] == "none" and "0.200 and not measured" in explorer.sentence
    other = ControlExplorer([grid / "0-0", write_run(tmp_path / "other", "none", 0, task="addition:20")])
    assert not other.problem and other.data["settings"][1].endswith("on addition:20")  # no comparison across tasks
    assert all(g["end"]["difference"] is None for g in other.data["groups"])
    explorer.metrics = []
    explorer.picture()


def test_the_shipped_demo_runs_are_explored():
    explorer = ControlExplorer([shipped("data/runs/demo-none"), erltool.read_run(shipped("data/runs/demo-clip-cov"))])
    assert not explorer.problem and len(explorer.result.end) == 2 and explorer.data["last"] == 240
    json.dumps({k: v for k, v in explorer.data.items() if k not in ("steps", "curves")}, allow_nan=False)


# --- RunMonitor --------------------------------------------------------------------------------------


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def test_a_monitored_run_is_the_run_and_does_not_block(tiny_config):
    config = tiny_config()
    monitor = RunMonitor(config)
    assert monitor.result.state == "ready" and list(monitor.result.metrics) == list(METRICS)
    monitor.start()
    assert monitor.state == "running" and monitor.wait(60)
    result = monitor.result
    assert result.state == "done" and not monitor.problem and type(result.metrics) is pd.DataFrame
    alone = pd.DataFrame([s.metrics for s in erltool.train(config)])
    pd.testing.assert_frame_equal(
        result.metrics.drop(columns="tokens_per_second"), alone.drop(columns="tokens_per_second")
    )
    assert len(TokenInspector(result.step).result.tokens) == result.metrics["response_tokens"].iloc[-1]
    assert "done at step 8 of 8" in monitor.sentence
    assert len(monitor.picture().axes) == len(DRAWN)
    line = monitor.picture().axes[0].lines[0]
    assert line.get_ydata().tolist() == result.metrics["policy_entropy"].tolist()


def test_it_pauses_goes_on_and_stops_at_the_end_of_an_iteration(tiny_config):
    monitor = RunMonitor(tiny_config(steps=4000, eval_every=0)).start()
    until(lambda: len(monitor.result.metrics))
    monitor.pause()
    until(lambda: monitor.state == "paused")
    steps = len(monitor.result.metrics)
    time.sleep(0.1)
    assert len(monitor.result.metrics) == steps and steps % 2 == 0 and monitor.wait(0)
    monitor.resume()
    until(lambda: len(monitor.result.metrics) > steps)
    assert monitor.state == "running" and not monitor.wait(0)
    monitor.pause()
    until(lambda: monitor.state == "paused")
    assert monitor.stop().wait(60) and monitor.state == "stopped"
    assert len(monitor.result.metrics) % 2 == 0
    monitor.start()
    assert monitor.state == "stopped" and "cannot go on; make another RunMonitor" in monitor.problem


def test_a_stopped_run_in_a_folder_goes_on_here_and_elsewhere_as_if_uninterrupted(tiny_config, tmp_path):
    whole = pd.DataFrame([s.metrics for s in erltool.train(tiny_config(steps=8))])["policy_entropy"].tolist()
    monitor = RunMonitor(tiny_config(steps=8), tmp_path / "run").start()
    until(lambda: len(monitor.result.metrics))
    assert monitor.stop().wait(60)
    monitor.start()
    until(lambda: monitor.state != "running" or len(monitor.result.metrics) > 4)
    assert monitor.stop().wait(60)
    again = RunMonitor(tiny_config(steps=8), tmp_path / "run", resume=True).start()
    assert again.wait(60) and again.state == "done"
    assert again.result.metrics["policy_entropy"].tolist() == whole
    assert erltool.read_run(tmp_path / "run").metrics["policy_entropy"].tolist() == whole


def test_two_monitors_take_turns_and_do_not_change_each_other(tiny_config):
    monitors = [RunMonitor(tiny_config(seed=seed)).start() for seed in (0, 1)]
    assert all(m.wait(60) for m in monitors)
    for seed, monitor in enumerate(monitors):
        alone = [s.metrics["policy_entropy"] for s in erltool.train(tiny_config(seed=seed))]
        assert monitor.result.metrics["policy_entropy"].tolist() == alone


def test_what_is_wrong_is_a_line_in_the_panel(tiny_config, tmp_path, monkeypatch):
    monitor = RunMonitor(tiny_config())
    assert "nothing to stop; the run is ready" in monitor.stop().problem
    assert "nothing to pause" in monitor.pause().problem and "nothing to resume" in monitor.resume().problem
    monitor.start().start()
    assert "the run is running" in monitor.problem and monitor.wait(60) and "the run is done" in monitor.start().problem
    assert "give a TrainConfig, or the path of a run or a log, not dict" in RunMonitor({}).start().stop().problem
    missing = RunMonitor(TrainConfig(policy=str(tmp_path / "nothing"))).start()
    assert missing.wait(60) and missing.state == "failed" and str(tmp_path / "nothing") in missing.problem
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text('{"config": {"steps": 1}}')
    taken = RunMonitor(tiny_config(), tmp_path / "run").start()
    assert taken.wait(60) and "already holds a run" in taken.problem
    assert taken._repr_mimebundle_()[0]["text/plain"] == taken.problem

    def broken(*args):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("erltool.training.loop.train", broken)
    failed = RunMonitor(tiny_config()).start()
    assert failed.wait(60) and failed.problem == "RuntimeError: out of memory"


def test_messages_to_the_browser_are_few_and_have_the_last_state(tiny_config, monkeypatch):
    sent = []
    monkeypatch.setattr(RunMonitor, "_send", lambda self, msg, buffers=None: sent.append((time.monotonic(), msg)))
    monitor = RunMonitor(tiny_config(steps=24, eval_every=0))
    started = time.monotonic()
    monitor.start()
    assert monitor.wait(60)
    # Five before the first step, then ten a second, the first of them at once, and the end.
    assert len(sent) <= 7 + (time.monotonic() - started) / 0.1
    assert sent[-1][1]["state"]["state"] == "done" and monitor.data["step"] == 24
    curve = np.frombuffer(monitor.data["curves"]["policy_entropy"], np.float32)
    assert curve == pytest.approx(monitor.result.metrics["policy_entropy"].tolist(), rel=1e-6)


def test_a_button_does_what_the_method_does_and_nothing_else(tiny_config):
    monitor = RunMonitor(tiny_config(steps=4000, eval_every=0))
    for content in ({"command": "wait"}, {"command": "close"}, {}, "start", None):
        monitor._handle_custom_msg(content, [])
    assert monitor.state == "ready"
    monitor._handle_custom_msg({"command": "start"}, [])
    until(lambda: len(monitor.result.metrics))
    monitor._handle_custom_msg({"command": "stop"}, [])
    assert monitor.wait(60) and monitor.state == "stopped"


def test_alarms_of_a_step_are_shown(tiny_config):
    monitor = RunMonitor(tiny_config())
    step = next(iter(erltool.train(tiny_config(eval_every=0))))
    monitor._run.take(replace(step, alarms=(Alarm("collapse", 1, "entropy is a <b>tenth</b>", 0.1, 0.5),)))
    assert monitor.alarms == ["step 1: collapse: entropy is a <b>tenth</b>"]


@pytest.mark.slow
def test_python_ends_in_good_order_while_a_run_goes_on(tiny_policy):
    code = (
        "import sys, time, erltool; from erltool.widgets import RunMonitor\n"
        "assert 'transformers' not in sys.modules\n"
        f"config = erltool.TrainConfig(policy={str(tiny_policy)!r}, task='countdown', steps=4000, "
        "prompts_per_iteration=4)\n"
        "m = RunMonitor(config).start()\n"
        "while not len(m.result.metrics) and m.state == 'running': time.sleep(0.01)\n"
        "print(m.state)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "running"), done.stderr
    assert "Traceback" not in done.stderr
