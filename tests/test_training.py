import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

import erltool
from erltool import ClipCov, EntropyBonus, ErltoolError, KLCov, RandomClip, ReferenceKL, TrainConfig, catalog, read_run
from erltool.loading import load_policy
from erltool.losses import policy_loss
from erltool.rollouts import response_log_probs
from erltool.runs import METRICS, SPARSE, TIMED, RunWriter
from erltool.step import covariance_by_accuracy
from erltool.training import _Trainer

CONTROLS = [
    KLCov(0.2, 2.0),
    ClipCov(0.2, 0.05, 5.0),
    RandomClip(0.2),
    EntropyBonus(0.1),
    ReferenceKL(0.5),
    erltool.AdaptiveEntropyBonus(target=9.0, coef=5e-3),
    erltool.TargetEntropy(control=KLCov(0.2, 2.0)),
    KLCov(0.2, 2.0) + EntropyBonus(0.1) + erltool.QuantileAdvantage(),
]
CONTROLS += [c() for name, c in catalog.CONTROLS.items() if name not in {c.name for c in CONTROLS}]
SELECTING = (
    "kl-cov", "clip-cov", "random-clip", "random-kl", "adaptive-entropy-bonus", "high-entropy-mask", "target-entropy",
)  # fmt: skip


def untimed(steps):
    return [{k: v for k, v in s.metrics.items() if k not in TIMED} for s in steps]


# --- the answer does not depend on the micro-batch ------------------------------------------------


def random_rewards(monkeypatch):
    """A verifier that gives a group spread, whatever a random policy says: 1 for texts of even length."""
    monkeypatch.setattr("erltool.tasks.Task.reward", lambda self, problem, text: float(len(text) % 2 == 0))


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
def test_selection_loss_and_gradient_are_equal_for_any_micro_batch(monkeypatch, tiny_config, control):
    random_rewards(monkeypatch)
    gradients = []
    stepped = torch.optim.AdamW.step

    def step_and_note(self):
        gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        stepped(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step_and_note)
    found = {}
    sizes = (1, 2, 4) if control.name in ("kl-cov", "clip-cov", "gspo") else (1,)
    for size in (*sizes, 0):
        config = tiny_config(micro_batch=size, control=control, steps=4, eval_every=0, max_grad_norm=1e9)
        found[size] = list(erltool.train(config)), gradients[:]
        gradients.clear()
    whole, expected = found[0]
    assert any(s.selected.any() for s in whole) == any(part.name in SELECTING for part in control.parts)
    for size in sizes:
        steps, gradients = found[size]
        for one, other in zip(steps, whole, strict=True):
            assert torch.equal(one.rollouts.token_ids, other.rollouts.token_ids)
            assert torch.equal(one.selected, other.selected)
            torch.testing.assert_close(one.covariance, other.covariance, atol=1e-4, rtol=1e-4)
            for name in ("policy_entropy", "mean_covariance", "kl_k3", "clip_fraction", "grad_norm"):
                assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-3, abs=1e-5)
        for one, other in zip(itertools.chain(*gradients), itertools.chain(*expected), strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)


def test_kl_cov_pulls_at_nothing_while_the_policy_has_not_moved(monkeypatch, tiny_config):
    """Without spread there is no gradient, so the second update's log-ratio is rounding: it must not count."""
    monkeypatch.setattr("erltool.tasks.Task.reward", lambda self, problem, text: 1.0)
    for size in (1, 0):
        config = tiny_config(micro_batch=size, control=KLCov(0.3, 50.0), eval_every=0)
        steps = [s.metrics for s in erltool.train(config)]
        assert [m["grad_norm"] for m in steps] == [0.0] * 8 and [m["kl_k3"] for m in steps] == [0.0] * 8
        assert all(m["selected_tokens"] > 0 for m in steps)


@pytest.mark.parametrize(
    "control",
    [
        erltool.NoControl(),
        KLCov(0.2, 2.0),
        ClipCov(0.2, 0.05, 5.0),
        erltool.GSPO(),
        KLCov(0.2, 2.0) + erltool.NegativeReinforcement(),
    ],
    ids=lambda c: c.name,
)
def test_leaving_rows_without_advantage_out_of_the_graph_changes_nothing(monkeypatch, tiny_config, control):
    random_rewards(monkeypatch)
    config = tiny_config(control=control, eval_every=0, steps=4, seed=3)
    left_out = list(erltool.train(config))
    assert 0 < left_out[0].metrics["zero_spread_fraction"] < 1
    monkeypatch.setattr(
        _Trainer, "live_rows", lambda self, rollouts, *_, **__: torch.ones(len(rollouts), dtype=torch.bool)
    )
    for one, other in zip(left_out, erltool.train(config), strict=True):
        assert torch.equal(one.selected, other.selected)
        for name, value in untimed([one])[0].items():
            assert value == pytest.approx(other.metrics[name], rel=1e-4, abs=1e-6)


