"""A configuration for verl has verl's keys and our values, and lists the differences."""

import importlib.util
import json
import shlex
from pathlib import Path

import pandas as pd
import pytest

import erltool
from erltool import ErltoolError, TrainConfig
from erltool.cli.command import main
from erltool.controls.catalog import PRESETS, parse_control
from erltool.engines.verl import export_verl, read_config, write_export
from erltool.resources import shipped
from erltool.runs.folder import read_runs

ACTOR = "actor_rollout_ref.actor."
EXPORTED = ["none", "clip-higher", "clip-cov:verl", "kl-cov:paper-7b+entropy-bonus:coef=0.01", "gspo", "cispo",
            "kl-cov+reference-kl:coef=0.05", "clip-cov:paper-32b"]  # fmt: skip


def test_a_runs_control_and_algorithm_come_along():
    config = TrainConfig(control=PRESETS["verl"][1], advantages="dr_grpo", prompts_per_iteration=64, group_size=8)
    found = export_verl(config).overrides
    assert found[ACTOR + "policy_loss.loss_mode"] == "kl_cov"
    assert found[ACTOR + "policy_loss.kl_cov_ratio"] == 2e-4 and found[ACTOR + "policy_loss.ppo_kl_coef"] == 0.1
    assert found["algorithm.adv_estimator"] == "grpo" and found["algorithm.norm_adv_by_std_in_grpo"] is False
    assert found["data.train_batch_size"] == 64 and found[ACTOR + "ppo_mini_batch_size"] == 16
    assert found["trainer.total_training_steps"] == 50  # iterations


def test_the_table_says_what_has_another_meaning():
    text = export_verl(TrainConfig(control=parse_control("kl-cov"), base="nf4", micro_batch=4)).table()
    for what in ("centred", "at least one", "percent", "ppo_kl_coef 0.1 by default", "about 1", "base=nf4"):
        assert what in text


@pytest.mark.parametrize(
    "control, message",
    [
        ("high-entropy-mask", "verl 0.9 has none like it; it has none, clip-higher"),
        ("entropy-bonus:below=0.3", "use no below"),
        ("random-kl", "control random-kl: verl 0.9 has none"),
        ("clip-cov:low=0.2,high=0.9,bounds=quantile", "use bounds=absolute"),
        ("kl-cov:estimator=k2", "use estimator=k1"),
        ("kl-cov:fraction=0", "at least one token"),
    ],
)
def test_what_would_mean_something_else_is_refused(control, message):
    with pytest.raises(ErltoolError, match=message):
        export_verl(TrainConfig(control=parse_control(control)))


def test_devices_must_divide_the_responses():
    with pytest.raises(ErltoolError, match="gpus=7: must divide the 128 responses"):
        export_verl(TrainConfig(), gpus=7)


def test_the_data_and_the_verifier_are_the_tasks_own(tmp_path):
    config = TrainConfig(task="addition:20", eval_prompts=16)
    files = write_export(export_verl(config), config, tmp_path / "out")
    assert all(file.is_file() for file in files)
    task, rows = erltool.load_task(config.task), pd.read_parquet(tmp_path / "out" / "train.parquet")
    assert [p[0]["content"] for p in rows["prompt"]] == [p.prompt for p in task.train]
    assert len(pd.read_parquet(tmp_path / "out" / "test.parquet")) == 16
    spec = importlib.util.spec_from_file_location("reward", tmp_path / "out" / "reward.py")
    reward = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reward)
    right = task.examples(1)[0][1]
    assert reward.compute_score(config.task, right, "", rows["extra_info"][0]) == 1.0
    assert reward.compute_score(config.task, "no", "", rows["extra_info"][0]) == 0.0
    words = shlex.split((tmp_path / "out" / "verl.sh").read_text(), comments=True)
    assert words[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    assert f"data.train_files={tmp_path / 'out' / 'train.parquet'}" in words


def test_a_recorded_run_is_exported_from_the_command_line(tmp_path, capsys):
    runs = read_runs(shipped("data/runs/sweep")).values()
    run = next(run for run in runs if run.config["control"]["name"] == "kl-cov")
    (tmp_path / "config.json").write_text(json.dumps({"config": run.config}))
    (tmp_path / "broken.json").write_text("[1]")
    assert main(["export", "verl", str(tmp_path / "config.json"), "--gpus", "4"]) == 0
    out = capsys.readouterr().out
    assert "loss_mode=kl_cov" in out and "trainer.n_gpus_per_node=4" in out
    assert read_config(tmp_path).to_dict() == TrainConfig.from_dict(run.config).to_dict()
    assert main(["export", "verl", str(tmp_path / "broken.json")]) == 2
    assert main(["export", "verl", str(tmp_path / "none.json")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("control", EXPORTED)
def test_every_key_is_one_of_verls_and_its_dataclasses_take_the_values(control, tmp_path):
    verl = importlib.util.find_spec("verl")
    if verl is None:
        pytest.skip("verl is not installed")
    hydra = pytest.importorskip("hydra")
    workers = pytest.importorskip("verl.workers.config", exc_type=ImportError)
    config = TrainConfig(control=parse_control(control), updates_per_iteration=2)
    words = shlex.split(export_verl(config).command(tmp_path).replace("\\\n", " "))[3:]
    with hydra.initialize_config_dir(str(Path(verl.origin).parent / "trainer" / "config"), version_base=None):
        composed = hydra.compose("ppo_trainer", overrides=words)  # fails on a key that verl has not
    fields = {k: v for k, v in composed.actor_rollout_ref.actor.items() if "." not in k}
    loss = {k: v for k, v in fields.pop("policy_loss").items() if k != "_target_"}
    scalars = {k: v for k, v in fields.items() if isinstance(v, int | float | str | bool) and k != "_target_"}
    actor = workers.FSDPActorConfig(**scalars, policy_loss=workers.PolicyLossConfig(**loss))
    for key, value in export_verl(config).overrides.items():
        name = key.removeprefix(ACTOR)
        if name in scalars:
            assert getattr(actor, name) == value
        if name.startswith("policy_loss."):
            assert getattr(actor.policy_loss, name.partition(".")[2]) == value
    actor.validate(n_gpus=8, train_batch_size=config.prompts_per_iteration)
