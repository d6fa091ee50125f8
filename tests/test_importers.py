"""Other tools' logs: formats as the tools write them (tests/logs), bad input, alignment, units, runs made of them."""

import gzip
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import erltool
from erltool import ErltoolError
from erltool.cli import command as cli
from erltool.logs import formats as logformats
from erltool.logs import rows as logrows
from erltool.logs.read import align_points, log_report, read_log, write_run

LOGS = Path(__file__).parent / "logs"
ROWS = [json.loads(line) for line in open(LOGS / "verl.jsonl")]
ENTROPY = {row["step"]: row["data"]["actor/entropy"] for row in ROWS if "actor/entropy" in row["data"]}
ACCURACY = {row["step"]: v for row in ROWS if (v := row["data"].get("val-core/countdown/acc/mean@8")) is not None}


@pytest.fixture
def csv(tmp_path):
    """Writes a plain log of three steps under a name, in an encoding."""

    def write(text="step,entropy,eval_accuracy\n1,0.9,0.1\n2,0.7,0.2\n3,0.5,0.3\n", name="log.csv", encoding="utf-8"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return file

    return write


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "entropy", "performance", "average"),
    [
        ("verl_console.log", "verl console", "actor/entropy", "val-core/countdown/acc/mean@8", "verl"),
        ("verl.jsonl", "verl JSONL", "actor/entropy", "val-core/countdown/acc/mean@8", "verl"),
        ("openrlhf_console.log", "OpenRLHF console", "entropy_loss", "eval_countdown_pass1", "OpenRLHF"),
        ("openrlhf", "TensorBoard", "train/entropy_loss", "eval/eval_countdown_pass1", "OpenRLHF"),
        ("tensorboard", "TensorBoard", "actor/entropy", "val-core/countdown/acc/mean@8", "verl"),
    ],
)
def test_the_tools_own_logs_give_the_numbers_that_went_in(name, kind, entropy, performance, average):
    if kind == "TensorBoard":
        pytest.importorskip("tensorboard", reason="reading event files needs tensorboard")
    log = read_log(LOGS / name)
    assert (log.kind, log.columns["entropy"], log.columns["performance"]) == (kind, entropy, performance)
    assert average in log.entropy_average and log.unit == "fraction" and not log.skipped
    by = log.metrics.set_index(log.columns["step"])
    float32 = 1e-7 if kind == "TensorBoard" else 0
    assert by[entropy].dropna().to_dict() == pytest.approx(ENTROPY, rel=float32, abs=0)
    later = {step: v for step, v in ACCURACY.items() if step > 0 or name.startswith("verl")}
    assert by[performance].dropna().to_dict() == pytest.approx(later, rel=float32, abs=0)
    assert list(log.points()["step"]) == [3, 6, 9, 12, 15, 18, 21, 24]