def test_truncated_responses_can_be_left_out_of_the_loss(monkeypatch, tiny_config):
    random_rewards(monkeypatch)
    config = tiny_config(mask_truncated=True, max_response_tokens=4, eval_every=0, control=RandomClip(0.5))
    gone = 0
    for step in erltool.train(config):
        cut = ~step.rollouts.finished
        gone += int(cut.sum())
        assert not step.tokens.response_mask[cut].any() and not step.selected[cut].any()
        assert (step.covariance[cut] == 0).all()
        assert step.metrics["response_tokens"] == step.rollouts.response_mask.sum()
    assert gone


def test_dropout_repeats_by_seed_and_is_refused_where_it_would_mislead(monkeypatch, tiny_config):
    random_rewards(monkeypatch)
    config = tiny_config(lora_dropout=0.3, eval_every=0, learning_rate=0.02, seed=3)
    state = torch.random.get_rng_state()
    without = dataclasses.replace(config, lora_dropout=0.0)
    first, second, without = (untimed(erltool.train(c)) for c in (config, config, without))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == second != without
    with pytest.raises(ErltoolError, match="kl-cov pushes at full strength"):
        tiny_config(lora_dropout=0.1, control=KLCov(0.1))
    with pytest.raises(ErltoolError, match="use micro_batch=0"):
        tiny_config(lora_dropout=0.1, micro_batch=2)


