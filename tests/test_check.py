"""`erltool check`: a table of configurations, each with the rules that must speak, and no others."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import erltool
from erltool import ErltoolError, TrainConfig
from erltool.cli import command as cli
from erltool.logs.check import check, frameworks, read_settings, settings_of
from erltool.logs.check.settings import SEVERITIES

A, R = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
P, SA = A + "policy_loss.", "trainer.algorithm."
# 64 groups of 8 in an update of a rollout of 4 updates; a device holds its 64 responses at once.
VERL = ["python", "-m", "verl.trainer.main_ppo", "algorithm.adv_estimator=grpo", "data.train_batch_size=256",
        A + "ppo_mini_batch_size=64", R + "n=8", A + "ppo_micro_batch_size_per_gpu=64"]  # fmt: skip
KL = [P + "loss_mode=kl_cov", P + "ppo_kl_coef=1", P + "kl_cov_ratio=0.002", A + "fsdp_config.dtype=float32"]
INSIDE = ["actor_rollout_ref.model.external_lib=erltool.engines.verl_losses", A + "fsdp_config.dtype=float32"]
CLIP = [P + "loss_mode=clip_cov"]
SKY = ["uv", "run", "-m", "skyrl.train.entrypoints.main_base", "trainer.train_batch_size=64", "trainer.bf16=false",
       "trainer.policy_mini_batch_size=16", "generator.n_samples_per_prompt=4",
       "trainer.micro_train_batch_size_per_gpu=64"]  # fmt: skip
SKY_KL = [SA + "policy_loss_type=kl_cov", SA + "kl_cov.kl_cov_frac=0.002", SA + "kl_cov.ppo_kl_coef=1e-5"]
OURS = ["erltool", "train", "--out", "run"]

COMMANDS = {
    # verl, right
    "verl: its defaults for GRPO": (VERL, ()),
    "verl: GAE with one response a prompt": (["python", "-m", "verl.trainer.main_ppo"], ()),
    "verl: KL-Cov as in the paper": ([*VERL, *KL], ()),
    "verl: Clip-Cov as in the paper": ([*VERL, *CLIP, A + "clip_ratio=1", A + "clip_ratio_low=1",
                                        A + "clip_ratio_high=1"], ()),
    "verl: DAPO": ([*VERL, A + "clip_ratio_high=0.28"], ()),
    "verl: an entropy bonus": ([*VERL, A + "entropy_coeff=0.001"], ()),
    "verl: LoRA at ten times the rate": ([*VERL, "actor_rollout_ref.model.lora_rank=32", A + "optim.lr=3e-5"], ()),
    "verl: top-p without a ratio to the sampler": ([*VERL, R + "top_p=0.9"], ()),
    "verl: Dr. GRPO with a lower band": (
        [*VERL, *CLIP, "algorithm.norm_adv_by_std_in_grpo=False", P + "clip_cov_lb=0.2"], ()),
    "verl: KL-Cov on two epochs of one mini-batch": ([*VERL, *KL, "data.train_batch_size=64", A + "ppo_epochs=2"], ()),
    "verl: distillation needs no group": (
        [*VERL, R + "n=1", "distillation.enabled=True", A + "ppo_micro_batch_size_per_gpu=8"], ()),
    "verl: keys that nobody knows": ([*VERL, "+actor_rollout_ref.actor.brand_new=3", "~critic", "x.y='a b'"], ()),
    "verl: a value that is no number": ([*VERL, *KL, P + "kl_cov_ratio=lots", R + "top_p=[1,2]"], ()),
    "verl: dynamic batches without a choice of tokens": ([*VERL, A + "use_dynamic_bsz=True"], ()),
    "verl: erltool's KL-Cov in micro-batches of one": ([*VERL, *INSIDE, P + 'loss_mode="erltool:kl-cov:fraction=0.2"',
                                                        A + "ppo_micro_batch_size_per_gpu=1"], ()),
    "verl: erltool's Clip-Cov in packed micro-batches": (
        [*VERL, *INSIDE, P + "loss_mode=erltool:clip-cov", A + "use_dynamic_bsz=True"], ()),
    "verl: erltool's Clip-Cov by quantiles": (
        [*VERL, *INSIDE, P + "loss_mode='erltool:clip-cov:low=0.9,high=0.99,bounds=quantile'",
         "algorithm.norm_adv_by_std_in_grpo=False"], ()),
    # verl, wrong
    "verl: erltool's loss, never imported": (
        [*VERL, P + "loss_mode=erltool:random-kl"], ("loss-not-registered",)),
    "verl: erltool's KL-Cov with one update": (
        [*VERL, *INSIDE, P + "loss_mode=erltool:kl-cov", "data.train_batch_size=64"], ("silent-kl-cov",)),
    "verl: erltool's KL-Cov with verl's keys": (
        [*VERL, *INSIDE, P + "loss_mode=erltool:kl-cov", P + "kl_cov_ratio=0.002"], ("loss-not-chosen",)),
    "verl: erltool's Clip-Cov for Dr. GRPO": (
        [*VERL, *INSIDE, P + "loss_mode=erltool:clip-cov", "algorithm.norm_adv_by_std_in_grpo=False"],
        ("unscaled-band",)),
    "verl: erltool's clip-higher and bonus": (
        [*VERL, *INSIDE, P + "loss_mode=erltool:clip-higher+entropy-bonus:coef=0.01"], ("two-pushes",)),
    "verl: KL-Cov with one update": ([*VERL, *KL, "data.train_batch_size=64"], ("silent-kl-cov",)),
    "verl: KL-Cov in percent": ([*VERL, *KL, P + "kl_cov_ratio=0.2"], ("percent-for-fraction",)),
    "verl: KL-Cov above 1": ([*VERL, *KL, P + "kl_cov_ratio=2"], ("percent-for-fraction",)),
    "verl: Clip-Cov in percent": ([*VERL, *CLIP, P + "clip_cov_ratio=0.02"], ("percent-for-fraction",)),
    "verl: the paper's percent as a fraction": (
        [*VERL, *[k for k in KL if "kl_cov_ratio" not in k], A + "k_percent=0.002"], ("fraction-for-percent",)),
    "verl: kl_cov set, never chosen": ([*VERL, P + "kl_cov_ratio=0.002"], ("loss-not-chosen",)),
    "verl: clip_cov set, kl_cov chosen": ([*VERL, *KL, P + "clip_cov_lb=0.5"], ("loss-not-chosen",)),
    "verl: Dr. GRPO with the paper's band": (
        [*VERL, *CLIP, "algorithm.norm_adv_by_std_in_grpo=False"], ("unscaled-band",)),
    "verl: RLOO with the paper's band": ([*VERL, *CLIP, "algorithm.adv_estimator=rloo"], ("unscaled-band",)),
    "verl: one response a micro-batch": (
        [*VERL, *CLIP, A + "ppo_micro_batch_size_per_gpu=1"], ("one-response-selection",)),
    "verl: a part of the update a micro-batch": (
        [*VERL, *KL, A + "ppo_micro_batch_size_per_gpu=8"], ("micro-batch-selection",)),
    "verl: packed micro-batches": ([*VERL, *KL, A + "use_dynamic_bsz=True"], ("packed-selection",)),
    "verl: KL-Cov in bf16, its default": ([*VERL, *[k for k in KL if "dtype" not in k]], ("noisy-penalty",)),
    "verl: KL-Cov with its default coefficient": (
        [*VERL, *[k for k in KL if "ppo_kl_coef" not in k]], ("weak-kl-cov",)),
    "verl: a clip that kl_cov does not have": ([*VERL, *KL, A + "clip_ratio_high=0.28"], ("clip-of-kl-cov",)),
    "verl: a group of one": ([*VERL, R + "n=1", A + "ppo_micro_batch_size_per_gpu=8"], ("group-of-one",)),
    "verl: clip-higher with one update": (
        [*VERL, "data.train_batch_size=64", A + "clip_ratio_high=0.28"], ("silent-clip-higher",)),
    "verl: clip-higher and a bonus": (
        [*VERL, A + "clip_ratio_high=0.28", A + "entropy_coeff=0.001"], ("two-pushes",)),
    "verl: entropy punished": ([*VERL, A + "entropy_coeff=-0.001"], ("entropy-punished",)),
    "verl: no entropy logged": (
        [*VERL, "algorithm.rollout_correction.bypass_mode=true"], ("entropy-unmeasured",)),
    "verl: top-p with a ratio to the sampler": (
        [*VERL, R + "top_p=0.9", "algorithm.rollout_correction.rollout_is=token"], ("truncated-sampling",)),
    "verl: greedy": ([*VERL, R + "temperature=0"], ("greedy-sampling",)),
    "verl: LoRA at the rate of full fine-tuning": (
        [*VERL, "actor_rollout_ref.model.lora_rank=32"], ("slow-lora",)),
    "verl: full fine-tuning at the rate of LoRA": ([*VERL, A + "optim.lr=1e-4"], ("fast-full",)),
    # SkyRL
    "SkyRL: its defaults": (["uv", "run", "-m", "skyrl.train.entrypoints.main_base"], ()),
    "SkyRL: KL-Cov as in the paper": ([*SKY, *SKY_KL], ()),
    "SkyRL: Clip-Cov in micro-batches of one, its default": (
        [*SKY[:-1], SA + "policy_loss_type=clip_cov"], ("one-response-selection", "band-out-of-reach")),
    "SkyRL: Clip-Cov with a band of its own": (
        [*SKY, SA + "policy_loss_type=clip_cov", SA + "clip_cov.clip_cov_lb=1e-5", SA + "clip_cov.clip_cov_ub=5e-5"],
        ()),
    "SkyRL: KL-Cov with its default coefficient": ([*SKY, *SKY_KL[:2]], ("summed-penalty",)),
    "SkyRL: KL-Cov with its default share": ([*SKY, SKY_KL[0], SKY_KL[2]], ("percent-for-fraction",)),
    "SkyRL: an entropy coefficient without its switch": (
        [*SKY, SA + "entropy_loss_coef=0.001"], ("entropy-bonus-off",)),
    "SkyRL: an entropy bonus": ([*SKY, SA + "use_entropy_loss=true", SA + "entropy_loss_coef=0.001"], ()),
    "SkyRL: KL-Cov with one update": ([*SKY, *SKY_KL, "trainer.train_batch_size=16"], ("silent-kl-cov",)),
    "SkyRL: KL-Cov with dropout": (
        [*SKY, *SKY_KL, "trainer.policy.model.lora.rank=8", "trainer.policy.model.lora.dropout=0.1",
         "trainer.policy.optimizer_config.lr=1e-5"], ("noise-of-dropout",)),
    "SkyRL: top-k with TIS": (
        [*SKY, "generator.sampling_params.top_k=50", SA + "off_policy_correction.tis_ratio_type=token"],
        ("truncated-sampling",)),
    "SkyRL: two temperatures": ([*SKY, SA + "temperature=0.7"], ("two-temperatures",)),
    # TRL
    "TRL: its defaults": (["trl", "grpo", "--model_name_or_path", "Qwen/Qwen2.5-0.5B"], ()),
    "TRL: LoRA at its default rate": (["trl", "grpo", "--use_peft", "--num_generations", "8"], ("slow-lora",)),
    "TRL: LoRA at 1e-5": (["trl", "grpo", "--use_peft", "--learning_rate=1e-5"], ()),
    "TRL: vLLM and top-p": (
        ["accelerate", "launch", "grpo.py", "--use_vllm", "--top_p", "0.95"], ("truncated-sampling",)),
    "TRL: vLLM and top-p without correction": (
        ["accelerate", "launch", "grpo.py", "--use_vllm", "true", "--top_p", "0.95",
         "--vllm_importance_sampling_correction", "false"], ()),
    "TRL: DAPO's clip with one update": (["trl", "grpo", "--epsilon_high", "0.28"], ("silent-clip-higher",)),
    "TRL: DAPO's clip with two": (["trl", "grpo", "--epsilon_high", "0.28", "--num_iterations", "2"], ()),
    "TRL: CISPO's bound is no clip": (["trl", "grpo", "--loss_type", "cispo", "--epsilon_high", "5.0"], ()),
    "TRL: entropy punished": (["trl", "grpo", "--entropy_coef", "-0.01"], ("entropy-punished",)),
    "TRL: a group of one": (["trl", "grpo", "--num_generations", "1"], ("group-of-one",)),
    # prime-rl
    "prime-rl: a group of one, its default": (["uv", "run", "rl", "--trainer.optim.lr", "3e-6"], ("group-of-one",)),
    "prime-rl: groups": (["uv", "run", "rl", "--orchestrator.group-size", "16"], ()),
    "prime-rl: top-p": (
        ["uv", "run", "rl", "--orchestrator.group-size=16", "--orchestrator.train.sampling.extra-body.top_p=0.9"],
        ("truncated-sampling",)),
    "prime-rl: RAE needs no group": (["uv", "run", "rl", "--orchestrator.algo.type=rae"], ()),
    # ours
    "erltool: its defaults": (OURS, ()),
    "erltool: KL-Cov with a fifth of the tokens": ([*OURS, "--control=kl-cov:fraction=0.2,coef=1"], ()),
    "erltool: KL-Cov with one update": (
        [*OURS, "--control", "kl-cov", "--updates-per-iteration", "1"], ("silent-kl-cov",)),
    "erltool: Dr. GRPO with the paper's band": (
        [*OURS, "--control", "clip-cov", "--advantages", "dr_grpo"], ("unscaled-band",)),
    "erltool: Dr. GRPO with quantiles": (
        [*OURS, "--control", "clip-cov:low=0.9,high=0.99,bounds=quantile", "--advantages", "dr_grpo"], ()),
    "erltool: a preset's band is not in the text": (
        [*OURS, "--control", "clip-cov:chain", "--advantages", "dr_grpo"], ()),
    "erltool: clip-higher and a bonus": (
        [*OURS, "--control", "clip-higher+entropy-bonus:coef=0.01"], ("two-pushes",)),
}  # fmt: skip


def rules_of(words, framework=None, release=None):
    return tuple(f.rule for f in check(settings_of(read_settings([str(w) for w in words], framework), release)))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table(name):
    words, expected = COMMANDS[name]
    raw = read_settings(words)
    assert raw.framework == name.partition(":")[0]
    findings = check(settings_of(raw, "0.9.0"))
    assert tuple(f.rule for f in findings) == expected, [f.line() for f in findings]
    for finding in findings:
        line = finding.line()
        assert "\n" not in line and finding.severity in SEVERITIES and finding.source and "=" in finding.setting
        assert finding.why and finding.remedy and "None" not in line and "UNKNOWN" not in line


def test_the_table_is_large_and_has_right_ones():
    assert len(COMMANDS) >= 60 and sum(not expected for _, expected in COMMANDS.values()) >= 20
    spoken = {rule for _, expected in COMMANDS.values() for rule in expected} | {"shuffled-entropy"}
    source = Path(erltool.__file__).parent.joinpath("logs/check/rules.py").read_text()
    assert all(f'"{rule}"' in source for rule in spoken)
    assert source.count("return found(") == len(spoken) + 1  # one rule speaks for both shares


def test_ours_is_refused_by_the_configuration_where_check_says_error():
    for control, more in (("kl-cov", {"updates_per_iteration": 1}), ("clip-cov", {"advantages": "dr_grpo"})):
        with pytest.raises(ErltoolError):
            TrainConfig(control=erltool.parse_control(control), **more)


def test_defaults_are_those_of_the_frameworks():
    """Ours by its dataclass; TRL's where it is installed."""
    ours = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    s = settings_of(read_settings(["erltool", "train", "--policy", "a/model"]))
    assert (s.group_size, s.updates_per_rollout, s.learning_rate) == (
        ours["group_size"], ours["updates_per_iteration"], ours["learning_rate"])  # fmt: skip
    assert (s.clip_low, s.clip_high, s.lora_rank, s.estimator) == (
        ours["clip_eps_low"], ours["clip_eps_high"], ours["lora_rank"], ours["advantages"])  # fmt: skip
    trl = pytest.importorskip("trl")
    theirs = {f.name: f.default for f in dataclasses.fields(trl.GRPOConfig)}
    s = settings_of(read_settings(["trl", "grpo"]))
    names = {"group_size": "num_generations", "learning_rate": "learning_rate", "clip_low": "epsilon",
             "entropy_coef": "entropy_coef", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k",
             "loss": "loss_type"}  # fmt: skip
    for ours_, theirs_ in names.items():
        assert getattr(s, ours_) == theirs[theirs_], theirs_
    keys = set(s.keys.values()) - set(theirs) - {f.name for f in dataclasses.fields(trl.ModelConfig)}
    assert not keys


