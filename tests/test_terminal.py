"""What every command prints: on a terminal, in a file and a pipe, at 80 columns, in ASCII, with hostile names."""

import contextlib
import errno
import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from erltool import ErltoolError, TrainConfig
from erltool.cli import command as cli
from erltool.cli import terminal
from erltool.cli.terminal import Lines, Parser, progress
from erltool.controls.catalog import CONTROLS
from erltool.resources import shipped

VERL = str(Path(__file__).parent / "logs/verl_console.log")
TINY = ["--steps=8", "--prompts-per-iteration=4", "--group-size=4", "--updates-per-iteration=2", "--lora-rank=4",
        "--max-response-tokens=8", "--eval-every=1", "--eval-prompts=8", "--eval-samples=1"]  # fmt: skip
HOSTILE = "\x1b]0;owned\x07\r\u202ename"
SEEN = "U+001B]0;ownedU+0007\\rU+202Ename"


def erltool(*words, **settings) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "erltool", *words], capture_output=True, **settings)


def on_a_terminal(*words) -> str:
    """What a command writes where both streams are a terminal of 80 columns."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "erltool", *words], os.environ | {"TERM": "xterm"})
    written = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 65536):
            written += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return written.decode()


# --- progress ----------------------------------------------------------------------------------------


def test_training_into_a_file_is_a_few_plain_lines(tiny_policy, tmp_path, capsys):
    assert cli.main(["train", f"--out={tmp_path / 'run'}", f"--policy={tiny_policy}", *TINY]) == 0
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert not {"\r", "\x1b"} & set(err) and err.isascii() and 4 <= len(lines) <= 10
    assert re.fullmatch(r"train: step 8 of 8: H \d\.\d{3} R \d\.\d\d acc \d\.\d\d", lines[-1])
    assert re.search(r"; \d+:\d\d left$", lines[-2])


def test_four_hundred_quick_steps_are_ten_lines(capsys):
    with progress(400, "train") as bar:
        for _ in range(400):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].split(";")[0] for line in lines] == [f" step {n} of 400" for n in range(40, 401, 40)]


def test_slow_steps_are_a_line_each_half_minute_with_the_time_that_is_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("erltool.cli.terminal.time.monotonic", lambda: now[0])
    bar = Lines(1000, "train")
    for _ in range(21):
        now[0] += 10
        bar.set_postfix_str("H 0.100")
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7 and lines[0] == "train: step 3 of 1000: H 0.100; 2:46:10 left"
    bar.close()
    bar.close()
    assert capsys.readouterr().err == ""  # the last step is printed already


def test_a_run_that_goes_on_is_timed_from_where_it_began(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("erltool.cli.terminal.time.monotonic", lambda: now[0])
    bar = Lines(100, "train")
    bar.update(51)
    for _ in range(20):
        now[0] += 1
        bar.update()
    assert capsys.readouterr().err.splitlines()[-1] == "train: step 70 of 100; 0:30 left"


def test_a_terminal_has_a_bar_within_its_width(tiny_policy, tmp_path):
    written = on_a_terminal("train", f"--out={tmp_path / 'run'}", f"--policy={tiny_policy}", *TINY, "--steps=64")
    drawn = written.replace("\n", "\r").split("\r")
    assert len([line for line in drawn if line.startswith("train:")]) > 3 and max(map(len, drawn)) <= 80
    assert any(re.search(r"64/64 .*H \d\.\d{3} R \d\.\d\d acc \d\.\d\d", line) for line in drawn)


def test_long_lines_are_broken_on_a_terminal_only(inputs, capsys):
    doctor = on_a_terminal("doctor").splitlines()
    assert max(map(len, doctor)) <= 80 and all(line.startswith(("ok ", "note ", "FAIL ", "     ")) for line in doctor)
    for command in ("experiment", "import", "plan", "prompt", "fit"):
        assert max(map(len, on_a_terminal(command, *inputs[command]).splitlines())) <= 80
    assert cli.main(["experiment", *inputs["experiment"]]) == 0
    assert len(capsys.readouterr().out.splitlines()[0]) > 80


def test_a_dumb_terminal_has_lines_and_a_notebook_a_bar(monkeypatch):
    class OutStream(io.StringIO):
        pass

    class Teletype(io.StringIO):
        def isatty(self):
            return True

    OutStream.__module__ = "ipykernel.iostream"
    monkeypatch.setenv("TERM", "xterm")
    kinds = {}
    for stream in (io.StringIO(), OutStream(), Teletype()):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress(10, "train") as bar:
            for _ in range(10):
                bar.set_postfix_str("H 0.100", refresh=False)
                bar.update()
        kinds[type(stream)] = type(bar).__name__
        assert "H 0.100" in stream.getvalue() and stream.getvalue().count("\r") < 10  # not drawn at every step
    assert kinds == {io.StringIO: "Lines", OutStream: "tqdm", Teletype: "tqdm"}
    monkeypatch.setenv("TERM", "dumb")
    assert type(progress(10, "train")) is Lines
    monkeypatch.setattr(sys, "stderr", None)  # closed, as by 2>&-
    with progress(1, "train") as bar:
        bar.update()


# --- flags and help ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_wrong_flag_is_one_line_with_the_remedy(command, capsys):
    assert cli.main([command, "--no-such-thing-at-all", "3"]) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"erltool: {command}: [^\n]*--no-such-thing-at-all[^\n]*erltool {command} --help[^\n]*\n", err)
    assert out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--learning-rat", "3"], "--learning-rat (did you mean --learning-rate?)"),
        (["train", "--out=x", "--kl-cov=3"], "unrecognized arguments: --kl-cov=3;"),
        (["train", "--steps", "5"], "the following arguments are required: --out"),
        (["train", "--out=x", "--steps"], "argument --steps: expected one argument"),
        (["train", "--out=x", "stray"], "unrecognized arguments: stray"),
        (["train", "--out=x", "--steps=many\nmore"], "invalid int value: 'many\\nmore'"),
        (["fit"], "the following arguments are required: RUN_OR_LOG"),
        (["fit", "run", "--forecats=1"], "did you mean --forecast?"),
        (["export", "vrel", "x"], "invalid choice: 'vrel'"),
        (["workshop", "--out=x", "--minutes=7"], "invalid choice: 7"),
        (["lab", f"--{HOSTILE}"], f"--{SEEN}"),
    ],
)
def test_what_argparse_complains_of_is_one_line(words, said, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert said in err and f"erltool {words[0]} --help" in err
    assert err.startswith("erltool: ") and err.count("\n") == 1 and out == ""


def test_a_command_that_is_not_there_has_a_near_one(capsys):
    assert cli.main(["trian"]) == 2 and "use train" in capsys.readouterr().err
    assert cli.main([HOSTILE]) == 2 and not {"\x1b", "\r", "\u202e"} & set(capsys.readouterr().err)


@pytest.mark.parametrize("columns", [None, "200", "60"])
@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_has_at_most_80_columns(command, columns, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    with contextlib.suppress(SystemExit):
        cli.main([*command.split(), "--help"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and out.startswith(f"usage: erltool {command}".rstrip())
    assert len(out.splitlines()[0]) < 80 and out.splitlines()[1] == ""  # the usage is one line
    if command == "train":
        words = out.split("--control")[1].replace(",", " ").split()
        assert all(name in words for name in CONTROLS)  # no name is broken over two lines


def test_usage_names_what_must_be_given():
    parser = Parser("thing", "does it")
    parser.add_argument("sources", nargs="+", metavar="LOG")
    parser.add_argument("engine", choices=("a", "b"))
    parser.add_argument("--out", required=True)
    parser.add_argument("--other")
    assert parser.format_help().startswith("usage: erltool thing LOG... a|b --out OUT [flags]\n")
    assert parser.parsed(["x", "a", "--out", "y"]).sources == ["x"]
    with pytest.raises(ErltoolError, match="thing: unrecognized arguments: --outt"):
        parser.parsed(["--outt=x"])


# --- the streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["doctor"], ["fit", VERL]])
def test_nobody_reading_ends_it_quietly(words, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = erltool_to(write, words)
    os.close(write)
    assert done.returncode == terminal.PIPE_CLOSED
    # The fit prints on stderr which columns it took.
    assert done.stderr == b"" or (words[0] == "fit" and b"roken" not in done.stderr and b"Trace" not in done.stderr)


def erltool_to(stdout, words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "erltool", *words]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output_is_one_line():
    with open("/dev/full", "wb") as full:
        done = erltool_to(full, ["--help"])
    assert done.returncode == 2 and done.stderr.decode() == f"erltool: --help: {os.strerror(errno.ENOSPC)}\n"


def test_a_broken_pipe_of_another_kind_is_said(monkeypatch, capsys):
    def broken(parser, words):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("erltool.cli.doctor.run", broken)
    assert cli.main(["doctor"]) == 2 and "Broken pipe" in capsys.readouterr().err


@pytest.fixture
def inputs(tiny_policy, tmp_path):
    """Arguments for every command with little work and much output."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TrainConfig(steps=8).to_dict()))
    return {
        "demo": ["--help"],  # test_cli.py runs it
        "train": [f"--out={tmp_path / 'run'}", f"--policy={tiny_policy}", *TINY],
        "eval": [str(tiny_policy), "--task=countdown", "--limit=4", "--samples=2", "--max-response-tokens=6"],
        "plan": ["--policy=sharpening"],
        "prompt": ["--task=addition:12", "--template=question", "--shots=1"],
        "experiment": ["discovery", f"--out={tmp_path / 'runs'}", "--list"],
        "fit": [VERL, "--forecast=0.3"],
        "report": [VERL, f"--out={tmp_path / 'report.html'}"],
        "microscope": ["--help"],  # test_microscope.py runs it
        "advise": [str(shipped("data/runs/demo-none"))],
        "runs": [str(Path(VERL).parent / "trackio")],
        "watch": [VERL, "--once"],
        "import": [VERL],
        "inspect": [str(Path(__file__).parent / "rollouts/verl"), "--policy=sharpening"],
        "check": [str(shipped("data/runs/demo-none"))],
        "export": ["verl", str(config)],
        "lab": [f"--dir={tmp_path / 'lessons'}", "--no-browser"],
        "workshop": [f"--out={tmp_path / 'workshop'}"],
        "doctor": [],
    }


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_prints_in_narrow_encodings(command, encoding, inputs, monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *command: None)
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with contextlib.suppress(SystemExit):
        assert cli.main([command, *inputs[command]]) in (0, 1, None)  # 1 after a FAIL of doctor; lab does not return
    for stream in streams.values():
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams.values())
    assert "Traceback" not in err and (out or command == "train")
    if command == "fit":
        assert ("R2 " if encoding == "ascii" else "R\u00b2 ") in out