@pytest.mark.gpu
def test_the_loss_path_waits_for_the_device_once_a_step():
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(512, 64, device="cuda", requires_grad=True)
    weight, tokens = torch.randn(1000, 64, device="cuda"), torch.randint(0, 1000, (512,), device="cuda")
    mask, advantages = torch.ones(8, 64, device="cuda", dtype=torch.bool), torch.randn(8, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        lp, entropy = (x.view(8, 64) for x in erltool.token_log_probs(hidden, tokens, weight))
        out = policy_loss(lp, lp.detach(), advantages, mask, token_entropy=entropy, generator=generator)
        out.loss.backward()
        erltool.token_covariance(advantages, lp, mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("control", [erltool.NoControl(), ClipCov(0.1), KLCov(0.1, 1.0), RandomClip(0.1)])
def test_the_loss_path_needs_no_value_on_the_host(control):
    """Without a GPU: tensors that have shapes and no values, which raise where one would have to be waited for."""
    with FakeTensorMode():
        hidden, weight = torch.randn(48, 16, requires_grad=True), torch.randn(100, 16)
        mask, advantages = torch.ones(4, 12, dtype=torch.bool), torch.randn(4)
        tokens = torch.randint(0, 100, (48,))
        lp, entropy = (x.view(4, 12) for x in erltool.token_log_probs(hidden, tokens, weight, chunk_elements=1000))
        out = policy_loss(lp, lp.detach(), advantages, mask, control=control, token_entropy=entropy, selected=mask)
        out.loss.backward()
        erltool.token_covariance(advantages, lp, mask)
        assert hidden.grad.shape == hidden.shape
        with pytest.raises(DataDependentOutputException):
            out.loss.item()


def test_an_update_waits_for_the_device_as_often_for_many_tokens_as_for_few(monkeypatch, tiny_config):
    random_rewards(monkeypatch)
    found = []
    for tokens in (3, 12):
        config = tiny_config(max_response_tokens=tokens, eval_every=0, steps=2, control=KLCov(0.2), record_every=0)
        update, reads = _Trainer.update, []

        def counted(self, *args, update=update, reads=reads):
            with HostReads() as mode, pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.Tensor, "tolist", mode.counting(torch.Tensor.tolist))
                step = update(self, *args)
            reads.append(mode.count)
            return step

        with monkeypatch.context() as patch:
            patch.setattr(_Trainer, "update", counted)
            list(erltool.train(config))
        found.append(reads)
    # The rows' numbers and width, the control's budget, what was measured, the tokens' ids (a mask, then a list).
    assert found[0] == found[1] and max(found[0]) <= 6


class HostReads(TorchDispatchMode):
    """Counts what would wait for a GPU: values read on the host, and shapes that depend on values."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def counting(self, method):
        def counted(*args):
            self.count += 1
            return method(*args)

        return counted

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        by_mask = op is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += by_mask or op in HOST_READS
        return op(*args, **(kwargs or {}))


HOST_READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
)


# --- what a step is --------------------------------------------------------------------------------


def test_the_first_update_is_reinforce_and_kl_cov_adds_nothing_to_it(monkeypatch, tiny_config):
    random_rewards(monkeypatch)
    controls = erltool.NoControl(), KLCov(0.3, 50.0)
    runs = [list(erltool.train(tiny_config(control=c, eval_every=0, seed=3))) for c in controls]
    first, second = ([run[i].metrics for run in runs] for i in (0, 1))
    assert first[0]["grad_norm"] > 0
    for name in ("grad_norm", "policy_entropy", "kl_k1", "kl_k3", "clip_fraction"):
        assert first[0][name] == first[1][name]
    assert first[0]["kl_k3"] == 0
    assert second[0]["grad_norm"] != second[1]["grad_norm"]


def test_metrics_are_what_they_say(monkeypatch, tiny_config):
    random_rewards(monkeypatch)
    for step in erltool.train(tiny_config(control=KLCov(0.2), max_response_tokens=6)):
        mask, m = step.rollouts.response_mask, step.metrics
        assert set(m) <= set(METRICS) and set(METRICS) - set(m) <= set(SPARSE)
        assert m["reward"] == pytest.approx(step.rewards.mean().item())
        assert m["policy_entropy"] == pytest.approx(step.tokens.token_entropy[mask].mean().item())
        assert m["sampled_nll"] == pytest.approx(-step.tokens.log_probs[mask].mean().item())
        assert m["mean_covariance"] == pytest.approx(step.covariance[mask].mean().item(), abs=1e-6)
        assert m["response_tokens"] == mask.sum() and m["selected_tokens"] == step.selected.sum()
        assert m["response_length"] == pytest.approx(mask.sum(-1).float().mean().item())
        assert m["selected_fraction"] == pytest.approx(m["selected_tokens"] / m["response_tokens"])
        assert m["truncated_fraction"] == pytest.approx(1 - step.rollouts.finished.float().mean().item())
        assert m["kl_k3"] >= 0 and (m["step"] % 2 == 0 or m["sampler_mismatch"] < 1e-4)
        table = step.table()
        assert len(table) == m["response_tokens"] and table["covariance"].mean() == pytest.approx(m["mean_covariance"])
        assert (table["prompt_index"] * 4 + table["response_index"]).nunique() == len(mask)


def test_an_inexact_sampler_is_noticed_and_its_log_probs_made_again(monkeypatch, tiny_config):
    random_rewards(monkeypatch)
    sample = erltool.sample_groups

    def off(*args, **options):
        rollouts = sample(*args, **options)
        return dataclasses.replace(rollouts, log_probs=rollouts.log_probs + 0.01 * rollouts.response_mask)

    config = tiny_config(eval_every=0, steps=4, control=KLCov(0.5, 1.0))
    exact = list(erltool.train(config))
    monkeypatch.setattr("erltool.training.sample_groups", off)
    mended = list(erltool.train(config))
    assert mended[0].metrics["sampler_mismatch"] == pytest.approx(0.01, rel=1e-2)
    for one, other in zip(exact, mended, strict=True):
        assert one.metrics["kl_k3"] == pytest.approx(other.metrics["kl_k3"], rel=1e-2, abs=1e-6)


def test_dynamic_sampling_trains_on_groups_with_spread(monkeypatch, tiny_config):
    monkeypatch.setattr(
        "erltool.tasks.Task.reward", lambda self, problem, text: float(problem.target % 2 and len(text) % 2)
    )
    plain, dynamic = (list(erltool.train(tiny_config(dynamic_sampling=d, eval_every=0))) for d in (False, True))
    without_spread = lambda steps: sum((s.rewards.view(-1, 4).std(-1) == 0).sum().item() for s in steps)  # noqa: E731
    assert without_spread(dynamic) < without_spread(plain)
    assert all(len(s.rollouts) == 8 for s in dynamic)
    assert all(0 <= s.metrics["zero_spread_fraction"] < 1 for s in dynamic)


def test_full_fine_tuning_trains_every_weight(tiny_config):
    trainer = _Trainer(
        tiny_config(lora_rank=0), erltool.load_task("countdown"), load_policy(tiny_config().policy, lora_rank=0)
    )
    assert len(trainer.parameters) == len(list(trainer.policy.model.parameters()))
    with pytest.raises(ErltoolError, match="keeps no reference"):
        erltool.train(tiny_config(lora_rank=0, control=ReferenceKL()))


def test_thirty_updates_of_the_embedded_policy_raise_reward_and_spend_entropy():
    """On a fixed handful of prompts, where 32 updates are enough to see it."""
    task = erltool.load_task("countdown")
    few = dataclasses.replace(task, train=task.train[:4000:500])
    config = TrainConfig(
        steps=32, updates_per_iteration=2, prompts_per_iteration=8, group_size=16, eval_every=0, learning_rate=1e-3
    )
    steps = list(_Trainer(config, few, load_policy(lora_rank=config.lora_rank)).steps())
    mean = lambda name, part: sum(s.metrics[name] for s in part) / len(part)  # noqa: E731
    assert mean("reward", steps[-8:]) > mean("reward", steps[:8]) + 0.1
    assert mean("policy_entropy", steps[-8:]) < mean("policy_entropy", steps[:8])


# --- seeds, interruption, resuming -----------------------------------------------------------------


def test_same_seed_same_metrics_another_seed_others(tiny_config, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        list(erltool.train(tiny_config(seed=seed, control=ClipCov(0.2, 0, 5)), tmp_path / name))
    a, b, c = ((tmp_path / n / "metrics.jsonl").read_bytes() for n in "abc")
    assert a == b != c
    tokens = [pd.read_parquet(tmp_path / n / "tokens.parquet") for n in "ab"]
    pd.testing.assert_frame_equal(*tokens)


def test_the_embedded_policy_at_full_size_repeats_itself_bit_for_bit(tmp_path):
    """Large enough for threads to share the work, whose order must not decide a sum."""
    for name in "ab":
        list(erltool.train(TrainConfig(steps=12, control=KLCov(0.1, 2.0)), tmp_path / name))
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("stop_after", [1, 4, 5, 6])
def test_closing_anywhere_and_resuming_gives_the_same_run(tiny_config, tmp_path, stop_after):
    config = tiny_config(control=KLCov(0.2))
    list(erltool.train(config, tmp_path / "whole"))
    steps = erltool.train(config, tmp_path / "cut")
    for _ in range(stop_after):
        next(steps)
    steps.close()
    assert len(read_run(tmp_path / "cut").metrics) == stop_after
    list(erltool.train(config, tmp_path / "cut", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def assert_same_run(a: Path, b: Path):
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    pd.testing.assert_frame_equal(*(pd.read_parquet(p / "tokens.parquet") for p in (a, b)))
    weights = [(p / "adapter" / "adapter_model.safetensors").read_bytes() for p in (a, b)]
    assert weights[0] == weights[1]


def test_a_run_can_be_made_longer(tiny_config, tmp_path):
    list(erltool.train(tiny_config(steps=4, eval_every=0), tmp_path / "run"))
    list(erltool.train(tiny_config(steps=8, eval_every=0), tmp_path / "run", resume=True))
    list(erltool.train(tiny_config(steps=8, eval_every=0), tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def start(config: TrainConfig, out: Path, *words: str) -> subprocess.Popen:
    flags = [
        f"--{k.replace('_', '-')}={v}" for k, v in config.to_dict().items() if k != "control" and type(v) is not bool
    ]
    command = [sys.executable, "-m", "erltool.cli", "train", f"--out={out}", "--control=kl-cov:fraction=0.2", *flags]
    return subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(process: subprocess.Popen, out: Path, count: int):
    file = out / "metrics.jsonl"
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.001)


def test_kill_minus_nine_at_several_points_then_resume_gives_the_same_file(tiny_config, tmp_path):
    config = tiny_config(control=KLCov(0.2), steps=60, checkpoint_every=3, eval_every=5)
    list(erltool.train(config, tmp_path / "whole"))
    cut, kills = tmp_path / "cut", 0
    for count, words in ((1, ()), (9, ("--resume",)), (20, ("--resume",)), (41, ("--resume",))):
        process = start(config, cut, *words)
        wait_for_steps(process, cut, count)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
    assert kills == 4
    process = start(config, cut, "--resume")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert_same_run(tmp_path / "whole", cut)


def test_ctrl_c_ends_with_a_readable_resumable_run(tiny_config, tmp_path):
    config = tiny_config(control=KLCov(0.2), steps=400, checkpoint_every=100, eval_every=0)
    process = start(config, tmp_path / "run")
    wait_for_steps(process, tmp_path / "run", 5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err and "--resume" in err.splitlines()[-1]
    run = read_run(tmp_path / "run")
    assert 5 <= len(run.metrics) < 400 and len(run.metrics) % 2 == 0 and run.skipped_lines == 0
    assert (tmp_path / "run" / "checkpoints" / f"{len(run.metrics):06d}").is_dir()
    longer = dataclasses.replace(config, steps=len(run.metrics) + 2)
    assert [s.metrics["step"] for s in erltool.train(longer, tmp_path / "run", resume=True)] == [
        len(run.metrics) + 1,
        len(run.metrics) + 2,
    ]


# --- bad luck --------------------------------------------------------------------------------------


def test_a_reward_that_is_not_finite_stops_before_the_update(monkeypatch, tiny_config, tmp_path):
    calls = itertools.count()
    monkeypatch.setattr(
        "erltool.tasks.Task.reward", lambda self, problem, text: float("nan") if next(calls) > 40 else 0.0
    )
    steps = erltool.train(tiny_config(eval_every=0, checkpoint_every=1), tmp_path / "run")
    with pytest.raises(ErltoolError, match="reward of a response to .* is nan; the verifier"):
        list(steps)
    assert len(read_run(tmp_path / "run").metrics) == 4


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(monkeypatch, tiny_config):
    random_rewards(monkeypatch)
    trainer = _Trainer(tiny_config(eval_every=0), erltool.load_task("countdown"), load_policy(tiny_config().policy))
    steps = trainer.steps()
    next(steps)
    before = [p.detach().clone() for p in trainer.parameters]
    hook = trainer.parameters[-1].register_hook(lambda g: g * float("nan"))
    with pytest.raises(ErltoolError, match="step 2: grad_norm is nan; the update was not made"):
        next(steps)
    hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))
    assert all(p.grad is None for p in trainer.parameters)


def test_a_folder_that_holds_a_run_is_refused_unless_resumed(tiny_config, tmp_path):
    list(erltool.train(tiny_config(steps=2), tmp_path / "run"))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ErltoolError, match="already holds a run"):
        erltool.train(tiny_config(steps=2), tmp_path / "run")
    with pytest.raises(ErltoolError, match="was made with seed=0, not 1"):
        erltool.train(tiny_config(steps=2, seed=1), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("precious")
    with pytest.raises(ErltoolError, match="holds no run"):
        erltool.train(tiny_config(), tmp_path / "foreign")
    with pytest.raises(ErltoolError, match="needs the run's folder"):
        erltool.train(tiny_config(), resume=True)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny_config, tmp_path, damage):
    config = tiny_config(steps=8, checkpoint_every=1)
    list(erltool.train(config, tmp_path / "whole"))
    list(erltool.train(config, tmp_path / "run"))
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1] / "state.pt"
    blob = bytearray(newest.read_bytes())
    if damage == "flip":
        blob[len(blob) // 2] ^= 1
        newest.write_bytes(blob)
    elif damage == "truncate":
        newest.write_bytes(blob[:100])
    else:
        newest.unlink()
    assert [s.metrics["step"] for s in erltool.train(config, tmp_path / "run", resume=True)] == [7, 8]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_write_that_fails_on_an_iterations_last_step_loses_nothing(monkeypatch, tiny_config, tmp_path):
    config = tiny_config(checkpoint_every=1)
    list(erltool.train(config, tmp_path / "whole"))
    append = RunWriter._append

    def full(self, name, row):
        if row["step"] == 4:
            raise ErltoolError("disk full")
        append(self, name, row)

    monkeypatch.setattr(RunWriter, "_append", full)
    with pytest.raises(ErltoolError, match="disk full"):
        list(erltool.train(config, tmp_path / "run"))
    monkeypatch.setattr(RunWriter, "_append", append)
    assert [s.metrics["step"] for s in erltool.train(config, tmp_path / "run", resume=True)] == [3, 4, 5, 6, 7, 8]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_no_whole_checkpoint_is_said_and_nothing_lost(tiny_config, tmp_path):
    config = tiny_config(steps=4, checkpoint_every=1)
    list(erltool.train(config, tmp_path / "run"))
    for state in (tmp_path / "run" / "checkpoints").glob("*/state.pt"):
        state.write_bytes(b"")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ErltoolError, match="no older checkpoint is whole; delete"):
        erltool.train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_metrics_shorter_than_the_checkpoint_are_refused(tiny_config, tmp_path):
    config = tiny_config(steps=4, checkpoint_every=1)
    list(erltool.train(config, tmp_path / "run"))
    os.truncate(tmp_path / "run" / "metrics.jsonl", 50)
    with pytest.raises(ErltoolError, match="metrics.jsonl: shorter than"):
        erltool.train(config, tmp_path / "run", resume=True)


def test_another_base_model_is_refused(tiny_config, tmp_path, tiny_policy):
    config = tiny_config(steps=2, checkpoint_every=1)
    list(erltool.train(config, tmp_path / "run"))
    blob = next((tmp_path / "run" / "checkpoints").glob("*/state.pt"))
    state = torch.load(blob, weights_only=True) | {"fingerprint": "0"}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    blob.write_bytes(buffer.getvalue())
    import hashlib

    manifest = blob.parent / "manifest.json"
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"sha256": hashlib.sha256(buffer.getvalue()).hexdigest()})
    )
    with pytest.raises(ErltoolError, match="other weights"):
        erltool.train(dataclasses.replace(config, steps=4), tmp_path / "run", resume=True)


# --- what is kept ----------------------------------------------------------------------------------


def test_the_adapter_loads_in_plain_peft_with_the_same_log_probs(monkeypatch, tiny_config, tmp_path, tiny_policy):
    random_rewards(monkeypatch)
    config = tiny_config(learning_rate=1e-2)
    task, policy = erltool.load_task("countdown"), load_policy(str(tiny_policy), lora_rank=4)
    trainer = _Trainer(config, task, policy)
    trainer.open(tmp_path / "run", resume=False)
    last = list(trainer.steps())[-1]
    base = AutoModelForCausalLM.from_pretrained(tiny_policy)
    plain = load_policy(str(tiny_policy), lora_rank=0)
    plain.model = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    with torch.no_grad():
        ours, _ = response_log_probs(policy, last.rollouts)
        theirs, _ = response_log_probs(plain, last.rollouts)
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, last.tokens.log_probs, atol=1e-4)


# --- the mechanism on a transformer ---------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 4])
def test_first_order_entropy_change_is_close_for_small_steps_and_exact_in_the_limit(monkeypatch, tiny_config, rank):
    random_rewards(monkeypatch)
    errors = []
    for rate in (4e-4, 2e-4):
        config = tiny_config(lora_rank=rank, learning_rate=rate, entropy_change_every=1, eval_every=0, seed=3, steps=2,
                             max_grad_norm=1e9)  # fmt: skip
        step = next(iter(erltool.train(config)))
        predicted, measured = step.entropy_change
        mask = step.rollouts.response_mask
        assert (predicted[~mask] == 0).all() and measured[mask].abs().max() > 1e-6
        assert step.metrics["entropy_change"] == pytest.approx(measured[mask].mean().item(), rel=1e-4)
        errors.append((predicted - measured)[mask].abs().mean().item())
        if rate == 2e-4:
            assert step.metrics["entropy_change_correlation"] > 0.9
    assert errors[1] < 0.4 * errors[0]  # of second order: a quarter


def test_entropy_change_is_the_change_of_what_scoring_measures(monkeypatch, tiny_config):
    random_rewards(monkeypatch)
    config = tiny_config(entropy_change_every=2, eval_every=0, learning_rate=0.01, seed=3)
    trainer = _Trainer(config, erltool.load_task("countdown"), load_policy(config.policy, lora_rank=4, lora_alpha=32.0))
    for step in trainer.steps():
        assert (step.entropy_change is not None) == (step.metrics["iteration"] % 2 == 0)
        if step.entropy_change is None:
            assert "entropy_change" not in step.metrics
            continue
        with torch.no_grad():
            after = response_log_probs(trainer.policy, step.rollouts)[1]
        torch.testing.assert_close(step.entropy_change[1], after - step.tokens.token_entropy, atol=1e-5, rtol=1e-3)


def test_covariance_by_accuracy_leaves_out_groups_without_spread():
    found = covariance_by_accuracy([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0, 1 / 8, 1 / 3, 0.5, 7 / 8, 1.0])
    assert found == {"group_covariance_hard": 2.5, "group_covariance_middle": 4.0, "group_covariance_easy": 5.0}