@pytest.mark.parametrize(
    ("name", "entropy", "performance", "reward", "average", "steps"),
    [
        ("prime_rl/metrics.jsonl", "entropy/all/mean", "eval/gsm8k/all/solver/avg@1",
         "train/agg/all/solver/reward/mean", "prime-rl", [3, 6, 9]),
        ("swift/logging.jsonl", "entropy/mean", "eval_reward", "reward", "Eq 5", [3, 6, 9, 12]),
    ],
)  # fmt: skip
def test_jsonl_of_prime_rl_and_ms_swift_needs_no_option(name, entropy, performance, reward, average, steps):
    """prime-rl's two processes write to one file, the trainer a step behind; ms-swift's last line repeats all."""
    log = read_log(LOGS / name)
    assert (log.columns["entropy"], log.columns["performance"]) == (entropy, performance)
    assert log.columns["reward"] == reward and average in log.entropy_average and log.unit == "fraction"
    made = [row for row in map(json.loads, (LOGS / name).read_text().splitlines()) if entropy in row]
    assert log.metrics[entropy].tolist() == [row[entropy] for row in made]
    assert list(log.points()["step"]) == steps and len(log.runs) < 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llamafactory/trainer_log.jsonl", "LLaMA-Factory writes no entropy here; train with report_to: tensorboard"),
        ("unsloth.ipynb", "a notebook's table leaves the entropy out; give a checkpoint's trainer_state.json"),
    ],
)
def test_a_tool_that_leaves_entropy_out_of_its_log_is_said_with_where_it_is(name, words, capsys):
    assert cli.main(["fit", str(LOGS / name)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    other = read_log(LOGS / name, columns={"entropy": "loss" if "llama" in name else "Training Loss"})
    assert other.columns["performance"] == "reward"


def test_of_trls_two_entropies_of_ppo_the_mean_of_tokens_is_taken(tmp_path):
    """objective/entropy is a sum over a response, in both of TRL's PPO trainers."""
    rows = [{"step": t, "objective/entropy": 30 / t, "env/reward_mean": t / 30} for t in range(1, 30)]
    for name in ("ppo/policy/entropy", "policy/entropy_avg"):
        file = tmp_path / "log.jsonl"
        file.write_text("".join(json.dumps(row | {name: 1 / row["step"]}) + "\n" for row in rows))
        assert read_log(file).columns["entropy"] == name


def test_trl_state_has_training_and_evaluation_of_a_step_in_one_row():
    log, state = read_log(LOGS / "trainer_state.json"), json.loads((LOGS / "trainer_state.json").read_text())
    assert (log.kind, log.columns["entropy"], log.columns["performance"]) == (
        "TRL trainer_state",
        "entropy",
        "eval_reward",
    )
    assert log.columns["response_length"] == "completions/mean_length" and not log.skipped
    trained = [row["entropy"] for row in state["log_history"] if "entropy" in row]
    points = log.points()
    assert list(points["entropy"]) == pytest.approx([np.mean(trained[:2]), np.mean(trained[2:])])
    assert list(points["performance"]) == [r["eval_reward"] for r in state["log_history"] if "eval_reward" in r]


def test_what_trl_prints_of_a_run_gives_the_numbers_of_its_state():
    printed, state = read_log(LOGS / "trl_console.log"), read_log(LOGS / "trainer_state.json")
    assert printed.kind == "TRL console" and printed.columns == state.columns | {"step": "step (counted)"}
    assert printed.entropy_average == state.entropy_average and "TRL" in printed.entropy_average
    points = [log.points().to_numpy() for log in (printed, state)]
    assert points[0] == pytest.approx(points[1], rel=1e-3)


def test_a_folder_with_a_trainer_state_is_read(tmp_path):
    shutil.copy(LOGS / "trainer_state.json", tmp_path)
    assert read_log(tmp_path).kind == "TRL trainer_state"


def test_of_a_wandb_chart_one_run_is_asked_for_and_not_its_bounds(csv):
    header = ["train/global_step"]
    for run in ("qwen - a", "b"):
        header += [f"{run} - {m}{e}" for m in ("actor/entropy", "eval/accuracy") for e in ("", "__MIN", "__MAX")]
    rows = [[i, *[(1 - i / 10) * k for k in (1, 9, 9, 0.5, 9, 9)] * 2] for i in range(4)]
    text = "\n".join(",".join(f'"{v}"' for v in row) for row in [header, *rows])
    with pytest.raises(ErltoolError, match="holds 2 runs; choose one with --run NAME or run=NAME: qwen - a, b$"):
        read_log(csv(text))
    log = read_log(csv(text), run="qwen - a")
    assert log.kind == "W&B CSV" and log.columns["performance"] == "qwen - a - eval/accuracy"
    assert (log.run, log.runs) == ("qwen - a", ("qwen - a", "b"))
    assert not any("__M" in name for name in log.metrics)
    other = read_log(csv(text), columns={"entropy": "b - actor/entropy"})
    assert other.columns["performance"] == "b - eval/accuracy"


@pytest.mark.parametrize("form", ["lines", "rows", "columns"])
def test_wandb_history_in_each_form_counts_by_the_frameworks_step(tmp_path, form):
    rows = []
    for i in range(6):  # OpenRLHF logs its evaluations as rows of their own
        rows += [{"_step": 2 * i, "train/global_step": i + 1, "train/entropy_loss": 1 - i / 10, "train/note": "text"}]
        rows += [{"_step": 2 * i + 1, "eval/global_step": i + 1, "eval/eval_x_pass1": i / 10, "_wandb": {"a": 1}}]
    rows[0]["train/reward"] = "NaN"
    file = tmp_path / ("h.jsonl" if form == "lines" else "h.json")
    texts = {
        "lines": "\n".join(map(json.dumps, rows)),
        "rows": json.dumps(rows, indent=1),
        "columns": pd.DataFrame(rows).drop(columns="_wandb").to_json(),
    }
    file.write_text(texts[form])
    log = read_log(file)
    assert log.kind == "W&B history" and log.columns["step"] == "train/global_step"
    assert list(log.points()["entropy"]) == pytest.approx([1 - i / 10 for i in range(6)])


@pytest.mark.parametrize("name", ["log.tsv", "log.txt", "log.parquet", "log.jsonl", "log.json"])
def test_plain_tables(tmp_path, name):
    table = pd.DataFrame(
        {"Steps": [1, 2, 3], "my H": [0.9, 0.7, 0.5], "mine": [0.1, 0.2, 0.3], "text": ["a", "b,", "c"]}
    )
    writers = {
        "log.tsv": lambda f: table.to_csv(f, sep="\t", index=False),
        "log.txt": lambda f: table.drop(columns="text").to_csv(f, sep=";", index=False),
        "log.parquet": table.to_parquet,
        "log.jsonl": lambda f: table.to_json(f, orient="records", lines=True),
        "log.json": lambda f: table.to_json(f, orient="records", indent=1),
    }
    writers[name](tmp_path / name)
    points = read_log(tmp_path / name, columns={"entropy": "my H", "performance": "mine"}).points()
    assert points[["step", "entropy", "performance"]].to_numpy().tolist() == [
        [1, 0.9, 0.1],
        [2, 0.7, 0.2],
        [3, 0.5, 0.3],
    ]


def test_an_erltool_run_is_a_log_too():
    from erltool.resources import shipped

    path = shipped("data/runs/demo-none")
    log, run = read_log(path), erltool.read_run(path)
    assert log.kind == "erltool run" and "exact" in log.entropy_average
    points = log.points(window=1)
    assert list(points["entropy"]) == list(run.evaluated()["policy_entropy"])
    assert list(points["performance"]) == list(run.evaluated()["eval_accuracy"])


# --- alignment and units -------------------------------------------------------------------------


def test_entropy_is_averaged_over_the_window_up_to_each_measurement(rng):
    step = np.arange(1, 41)
    entropy, performance = rng.random(40), np.where(step % 8 == 0, rng.random(40), np.nan)
    points = align_points(step, entropy, performance)
    assert points.attrs == {"window": 8.0, "dropped": 0} and list(points["averaged"]) == [8] * 5
    assert list(points["entropy"]) == pytest.approx([entropy[i : i + 8].mean() for i in range(0, 40, 8)])
    narrow = align_points(step, entropy, performance, window=3)
    assert list(narrow["entropy"]) == pytest.approx([entropy[i + 5 : i + 8].mean() for i in range(0, 40, 8)])
    order = rng.permutation(40)
    pd.testing.assert_frame_equal(points, align_points(step[order], entropy[order], performance[order]))


def test_a_measurement_without_entropy_in_its_window_gives_no_point_and_is_counted():
    nan = float("nan")
    points = align_points([0, 1, 2, 3, 9], [nan, 0.5, 0.4, 0.3, nan], [0.1, nan, 0.2, nan, 0.3], window=2)
    assert points.attrs["dropped"] == 2 and points["step"].tolist() == [2]
    assert len(align_points([], [], [])) == 0 and len(align_points([1], [nan], [0.5])) == 0


@pytest.mark.parametrize("window", [0, -1, float("nan"), float("inf")])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(ErltoolError, match="must be a positive number of steps"):
        align_points([1, 2], [0.1, 0.2], [0.1, 0.2], window)
    with pytest.raises(ErltoolError, match="give as many of each"):
        align_points([1, 2], [0.1], [0.1, 0.2])


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "log.csv", "empty"),
        (" \n\n", "log.txt", "empty"),
        (" \n".encode("utf-16"), "log.txt", "empty"),
        (bytes(range(256)) * 40, "log.bin", "a binary file and no log"),
        (gzip.compress(b"step,entropy,accuracy\n1,1,1\n"), "log.csv.gz", r"compressed \(gzip\); unpack it"),
        (b"PK\x03\x04\nstep,entropy,accuracy\n1,1,1\n", "log.xlsx", r"compressed \(zip\); .*a spreadsheet as CSV"),
        ("once upon a time\nthere was, a step\n", "log.txt", "not a known log"),
        ('{"log_history": [{"step": 1, ', "trainer_state.json", "damaged JSON"),
        ("[" * 100_000, "deep.json", "damaged JSON"),
        (b"PAR1 and no more", "log.parquet", "not readable as Parquet"),
        ("step,entropy,note\n", "log.csv", "holds no numbers"),
        (
            "step,loss\n1,2\n",
            "log.csv",
            "no column found for entropy; name it with --entropy COL .*the columns are step, loss",
        ),
        ("entropy,accuracy\n1,2\n", "log.csv", "no column found for step"),
        ("step,entropy\n1,2\n", "log.csv", "no column found for performance"),
        ('step,entropy,accuracy\n1,2,3\n2,"3,4\n', "log.csv", "skipped: 1 the rest of the file .*EOF inside string"),
        ("step,entropy\n1,2,3\n", "log.csv", "more fields than its header"),
        ("step,entropy,accuracy\n1,1,0.3\n2,1,31\n", "log.csv", "jumps from 0.3 to 31"),
        ("step,\x1b[2Jentropy_coef\n1,2\n", "log.csv", r"U\+001B\[2Jentropy_coef"),
    ],
)
def test_what_is_no_log_is_one_clear_line(csv, capsys, text, name, message):
    assert cli.main(["import", str(csv(text, name))]) == 2
    out = capsys.readouterr()
    assert re.fullmatch(rf"erltool: [^\n]*{message}[^\n]*\n", out.err) and not out.out and "\x1b" not in out.err