# --- kinds of files ----------------------------------------------------------------------------------


SCRIPT = """
import os
from trl import GRPOConfig, GRPOTrainer
from peft import LoraConfig
RATE = 1e-6
common = {"top_p": 0.9}
args = GRPOConfig(output_dir="x", learning_rate=RATE, use_vllm=True, num_generations=int(os.environ["N"]), **common)
trainer = GRPOTrainer("m", args=args, peft_config=LoraConfig(r=32))
raise SystemExit(open("ran", "w"))
"""
SHELL = r"""#!/bin/bash
set -x
# python -m verl.trainer.main_ppo actor_rollout_ref.actor.entropy_coeff=-5 in a comment
LOSS="kl_cov"
RATIO=${RATIO:-0.002}
BATCH=64
LENGTH=$((1024 * 2))
MORE="trainer.nnodes=1 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"
DATA=(
    algorithm.adv_estimator=grpo  # (a comment in parentheses)
    data.train_batch_size=$((BATCH * 4))
)
if [ "$LONG" = 1 ]; then
    BATCH=256
    DATA+=(actor_rollout_ref.rollout.temperature=0)
fi
BATCH=64
python3 -m verl.trainer.main_ppo "${DATA[@]}" \
    actor_rollout_ref.actor.policy_loss.loss_mode="$LOSS" \
    actor_rollout_ref.actor.policy_loss.kl_cov_ratio=$RATIO \
    actor_rollout_ref.actor.policy_loss.ppo_kl_coef=1.0 \
    actor_rollout_ref.actor.ppo_mini_batch_size=${BATCH} \
    actor_rollout_ref.actor.optim.lr=$(cat rate) \
    actor_rollout_ref.actor.fsdp_config.dtype=float32 \
    actor_rollout_ref.rollout.n=8 actor_rollout_ref.rollout.top_p=$TOP_P $MORE \
    data.max_response_length=$LENGTH $@
"""
LATER = """
from trl import GRPOConfig
args = GRPOConfig(learning_rate=1e-4, num_generations=1)
args.learning_rate = 1e-6
args.num_generations = 8
"""
# What one line sets only in some runs is not known; a semicolon is no part of a value.
LINES = r"""
N=8
CLIP=0.28;
LOSS=$1
if [ "$SMALL" = 1 ]; then N=1; fi
[ -n "$RATE" ] && RATE_OF=1 && BATCH=256
python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_batch_size=64 \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 actor_rollout_ref.rollout.n=$N \
    actor_rollout_ref.actor.policy_loss.loss_mode=$LOSS actor_rollout_ref.actor.policy_loss.kl_cov_ratio=0.002 \
    actor_rollout_ref.actor.clip_ratio_high=$CLIP
"""
YAML = """
algorithm: {adv_estimator: grpo}
data: {train_batch_size: 64}
actor_rollout_ref:
  actor:
    ppo_mini_batch_size: ${data.train_batch_size}
    ppo_micro_batch_size_per_gpu: 64
    ppo_epochs: ${oc.select:nothing.here,1}
    optim: {lr: 1e-6}
    fsdp_config: {dtype: float32}
    policy_loss: {loss_mode: kl_cov, kl_cov_ratio: 0.002, ppo_kl_coef: 1.0}
  rollout: {n: 8}
"""


