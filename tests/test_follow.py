"""A log followed while it is written: each kind in pieces, torn lines, rotation, resumption, several runs; `erltool
watch` on a terminal, in a pipe and with a command on an alarm."""

import json
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from erltool import ErltoolError, read_log, read_run
from erltool.cli import command as cli
from erltool.cli.watch_view import curve, lines_of
from erltool.logs import tails
from erltool.logs.follow import FOLLOWED, Follower
from erltool.logs.live import Live
from erltool.resources import shipped
from erltool.runs.alarms import Watch

LOGS = Path(__file__).parent / "logs"


def series_of(path, **options) -> dict:
    """The series that importing a log gives."""
    log = read_log(path, **options)
    roles = {"step": log.columns["step"]} | {r: log.columns[r] for r in FOLLOWED if r in log.columns}
    return {role: log.metrics[name].to_numpy() for role, name in roles.items()}


def same(follower: Follower, wanted: dict) -> bool:
    found = follower.series
    return all(np.allclose(found[role], values, equal_nan=True, rtol=1e-12) for role, values in wanted.items())


def row(step: int, entropy=None, **more) -> dict:
    return {"step": step, "entropy": 1 / (1 + step / 20) if entropy is None else entropy, "reward": step / 1000} | more


def lines(*rows: dict) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in rows)


def append(file: Path, data: bytes) -> None:
    with open(file, "ab") as f:
        f.write(data)


@pytest.mark.parametrize(
    "name",
    ["verl.jsonl", "verl_console.log", "openrlhf_console.log", "trl_console.log", "skyrl_console.log",
     "prime_rl/metrics.jsonl", "swift/logging.jsonl", "cases/german.csv", "cases/swift.jsonl", "cases/prime_rl.jsonl",
     "cases/llamafactory.jsonl", "cases/percent_signs.csv", "cases/trackio.jsonl"],
)  # fmt: skip
def test_a_text_that_comes_in_any_pieces_is_what_import_reads(tmp_path, name, rng, monkeypatch):
    blob, file = (LOGS / name).read_bytes(), tmp_path / Path(name).name
    follower = Follower(file)
    assert not follower.look() and "not there yet" in follower.waits
    monkeypatch.setattr("erltool.logs.follow.SHARE", 1e9)
    monkeypatch.setattr(tails, "PIECE", 700)
    cuts = [0, *sorted(rng.integers(1, len(blob), 25).tolist()), len(blob)]
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        append(file, blob[first:last])
        follower.look()
    append(file, b"\n")
    follower.look()
    assert same(follower, series_of(LOGS / name)) and follower.log.columns == read_log(LOGS / name).columns


@pytest.mark.parametrize("kind", ["wandb", "swanlab", "swanlab_old", "tensorboard"])
def test_a_file_of_records_that_comes_in_any_pieces_is_what_import_reads(tmp_path, kind, rng, monkeypatch):
    if kind == "tensorboard":
        pytest.importorskip("tensorboard", reason="reading event files needs tensorboard")
    source = next(f for f in (LOGS / kind).rglob("*") if f.is_file())
    file = tmp_path / source.name
    blob = source.read_bytes()
    monkeypatch.setattr("erltool.logs.follow.SHARE", 1e9)
    file.write_bytes(blob[:900])
    follower = Follower(file)
    follower.look()
    cuts = [900, *sorted(rng.integers(901, len(blob), 12).tolist()), len(blob)]
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        append(file, blob[first:last])
        follower.look()
    follower.look()  # nothing more came, so the last row is whole
    assert same(follower, series_of(LOGS / kind))


@pytest.mark.parametrize(("name", "column"), [("trackio/grpo.db", "id"), ("mlflow.db", "rowid")])
def test_a_database_that_grows_is_what_import_reads(tmp_path, name, column, monkeypatch):
    monkeypatch.setattr("erltool.logs.follow.SHARE", 1e9)
    file = Path(shutil.copy(LOGS / name, tmp_path))
    with sqlite3.connect(file, isolation_level=None) as db:
        db.execute("PRAGMA journal_mode = WAL")
        rows = db.execute(f"SELECT {column}, * FROM metrics ORDER BY {column}").fetchall()
        db.execute(f"DELETE FROM metrics WHERE {column} > ?", (rows[9][0],))
        follower = Follower(file, run=None)
        looks = 0
        for at in range(10, len(rows), 7):
            values = [r[1:] for r in rows[at : at + 7]]
            db.executemany(f"INSERT INTO metrics VALUES ({','.join('?' * len(values[0]))})", values)
            try:
                looks += follower.look()
            except ErltoolError as e:  # the second run is there now, and nothing says which is meant
                assert "holds 2 runs" in str(e)
                break
        assert looks > 3
    db.close()
    chosen = Follower(file, run="base")
    chosen.look()
    chosen.look()
    assert same(chosen, series_of(file, run="base"))


