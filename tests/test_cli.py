import dataclasses
import html
import json
import math
import resource
import subprocess
import sys

import pytest

import erltool
from erltool import TrainConfig, cli

TINY = [
    "--steps=8", "--prompts-per-iteration=4", "--group-size=4", "--updates-per-iteration=2", "--max-response-tokens=8",
    "--lora-rank=4", "--eval-every=1", "--eval-prompts=8", "--eval-samples=1",
]  # fmt: skip


@pytest.fixture
def train(tiny_policy, tmp_path):
    return lambda *words: cli.main(["train", f"--out={tmp_path / 'run'}", f"--policy={tiny_policy}", *TINY, *words])


def one_line(capsys) -> str:
    err = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(err)
    return err[-1]


def test_train_then_fit(train, tmp_path, capsys):
    assert train("--control=kl-cov:fraction=0.2,coef=0.5") == 0
    run = erltool.read_run(tmp_path / "run")
    assert len(run.metrics) == 8 and run.config["control"]["coef"] == 0.5
    capsys.readouterr()
    status = cli.main(["fit", str(tmp_path / "run"), "--json", f"--png={tmp_path / 'fit.png'}"])
    out = capsys.readouterr()
    assert status == 0
    fit = json.loads(out.out)[str(tmp_path / "run")]
    assert fit["ceiling"] == pytest.approx(fit["b"] - fit["a"]) and fit["points"] == 5
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_fit_reads_other_tools_logs_and_forecasts(tmp_path, capsys):
    rows = [f"{8 * i},{1 / (1 + i / 5):.4f},{70 - 20 * math.exp(1 / (1 + i / 5)):.3f}" for i in range(40)]
    log = tmp_path / "run.csv"
    log.write_text("\n".join(["step,entropy,accuracy", *rows]))
    assert cli.main(["fit", str(log), "--forecast", "0.2", f"--png={tmp_path / 'fit.png'}"]) == 0
    out = capsys.readouterr().out
    assert "a =  20.00" in out and "percentage points" in out and "forecast of 32 points from the first 8" in out
    assert max(map(len, out.splitlines())) <= max(80, len(str(log)))
    assert cli.main(["fit", str(log), "--forecast", "0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[str(log)]
    assert found["forecast"]["rmse"] < 0.01 and found["unit"] == "percentage points"
    assert cli.main(["fit", str(log), "--forecast", "2"]) == 2 and "cut 2.0 must be between" in one_line(capsys)


def test_flags_are_the_fields_of_the_configuration(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        assert "--" + field.name.replace("_", "-") in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--control=klcov"], "control 'klcov' is not known"),
        (["--control=kl-cov", "--updates-per-iteration=1"], "first update after sampling"),
        (["--steps=0"], "steps=0: must be"),
        (["--temperature=-1"], "temperature=-1.0: must be above 0"),
        (["--policy=/nowhere"], "no config.json"),
        (["--task=chess"], "task 'chess' is not known"),
        (["--steps=3"], "multiple of updates_per_iteration"),
        (["--resume"], "no such folder"),
        (["--step=4"], "unrecognized arguments"),
        (["--steps=many"], "invalid int value"),
    ],
)
def test_bad_input_is_one_line_and_status_two(train, tmp_path, capsys, words, message):
    try:
        status = train(*words)
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2 and message in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_wrong_types_and_unknown_fields_are_named():
    with pytest.raises(erltool.ErltoolError, match="steps='8': must be int, not str"):
        TrainConfig(steps="8")
    with pytest.raises(erltool.ErltoolError, match="group_size=True: must be int"):
        TrainConfig(group_size=True)
    with pytest.raises(erltool.ErltoolError, match="control='kl-cov': must be NoControl"):
        TrainConfig(control="kl-cov")
    with pytest.raises(erltool.ErltoolError, match="did you mean 'learning_rate'"):
        TrainConfig.from_dict({"learning_rte": 1})
    assert TrainConfig(temperature=1).temperature == 1.0


def test_fit_says_what_is_wrong_with_a_run(tmp_path, capsys):
    assert cli.main(["fit", str(tmp_path / "none")]) == 2 and "no such file or folder" in one_line(capsys)
    assert cli.main(["fit", str(tmp_path)]) == 2 and "holds no erltool run" in one_line(capsys)


def test_no_command_and_unknown_commands(capsys):
    assert cli.main([]) == 2 and cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)
    assert cli.main(["trian"]) == 2 and "no command 'trian'" in one_line(capsys)