@pytest.mark.parametrize(
    ("name", "text", "rules"),
    [
        ("grpo.py", SCRIPT, ("truncated-sampling", "slow-lora")),
        ("grpo2.py", "from trl import GRPOConfig\nGRPOConfig(**load())\n", ()),
        ("verl.sh", SHELL, ("micro-batch-selection",)),
        ("verl.yaml", YAML, ("silent-kl-cov",)),
        ("grpo.yaml", "num_generations: 8\nlearning_rate: 1e-6\nepsilon_high: 0.28\n", ("silent-clip-higher",)),
        ("grpo.json", '{"num_generations": 8, "num_iterations": 2, "epsilon_high": 0.28}', ()),
        ("wandb.yaml", "_wandb: {value: {}}\nnum_generations: {value: 1}\n", ("group-of-one",)),
        ("later.py", LATER, ()),
        ("loop.py", "from trl import GRPOConfig\nlr = 1e-4\nfor lr in [1e-6]:\n    GRPOConfig(learning_rate=lr)\n", ()),
        ("def.py", "lr = 1e-4\ndef main(lr):\n    return GRPOConfig(learning_rate=lr, num_generations=1)\n",
         ("group-of-one",)),
        ("lines.sh", LINES, ("silent-clip-higher",)),
        ("first.sh", LINES.replace("CLIP=0.28;", "CLIP=$2"), ()),
        ("quoted.sh", f"srun bash -c '{' '.join(VERL)} {R}n=1'\n", ("group-of-one",)),
        ("rl.toml", "[orchestrator]\ngroup_size = 16\n[orchestrator.train.sampling.extra_body]\ntop_k = 40\n"
                    "[[orchestrator.train.source]]\nname = 'a'\n[trainer.model.lora]\n",
         ("truncated-sampling", "slow-lora")),
    ],
)  # fmt: skip
def test_files(name, text, rules, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    assert rules_of([name]) == rules
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]  # nothing ran