def test_two_workers_give_bytes_one_name(request):
    """gzip writes the second into its bytes; pytest-xdist refuses two workers whose tests are named differently."""
    named = request.config.hook.pytest_make_parametrize_id
    one, other = (gzip.compress(b"step", mtime=second) for second in (1, 2))
    assert one != other
    assert named(config=request.config, val=one, argname="text") == "text"
    assert named(config=request.config, val=other, argname="text") == "text"
    assert named(config=request.config, val="log.csv", argname="name") is None  # pytest's own


def test_wrong_names_say_which_there_are(csv, tmp_path):
    with pytest.raises(ErltoolError, match="no column 'eval_acuracy' with numbers; the columns are eval_accuracy"):
        read_log(csv(), columns={"performance": "eval_acuracy"})
    with pytest.raises(ErltoolError, match="no role entropie; the roles are step, entropy"):
        read_log(csv(), columns={"entropie": "entropy"})
    with pytest.raises(ErltoolError, match="kind 'verl': not known; use one of verl console"):
        read_log(csv(), kind="verl")
    with pytest.raises(ErltoolError, match="cannot be read .Is a directory"):
        read_log(tmp_path, kind="CSV")
    with pytest.raises(ErltoolError, match="no such file"):
        read_log(tmp_path / "nothing")
    with pytest.raises(ErltoolError, match="holds no erltool run, trainer_state.json, TensorBoard event files or"):
        read_log(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "latin-1"])
