import dataclasses
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from erltool import ErltoolError, TrainConfig, read_run, read_runs, train
from erltool.cli.command import main
from erltool.resources import shipped
from erltool.runs.folder import METRICS, SPARSE, TIMED, record_runs
from erltool.tasks.task import load_task
from erltool.training.evaluate import eval_problems, evaluate
from erltool.training.experiments import is_over, load_grid, locked, recorded_runs, run_grid
from erltool.training.start import policy_for_evaluation

GRID = """
question = "does it run?"
[train]
policy = "{policy}"
steps = 8
prompts_per_iteration = 4
group_size = 4
updates_per_iteration = 2
max_response_tokens = 8
lora_rank = 4
eval_prompts = 8
eval_samples = 1
eval_every = 2
checkpoint_every = 1
record_every = 0
[vary]
control = {{ none = "none", kl = "kl-cov:fraction=0.1,coef=2" }}
seed = [0, 1]
[evaluate]
problems = 6
samples = 4
"""


@pytest.fixture
def grid_file(tiny_policy, tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(GRID.format(policy=tiny_policy))
    return file


def command(*words):
    return [sys.executable, "-m", "erltool", "experiment", *map(str, words)]


@pytest.fixture(scope="module")
def finished(tiny_policy, tmp_path_factory):
    """A grid made by the command, with its output: (folder, recorded folder, stdout)."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "tiny.toml").write_text(GRID.format(policy=tiny_policy))
    words = (folder / "tiny.toml", "--out", folder / "runs", "--record", folder / "kept")
    done = subprocess.run(command(*words), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "runs", folder / "kept", done.stdout


def test_a_grid_has_every_combination_by_name(grid_file):
    grid = load_grid(grid_file)
    assert list(grid.configs) == ["tiny-none-seed0", "tiny-none-seed1", "tiny-kl-seed0", "tiny-kl-seed1"]
    assert grid.configs["tiny-kl-seed1"].control.coef == 2 and grid.configs["tiny-kl-seed1"].seed == 1
    assert (grid.problems, grid.samples) == (6, 4)


def test_a_value_that_is_a_table_sets_its_fields(grid_file):
    """A run with one update in each iteration needs another number of steps and another learning rate."""
    text = grid_file.read_text().replace(
        'kl = "kl-cov:fraction=0.1,coef=2"', "one = { updates_per_iteration = 1, steps = 4, learning_rate = 1e-3 }"
    )
    grid_file.write_text(text)
    configs = load_grid(grid_file).configs
    one, none = configs["tiny-one-seed1"], configs["tiny-none-seed1"]
    assert one == dataclasses.replace(none, updates_per_iteration=1, steps=4, learning_rate=1e-3)
    grid_file.write_text(text.replace("steps = 4,", "stepps = 4,"))
    with pytest.raises(ErltoolError, match="control.one sets stepps, which TrainConfig does not have"):
        load_grid(grid_file)


def test_every_run_is_one_line_and_every_policy_is_evaluated(finished):
    runs, _, said = finished
    lines = [line for line in said.splitlines() if line.startswith("tiny-")]
    assert [line.split()[0] for line in lines] == sorted(p.parent.name for p in runs.glob("*/config.json"))[::-1] or (
        len(lines) == 4 and all(len(line) <= 79 for line in lines)
    )
    for run in read_runs(runs).values():
        found = run.evaluation
        assert len(found["right"]) == 6 and max(found["right"]) <= 4
        assert found["average"] == pytest.approx(sum(found["right"]) / 24) and found["pass@4"] >= found["average"]


def test_what_is_done_is_skipped(finished, grid_file):
    runs, _, _ = finished
    before = {p: p.stat().st_mtime_ns for p in runs.glob("*/*.json*")}
    assert list(run_grid(load_grid(grid_file), runs)) == []
    assert {p: p.stat().st_mtime_ns for p in runs.glob("*/*.json*")} == before


def test_recorded_runs_read_back_as_means_of_iterations(finished):
    runs, kept, _ = finished
    whole, recorded = read_runs(runs), read_runs(kept)
    assert set(whole) == set(recorded) and sorted(p.name for p in kept.iterdir()) == ["metrics.parquet", "runs.json.gz"]
    for name, run in recorded.items():
        assert run.config == whole[name].config and run.evaluation == whole[name].evaluation
        means = whole[name].metrics.groupby("iteration")["policy_entropy"].mean()
        assert run.metrics["policy_entropy"].to_numpy() == pytest.approx(means.to_numpy(), rel=6e-5)
        assert run.metrics["step"].tolist() == [2, 4, 6, 8]
        bits = run.metrics["policy_entropy"].to_numpy(np.float32).view(np.uint32)
        assert not (bits & (2**10 - 1)).any()  # four digits: what is below them is noise, and half of the file
        assert set(METRICS) - set(SPARSE) - set(TIMED) <= set(run.metrics)
        assert run.evaluated()["eval_accuracy"].tolist() == pytest.approx(
            whole[name].evaluated()["eval_accuracy"].tolist()
        )


def test_what_is_recorded_is_not_made_again(finished, grid_file, tmp_path):
    """The record alone is enough, as in a fresh clone; a record of another configuration is refused."""
    text = finished[1].parent.joinpath("tiny.toml").read_text()
    grid_file.write_text(
        text.replace("seed = [0, 1]", "seed = [0, 1, 2]").replace(', kl = "kl-cov:fraction=0.1,coef=2"', "")
    )
    record = tmp_path / "kept"
    shutil.copytree(finished[1], record)
    assert main(["experiment", str(grid_file), "--out", str(tmp_path / "out"), "--record", str(record)]) == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("tiny*")) == ["tiny-none-seed2"]
    assert sorted(read_runs(record)) == sorted([*read_runs(finished[1]), "tiny-none-seed2"])
    grid_file.write_text(text.replace("steps = 8", "steps = 12"))
    assert main(["experiment", str(grid_file), "--out", str(tmp_path / "out"), "--record", str(record)]) == 2


def test_a_killed_grid_goes_on_and_ends_as_one_that_was_not(finished, grid_file, tmp_path):
    """kill -9 in the middle of a run loses no more than the steps after its last checkpoint."""
    out = tmp_path / "killed"
    process = subprocess.Popen(command(grid_file, "--out", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/checkpoints/0*/manifest.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    saved = {p.parent.name: json.loads(p.read_text())["step"] for p in out.glob("*/checkpoints/0*/manifest.json")}
    assert saved
    assert subprocess.run(command(grid_file, "--out", out), capture_output=True).returncode == 0
    for name, run in read_runs(finished[0]).items():
        assert (out / name / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()
        assert read_run(out / name).evaluation["right"] == run.evaluation["right"]


def test_a_run_that_another_process_works_on_is_left_to_it(grid_file, tmp_path):
    out, grid = tmp_path / "shared", load_grid(grid_file)
    with locked(out / "tiny-none-seed0") as mine:
        assert mine
        made = {name for name, _ in run_grid(grid, out)}
    assert made == set(grid.configs) - {"tiny-none-seed0"} and not is_over(out / "tiny-none-seed0")


def test_runs_that_another_process_finished_meanwhile_are_recorded_too(finished, grid_file, tmp_path, monkeypatch):
    """Two processes share a grid; the last one records all runs, not only its own."""

    def elsewhere(grid, out, done):
        shutil.copytree(finished[0], out)
        yield from ()

    monkeypatch.setattr("erltool.training.experiments.run_grid", elsewhere)
    assert main(["experiment", str(grid_file), "--out", str(tmp_path / "out"), "--record", str(tmp_path / "kept")]) == 0
    assert list(read_runs(tmp_path / "kept")) == list(load_grid(grid_file).configs)


def test_a_run_that_fails_is_recorded_and_the_others_go_on(grid_file, tmp_path):
    text = grid_file.read_text().replace("[vary]", "learning_rate = 1e30\n[vary]").replace("[0, 1]", "[0]")
    grid_file.write_text(text.replace("kl-cov:fraction=0.1,coef=2", "entropy-bonus:coef=0.1"))
    over = {name: m.over for name, m in run_grid(load_grid(grid_file), tmp_path / "runs") if m.over}
    assert len(over) == 2 and "policy_entropy is nan" in over["tiny-kl-seed0"].evaluation["failed"]


@pytest.mark.parametrize(
    "change, message",
    [
        (("[vary]", "[vary"), "not TOML"),
        (("[vary]", "[varied]"), "unknown varied"),
        (("steps = 8", "step = 8"), "did you mean 'steps'"),
        (("steps = 8", "steps = 7"), "run tiny-none-seed0: steps=7"),
        (("kl-cov:fraction=0.1,coef=2", "kl-cow"), "kl-cow"),
        (("seed = [0, 1]", "seed = [0, 0]"), "two runs are named tiny-none-seed0"),
        (
            ("seed = [0, 1]", "seed = { a = { seed = 0, control = 'none' } }"),
            "vary.control and vary.seed both set control",
        ),
        (("seed = [0, 1]", "seed = 0"), "vary.seed must be a list or a table"),
        (("kl =", "kl0.1 ="), "put it in quotes"),
        (("kl =", '"k/l" ='), "cannot name a folder"),
        (("samples = 4", "samples = 4\nrounds = 2"), "problems, samples and temperatures"),
        (("samples = 4", "samples = 4\ntemperatures = [-1]"), "temperatures=[-1]: must be a list of numbers"),
        (("samples = 4", "samples = 4\ntemperatures = 0.6"), "temperatures=0.6: must be a list of numbers"),
        (("samples = 4", "samples = 0"), "[evaluate] samples=0: must be a whole number of at least 1"),
        (("samples = 4", 'samples = "4"'), "[evaluate] samples='4': must be"),
        (("problems = 6", "problems = true"), "[evaluate] problems=True: must be"),
        (("problems = 6", "problems = 6.5"), "[evaluate] problems=6.5: must be"),
        (("problems = 6", "problems = -6"), "[evaluate] problems=-6: must be"),
        (('question = "does it run?"', "question = 3"), "question must be text"),
        (("[evaluate]\nproblems = 6\nsamples = 4", "[[evaluate]]"), "evaluate must be a table"),
        (("[vary]", "[[vary]]"), "vary must be a table"),
        (("[train]", "[[train]]"), "train must be a table"),
        (("steps = 8", 'steps = "8"'), "run tiny-none-seed0: steps='8': must be int, not str"),
        (("steps = 8", "steps = [8]"), "steps=[8]: must be int, not list"),
        (("steps = 8", "steps = 2026-01-01"), "steps=datetime.date"),
        (("lora_rank = 4", "learning_rate = nan"), "learning_rate=nan: must be above 0"),
        (("lora_rank = 4", 'task = ""'), "task: must be text"),
        (("lora_rank = 4", "trust_remote_code = true"), "--trust-remote-code"),
        (("seed = [0, 1]", "seed = []"), "vary.seed has no values"),
        (("seed = [0, 1]", 'seed = ["0"]'), "seed='0': must be int, not str"),
        (('none = "none"', "none = 3"), "control=3: must be text"),
        (('none = "none"', 'none = ["none"]'), "control=['none']: must be text"),
        (('none = "none"', '"\\u001b[2J" = "none"'), "cannot name a folder"),
    ],
)
def test_a_wrong_grid_is_one_line_that_names_it(grid_file, change, message):
    grid_file.write_text(grid_file.read_text().replace(*change))
    with pytest.raises(ErltoolError, match="tiny.toml") as e:
        load_grid(grid_file)
    assert message in str(e.value) and str(e.value).isprintable()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed = [0, 1]", 'policy = { a = "sharpening", b = "/nowhere" }'), "no config.json there"),
        (("seed = [0, 1]", 'task = { a = "countdown", b = "chess" }'), "task 'chess' is not known"),
    ],
)
def test_what_the_last_run_needs_is_looked_for_before_the_first(grid_file, tmp_path, change, message):
    grid_file.write_text(grid_file.read_text().replace(*change))
    with pytest.raises(ErltoolError, match=message):
        next(run_grid(load_grid(grid_file), tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_run_that_somebody_goes_on_with_by_hand_is_left_out_and_said(grid_file, tmp_path, caplog):
    out, grid = tmp_path / "shared", load_grid(grid_file)
    steps = train(grid.configs["tiny-none-seed0"], out / "tiny-none-seed0")
    next(steps)
    made = {name for name, _ in run_grid(grid, out)}
    assert made == set(grid.configs) - {"tiny-none-seed0"}
    assert len(caplog.messages) == 1 and "is writing there" in caplog.messages[0]
    list(steps)
    assert {name for name, _ in run_grid(grid, out)} == {"tiny-none-seed0"}


def test_an_evaluation_of_a_policy_that_has_trained_on_is_gone(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0] / "tiny-none-seed0", run)
    config = TrainConfig.from_dict(read_run(run).config)
    list(train(config, run, resume=True))
    assert read_run(run).evaluation
    list(train(dataclasses.replace(config, steps=12), run, resume=True))
    assert not read_run(run).evaluation and not is_over(run)


def test_an_unknown_grid_names_those_that_are_shipped():
    with pytest.raises(ErltoolError, match="sharpening"):
        load_grid("sharpenin")


@pytest.mark.parametrize("name", sorted(p.stem for p in shipped("data/experiments").glob("*.toml")))
def test_what_is_recorded_is_what_the_shipped_grid_declares(name):
    grid = load_grid(name)
    runs = recorded_runs(grid, shipped("data/runs") / name)
    assert list(runs) == list(grid.configs)
    assert all(r.metrics["step"].max() == grid.configs[n].steps for n, r in runs.items())
    assert all(len(r.evaluation["right"]) == grid.problems for r in runs.values())


def test_a_grid_may_evaluate_at_further_temperatures(grid_file, tmp_path):
    text = grid_file.read_text().replace("samples = 4", "samples = 4\ntemperatures = [0.0, 0.6]")
    grid_file.write_text(text.replace("seed = [0, 1]", "seed = [0]"))
    grid = load_grid(grid_file)
    *_, (name, progress) = run_grid(grid, tmp_path / "out")
    found = progress.over.evaluation
    assert set(found["tempered"]) == {"0", "0.6"} and found["samples"] == 4
    greedy, cool = found["tempered"]["0"], found["tempered"]["0.6"]
    assert greedy["samples"] == 1 and cool["samples"] == 4 and len(greedy["right"]) == len(cool["right"]) == 6
    policy, config = policy_for_evaluation(str(tmp_path / "out" / name))
    task = load_task(config.task)
    again = evaluate(policy, task, eval_problems(task, 6), 1, max_response_tokens=config.max_response_tokens,
                     temperature=0.0)  # fmt: skip
    assert greedy["average"] == again.average


def test_a_record_may_have_few_metrics(finished, tmp_path, grid_file, capsys):
    """A map of hundreds of runs then takes a fifth of the room."""
    runs, whole, _ = finished
    words = ["experiment", str(grid_file), f"--out={runs}", f"--record={tmp_path}"]
    assert main([*words, "--metrics=reward,eval_accuracy"]) == 0
    for name, run in read_runs(tmp_path).items():
        assert set(run.metrics) == {"step", "iteration", "reward", "eval_accuracy"}
        assert run.metrics.equals(read_runs(whole)[name].metrics[list(run.metrics)])
    assert main([*words, "--metrics=reward,rewards"]) == 2 and "'rewards' is not a metric" in capsys.readouterr().err
    with pytest.raises(ErltoolError, match="no run has the metric entropy_change"):
        record_runs(read_runs(whole), tmp_path, ["entropy_change"])


def test_damaged_recordings_are_one_line(finished, tmp_path):
    folder = tmp_path / "kept"
    record_runs(read_runs(finished[0]), folder)
    (folder / "metrics.parquet").write_bytes(b"PAR1")
    with pytest.raises(ErltoolError, match="metrics.parquet"):
        read_runs(folder)
    whole = (folder / "runs.json.gz").read_bytes()
    for damaged in (whole[:-20], b"not gzip", gzip.compress(b"{")):
        (folder / "runs.json.gz").write_bytes(damaged)
        with pytest.raises(ErltoolError, match="runs.json.gz.*damaged"):
            read_runs(folder)
    with pytest.raises(ErltoolError, match="holds no runs"):
        read_runs(tmp_path / "nothing")