def test_a_dump_of_all_defaults_chooses_nothing(tmp_path):
    """verl prints its whole configuration: clip_cov_ratio stands there without anybody having set it."""
    (tmp_path / "all.yaml").write_text(
        "actor_rollout_ref: {actor: {policy_loss: {loss_mode: vanilla, clip_cov_ratio: 0.0002, kl_cov_ratio: 2e-4,"
        " ppo_kl_coef: 0.1, clip_cov_lb: 1}}}\n"
    )
    assert rules_of([tmp_path / "all.yaml"]) == ()
    (tmp_path / "set.yaml").write_text("actor_rollout_ref: {actor: {policy_loss: {kl_cov_ratio: 0.002}}}\n")
    assert rules_of([tmp_path / "set.yaml"]) == ("loss-not-chosen",)


def test_what_a_script_does_not_say_has_no_default(tmp_path):
    """verl's default is one response a prompt, which is no finding where the number is in a variable of the shell."""
    for word, rules in (("", ("group-of-one",)), ("$EXTRA", ()), ("${ROLLOUT[@]}", ()), ("$@", ("group-of-one",))):
        (tmp_path / "a.sh").write_text(f"python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo {word}\n")
        assert rules_of([tmp_path / "a.sh"]) == rules, word


def test_a_run_of_ours_is_a_folder(tmp_path):
    config = TrainConfig(control=erltool.parse_control("clip-higher+entropy-bonus"), steps=8)
    (tmp_path / "config.json").write_text(json.dumps({"config": config.to_dict(), "format": 1}))
    assert rules_of([tmp_path]) == ("two-pushes",)