def test_thousands_beside_decimal_commas_are_thousands(tmp_path):
    file = tmp_path / "log.csv"
    rows = [(f"{100 * t:,}".replace(",", "."), f"0,{900 - t}", f"0,{100 + t}") for t in range(1, 30)]
    file.write_text("step;entropy;accuracy\n" + "".join(";".join(r) + "\n" for r in rows))
    follower = Follower(file)
    follower.look()
    assert same(follower, series_of(file)) and follower.series["step"].tolist() == [100 * t for t in range(1, 30)]


def test_cells_of_several_lines_and_equal_names_are_those_of_import(tmp_path):
    """The second line of a text would be a row of its own, with the text's number for its step."""
    file = tmp_path / "log.csv"
    text = "".join(f'{t},"a\n{900 + t}, x",{1 / t},9,{t / 60}\n' for t in range(1, 30))
    file.write_text("step,prompt,entropy,entropy,accuracy\n" + text)
    follower = Follower(file)
    follower.look()
    assert same(follower, series_of(file)) and follower.series["step"].tolist() == list(range(1, 30))


def test_only_what_grew_is_read(tmp_path, monkeypatch):
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(*map(row, range(1, 3000))))
    follower = Follower(file)
    follower.look()
    read: list[int] = []
    real = tails.PARSERS["JSONL"]()
    monkeypatch.setattr(
        follower._tail, "_parse", lambda lines, skipped: (read.append(len(lines)), real(lines, skipped))[1]
    )
    for t in range(3000, 3010):
        append(file, lines(row(t)))
        assert follower.look() and follower.series["step"][-1] == t
    assert sum(read) == 10 and follower.restarts == 0


def test_a_torn_last_line_waits_for_its_end(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(row(1), row(2)) + b'{"step": 3, "entr')
    follower = Follower(file)
    follower.look()
    assert follower.series["step"].tolist() == [1, 2] and not follower.look()
    append(file, b'opy": 0.25, "reward": 1}\n')
    assert follower.look() and follower.series["entropy"][-1] == 0.25


@pytest.mark.parametrize("how", ["renamed", "copied and cut"])
def test_a_rotated_log_goes_on(tmp_path, how, monkeypatch):
    monkeypatch.setattr("erltool.logs.follow.SHARE", 1e9)
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(*map(row, range(1, 30))))
    follower = Follower(file)
    follower.look()
    if how == "renamed":
        append(file, lines(row(30)))  # not seen before the rotation
        file.rename(tmp_path / "log.jsonl.1")
        assert follower.look()
        file.write_bytes(lines(row(31)))
    else:
        file.write_bytes(lines(row(30), row(31)))
    assert follower.look() and follower.series["step"].tolist() == list(range(1, 32))
    append(file, lines(row(32)))
    assert follower.look() and follower.series["step"][-1] == 32 and follower.restarts == 0


def test_a_log_that_is_written_anew_replaces_what_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr("erltool.logs.follow.SHARE", 1e9)
    file = tmp_path / "log.jsonl"
    text = lines(*map(row, range(1, 60)))
    file.write_bytes(text)
    follower = Follower(file)
    follower.look()
    (tmp_path / "new").write_bytes(text + lines(row(60)))
    (tmp_path / "new").rename(file)
    assert follower.look() and follower.series["step"].tolist() == list(range(1, 61)) and follower.restarts == 0


def test_a_resumed_run_does_steps_again_and_another_run_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("erltool.logs.follow.SHARE", 1e9)
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(*map(row, range(1, 61))))
    live = Live(Follower(file))
    live.look()
    append(file, lines(*(row(t, 0.7) for t in range(51, 70))))
    _, snapshot = live.look()
    assert snapshot.series["step"].tolist() == list(range(1, 70)) and snapshot.series["entropy"][51] == 0.7
    append(file, lines(*(row(t, 3.0) for t in range(1, 20))))
    _, snapshot = live.look()
    assert snapshot.series["step"].tolist() == list(range(1, 20)) and set(snapshot.series["entropy"]) == {3.0}
    with pytest.raises(ErltoolError, match="holds 2 runs; choose one"):
        Follower(file).look()
    first = Follower(file, run="1")
    assert first.look() and len(first.series["step"]) == 69


