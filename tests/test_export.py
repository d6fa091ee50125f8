"""A configuration for verl has verl's keys and our values, and lists the differences."""

import importlib.util
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

import erltool
from erltool import ErltoolError, TrainConfig
from erltool.cli.command import main
from erltool.controls.base import Control, NoControl
from erltool.controls.catalog import CONTROLS, PRESETS, control_to_dict, parse_control
from erltool.controls.paper import KLCov
from erltool.engines.verl import export_verl, read_config, write_export
from erltool.logs.check import check, read_settings, settings_of
from erltool.resources import shipped
from erltool.runs.compare import control_text
from erltool.runs.folder import read_runs

ACTOR = "actor_rollout_ref.actor."
EXPORTED = ["none", "clip-higher", "clip-cov:verl", "kl-cov:paper-7b+entropy-bonus:coef=0.01", "gspo", "cispo",
            "kl-cov+reference-kl:coef=0.05", "clip-cov:paper-32b", "random-kl+entropy-bonus",
            "clip-cov:low=0.2,high=0.9,bounds=quantile"]  # fmt: skip


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


@pytest.mark.parametrize("control", ["random-kl", "random-clip", "kl-cov:estimator=k2", "kl-cov:fraction=0",
                                     "clip-cov:low=0.2,high=0.9,bounds=quantile", "high-entropy-mask",
                                     "entropy-bonus:below=0.3", "bapo"])  # fmt: skip
def test_what_verl_lacks_is_erltools_own_loss_there(control):
    config = TrainConfig(control=parse_control(control))
    export = export_verl(config)
    mode = export.overrides[ACTOR + "policy_loss.loss_mode"]
    assert parse_control(mode.removeprefix("erltool:")) == config.control
    assert export.overrides["actor_rollout_ref.model.external_lib"] == "erltool.engines.verl_losses"
    assert "one more forward pass an update" in export.table() and "centred" not in export.table()


def test_bonus_and_reference_stay_verls_beside_erltools_loss():
    config = TrainConfig(control=parse_control("kl-cov:estimator=k3+entropy-bonus:coef=0.02+reference-kl:coef=0.05"))
    found = export_verl(config).overrides
    assert found[ACTOR + "policy_loss.loss_mode"] == "erltool:kl-cov:fraction=0.002,coef=1.0,estimator=k3"
    assert found[ACTOR + "entropy_coeff"] == 0.02 and found[ACTOR + "kl_loss_coef"] == 0.05


def test_with_whole_update_every_control_is_erltools_own_loss():
    config = TrainConfig(control=parse_control("kl-cov"))
    assert export_verl(config).overrides[ACTOR + "policy_loss.loss_mode"] == "kl_cov"
    export = export_verl(config, whole_update=True)
    assert export.overrides[ACTOR + "policy_loss.loss_mode"] == "erltool:kl-cov:fraction=0.002,coef=1.0,estimator=k1"
    assert "external_lib" not in export_verl(TrainConfig(), whole_update=True).command()
    words = shlex.split(export.command().replace("\\\n", " "))
    assert (
        f"{ACTOR}policy_loss.loss_mode='erltool:kl-cov:fraction=0.002,coef=1.0,estimator=k1'" in words
    )  # as Hydra reads


def test_an_exported_command_has_no_finding_of_selection_in_micro_batches():
    config = TrainConfig(control=parse_control("kl-cov"), micro_batch=1, prompts_per_iteration=64)
    rules = {}
    for whole in (False, True):
        words = shlex.split(export_verl(config, whole_update=whole).command().replace("\\\n", " "))
        rules[whole] = {finding.rule for finding in check(settings_of(read_settings(words), "0.9.0"))}
    assert rules[False] - rules[True] == {"one-response-selection"}
    assert not rules[True] & {"loss-not-registered", "loss-not-chosen", "percent-for-fraction", "weak-kl-cov"}


@dataclass(frozen=True)
class Mine(Control):
    name: ClassVar[str] = "mine"


@pytest.mark.parametrize(
    "control, message",
    [
        (parse_control("opefo"), "control opefo: needs entropy_slope, which verl 0.9 does not have"),
        (parse_control("negative-reinforcement"), "needs rewards, which verl 0.9 does not have"),
        (Mine(), "control mine: is none of erltool's"),
    ],
)
def test_what_verl_could_not_do_is_refused(control, message):
    with pytest.raises(ErltoolError, match=message):
        export_verl(TrainConfig(control=control))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_controls_text_is_read_back(name):
    for control in (parse_control(name), parse_control(name) + KLCov() if name == "entropy-bonus" else NoControl()):
        assert parse_control(control_text(control_to_dict(control))) == control
    assert control_text(control_to_dict(NoControl())) == "none"


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
    assert main(["export", "verl", str(tmp_path / "config.json"), "--gpus", "4", "--whole-update"]) == 0
    assert "loss_mode='erltool:kl-cov:" in capsys.readouterr().out.replace("'\"'\"'", "'")  # quoted for the shell
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