def run_with_file_limit(words, limit):
    """A full disk, as near as a test can: no file may grow beyond the limit."""
    return subprocess.run(
        [sys.executable, "-m", "erltool.cli", *words], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip


def test_a_full_disk_is_one_line_and_nothing_is_lost(train, tiny_policy, tmp_path, capsys):
    words = ["train", f"--out={tmp_path / 'full'}", f"--policy={tiny_policy}", *TINY, "--checkpoint-every=1"]
    done = run_with_file_limit(words, 2000)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot write" in done.stderr.splitlines()[-1] and "then resume" in done.stderr.splitlines()[-1]
    assert erltool.read_run(tmp_path / "full").skipped_lines <= 1
    assert cli.main(["train", f"--out={tmp_path / 'full'}", "--resume"]) == 0
    assert train("--checkpoint-every=1") == 0
    assert (tmp_path / "full/metrics.jsonl").read_bytes() == (tmp_path / "run/metrics.jsonl").read_bytes()


def test_demo_trains_fits_draws_and_reports(tmp_path, capsys, monkeypatch, tiny_policy):
    from erltool import demo

    monkeypatch.setitem(demo.LABELS, "none", "no <b>control</b>")  # names reach the page as text
    small = {
        "policy": str(tiny_policy), "prompts_per_iteration": 4, "group_size": 4, "eval_every": 1,
        "eval_prompts": 8, "max_response_tokens": 8,
    }  # fmt: skip
    configs = {n: dataclasses.replace(c, **small) for n, c in demo.demo_configs(5, 0).items()}
    monkeypatch.setattr(demo, "demo_configs", lambda iterations, seed: configs)
    assert cli.main(["demo", f"--out={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "entropy at end" in out and max(map(len, out.splitlines()[:12])) <= 80
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page.replace("https://", "http").split("<body>")[0]
    assert html.escape("no <b>control</b>") in page and "<b>control" not in page
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "none" / "metrics.jsonl").read_bytes()
    assert cli.main(["demo", f"--out={tmp_path}"]) == 0  # a second time: nothing is trained again
    assert (tmp_path / "none" / "metrics.jsonl").read_bytes() == before


def test_doctor_has_one_line_for_each_finding(capsys):
    cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "note", "FAIL") for line in lines)
    for word in ("python", "torch", "device", "memory", "threads", "commsOverSubshells", "anywidget"):
        assert any(word in line for line in lines)


# --- eval, plan, prompt ----------------------------------------------------------------------------


def test_eval_of_a_run_and_of_a_policy(train, tiny_policy, tmp_path, capsys):
    assert train() == 0
    words = ["--limit=4", "--samples=3", "--max-response-tokens=6", "--batch=6"]
    assert cli.main(["eval", str(tmp_path / "run"), *words]) == 0
    out = capsys.readouterr().out
    assert "countdown" in out and "avg@3" in out and "pass@3" in out
    assert max(map(len, out.splitlines())) <= 80
    assert cli.main(["eval", str(tiny_policy), "--task=countdown", "--temperature=0", "--json", *words]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["problems"] == 4 and row["samples"] == 3 and row["temperature"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "embedded"], "a policy has no task of its own; give --benchmark or --task"),
        (["eval", "embedded", "--benchmark=aime1999"], "benchmark 'aime1999' is not known"),
        (["eval", "embedded", "--benchmark=aime24", "--task=countdown"], "not both"),
        (["eval", "nothing-here", "--task=countdown"], "no config.json there"),
        (["train", "--out=x", "--base=nf4", "--lora-rank=0"], "quantised weights cannot train"),
        (["train", "--out=x", "--base=nf5"], "base='nf5': must be one of none, nf4, int8"),
        (["train", "--out=x", "--template=boxed"], "has no chat template; use question"),
        (["train", "--out=x", "--task=sudoku.jsonl"], "no such file"),
        (["train", "--out=x", "--shots=2"], "no right response to show; use shots=0"),
        (["prompt", "--policy=model.gguf"], "no such file"),
        (["plan", "--policy=no/such-model-here"], "configuration is out of reach"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("erltool.sources.hub_reachable", lambda: False)
    assert cli.main(words) == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_plan_prints_the_parts_and_what_fits_which_card(capsys):
    assert cli.main(["plan", "--policy=Qwen/Qwen2.5-7B", "--base=nf4", "--max-response-tokens=2048"]) == 0
    out = capsys.readouterr().out
    assert "weights, linear layers (nf4)" in out and "key-value cache" in out and "gradient_checkpointing=True" in out
    assert [line[:6] for line in out.splitlines()[-4:]] == [" 16 GB", " 24 GB", " 48 GB", " 80 GB"]
    assert max(map(len, out.splitlines())) <= 80


def test_prompt_shows_what_the_policy_is_given(capsys):
    assert cli.main(["prompt", "--task=addition:12", "--template=question", "--shots=1", "--count=2"]) == 0
    out = capsys.readouterr().out
    assert out.count("Question: What is 1+1?") == 3 and "1+1=2" in out and "held out" in out
