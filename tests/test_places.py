"""`erltool runs`: what is in a place, whatever tool wrote it."""

import json
import shutil
from pathlib import Path

import pytest

from erltool.cli import command as cli
from erltool.errors import ErltoolError
from erltool.logs.places import runs_in
from erltool.resources import shipped

LOGS = Path(__file__).parent / "logs"


def test_a_folder_of_folders_lists_every_tools_runs(tmp_path):
    pytest.importorskip("tensorboard", reason="reading event files needs tensorboard")
    shutil.copytree(LOGS, tmp_path / "logs", ignore=shutil.ignore_patterns("cases"))
    shutil.copytree(shipped("data/runs/demo-none"), tmp_path / "ours")
    (tmp_path / "notes.json").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to(tmp_path / "logs", target_is_directory=True)
    found = list(runs_in(tmp_path))
    named = {(f.path.relative_to(tmp_path).as_posix(), f.run): f for f in found}
    assert len(named) == len(found)
    assert {f.kind for f in found} >= {
        "verl console", "verl JSONL", "OpenRLHF console", "SkyRL console", "TRL trainer_state", "TRL console",
        "TensorBoard", "MLflow", "Trackio", "W&B run", "SwanLab run", "erltool run",
    }  # fmt: skip
    trackio = named["logs/trackio/grpo.db", "base"]
    assert (trackio.rows, trackio.last_step, trackio.entropy, trackio.reward) == (
        24,
        24,
        "train/entropy",
        "train/reward",
    )
    assert trackio.written.year >= 2026 and not trackio.problem
    assert named["logs/mlflow.db", "kl-cov"].rows == 6 and named["ours", ""].entropy == "policy_entropy"
    assert not any(f.path.name in ("notes.json", "README.md") or "link" in f.path.parts for f in found)


def test_the_runs_of_one_log_each_have_their_name():
    runs = list(runs_in(LOGS / "cases/appended_second_run.jsonl"))
    assert [(f.run, f.rows, f.last_step) for f in runs] == [("1", 60, 60), ("2", 30, 30)]
    with pytest.raises(ErltoolError, match="no such file"):
        list(runs_in(LOGS / "nothing"))


def test_a_log_without_a_performance_is_listed_and_one_without_entropy_says_why(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1, "entropy": 0.5}\n{"step": 2, "entropy": 0.4}\n')
    (only,) = runs_in(tmp_path / "a.jsonl")
    assert (only.rows, only.entropy, only.reward, only.problem) == (2, "entropy", "", "")
    (tmp_path / "b.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (other,) = runs_in(tmp_path / "b.jsonl")
    assert "no column found for entropy" in other.problem
    assert [f.path.name for f in runs_in(tmp_path)] == ["a.jsonl"]


def test_the_command_fits_a_terminal_and_writes_json(capsys, tmp_path):
    hostile = tmp_path / "x\x1b[2J.jsonl"
    hostile.write_text('{"step": 1, "entropy": 0.5, "reward": 1, "run": "a\\u001b]0;b\\u0007"}\n')
    assert cli.main(["runs", str(tmp_path)]) == 0 and cli.main(["runs", str(LOGS / "trackio")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and all(len(line) <= 80 for line in out.splitlines())
    assert "24 rows to step 24" in out and "Trackio: train/entropy, train/reward" in out
    assert cli.main(["runs", str(LOGS / "mlflow.db"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["run"], r["rows"], r["reward"]) for r in rows] == [
        ("base", 24, "critic/rewards/mean"),
        ("kl-cov", 6, "critic/rewards/mean"),
    ]
    (tmp_path / "empty").mkdir()
    assert cli.main(["runs", str(tmp_path / "empty")]) == 2