def test_foreign_encodings_are_read_and_said(csv, encoding):
    text = "step,entropy,eval_accuracy,Größe\n1,0.9,0.1,1\n2,0.7,0.2,2\n"
    log = read_log(csv(text, encoding=encoding))
    assert len(log.points()) == 2 and "Größe" in log.metrics
    said = [] if encoding == "utf-8-sig" else [f"decoded as {encoding}, it is not UTF-8"]
    assert list(log.skipped) == said


def test_what_is_skipped_is_counted(csv):
    text = (
        "step,entropy,eval_accuracy\n3,0.5,0.3\n1,0.9,0.1\n1,0.8,0.1\n2,nan,0.2\n2,inf,0.2\n,0.1,0.1\n4,0.4,0.4,9,9\n"
    )
    log = read_log(csv(text))
    assert log.metrics["step"].tolist() == [1, 2, 3] and log.metrics["entropy"].tolist()[::2] == [0.8, 0.5]
    assert log.skipped == {
        "values that are not finite numbers": 2, "rows without a step": 1, "rows out of order": 1,
        "duplicated steps, of which the last value wins": 1, "unreadable lines": 1,
    }  # fmt: skip


def test_a_log_that_is_still_written_is_read_as_far_as_it_goes(tmp_path):
    for name in ("verl.jsonl", "verl_console.log", "openrlhf_console.log"):
        whole = (LOGS / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(len(whole) * 0.8)])
        log = read_log(tmp_path / name)
        assert 17 <= len(log.metrics) < 25
        assert log.metrics[log.columns["entropy"]].dropna().isin(ENTROPY.values()).sum() >= 17
    assert read_log(tmp_path / "verl.jsonl").skipped == {"unreadable lines": 1}
    (tmp_path / "verl.jsonl").write_bytes((LOGS / "verl.jsonl").read_bytes()[40:])  # what a rotation leaves
    assert read_log(tmp_path / "verl.jsonl").skipped == {"unreadable lines": 1}
    (tmp_path / "verl_console.log").write_bytes(b"\0\0" + (LOGS / "verl_console.log").read_bytes())
    assert len(read_log(tmp_path / "verl_console.log").points()) == 8