def test_standard_output_in_ascii_from_the_shell(inputs):
    env = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = erltool("fit", *inputs["fit"], env=env)
    assert done.returncode == 0 and b"R2 " in done.stdout and done.stdout.isascii() and b"Traceback" not in done.stderr


def test_hostile_names_never_reach_the_terminal(tmp_path, capsys, inputs):
    log = tmp_path / f"{HOSTILE}.log"
    log.write_text(Path(VERL).read_text())
    grid = tmp_path / "grid.toml"
    grid.write_text(f"question = {json.dumps(HOSTILE)}\n[train]\nsteps = 8\n[vary]\nseed = [0]\n")
    config = tmp_path / HOSTILE
    config.write_text(json.dumps(TrainConfig(policy=f"/{HOSTILE}").to_dict()))
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"prompt": f"{HOSTILE} {i}", "answer": "1"}) + "\n" for i in range(40)))
    for words, seen in (
        (["fit", str(log)], True),
        (["fit", str(tmp_path / f"no{HOSTILE}")], True),
        (["import", str(log)], True),
        (["eval", HOSTILE, "--task=countdown"], True),
        (["experiment", str(grid), f"--out={tmp_path / 'runs'}", "--list"], True),
        (["export", "verl", str(config)], False),
        (["prompt", f"--task={problems}", "--template=question"], True),
        (["train", f"--out={tmp_path / HOSTILE}", f"--policy={HOSTILE}"], True),
        (["workshop", f"--out={tmp_path / 'w' / HOSTILE}"], True),
    ):
        cli.main(words)
        said = "".join(capsys.readouterr())
        assert not {"\x1b", "\r", "\x07", "\u202e"} & set(said), words
        assert not seen or "202ename" in said.lower(), words
