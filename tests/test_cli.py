import contextlib
import dataclasses
import html
import json
import math
import re
import resource
import shutil
import subprocess
import sys

import pytest

import erltool
from erltool import TrainConfig
from erltool.cli import command as cli
from erltool.resources import shipped

TINY = [
    "--steps=8", "--prompts-per-iteration=4", "--group-size=4", "--updates-per-iteration=2", "--max-response-tokens=8",
    "--lora-rank=4", "--eval-every=1", "--eval-prompts=8", "--eval-samples=1",
]  # fmt: skip


@pytest.fixture
def train(tiny_policy, tmp_path):
    return lambda *words: cli.main(
        ["train", f"--out={tmp_path / 'run'}", f"--policy={tiny_policy}", "--task=countdown", *TINY, *words]
    )


def status_of(words) -> int:
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:  # argparse exits by itself
        return stop.code


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
    assert status_of(["fit", str(log), "--forecast", "2"]) == 2 and "cut 2.0 must be between" in one_line(capsys)


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
    except SystemExit as stop:  # argparse exits
        status = stop.code
    assert status == 2 and message in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_wrong_types_and_unknown_fields_are_named():
    with pytest.raises(erltool.ErltoolError, match="steps='8': must be int, not str"):
        TrainConfig(steps="8")
    with pytest.raises(erltool.ErltoolError, match="group_size=True: must be int"):
        TrainConfig(group_size=True)
    with pytest.raises(erltool.ErltoolError, match="control='kl-cov': must be Control"):
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
    assert cli.main(["trian"]) == 2 and "no command 'trian'; use train" in one_line(capsys)
    assert cli.main(["law"]) == 2 and "no command 'law'; use one of demo, train" in one_line(capsys)


