import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import shutil
import signal
import socket
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
from erltool import (
    ClipCov,
    EntropyBonus,
    ErltoolError,
    KLCov,
    RandomClip,
    ReferenceKL,
    TrainConfig,
    read_run,
)
from erltool.cli import command as cli
from erltool.controls import catalog
from erltool.controls.base import CLIP, Choice, Control
from erltool.controls.recent import ClipV, EntropyRatioClip
from erltool.engines.verl import read_config
from erltool.policies import sampling
from erltool.policies.load import load_policy
from erltool.policies.rollouts import response_log_probs, response_statistics
from erltool.runs.folder import METRICS, SPARSE, TIMED
from erltool.runs.writer import RunWriter
from erltool.training import update
from erltool.training.loop import _Trainer
from erltool.training.start import config_of, policy_for_evaluation
from erltool.training.step import covariance_by_accuracy
from erltool.training.update import Updater

CONTROLS = [
    KLCov(0.2, 2.0),
    ClipCov(0.2, 0.05, 5.0),
    RandomClip(0.2),
    EntropyBonus(0.1),
    ReferenceKL(0.5),
    EntropyBonus(5e-3, below=9.0) + RandomClip(0.2),
    KLCov(0.2, 2.0) + EntropyBonus(0.1) + erltool.QuantileAdvantage(),
    ClipV(mu=0.0, fraction=0.2),
    EntropyRatioClip(low=0.99999, high=1.00001),  # a random policy of this size hardly moves
]
CONTROLS += [c() for name, c in catalog.CONTROLS.items() if name not in {c.name for c in CONTROLS}]


def untimed(steps):
    return [{k: v for k, v in s.metrics.items() if k not in TIMED} for s in steps]


# --- the answer does not depend on the micro-batch ------------------------------------------------