def test_metrics_that_come_later_change_the_choice(tmp_path, monkeypatch):
    monkeypatch.setattr("erltool.logs.follow.SHARE", 1e9)
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(*map(row, range(1, 10))))
    live = Live(Follower(file))
    assert live.look()[1].columns["performance"] == "reward"
    append(file, lines(row(10, eval_accuracy=0.3)))
    assert live.look()[1].columns["performance"] == "eval_accuracy"
    append(file, lines(row(11, eval_accuracy=40.0)))
    _, snapshot = live.look()
    assert "jumps from 0.3 to 40" in snapshot.waits and snapshot.step >= 10
    assert "no performance" in Live(follower_of(tmp_path / "b", {"step": 1, "entropy": 0.5})).look()[1].no_law


def follower_of(file: Path, *rows: dict) -> Follower:
    file.write_bytes(lines(*rows))
    return Follower(file)


def test_our_own_run_has_its_alarms_and_its_end(tmp_path):
    source = shipped("data/runs/demo-none")
    shutil.copytree(source, tmp_path / "run")
    blob = (tmp_path / "run/metrics.jsonl").read_bytes()
    half = blob.index(b"\n", len(blob) // 4) + 1
    (tmp_path / "run/metrics.jsonl").write_bytes(blob[:half])
    live = Live(Follower(tmp_path / "run"))
    _, before = live.look()
    assert not before.new and not before.done and before.total == 240
    append(tmp_path / "run/metrics.jsonl", blob[half:])
    live.look()
    _, after = live.look()
    watch = Watch()
    wanted = [a for r in read_run(source).metrics.to_dict("records") for a in watch.see(r)]
    assert list(after.alarms) == wanted and wanted and after.done and after.forecast is not None


def test_the_view_fits_80_columns_and_is_safe(tmp_path):
    name = "entropy\x1b]0;owned\x07"
    rows = [{"step": t, name: 1 / (1 + t / 9), "acc\u202e[bold]": 0.7 - 0.3 / (1 + t / 9)} for t in range(1, 90)]
    _, snapshot = Live(follower_of(tmp_path / "x\x1b[2J.jsonl", *rows), steps=100).look()
    for plain in (False, True):
        text = lines_of(snapshot, 79, plain)
        assert max(map(len, text)) <= 79 and not re.search(r"[\x00-\x1f\x7f\u202e]", "".join(text))
        assert any("R = " in line for line in text) and any("ceiling" in line for line in text)
    assert "".join(lines_of(snapshot, 79, True)).isascii()


def test_a_curve_shows_where_values_are():
    steps = np.arange(8.0)
    assert curve(steps, steps, 8) == "▁▂▃▄▅▆▇█" and curve(steps, steps * np.nan, 8) == ""
    assert curve(steps, np.ones(8), 4) == "▅▅▅▅" and len(curve(np.arange(999.0), np.arange(999.0), 50)) == 50
    assert curve(np.array([0.0, 1, 9]), np.array([0.0, 1, 2]), 10, plain=True) == ". @"


# --- the command -----------------------------------------------------------------------------------


def test_once_prints_and_says_by_its_status_whether_there_is_an_alarm(tmp_path, capsys):
    assert cli.main(["watch", str(LOGS / "verl.jsonl"), "--once"]) == 0
    out = capsys.readouterr().out
    assert "verl.jsonl (verl JSONL): step 24" in out and "alarms      none" in out
    assert cli.main(["watch", str(shipped("data/runs/demo-none")), "--once"]) == 1
    assert "alarm       step" in capsys.readouterr().out
    heads = tmp_path / "heads.csv"
    heads.write_text("step,entropy,reward\n")
    for words, message in (
        (["watch", str(LOGS / "trackio"), "--once"], "holds 2 runs; choose one with --run NAME"),
        (["watch", str(tmp_path / "none"), "--once"], "not there yet"),
        (["watch", str(heads), "--once"], "heads.csv: no row yet; without --once, watch waits for it"),
        (["watch", str(LOGS / "verl.jsonl"), "--once", "--notify", "x"], "--once sees no alarm come"),
        (["watch", str(LOGS / "verl.jsonl"), "--notify", "'x"], "No closing quotation"),
    ):
        assert cli.main(words) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def watching(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "erltool", "watch", *map(str, words)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def wait_for(stream, text: str, seconds: float = 60) -> tuple[str, float]:
    """What was printed up to a text, and when that came."""
    printed, until = "", time.monotonic() + seconds
    while time.monotonic() < until:
        if select.select([stream], [], [], 0.05)[0]:
            printed += os.read(stream.fileno(), 1 << 16).decode()
            if text in printed:
                return printed, time.monotonic()
    raise AssertionError(f"no {text!r} within {seconds} s in {printed!r}")


def test_a_row_a_second_is_shown_soon_in_a_pipe(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(*map(row, range(1, 200))))
    process = watching(file)
    try:
        wait_for(process.stdout, "step 199")
        late = []
        for t in range(200, 206):
            written = time.monotonic()
            append(file, lines(row(t)))
            late.append(wait_for(process.stdout, f"step {t}:", 20)[1] - written)
            time.sleep(max(0, written + 1 - time.monotonic()))
        assert np.median(late) < 4, late  # 2 s on a machine that does nothing else
    finally:
        process.terminate()
        process.wait(30)


def test_a_new_alarm_runs_the_command_without_a_shell(tmp_path):
    file, got = tmp_path / "$(touch owned) x.jsonl", tmp_path / "got"
    script = tmp_path / "note.py"
    script.write_text("import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(repr(sys.argv[2:]))")
    rows = [row(t, 1.0 + 0.01 * (t % 3)) for t in range(1, 60)]
    file.write_bytes(lines(*rows))
    process = watching(
        file, "--notify", f"'{sys.executable}' '{script}' '{got}' 'two words; touch owned'", cwd=tmp_path
    )
    try:
        wait_for(process.stdout, "step 59")
        assert not got.exists()
        append(file, lines(*(row(t, 0.05) for t in range(60, 80))))
        printed, _ = wait_for(process.stdout, "alarm: step")
        assert "collapse" in printed
        until = time.monotonic() + 30
        while not got.exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.2)
        words = eval(got.read_text())
        assert words[0] == "two words; touch owned" and len(words) == 2
        assert words[1].startswith("$(touch owned) x.jsonl: step 6") and "collapse" in words[1]
        assert not (tmp_path / "owned").exists()
    finally:
        process.terminate()
        process.wait(30)


def test_a_finished_run_ends_the_watch(tmp_path):
    process = watching(shipped("data/runs/demo-none"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "step 240 of 240" in out and "alarm: step" in out and not err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_on_a_terminal_a_view_is_drawn_again(tmp_path, encoding):
    file = tmp_path / "log\x1b[31m.jsonl"
    file.write_bytes(lines(*map(row, range(1, 60))))
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PYTHONIOENCODING": encoding}
    process = subprocess.Popen(
        [sys.executable, "-m", "erltool", "watch", str(file), "--steps", "100"], stdout=slave, stderr=slave,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    try:
        with open(master, "rb", buffering=0) as screen:
            wait_for(screen, "step 59 of 100")
            append(file, lines(row(60)))
            drawn, _ = wait_for(screen, "step 60 of 100")
            if "entropy" not in drawn:  # a view may come in several parts
                drawn += wait_for(screen, "entropy")[0]
            assert "\x1b[31m" not in drawn and "U+001B" in drawn
            words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
            assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", words)) and "entropy" in words
            assert words.isascii() == (encoding == "ascii")
            process.send_signal(2)
            assert process.wait(30) == 0
    finally:
        os.close(slave)
        process.kill()


def test_the_report_of_a_watched_log_has_the_columns_that_are_watched(tmp_path):
    file, page = tmp_path / "log.jsonl", tmp_path / "page.html"
    rows = [{"step": k, "my_h": 1 - k / 40, "entropy": 0.5, "val/acc": k / 40} for k in range(1, 31)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ["watch", str(file), "--entropy", "my_h", "--performance", "val/acc", "--unit", "fraction", "--steps", "30"]
    assert cli.main([*words, "--html", str(page)]) == 0
    assert "my_h" in page.read_text()