def test_a_torn_event_file_is_read_as_far_as_it_goes_and_counted(tmp_path):
    pytest.importorskip("tensorboard", reason="reading event files needs tensorboard")
    source = next((LOGS / "tensorboard").iterdir())
    blob = source.read_bytes()
    file = tmp_path / source.name
    file.write_bytes(blob[:2000])
    torn = read_log(file)
    entropy = torn.metrics["actor/entropy"].dropna()
    assert 5 < len(entropy) < 24 and list(entropy) == pytest.approx(list(ENTROPY.values())[: len(entropy)], rel=1e-6)
    assert 0 < torn.skipped["bytes at the end of a torn event file"] < 200
    file.write_bytes(blob[:1500] + b"\xff" * 40 + blob[1540:])
    assert read_log(file).skipped["bytes at the end of a torn event file"] > len(blob) - 1700
    file.write_bytes(b"no events at all, by any reading")
    with pytest.raises(ErltoolError, match="read as TensorBoard, and holds no numbers"):
        read_log(file)
    with pytest.raises(ErltoolError, match="holds 2 runs; choose one with --run NAME or run=NAME: openrlhf, tensor"):
        read_log(shutil.copytree(LOGS, tmp_path / "logs", ignore=shutil.ignore_patterns("trainer*")))


def test_without_tensorboard_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    with pytest.raises(ErltoolError, match="pip install tensorboard"):
        read_log(LOGS / "tensorboard")