def test_old_verl_logs_entropies_of_dynamic_batches_wrong():
    words = [*VERL, A + "use_dynamic_bsz=True"]
    assert rules_of(words, release="0.4.0") == ("shuffled-entropy",) == rules_of(words, release="0.3.1.dev2")
    assert rules_of(words, release="0.4.1") == () == rules_of(words, release="main")


def test_a_command_may_hold_files_flags_and_variables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rl.toml").write_text("[orchestrator]\ngroup_size = 1\n")
    assert rules_of(["uv", "run", "rl", "@", "rl.toml"]) == ("group-of-one",)
    assert rules_of(["uv", "run", "rl", "@", "rl.toml", "--orchestrator.group-size", "4"]) == ()
    Path("grpo.yaml").write_text("epsilon_high: 0.28\n")
    assert rules_of(["trl grpo --config grpo.yaml"]) == ("silent-clip-higher",)
    assert rules_of(["NCCL_DEBUG=INFO " + " ".join([*VERL, R + "n=1"])])[0] == "group-of-one"
    Path("more.toml").write_text("[orchestrator]\ngroup_size = 16\n")
    assert rules_of(["uv", "run", "rl", "@", "rl.toml", "@", "more.toml"]) == ()  # the later one counts
    assert rules_of(["uv", "run", "rl", "@", "more.toml", "@", "rl.toml"]) == ("group-of-one",)
    Path("train.py").write_text("from trl import GRPOConfig\nGRPOConfig(num_generations=1)\n")
    assert rules_of(["accelerate launch --multi_gpu train.py"]) == ("group-of-one",)
    assert rules_of([*VERL, P[:-1] + "={loss_mode:kl_cov,kl_cov_ratio:0.2}"])[0] == "percent-for-fraction"


