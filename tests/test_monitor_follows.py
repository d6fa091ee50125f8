"""RunMonitor on what another program writes: logs and stores as they grow, in the words of `erltool watch`, several
runs, rotation, and a kernel that is never held."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from erltool import TrainConfig, read_log
from erltool.cli.watch_view import lines_of
from erltool.logs.live import Live
from erltool.logs.said import NAMES
from erltool.resources import shipped
from erltool.widgets import RunMonitor
from erltool.widgets.followed_run import METRIC

LOGS = Path(__file__).parent / "logs"


@pytest.fixture
def follow(monkeypatch):
    """Makes monitors, and closes them."""
    monkeypatch.setattr("erltool.widgets.followed_run.LOOK_EVERY", 0.01)
    monkeypatch.setattr("erltool.logs.follow.SHARE", 1e9)
    monkeypatch.setattr("erltool.logs.live.SHARE", 1e9)
    made = []

    def make(path, **settings) -> RunMonitor:
        made.append(RunMonitor(path, **settings))
        return made[-1]

    yield make
    for monitor in made:
        monitor.close()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def row(step: int, entropy=None, **more) -> str:
    entropy = 1 / (1 + step / 20) if entropy is None else entropy
    return json.dumps({"step": step, "entropy": entropy, "reward": step / 1000} | more) + "\n"


def append(file: Path, text: str) -> None:
    with open(file, "a") as f:
        f.write(text)


def step_of(monitor) -> int:
    snapshot = monitor.result.snapshot
    return snapshot.step if snapshot else -1


@pytest.mark.parametrize(
    ("name", "run"),
    [("verl.jsonl", None), ("verl_console.log", None), ("trl_console.log", None), ("trainer_state.json", None),
     ("tensorboard", None), ("wandb", None), ("mlruns", None), ("trackio/grpo.db", "base"), ("mlflow.db", "base"),
     ("cases/german.csv", None)],
)  # fmt: skip
def test_a_log_or_a_store_of_another_tool_is_what_import_reads(follow, name, run):
    if name == "tensorboard":
        pytest.importorskip("tensorboard", reason="reading event files needs tensorboard")
    log = read_log(LOGS / name, run=run)
    monitor = follow(LOGS / name, run=run)
    until(lambda: step_of(monitor) == log.metrics[log.columns["step"]].iloc[-1])
    metrics = monitor.result.metrics
    for role in ("entropy", "performance"):
        wanted = log.metrics[log.columns[role]].to_numpy(float)
        assert np.allclose(metrics[METRIC[role]], wanted, equal_nan=True, rtol=1e-12)
    assert not monitor.problem and dict(monitor.result.snapshot.columns) == dict(log.columns)


def test_a_growing_file_is_shown_in_the_words_of_watch(follow, tmp_path):
    file = tmp_path / "log.jsonl"
    monitor = follow(file, steps=80)
    until(lambda: "not there yet" in str(monitor.data["said"]))
    assert monitor.state == "running" and monitor.result.metrics.empty and "not there yet" in monitor.sentence
    for t in range(1, 41):
        append(file, row(t, eval_accuracy=0.7 - 0.3 / (1 + t / 20)) if t % 2 else row(t))
    until(lambda: step_of(monitor) == 40 and monitor.result.snapshot.forecast)
    append(file, row(41)[:20])  # torn
    time.sleep(0.1)
    assert step_of(monitor) == 40
    append(file, row(41)[20:])
    until(lambda: monitor.data["step"] == 41 and monitor.data["said"])
    _, snapshot = Live(monitor._run._live._follower, 80).look()
    text = " ".join(" ".join(lines_of(snapshot, 400, True)).split())
    for name, said in monitor.data["said"]:
        if name != "alarms":
            assert f"{name} {said}"[:150] in text
    assert monitor.data["head"].startswith("log.jsonl (JSONL): step 41 of 80")
    titles = [c["title"] for c in monitor.data["curves"]]
    assert titles == ["entropy (nats)", "reward", "performance (fraction)"]
    curve = np.frombuffer(monitor.data["curves"][0]["y"], np.float32)
    at = np.frombuffer(monitor.data["at"], np.float32)
    assert curve[np.isfinite(curve)] == pytest.approx(monitor.result.metrics["policy_entropy"], rel=1e-6)
    assert at[np.isfinite(curve)].tolist() == list(range(1, 42)) and len(at) == len(curve)
    assert len(monitor.data["law"]["line"]) and monitor._repr_mimebundle_()[0]["text/plain"] == monitor.sentence
    assert "step 41 of 80: entropy" in monitor.sentence and monitor.result.row["steps"] == 41


def test_rotated_resumed_and_replaced_logs_go_on(follow, tmp_path):
    file = tmp_path / "log.jsonl"
    append(file, "".join(map(row, range(1, 41))))
    monitor = follow(file)
    until(lambda: step_of(monitor) == 40)
    file.rename(tmp_path / "log.jsonl.1")
    append(file, row(41))
    until(lambda: step_of(monitor) == 41)
    assert len(monitor.result.metrics) == 41
    append(file, "".join(row(t, 0.7) for t in range(36, 50)))  # resumed from a checkpoint
    until(lambda: step_of(monitor) == 49)
    assert monitor.result.metrics["policy_entropy"].iloc[35:].eq(0.7).all() and len(monitor.result.metrics) == 49
    append(file, "".join(row(t, 3.0) for t in range(1, 9)))  # another run
    until(lambda: step_of(monitor) == 8)
    assert set(monitor.result.metrics["policy_entropy"]) == {3.0} and not monitor.problem


def test_of_several_runs_one_is_asked_for_and_followed(follow):
    monitor = follow(LOGS / "trackio")
    assert monitor.wait(60)
    until(lambda: monitor.data["runs"])
    assert monitor.state == "failed" and "holds 2 runs; choose one" in monitor.problem
    assert monitor.data["runs"] == ["base", "kl-cov"] and monitor.data["run"] == -1
    for nothing in (7, -1, "1", True, None):
        monitor._handle_custom_msg({"command": "choose", "run": nothing}, [])
        assert monitor.state == "failed"
    monitor._handle_custom_msg({"command": "choose", "run": 1}, [])
    until(lambda: len(monitor.result.metrics) == 7)
    assert monitor.state == "running" and not monitor.problem and monitor.data["run"] == 1
    monitor._handle_custom_msg({"command": "choose", "run": 0}, [])
    until(lambda: len(monitor.result.metrics) == 24)
    assert monitor.data["runs"] == ["base", "kl-cov"] and monitor.data["run"] == 0


def test_it_pauses_goes_on_stops_and_leaves_no_thread(follow, tmp_path):
    file = tmp_path / "log.jsonl"
    append(file, row(1) + row(2))
    before = set(threading.enumerate())
    monitor = follow(file)
    until(lambda: step_of(monitor) == 2)
    assert monitor.pause().state == "paused" and monitor.wait(0)
    append(file, row(3))
    time.sleep(0.1)
    assert step_of(monitor) == 2
    assert monitor.resume().state == "running" and not monitor.wait(0)
    until(lambda: step_of(monitor) == 3)
    assert monitor.stop().state == "stopped" and "nothing to stop" in monitor.stop().problem
    until(lambda: set(threading.enumerate()) <= before)
    append(file, row(4))
    assert monitor.start().state == "running" and not monitor.problem
    until(lambda: step_of(monitor) == 4)
    monitor.close()
    until(lambda: set(threading.enumerate()) <= before)


def test_the_kernel_is_answered_while_a_look_takes_long(follow, tmp_path, monkeypatch):
    inside, go_on, real = threading.Event(), threading.Event(), Live.look

    def slow(live):
        inside.set()
        go_on.wait(60)
        return real(live)

    monkeypatch.setattr(Live, "look", slow)
    file = tmp_path / "log.jsonl"
    append(file, row(1) + row(2))
    monitor = follow(file)
    assert inside.wait(60)
    began = time.monotonic()
    assert monitor.sentence and monitor.result.state == "running" and monitor._repr_mimebundle_()
    assert monitor.stop().state == "stopped" and monitor.start().state == "running"
    assert time.monotonic() - began < 20
    go_on.set()
    until(lambda: step_of(monitor) == 2)


def test_our_own_finished_run_has_its_alarms_and_is_done(follow):
    monitor = follow(shipped("data/runs/demo-none"))
    assert monitor.wait(120) and monitor.state == "done" and not monitor.problem
    result = monitor.result
    assert monitor.alarms == [str(a) for a in result.snapshot.alarms] and monitor.alarms
    assert len(result.metrics) == 240 and result.snapshot.forecast and result.config is None and result.step is None
    assert "the run is done" in monitor.start().problem
    assert len(monitor.picture().axes) == 6


def test_what_is_wrong_is_a_line_and_hostile_names_are_inert(follow, tmp_path):
    picture = tmp_path / "picture.log"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40)
    monitor = follow(picture)
    until(lambda: "a binary file and no log" in str(monitor.data["said"]))
    assert "for a run that is trained here" in follow(picture, resume=True).problem
    assert follow(picture, steer=True).start().state == "ready"
    assert "for a run that is followed" in RunMonitor(TrainConfig(), unit="fraction").problem
    file = tmp_path / "x\x1b[2J<b>.jsonl"
    name = "entropy\x1b]0;owned\x07\u202e<img>"
    append(file, "".join(json.dumps({"step": t, name: 1 / t, "acc\u202e": 0.5}) + "\n" for t in range(1, 9)))
    hostile = follow(file)
    until(lambda: step_of(hostile) == 8)
    sent = {k: v for k, v in hostile.data.items() if k in ("about", "head", "said")}
    text = json.dumps(sent, ensure_ascii=False)
    assert "U+202E" in text and "<img>" in text and not set("\x1b\x07\u202e") & set(text)
    hostile.picture().savefig(tmp_path / "x.png")


def test_steps_from_0_past_the_end_and_without_performance_are_drawn(follow, tmp_path):
    file = tmp_path / "log.jsonl"
    append(file, "".join(json.dumps({"step": t, "entropy": 1 / (1 + t)}) + "\n" for t in range(12)))
    monitor = follow(file, steps=5)
    until(lambda: step_of(monitor) == 11)
    until(lambda: monitor.state == "done")
    at, y = (np.frombuffer(b, np.float32) for b in (monitor.data["at"], monitor.data["curves"][0]["y"]))
    assert at.tolist() == list(range(12)) and y == pytest.approx(1 / (1 + at))
    assert ["law", "none yet: no performance is logged yet"] in monitor.data["said"]
    assert set(NAMES) >= {c["role"] for c in monitor.data["curves"]}
    monitor.picture()


@pytest.mark.slow
def test_python_ends_in_good_order_while_a_log_is_followed(tmp_path):
    shutil.copy(LOGS / "verl.jsonl", tmp_path)
    code = (
        "import time; from erltool.widgets import RunMonitor\n"
        f"m = RunMonitor({str(tmp_path / 'verl.jsonl')!r})\n"
        "while not m.result.snapshot: time.sleep(0.01)\n"
        "print(m.state)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "running", "")