def random_rewards(monkeypatch):
    """A verifier that gives a group spread, whatever a random policy says: 1 for texts of even length."""
    monkeypatch.setattr("erltool.tasks.task.Task.reward", lambda self, problem, text: float(len(text) % 2 == 0))


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
    # A bonus chooses tokens only where `below` is set.
    choosing = [
        type(p).choose_tokens is not Control.choose_tokens for p in control.parts if getattr(p, "below", 0) is not None
    ]
    assert any(s.selected.any() for s in whole) == any(choosing)
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
    monkeypatch.setattr("erltool.tasks.task.Task.reward", lambda self, problem, text: 1.0)
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
        Updater, "live_rows", lambda self, rollouts, *_, **__: torch.ones(len(rollouts), dtype=torch.bool)
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
    with pytest.raises(ErltoolError, match="kl-cov penalises every difference"):
        tiny_config(lora_dropout=0.1, control=KLCov(0.1))
    with pytest.raises(ErltoolError, match="use micro_batch=0"):
        tiny_config(lora_dropout=0.1, micro_batch=2)
    with pytest.raises(ErltoolError, match="no adapter whose inputs"):
        tiny_config(lora_dropout=0.1, lora_rank=0)


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_reading_equal_responses_once_changes_nothing(monkeypatch, tiny_config, micro_batch):
    """Two groups of one prompt, and responses that differ in their prompt, their end or their last token alone."""
    policy = load_policy(tiny_config().policy, lora_rank=4)
    rollouts = erltool.sample_groups(policy, ["3 5 7=22:", "1 2 3=6:", "3 5 7=22:"], 4, max_response_tokens=6)
    ids, mask = rollouts.token_ids.clone(), torch.ones_like(rollouts.response_mask)
    ids[:] = ids[0]
    ids[1, -1] += 1
    mask[2, -1] = False
    rollouts = dataclasses.replace(rollouts, token_ids=ids, response_mask=mask)
    first, place = rollouts.distinct()
    assert first == [0, 1, 2, 4] and place.tolist() == [0, 1, 2, 0, 3, 3, 3, 3, 0, 0, 0, 0]
    parameters, weights = list(policy.trainable().values()), torch.randn(mask.shape)
    updater = Updater(tiny_config(lora_rank=4, micro_batch=micro_batch), policy, None)

    def found(read):
        statistics = read()
        return statistics, torch.autograd.grad((statistics.log_probs * weights * mask).sum(), parameters)

    live = torch.arange(len(mask)) % 2 == 0
    for statistics, expected in zip(
        found(lambda: updater.of_distinct(rollouts)), found(lambda: response_statistics(policy, rollouts)), strict=True
    ):
        for one, other in zip(statistics, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert updater.forward(rollouts, live).log_probs.shape == mask.shape
    read = []
    monkeypatch.setattr(
        update, "response_statistics", lambda p, r, *a: read.append(len(r)) or response_statistics(p, r, *a)
    )
    updater.of_distinct(rollouts)
    dropping = Updater(tiny_config(lora_rank=4, lora_dropout=0.1), policy, None)
    dropping.of_distinct(rollouts)
    assert read == [4, 12]


@pytest.mark.gpu
def test_the_loss_path_waits_for_the_device_once_a_step():
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(512, 64, device="cuda", requires_grad=True)
    weight, tokens = torch.randn(1000, 64, device="cuda"), torch.randint(0, 1000, (512,), device="cuda")
    mask, advantages = torch.ones(8, 64, device="cuda", dtype=torch.bool), torch.randn(8, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        lp, entropy = (x.view(8, 64) for x in erltool.token_log_probs(hidden, tokens, weight))
        out = erltool.policy_loss(lp, lp.detach(), advantages, mask, token_entropy=entropy, generator=generator)
        out.loss.backward()
        erltool.token_covariance(advantages, lp, mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("control", [erltool.NoControl(), ClipCov(0.1), KLCov(0.1, 1.0), RandomClip(0.1)])
def test_the_loss_path_needs_no_value_on_the_host(control):
    """Needs no GPU: tensors with shapes but no values raise where the host would wait for a value."""
    with FakeTensorMode():
        hidden, weight = torch.randn(48, 16, requires_grad=True), torch.randn(100, 16)
        mask, advantages = torch.ones(4, 12, dtype=torch.bool), torch.randn(4)
        tokens = torch.randint(0, 100, (48,))
        lp, entropy = (x.view(4, 12) for x in erltool.token_log_probs(hidden, tokens, weight, chunk_elements=1000))
        tokens = erltool.Tokens(lp, lp.detach(), advantages[:, None].expand(4, 12), mask, entropy)
        choice = Choice(control, tokens.advantages, mask[..., None], control.clip_of(CLIP), 48.0)
        out = erltool.control_loss(tokens, choice)
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
        reads = []

        def counting(method, reads=reads):
            def counted(*args):
                with HostReads() as mode, pytest.MonkeyPatch.context() as patch:
                    patch.setattr(torch.Tensor, "tolist", mode.counting(torch.Tensor.tolist))
                    made = method(*args)
                reads.append(mode.count)
                return made

            return counted

        with monkeypatch.context() as patch:
            for name in ("choose", "backward", "optimise"):
                patch.setattr(Updater, name, counting(getattr(Updater, name)))
            list(erltool.train(config))
        found.append(reads)
    # The rows' numbers and width, the control's budget, what was measured, the tokens' ids (a mask, then a list).
    assert found[0] == found[1] and max(sum(found[0][at : at + 3]) for at in range(0, len(found[0]), 3)) <= 6


def test_sampling_waits_for_the_device_once_a_token(tiny_policy, monkeypatch):
    monkeypatch.setattr(sampling, "SHARING", ())  # as on a GPU
    policy = erltool.load_policy(str(tiny_policy))
    policy.ends = (10**6,)  # no response ends, so none is dropped from the batch, for which the host waits too
    reads = []
    for tokens in (4, 12):
        with HostReads() as mode:
            erltool.sample_groups(policy, ["3 5 7=22:", "1 2 3=6:"], 4, max_response_tokens=tokens)
        reads.append(mode.count)
    assert reads[1] - reads[0] == 12 - 4


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
    monkeypatch.setattr("erltool.training.sampled.sample_groups", off)
    mended = list(erltool.train(config))
    assert mended[0].metrics["sampler_mismatch"] == pytest.approx(0.01, rel=1e-2)
    for one, other in zip(exact, mended, strict=True):
        assert one.metrics["kl_k3"] == pytest.approx(other.metrics["kl_k3"], rel=1e-2, abs=1e-6)


def test_dynamic_sampling_trains_on_groups_with_spread(monkeypatch, tiny_config):
    monkeypatch.setattr(
        "erltool.tasks.task.Task.reward", lambda self, problem, text: float(problem.target % 2 and len(text) % 2)
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
    assert len(trainer.updates.parameters) == len(list(trainer.policy.model.parameters()))
    with pytest.raises(ErltoolError, match="keeps no reference"):
        erltool.train(tiny_config(lora_rank=0, control=ReferenceKL()))


def test_thirty_updates_of_a_shipped_policy_raise_reward_and_spend_entropy():
    """On a few fixed prompts, where 32 updates are enough."""
    task = erltool.load_task("countdown")
    few = dataclasses.replace(task, train=task.train[:4000:500])
    config = TrainConfig(
        steps=32, updates_per_iteration=2, prompts_per_iteration=8, group_size=16, eval_every=0, learning_rate=1e-3,
        max_response_tokens=12,
    )  # fmt: skip
    steps = list(_Trainer(config, few, load_policy("countdown", lora_rank=config.lora_rank)).steps())
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


def test_a_shipped_policy_at_full_size_repeats_itself_bit_for_bit(tmp_path):
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


def test_a_run_with_a_control_of_ones_own_resumes(tiny_config, tmp_path):
    class Own(RandomClip):
        name = "own"

    config = tiny_config(control=Own(0.2) + KLCov(0.2), eval_every=0)
    list(erltool.train(config, tmp_path / "whole"))
    steps = erltool.train(config, tmp_path / "cut")
    for _ in range(2):
        next(steps)
    steps.close()
    *_, last = erltool.train(config, tmp_path / "cut", resume=True)
    assert last.metrics["step"] == config.steps
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
        f"--{k.replace('_', '-')}={v}"
        for k, v in config.to_dict().items()
        if k != "control" and type(v) is not bool and v is not None
    ]
    command = [sys.executable, "-m", "erltool", "train", f"--out={out}", "--control=kl-cov:fraction=0.2", *flags]
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
        "erltool.tasks.task.Task.reward", lambda self, problem, text: float("nan") if next(calls) > 40 else 0.0
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
    before = [p.detach().clone() for p in trainer.updates.parameters]
    hook = trainer.updates.parameters[-1].register_hook(lambda g: g * float("nan"))
    with pytest.raises(ErltoolError, match="step 2: grad_norm is nan; the update was not made"):
        next(steps)
    hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.updates.parameters, strict=True))
    assert all(p.grad is None for p in trainer.updates.parameters)


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


def test_metrics_shorter_than_the_newest_checkpoint_go_on_from_the_one_before(tiny_config, tmp_path, caplog):
    config, run = tiny_config(checkpoint_every=1), tmp_path / "run"
    list(erltool.train(config, tmp_path / "whole"))
    list(erltool.train(config, run))
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:30])
    steps = erltool.train(config, run, resume=True)
    assert caplog.messages == [
        f"{run / 'metrics.jsonl'}: ends before step 8, of which a checkpoint is there; the run goes on from step 6"
    ]
    assert json.loads((run / "adapter" / "erltool.json").read_text()) == {"step": 6}
    assert [s.metrics["step"] for s in steps] == [7, 8]
    assert_same_run(tmp_path / "whole", run)