@pytest.mark.parametrize("words", [["--config-name=mine"], ["--config-path", "/conf"], ["-cn", "mine"]])
def test_what_hydra_takes_from_elsewhere_has_no_default(words, capsys):
    """verl's default of one response a prompt does not hold where another file may set it."""
    command = ["python", "-m", "verl.trainer.main_ppo", *words, "algorithm.adv_estimator=grpo"]
    assert cli.main(["check", "--", *command]) == 0
    assert "have a value that is not known" in capsys.readouterr().out
    assert cli.main(["check", "--", *VERL, *CLIP, A + "optim.lr=1e-6,1e-5", P + "clip_cov_ratio=20%"]) == 0
    assert "; 2 have a value that is not known" in capsys.readouterr().out
    assert rules_of([*command[:3], "--config-name=ppo_trainer", command[-1]]) == ("group-of-one",)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "- 1\n- 2\n", "must hold keys with values, not list"),
        ("a.yaml", "a: [1\n", "no YAML"),
        ("a.yaml", "a: !!python/object/apply:os.system ['touch ran']\n", "no YAML"),
        ("a.yaml", "a: &a [*a]\nb: &b {c: *b}\n", "nested too deep"),
        ("a.yaml", "\n".join(f"k{i}: &k{i} {{a: *k{i - 1}, b: *k{i - 1}}}" if i else "k0: &k0 {a: 1}"
                             for i in range(25)), "over 20,000 keys"),
        ("a.json", "{", "no JSON"),
        ("a.json", '{"nobody": "knows"}', "settings of no framework that is known"),
        ("a.json", "[" * 100_000, "no JSON"),
        ("a.toml", "=", "no TOML"),
        ("a.py", "def", "no Python that can be parsed"),
        ("a.py", "(" * 5_000, "no Python that can be parsed"),
        ("a.sh", "echo hello\n", "no command with settings"),
        ("a.sh", "", "no command with settings"),
        ("a.sh", "trl grpo --config nowhere.yaml\n", "nowhere.yaml: no such file"),
        ("a.sh", "uv run rl @ nowhere.toml --x 1\n", "nowhere.toml: no such file"),
        ("a.py", "from trl import SFTConfig\nSFTConfig(learning_rate=2e-4)\n", "settings of no framework"),
        ("a.sh", "trl sft --use_peft --model_name_or_path m\n", "settings of another trainer than GRPO's"),
        ("a.sh", "torchrun -m verl.trainer.fsdp_sft_trainer optim.lr=1e-4\n", "settings of another trainer"),
        ("a.sh", "swift rlhf --rlhf_type grpo --num_generations 8 --top_p 0.9\n", "settings of ms-swift, which"),
        ("a.yaml", "stage: ppo\nfinetuning_type: lora\nnum_generations: 8\n", "settings of LLaMA-Factory, which"),
        ("a.yaml", "per_device_train_batch_size: 8\nlearning_rate: 1.0e-4\n", "settings of no framework"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(name, text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    assert cli.main(["check", name]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err and not Path("ran").exists()


def test_a_script_with_several_commands_says_which_it_passed_over(tmp_path, capsys):
    """The longest command is another trainer's; of the two that train by RL the one with more settings counts."""
    other = "trl sft --model_name_or_path m --learning_rate 1e-4 --num_train_epochs 3 --packing true --seed 1\n"
    (tmp_path / "a.sh").write_text(f"{other}trl grpo --num_generations 8\ntrl grpo --num_generations 1 --seed 1\n")
    assert cli.main(["check", str(tmp_path / "a.sh")]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("error   num_generations=1") and "not looked at: 1" in lines[-1]
    assert cli.main(["check", "--json", str(tmp_path / "a.sh")]) == 3
    assert json.loads(capsys.readouterr().out)["passed_over"] == 1
    calls = ['GRPOConfig("a", learning_rate=1e-2)', 'GRPOConfig("b", learning_rate=1e-6, beta=0.0, num_generations=8)']
    for order in (calls, calls[::-1]):
        (tmp_path / "a.py").write_text("from trl import GRPOConfig\n" + "\n".join(order))
        assert cli.main(["check", str(tmp_path / "a.py")]) == 0
        assert "not looked at: 1" in capsys.readouterr().out


def test_settings_of_something_else_are_not_taken_for_defaults(tmp_path, capsys):
    """A model's config.json in the trainer's output folder, with --framework as the error before proposed."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "vocab_size": 99}))
    assert cli.main(["check", str(tmp_path), "--framework", "TRL"]) == 2
    assert "none of its keys is TRL's" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"learning_rate": 1e-2, "hidden_size": 64}))
    assert cli.main(["check", str(tmp_path), "--framework", "TRL"]) == 0
    with pytest.raises(ErltoolError, match="none of its keys is TRL's"):
        rules_of(["python", "-m", "mine"], "TRL")
    assert rules_of(["trl", "grpo"], "TRL") == ()


def test_hostile_scripts_cost_little(tmp_path):
    """A variable that doubles itself, a power tower and a regular expression's nightmare."""
    text = "A=xx\n" + "".join(f"A=$A$A{i}\n" for i in range(60)) + "B=$((9**9**9**9))\nC=$((" + "9*" * 2000 + "9))\n"
    text += "python -m verl.trainer.main_ppo actor_rollout_ref.rollout.n=$A data.train_batch_size=$B " + "(" * 5000
    (tmp_path / "a.sh").write_text(text)
    code = "import sys; from erltool.logs.check import read_settings as r; print(r([sys.argv[1]]).framework)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.sh"], capture_output=True, text=True, timeout=60)
    assert done.stdout == "verl\n", done.stderr


def test_the_command_prints_one_line_a_finding_and_exits_by_severity(capsys, monkeypatch):
    monkeypatch.setattr(frameworks, "PACKAGES", {})  # a line names the release, and another may be installed
    assert cli.main(["check", " ".join([*VERL, *KL, "data.train_batch_size=64", A + "optim.lr=1e-3"])]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["error", "warning"]
    assert "2 updates on a rollout" in lines[0] and "[verl 0.9.0 verl/trainer/ppo/core_algos.py]" in lines[0]
    assert cli.main(["check", "--", "trl", "grpo", "--epsilon_high", "0.28"]) == 1
    assert capsys.readouterr().out.startswith("warning epsilon_high=0.28: ")
    assert cli.main(["check", "--json", " ".join([*VERL, *KL, P + "ppo_kl_coef=0.1"])]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["framework"] == "verl" and [f["rule"] for f in told["findings"]] == ["weak-kl-cov"]
    assert cli.main(["check", "--", *VERL]) == 0
    assert capsys.readouterr().out.startswith("nothing found in verl settings")
    assert cli.main(["check"]) == 2 and "FILE_OR_COMMAND" in capsys.readouterr().err
    assert cli.main(["check", "nowhere.yaml"]) == 2 and "no such file" in capsys.readouterr().err
    assert cli.main(["check", "--framework=vrel", "a=1"]) == 2 and "use one of verl" in capsys.readouterr().err


def test_hostile_values_stay_one_inert_line(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps({"trainer.algorithm.policy_loss_type": "a\nb\x1b[31m\u202e",
                                                 "trainer.algorithm.kl_cov.kl_cov_frac": 0.1}))  # fmt: skip
    assert cli.main(["check", str(tmp_path / "a.json")]) == 1
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "\x1b" not in out and "\u202e" not in out