def test_a_large_file_is_streamed_with_its_memory_bounded(tmp_path):
    """50 MB of 60 columns of which 3 have a role: peak memory rises by a fraction of the file's size."""
    names = ["step", "actor/entropy", "eval/accuracy", *[f"perf/column_{i}" for i in range(57)]]
    rest = "," + ",".join(["0.1234567890123"] * 57) + "\n"
    with open(tmp_path / "big.csv", "w") as f:
        f.write(",".join(names) + "\n")
        f.writelines(f"{i},{0.5 + i % 7 / 100},{i / 60_000}{rest}" for i in range(54_000))
    assert (tmp_path / "big.csv").stat().st_size > 48 << 20
    code = (
        "import resource, erltool.logs.formats as l; from erltool.logs.read import read_log; import pandas, pyarrow\n"
        "l.LARGE = 1 << 20; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"log = read_log({str(tmp_path / 'big.csv')!r})\n"
        "print(len(log.metrics), log.metrics.shape[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows, columns, kilobytes = map(int, done.stdout.split())
    assert (rows, columns) == (54_000, 3) and kilobytes < 30_000


def test_hostile_lines_cost_no_more_than_their_length(tmp_path):
    text = (LOGS / "verl_console.log").read_text()
    worst = ["step:1 - a:" + "1" * 300_000 + "x", "step:1 - " + "a:" * 300_000, "step:1 - a:1" + " " * 300_000 + "x"]
    (tmp_path / "log").write_text("\n".join([*worst, "global_step 1: {" + "'a': 1" * 100_000, "\x1b[" * 300_000, text]))
    began = time.process_time()
    assert len(read_log(tmp_path / "log").points()) == 8
    assert time.process_time() - began < 5
    lines = [" - ".join(f"m{i}_{j}:1" for j in range(1000)) for i in range(11)]
    (tmp_path / "log").write_text("\n".join(f"step:{i} - {line}" for i, line in enumerate(lines)))
    with pytest.raises(ErltoolError, match="over 10,000 metrics"):
        read_log(tmp_path / "log")


def test_rows_and_documents_have_a_limit(csv, monkeypatch):
    monkeypatch.setattr(logformats, "MAX_ROWS", 2)
    log = read_log(csv())
    assert log.metrics["step"].tolist() == [1, 2] and log.skipped == {"the rest of the file, after 2 rows": 1}
    monkeypatch.setattr(logrows, "JSON_LIMIT", 10)
    with pytest.raises(ErltoolError, match="write it as JSONL"):
        read_log(LOGS / "trainer_state.json")


# --- the command, and runs -----------------------------------------------------------------------


def test_import_prints_what_it_took_and_writes_a_run(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["import", str(LOGS / "verl_console.log"), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.replace(str(out), "run").replace(str(LOGS), "logs").splitlines())
    for said in ("verl console", "25 steps from 0 to 24", "or critic/rewards/mean", "taken as fractions", "token mean",
                 "8 points, entropy averaged over the 3 steps", "1 measurements of performance without"):  # fmt: skip
        assert said in text
    run, log = erltool.read_run(out), read_log(LOGS / "verl_console.log")
    assert run.config["steps"] == 24 and len(run.metrics) == 25 and set(run.metrics) <= set(erltool.METRICS)
    assert run.metrics["policy_entropy"].dropna().tolist() == list(ENTROPY.values())
    assert run.evaluated()["eval_accuracy"].tolist() == list(log.points()["performance"])
    source = json.loads((out / "config.json").read_text())["imported"]
    assert (source["kind"], source["unit"], source["window"]) == ("verl console", "fraction", 3)
    assert source["columns"]["performance"] == "val-core/countdown/acc/mean@8"
    assert cli.main(["fit", str(out)]) == 0
    assert cli.main(["import", str(LOGS / "verl.jsonl"), "--out", str(out)]) == 2


def test_the_command_takes_corrections(capsys):
    words = ["import", str(LOGS / "verl.jsonl"), "--performance", "critic/rewards/mean", "--window", "1"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "24 points, entropy averaged over the 1 steps" in out and "critic/rewards/mean" in out


def test_a_run_holds_fractions_and_says_which_entropies_are_means(csv, tmp_path):
    text = "step,entropy,eval_accuracy,reward\n1,0.9,,-1\n2,0.7,,1\n3,,30,1\n4,0.6,,1\n5,0.5,40,1\n"
    log = read_log(csv(text))
    source = write_run(log, tmp_path / "run")
    rows = erltool.read_run(tmp_path / "run").evaluated()
    assert log.unit == "percentage points" and rows["eval_accuracy"].tolist() == [0.3, 0.4]
    assert (
        rows["policy_entropy"].tolist() == pytest.approx([0.7, 0.5]) and source["entropies_that_are_window_means"] == 1
    )
    assert "reward" not in rows  # not within the [0, 1] of its name
    for bad, message in (
        (text.replace("30", "-3"), "neither a fraction"),
        (text.replace("2,0.7", "2.5,0.7"), "not whole"),
    ):
        with pytest.raises(ErltoolError, match=message):
            write_run(read_log(csv(bad)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_hostile_names_reach_no_terminal(csv):
    name = "entropy\x1b]0;owned\x07\u202e" + "x" * 300
    text = log_report(read_log(csv(f"step,{name},eval_accuracy\n1,0.9,0.1\n2,0.8,0.2\n")))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text) and max(map(len, text.splitlines()[2:])) <= 80