def rewrite_state(run: Path, change) -> Path:
    """Changes the newest checkpoint's state as somebody could who knows its form; returns its file."""
    file = sorted((run / "checkpoints").glob("*/state.pt"))[-1]
    found = change(torch.load(file, weights_only=True))
    buffer = io.BytesIO()
    if not isinstance(found, bytes):
        torch.save(found, buffer)
    file.write_bytes(found if isinstance(found, bytes) else buffer.getvalue())
    manifest = file.with_name("manifest.json")
    said = json.loads(manifest.read_text()) | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(said))
    return file


def test_another_base_model_is_refused(tiny_config, tmp_path):
    config = tiny_config(steps=2, checkpoint_every=1)
    list(erltool.train(config, tmp_path / "run"))
    rewrite_state(tmp_path / "run", lambda state: state | {"fingerprint": "0"})
    with pytest.raises(ErltoolError, match="other weights"):
        erltool.train(dataclasses.replace(config, steps=4), tmp_path / "run", resume=True)


class Hostile:
    """An unrestricted unpickler would run a command."""

    def __reduce__(self):
        return os.system, ("touch hostile",)


def without_a_moment(state):
    del state["optimizer"]["state"][0]["exp_avg"]
    return state


def narrow(state):  # a tensor that would be broadcast over all of a weight
    name = next(iter(state["trainable"]))
    return state | {"trainable": state["trainable"] | {name: torch.zeros(1)}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: pickle.dumps(Hostile()), "UnpicklingError"),
        (lambda state: b"", "EOFError"),
        (lambda state: b"PK\x03\x04 no archive", "RuntimeError"),
        (lambda state: [1, 2], "TypeError"),
        (lambda state: {}, "KeyError: 'trainable'"),
        (lambda state: state | {"trainable": 3}, "TypeError"),
        (lambda state: state | {"trainable": {}}, "other weights by name"),
        (narrow, "is not a tensor of numbers of shape"),
        (without_a_moment, "KeyError: 'exp_avg'"),
        (lambda state: state | {"optimizer": {"state": {}}}, "its optimiser has other parameters"),
        (lambda state: state | {"step": "8"}, "step is '8'"),
        (lambda state: state | {"step": 4}, "it is of step 4"),
        (lambda state: state | {"iteration": -1}, "iteration is -1"),
        (lambda state: state | {"moved": torch.ones(3)}, "moved is tensor"),
        (lambda state: state | {"control": {"name": "none", "coef": 3}}, "has no field 'coef'"),
    ],
)
def test_a_state_that_is_none_is_one_line_and_changes_nothing(tiny_config, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    config, run = tiny_config(checkpoint_every=1), tmp_path / "run"
    list(erltool.train(config, run))
    file = rewrite_state(run, change)
    (run / "adapter" / "erltool.json").unlink()  # so that an evaluation reads it, too
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for use in (lambda: erltool.train(config, run, resume=True), lambda: policy_for_evaluation(str(run))):
        with pytest.raises(ErltoolError) as e:
            use()
        assert str(e.value).startswith(f"{file}: not a state") and message in str(e.value) and "\n" not in str(e.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize(
    "manifest", ["[]", "3", '{"step": "8"}', '{"step": 8, "sha256": 5, "metrics_bytes": 3}', "\xff", "[" * 100_000]
)
def test_a_manifest_of_other_types_falls_back_to_the_checkpoint_before(tiny_config, tmp_path, caplog, manifest):
    config, run = tiny_config(checkpoint_every=1), tmp_path / "run"
    list(erltool.train(config, run))
    (run / "checkpoints" / "000008" / "manifest.json").write_text(manifest)
    assert [s.metrics["step"] for s in erltool.train(config, run, resume=True)] == [7, 8]
    assert caplog.messages == [f"{run / 'checkpoints'}: the one of step 8 is damaged; the run goes on from step 6"]


@pytest.mark.parametrize("left_over", [".config.json.new", ".lock"])
def test_what_a_kill_leaves_before_the_first_step_does_not_keep_a_run_from_beginning(tiny_config, tmp_path, left_over):
    run = tmp_path / "run"
    run.mkdir()
    (run / left_over).write_text("{")
    assert len(list(erltool.train(tiny_config(steps=2), run))) == 2
    assert sorted(p.name for p in run.iterdir())[0] == "adapter"  # and it is gone


def test_steps_that_were_made_are_not_taken_back(tiny_config, tmp_path):
    run = tmp_path / "run"
    list(erltool.train(tiny_config(), run))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ErltoolError, match="has 8 steps already, and steps=4 would take some back"):
        erltool.train(tiny_config(steps=4), run, resume=True)
    assert list(erltool.train(tiny_config(), run, resume=True)) == []
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_who_goes_on_with_a_run_is_added_and_who_began_it_stays(monkeypatch, tiny_config, tmp_path):
    run = tmp_path / "run"
    list(erltool.train(tiny_config(steps=4), run))
    began = read_run(run).made_by
    list(erltool.train(tiny_config(steps=6), run, resume=True))
    assert read_run(run).made_by == began and read_run(run).continued_by == ()
    monkeypatch.setattr(erltool, "__version__", "9.9")
    list(erltool.train(tiny_config(steps=6), run, resume=True))  # nothing left to do: nobody has gone on
    assert read_run(run).continued_by == ()
    erltool.train(tiny_config(steps=8), run, resume=True)
    list(erltool.train(tiny_config(steps=8), run, resume=True))
    found = read_run(run)
    assert found.made_by == began and found.config["steps"] == 8
    assert [(entry["step"], entry["erltool"]) for entry in found.continued_by] == [(6, "9.9")]
    monkeypatch.undo()
    list(erltool.train(tiny_config(steps=10), run, resume=True))
    assert [entry["step"] for entry in read_run(run).continued_by] == [6, 8]


# --- one writer ------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_in_one_line_that_names_the_first(tiny_config, tmp_path):
    config, run = tiny_config(checkpoint_every=1), tmp_path / "run"
    list(erltool.train(config, tmp_path / "whole"))
    steps = erltool.train(config, run)
    next(steps)
    (tmp_path / "linked").symlink_to(run)
    for place in (run, tmp_path / "linked"):
        with pytest.raises(erltool.errors.InUse) as e:
            erltool.train(config, place, resume=True)
        assert f"process {os.getpid()} on {socket.gethostname()}, this very one, is writing there" in str(e.value)
    assert len(read_run(run).metrics) == 1  # to read is always possible
    next(steps)
    policy_for_evaluation(str(run))
    list(steps)
    assert list(erltool.train(config, run, resume=True)) == []
    assert_same_run(tmp_path / "whole", run)
    assert not (run / ".lock").exists()


def test_resuming_beside_a_live_run_writes_nothing(tiny_config, tmp_path):
    config, run = tiny_config(steps=40, control=KLCov(0.2), checkpoint_every=2, eval_every=0), tmp_path / "run"
    first = start(config, run)
    wait_for_steps(first, run, 3)
    first.send_signal(signal.SIGSTOP)
    second = start(config, run, "--resume")
    _, err = second.communicate(timeout=120)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and f"process {first.pid} on" in err.splitlines()[-1] and "Traceback" not in err
    first.communicate(timeout=120)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [*range(1, 41)]


@pytest.mark.parametrize("use", ["closed", "never begun", "failed"])
def test_a_writer_that_ends_in_whatever_way_lets_others_write(monkeypatch, tiny_config, tmp_path, use):
    config, run = tiny_config(), tmp_path / "run"
    steps = erltool.train(config, run)
    if use == "closed":
        next(steps)
        steps.close()
    elif use == "failed":
        with monkeypatch.context() as patch:
            patch.setattr("erltool.tasks.task.Task.reward", lambda *_: float("nan"))
            with pytest.raises(ErltoolError, match="nan"):
                next(steps)
    else:
        del steps
    assert len(list(erltool.train(config, run, resume=True))) >= 7


def test_a_run_that_was_refused_keeps_nobody_out(tiny_config, tmp_path):
    run = tmp_path / "run"
    list(erltool.train(tiny_config(checkpoint_every=1), run))
    rewrite_state(run, lambda state: {})
    for _ in range(2):
        with pytest.raises(ErltoolError, match="not a state"):
            erltool.train(tiny_config(checkpoint_every=1), run, resume=True)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_said_and_used(monkeypatch, tiny_config, tmp_path, caplog, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    assert len(list(erltool.train(tiny_config(steps=2), tmp_path / "run"))) == 2
    assert caplog.messages == [f"{tmp_path / 'run'}: file system without locks; let one process write there"]


def test_a_folder_that_is_moved_while_it_is_written_is_not_mixed_with_another(tiny_config, tmp_path):
    config, run = tiny_config(checkpoint_every=1), tmp_path / "run"
    steps = erltool.train(config, run)
    next(steps), next(steps)
    run.rename(tmp_path / "moved")
    list(erltool.train(dataclasses.replace(config, seed=1), run))
    other = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ErltoolError, match="another folder has this name now; resume where the run was moved to"):
        next(steps)
    assert (run / "metrics.jsonl").read_bytes() == other
    list(erltool.train(config, tmp_path / "whole"))
    list(erltool.train(config, tmp_path / "moved", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "moved")


# --- code of a model's own -------------------------------------------------------------------------


@pytest.fixture
def run_with_code(tiny_config, tiny_policy, tmp_path):
    """A run whose folder asks for the code of its own that its policy has, and the file that this code makes."""
    run, policy, trace = tmp_path / "run", tmp_path / "policy", tmp_path / "it ran"
    list(erltool.train(tiny_config(), run))
    shutil.copytree(tiny_policy, policy)
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    settings = json.loads((policy / "config.json").read_text()) | own
    (policy / "config.json").write_text(json.dumps(settings))
    code = f"open({str(trace)!r}, 'w').close()\nfrom transformers import LlamaConfig\nclass Own(LlamaConfig): pass\n"
    (policy / "own.py").write_text(code)
    document = json.loads((run / "config.json").read_text())
    document["config"] |= {"trust_remote_code": True, "policy": str(policy)}
    (run / "config.json").write_text(json.dumps(document))
    return run, trace


def test_a_run_folder_alone_runs_no_code(run_with_code, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    run, trace = run_with_code
    fields = json.loads((run / "config.json").read_text())["config"]
    for use in (
        lambda: policy_for_evaluation(str(run)),
        lambda: config_of(read_run(run)),
        lambda: TrainConfig.from_dict(fields),
        lambda: read_config(run),
        lambda: read_config(run / "config.json"),
    ):
        with pytest.raises(ErltoolError, match="a file cannot let a model run its own code.*--trust-remote-code"):
            use()
    for command in (["train", "--resume", f"--out={run}"], ["eval", str(run)], ["export", "verl", str(run)]):
        assert cli.main(command) == 2
        assert "--trust-remote-code" in capsys.readouterr().err.splitlines()[-1]
    assert not trace.exists()
    assert cli.main(["export", "verl", str(run), "--trust-remote-code", "--gpus=1"]) == 0
    with contextlib.suppress(ErltoolError, AttributeError):  # the code has run, and it is not a model
        policy_for_evaluation(str(run), trust_remote_code=True)
    assert trace.exists()


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