def run_with_file_limit(words, limit):
    """Simulates a full disk: no file may grow beyond the limit."""
    return subprocess.run(
        [sys.executable, "-m", "erltool", *words], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip


def test_a_full_disk_is_one_line_and_nothing_is_lost(train, tiny_policy, tmp_path, capsys):
    words = [
        "train",
        f"--out={tmp_path / 'full'}",
        f"--policy={tiny_policy}",
        "--task=countdown",
        *TINY,
        "--checkpoint-every=1",
    ]
    done = run_with_file_limit(words, 3000)  # PyTorch 2.6 writes 2,355 bytes when it is imported
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot write" in done.stderr.splitlines()[-1] and "then resume" in done.stderr.splitlines()[-1]
    assert erltool.read_run(tmp_path / "full").skipped_lines <= 1
    assert cli.main(["train", f"--out={tmp_path / 'full'}", "--resume"]) == 0
    assert train("--checkpoint-every=1") == 0
    assert (tmp_path / "full/metrics.jsonl").read_bytes() == (tmp_path / "run/metrics.jsonl").read_bytes()


SMALL_DEMO = """
[train]
policy = "{policy}"
steps = 10
prompts_per_iteration = 4
group_size = 4
updates_per_iteration = 2
max_response_tokens = 8
lora_rank = 4
eval_prompts = 8
eval_samples = 1
eval_temperature = 0.0
eval_every = 1
[vary.run]
seed0-sharpening = {{ seed = 0 }}
seed1-none = {{ seed = 1 }}
seed1-clip-cov = {{ seed = 1, control = "clip-cov" }}
[evaluate]
problems = 6
samples = 1
"""


@pytest.mark.parametrize("cores", [1, 2])
def test_demo_trains_fits_draws_and_reports(cores, tmp_path, capsys, monkeypatch, tiny_policy):
    from erltool import threads
    from erltool.report import demo

    grid, out = tmp_path / "small.toml", tmp_path / "out"
    grid.write_text(SMALL_DEMO.format(policy=tiny_policy))
    monkeypatch.setattr(demo, "GRID", str(grid))
    monkeypatch.setitem(demo.ARMS, "none", ("discovery", "no <b>control</b>"))  # the page escapes names
    monkeypatch.setattr(threads, "cores", lambda: cores)
    assert cli.main(["demo", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "entropy (nats/token)" in printed and max(map(len, printed.splitlines()[1:14])) <= 80
    assert all(printed.count(f"small-seed{run} ") == 1 for run in ("0-sharpening", "1-none", "1-clip-cov"))
    page = (out / "report.html").read_text()
    assert "default-src 'none'" in page and "Entropy with and without control" in page
    assert html.escape("no <b>control</b>") in page and "<b>control" not in page
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    before = (out / "small-seed1-none" / "metrics.jsonl").read_bytes()
    assert cli.main(["demo", f"--out={out}"]) == 0  # a second time: nothing is trained again
    assert (out / "small-seed1-none" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("cores", [1, 2])
def test_demo_says_how_to_go_on_after_ctrl_c(cores, tmp_path, capsys, monkeypatch, tiny_policy):
    """A Ctrl-C that reached only the first process left it waiting for the others' runs."""
    from erltool import threads
    from erltool.cli import demo as command
    from erltool.report import demo

    grid = tmp_path / "small.toml"
    grid.write_text(re.sub("steps = .*", "steps = 1000000", SMALL_DEMO.format(policy=tiny_policy)))
    monkeypatch.setattr(demo, "GRID", str(grid))
    monkeypatch.setattr(threads, "cores", lambda: cores)
    monkeypatch.setattr(command, "interruptible", lambda: contextlib.nullcontext([1]))
    assert cli.main(["demo", f"--out={tmp_path / 'out'}"]) == 130
    assert "continue with: erltool demo --out" in capsys.readouterr().err


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
    words = ["--limit=2", "--samples=1"]  # responses are as long as the model's positions allow
    assert cli.main(["eval", str(tiny_policy), "--task=countdown", *words]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "countdown"], "a policy has no task of its own; give --benchmark or --task"),
        (["eval", "countdown", "--benchmark=aime1999"], "benchmark 'aime1999' is not known"),
        (["eval", "countdown", "--benchmark=aime24", "--task=countdown"], "not both"),
        (["eval", "nothing-here", "--task=countdown"], "no config.json there"),
        (["train", "--out=x", "--base=nf4", "--lora-rank=0"], "quantised weights cannot train"),
        (["train", "--out=x", "--dtype=bf16", "--lora-rank=0"], "rounding loses most of an update"),
        (["train", "--out=x", "--base=nf5"], "base='nf5': must be one of none, nf4, int8"),
        (["train", "--out=x", "--template=boxed"], "has no chat template; use question"),
        (["train", "--out=x", "--task=sudoku.jsonl"], "no such file"),
        (
            ["train", "--out=x", "--policy=countdown", "--task=countdown", "--shots=2"],
            "no right response to show; use shots=0",
        ),
        (["prompt", "--policy=model.gguf"], "no such file"),
        (["plan", "--policy=no/such-model-here"], "configuration is out of reach"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("erltool.policies.sources.hub_reachable", lambda: False)
    assert cli.main(words) == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval countdown --task=countdown --limit -1", "-1 must be at least 0"),
        ("eval countdown --task=countdown --samples 0", "0 must be at least 1"),
        ("eval countdown --task=countdown --samples=-2", "-2 must be at least 1"),
        ("eval countdown --task=countdown --batch -1", "-1 must be at least 0"),
        ("eval countdown --task=countdown --max-response-tokens 0", "0 must be at least 1"),
        ("eval countdown --task=countdown --temperature nan", "nan must be at least 0 and finite"),
        ("eval countdown --task=countdown --temperature -0.5", "-0.5 must be at least 0"),
        ("eval countdown --task=countdown --samples 99999999999999999999", "must be at least 1"),
        ("eval countdown --task=countdown --template cheat", "template='cheat': must be auto, none, chat"),
        ("eval countdown --task=countdown --device cpuu", "cpuu"),
        ("plan --gpus 0", "0 must be at least 1"),
        ("plan --prompt-tokens -4", "-4 must be at least 1"),
        ("prompt --count -3", "-3 must be at least 1"),
        ("demo --seed 1", "unrecognized arguments: --seed"),
        ("fit run --window -1", "-1.0 must be above 0"),
        ("fit run --window inf", "inf must be above 0 and finite"),
        ("fit run --forecast 0", "cut 0.0 must be between 0 and 1"),
        ("fit run --png fit.gif", "must end in .png"),
        ("fit run --png fit", "must end in .png"),
        ("fit run --png nowhere/fit.png", "no such folder"),
        ("fit run --png folder.png", "is a folder"),
        ("microscope run --out folder", "must end in .parquet"),
        ("microscope run --out nowhere/m.parquet", "no such folder"),
        ("import log --window 0", "0.0 must be above 0"),
        ("import log --out file", "is a file; choose another place"),
        ("export verl run --gpus 0", "0 must be at least 1"),
        ("export verl run --prompt-tokens 0", "0 must be at least 1"),
        ("train --out file/run", "is a file; choose another place"),
        ("train --out run --seed -1", "seed=-1: must be at least 0"),
        ("train --out run --seed 99999999999999999999", "seed: must be below"),
        ("experiment discovery --out runs --record file", "is a file; choose another place"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_any_work(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for module in ("erltool.training.start.load_policy", "erltool.logs.read.read_log", "erltool.runs.folder.read_run"):
        monkeypatch.setattr(module, lambda *_, **__: pytest.fail("work was begun"))
    assert status_of(words.split()) == 2 and message in one_line(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_benchmark_out_of_reach_is_said_before_the_first_is_asked(monkeypatch, capsys):
    def load(name):
        if name == "minerva":
            raise erltool.ErltoolError("minerva is out of reach")
        return erltool.load_task("countdown"), 1.0, 1

    monkeypatch.setattr("erltool.training.evaluate.evaluation_task", load)
    monkeypatch.setattr("erltool.training.start.load_policy", lambda *_, **__: pytest.fail("work was begun"))
    assert cli.main(["eval", "countdown", "--benchmark=all"]) == 2 and "minerva is out of reach" in one_line(capsys)


def test_a_run_keeps_its_own_base(train, tmp_path, capsys):
    assert train() == 0
    assert cli.main(["eval", str(tmp_path / "run"), "--base=nf4"]) == 2
    assert "was trained on base=none; leave it out" in one_line(capsys)


def test_a_runs_own_configuration_of_other_types_is_one_line_that_names_its_file(train, tmp_path, capsys):
    assert train() == 0
    file = tmp_path / "run" / "config.json"
    document = json.loads(file.read_text())
    document["config"] |= {"seed": "0", "task": [1]}
    file.write_text(json.dumps(document))
    for words in (["train", "--resume", "--out"], ["eval"], ["export", "verl"]):
        assert cli.main([*words, str(file.parent)]) == 2
        assert f"{file}: task=[1]: must be str, not list" in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "must hold an object"),
        ("[]", "must hold an object"),
        ('{"config": 5}', "not int"),
        ('{"steps": "8"}', "steps='8': must be int, not str"),
        ('{"stepz": 8}', "did you mean 'steps'"),
        ('{"steps": 8, "temperature": [1]}', "temperature=[1]: must be float, not list"),
        ('{"temperature": 1e999}', "temperature=inf: must be above 0 and finite"),
        ('{"learning_rate": ' + "1" * 400 + "}", "must be float, not int"),
        ('{"policy": "a\\u0000b"}', "policy: must be text, not empty and without a NUL"),
        ('{"control": "kl-cov"}', "must be Control, not str"),
        ('{"control": {"name": ["kl-cov"]}}', "control ['kl-cov'] is not known"),
        ('{"control": {"name": "composed"}}', "members is None; it must be a list"),
        ('{"control": {"name": "composed", "members": [3]}}', "control 3: must be a control's name"),
        ('{"control": {"name": "kl-cov", "fraction": {"a": 1}}}', "it must be a number"),
        ('{"control": ' * 400 + "1" + "}" * 400, "is not known"),
        ("[" * 100_000, "neither a run's folder nor a JSON file"),
        ('{"device": "cudaa"}', "device='cudaa': must be auto, cpu, cuda or cuda:NUMBER"),
    ],
)
def test_a_configuration_of_other_types_is_one_line(tmp_path, capsys, text, message):
    (tmp_path / "config.json").write_text(text)
    assert cli.main(["export", "verl", str(tmp_path / "config.json")]) == 2
    line = one_line(capsys)
    assert message in line and line.isprintable() and len(line) < 900


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


def test_a_runs_name_is_one_line_of_what_fit_prints_and_any_script_is_drawn_without_a_word(tmp_path, capsys, recwarn):
    run = tmp_path / "new\nline \u6f22"
    shutil.copytree(shipped("data/runs/demo-none"), run)
    assert cli.main(["fit", str(run), "--png", str(tmp_path / "fit.png")]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].endswith("new\\nline \u6f22") and not printed.err
    assert (tmp_path / "fit.png").is_file() and not recwarn.list
