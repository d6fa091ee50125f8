"""Sampling by vLLM, and the correction for a sampler that is not quite the policy. On a CPU vLLM is fake_vllm.py."""

import copy
import os
import sys

import fake_vllm
import pytest
import torch

import erltool
from erltool import ErltoolError, KLCov, load_policy, load_task, policy_loss, response_log_probs
from erltool.engines.verl import export_verl
from erltool.entropy.tokens import truncated_weights
from erltool.policies import lora, vllm_sampler
from erltool.policies.vllm_sampler import VllmSampler
from erltool.training.config import TrainConfig
from erltool.training.loop import _Trainer
from erltool.training.memory import Shape, plan_memory
from erltool.training.start import configured_policy


@pytest.fixture
def engine(monkeypatch):
    """The class of fake engines, which this machine then seems to run."""
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    monkeypatch.setattr(vllm_sampler, "DEVICES", ("cpu",))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 16 * 2**30))
    monkeypatch.setattr(fake_vllm.LLM, "made", [])
    return fake_vllm.LLM


@pytest.fixture
def rewarded(monkeypatch):
    """Rewards that differ within groups, so that every update moves the policy."""
    reward = lambda self, problem, text: float(sum(map(ord, text)) % 2)  # noqa: E731
    monkeypatch.setattr("erltool.tasks.task.Task.reward", reward)


@pytest.fixture
def config(tiny_config, engine, rewarded):
    """A configuration that samples by the fake engine: call it with the fields to change."""
    return lambda **fields: tiny_config(**{"sampler": "vllm", "eval_every": 0, "learning_rate": 1e-2} | fields)


def trainer_of(config) -> _Trainer:
    task = load_task(config.task)
    return _Trainer(config, task, configured_policy(config, task))


def moved_policy(folder, **settings):
    """A policy whose adapter adds something."""
    policy = load_policy(str(folder), lora_rank=4, **settings)
    draws = torch.Generator().manual_seed(3)
    for name, p in policy.trainable().items():
        if "lora_B" in name:
            p.data.copy_(torch.randn(p.shape, generator=draws) * 0.1)
    return policy


def equal(steps, others) -> bool:
    def numbers(step):
        return {k: v for k, v in step.metrics.items() if k != "tokens_per_second"}

    return [numbers(s) for s in steps] == [numbers(s) for s in others]


# --- the engine --------------------------------------------------------------------------------------


def test_every_sample_is_of_the_weights_that_the_policy_has_then(config, engine, monkeypatch):
    trainer = trainer_of(config(eval_every=1, record_probes=2))
    seen = []

    def watch(llm):
        wanted = dict(lora.merged_weights(trainer.policy.causal_lm))
        held = dict(llm.net.named_parameters())
        assert held.keys() == wanted.keys() and all(torch.equal(held[n], wanted[n]) for n in held)
        seen.append(held["model.layers.0.mlp.up_proj.weight"].clone())

    monkeypatch.setattr(engine, "watch", staticmethod(watch))
    steps = list(trainer.steps())
    assert len(steps) == 8 and len(engine.made) == 1
    assert len(seen) == 4 + 4 + 5  # a round, the probes and an evaluation each iteration, and the last evaluation
    assert not torch.equal(seen[0], seen[-1])
    first = steps[0].metrics["sampler_mismatch"]
    assert 1e-3 < first < 2.5 * fake_vllm.NOISE and "sampler_mismatch" not in steps[1].metrics
    assert all(0 < s.metrics.get("sampler_mismatch", first) < 2.5 * fake_vllm.NOISE for s in steps)


@pytest.mark.parametrize("fault", ["no weights at all", "weights of the beginning"])
def test_weights_that_are_not_given_are_noticed(config, engine, monkeypatch, fault):
    trainer = trainer_of(config(steps=4))
    if fault == "no weights at all":
        monkeypatch.setattr(VllmSampler, "_give_weights", lambda self, model: None)
        with pytest.raises(ErltoolError):
            list(trainer.steps())
        return
    first = {n: w.clone() for n, w in lora.merged_weights(trainer.policy.causal_lm)}
    monkeypatch.setattr(VllmSampler, "_give_weights", lambda self, model: model.load_weights(first.items()))
    mismatch = [s.metrics["sampler_mismatch"] for s in trainer.steps() if "sampler_mismatch" in s.metrics]
    assert mismatch[0] < 2.5 * fake_vllm.NOISE < mismatch[1]


def test_a_run_repeats_and_resumes(config, tmp_path):
    whole = list(erltool.train(config()))
    assert equal(whole, list(erltool.train(config())))
    assert not equal(whole, list(erltool.train(config(seed=1))))
    list(erltool.train(config(steps=4), tmp_path / "run"))
    assert equal(whole[4:], list(erltool.train(config(), tmp_path / "run", resume=True)))
    with pytest.raises(ErltoolError, match="sampler='vllm', not 'own'"):
        erltool.train(config(sampler="own"), tmp_path / "run", resume=True)


def test_a_run_older_than_the_field_resumes(tiny_config, tmp_path):
    list(erltool.train(tiny_config(steps=4, eval_every=0), tmp_path / "run"))
    file = tmp_path / "run/config.json"
    lines = [line for line in file.read_text().splitlines() if '"sampler' not in line]
    file.write_text("\n".join(lines))
    assert len(list(erltool.train(tiny_config(eval_every=0), tmp_path / "run", resume=True))) == 4


def test_old_log_probs_are_of_trainings_forward_pass(config, engine):
    trainer = trainer_of(config(control=KLCov(0.2, 1.0)))
    before = copy.deepcopy(trainer.policy)
    first, second = trainer.iterate()
    for step in (first, second):
        with torch.no_grad():
            ours, _ = response_log_probs(before, step.rollouts)
        mask, old = step.rollouts.response_mask, step.tokens.old_log_probs
        assert torch.allclose(ours[mask], old[mask], atol=1e-6)
        off = (step.rollouts.log_probs - old)[mask].abs()
        assert off.max() > 1e-3  # the sampler's remain beside them
        assert step.tokens.sampler_weight is None and "sampler_truncated_fraction" not in step.metrics
    assert first.metrics["kl_k3"] == 0


def test_the_engine_has_the_run_s_settings(config, engine, tiny_policy):
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ
    list(erltool.train(config(steps=2, temperature=0.7, sampling_batch=3, eval_every=1, eval_temperature=0.0)))
    list(erltool.train(config(steps=2, top_p=0.8, lora_rank=0, mask_truncated=True)))
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ
    first, second = engine.made
    assert (first.logprobs_mode, second.logprobs_mode) == ("processed_logprobs", "raw_logprobs")
    assert (first.max_num_seqs, second.max_num_seqs, first.dtype, first.max_model_len) == (3, None, "float32", -1)
    assert 0.44 < first.gpu_memory_utilization < 0.45
    evaluated = [0.7] * 3 + [0.0] * 3  # before and after, in blocks of up to 3 responses
    assert [c[0].temperature for c in first.calls] == [*evaluated, 0.7, *evaluated]
    assert {p.top_p for p in second.calls[0]} == {0.8} and {p.max_tokens for p in second.calls[0]} == {10}
    seeds = [p.seed for p in first.calls[6]]
    assert len(set(seeds)) == 16
    policy = load_policy(str(tiny_policy))
    found = VllmSampler(policy)(policy, ["1 2 3=6:", "4 5=9:"], 2, max_response_tokens=4, temperature=0)
    assert found.prompts == ["1 2 3=6:"] * 2 + ["4 5=9:"] * 2 and found.responses[0] == found.responses[1]
    own = erltool.sample_groups(policy, ["1 2 3=6:"], 1, max_response_tokens=4, temperature=0)
    assert torch.equal(own.token_ids[0], found.token_ids[0, : own.token_ids.shape[1]])


def test_merged_weights_make_the_same_policy(tiny_policy):
    ids = torch.tensor([[3, 5, 7, 4, 9]])
    for base, off in (("none", 1e-5), ("nf4", 1e-4)):
        policy = moved_policy(tiny_policy, base=base, dtype="fp32")
        plain = load_policy(str(tiny_policy), lora_rank=0).model
        assert {n for n, _ in lora.merged_weights(policy.causal_lm)} == {n for n, _ in plain.named_parameters()}
        plain.load_state_dict(dict(lora.merged_weights(policy.causal_lm)), strict=False)
        with torch.no_grad():
            wanted, found = policy.model(ids).logits, plain(ids).logits
            with policy.reference():
                without = policy.model(ids).logits
                plain.load_state_dict(dict(lora.merged_weights(policy.causal_lm)), strict=False)
            assert torch.allclose(plain(ids).logits, without, atol=off)
        assert torch.allclose(wanted, found, atol=off) and (wanted - without).abs().max() > 100 * off


def test_an_int8_base_is_not_merged(tiny_policy):
    policy = moved_policy(tiny_policy, base="int8", dtype="fp32")
    with pytest.raises(ErltoolError, match="cannot be merged into an int8 base"):
        list(lora.merged_weights(policy.causal_lm))


def test_a_four_bit_base_is_sampled_dequantised(config, engine):
    steps = list(erltool.train(config(steps=4, base="nf4", dtype="fp32")))
    assert not hasattr(engine.made[0].config, "quantization_config")
    assert max(s.metrics.get("sampler_mismatch", 0) for s in steps) < 2.5 * fake_vllm.NOISE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "vllm", "base": "int8"}, "base int8 rounds"),
        ({"sampler": "vllm", "trust_remote_code": True}, "trust_remote_code"),
        ({"sampler": "vllm", "top_p": 0.9, "temperature": 0.7}, "use top_p=1 or temperature=1"),
        ({"sampler": "sglang"}, "sampler='sglang': must be one of own, vllm"),
        ({"sampler_correction": 0.5}, "sampler_correction=0.5: must be 0, or at least 1"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(fields, message):
    with pytest.raises(ErltoolError, match=message) as found:
        TrainConfig(**fields)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"cuts_short": True}, "stopped a response after 1 tokens"),
        ({"forgets": True}, "weights that the policy does not give it, such as model.layers.0.input_layernorm.weight"),
        (
            {"temperature": 3.0},
            r"vLLM failed: temperature must be in \[0, 2\], got 3.0. \(ValueError\); use sampler=own",
        ),
        ({"temperature": 0.001}, "samples at 0 or from 0.01 on"),
    ],
)
def test_what_vllm_refuses_is_one_line(config, engine, monkeypatch, fault, message):
    for name in fault.keys() - {"temperature"}:
        monkeypatch.setattr(engine, name, True)
    with pytest.raises(ErltoolError, match=message) as found:
        list(erltool.train(config(steps=2, temperature=fault.get("temperature", 1.0))))
    assert "\n" not in str(found.value)


def test_a_machine_without_vllm_or_without_cuda_is_told_so(tiny_config, monkeypatch, tmp_path, capsys):
    if "vllm" not in sys.modules and not vllm_sampler.importlib.util.find_spec("vllm"):
        with pytest.raises(ErltoolError, match="vLLM is not installed; pip install"):
            erltool.train(tiny_config(sampler="vllm"))
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    with pytest.raises(ErltoolError, match="the policy is on cpu, and vLLM needs CUDA; use sampler=own"):
        erltool.train(tiny_config(sampler="vllm", device="cpu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_plan_counts_what_vllm_must_have():
    shape = Shape(24, 896, 4864, 896, 128, 151936, True, torch.bfloat16)
    config = TrainConfig(policy="Qwen/Qwen2.5-0.5B", sampler="vllm", max_response_tokens=256)
    plan = plan_memory(config, 256, shape=shape)
    weights, cache = plan.sampling.values()
    assert weights == 2 * (shape.linear + shape.other) and cache == 512 * 24 * 2 * 128 * 2
    assert "vLLM: the weights again" in str(plan)
    with pytest.raises(ErltoolError, match="gpus=2: sampler=vllm"):
        plan_memory(config, 256, shape=shape, gpus=2)


# --- the correction ----------------------------------------------------------------------------------


def test_weights_are_the_truncated_ratio_of_the_trainer_to_the_sampler():
    old, sampler = torch.tensor([[-1.0, -1.0, -1.0, -2.0]]), torch.tensor([[-1.0, -1.5, -3.0, -1.0]])
    weights = truncated_weights(old.requires_grad_(), sampler, 2.0)
    assert weights[0].tolist() == pytest.approx([1, 1.648721, 2, 0.367879], abs=1e-6) and not weights.requires_grad
    assert torch.equal(truncated_weights(old, sampler, 1e9), (old.detach() - sampler).exp())


def test_the_weighted_gradient_is_the_one_worked_out_by_hand():
    """-w A / N of each token at ratio 1; none where the clip has cut it, and no weight on the entropy bonus."""
    log_probs = torch.tensor([[-1.0, -1.0, -2.0, -0.5]], requires_grad=True)
    entropy = torch.ones(1, 4, requires_grad=True)
    old, mask = torch.tensor([[-1.0, -1.0, -2.0, -1.0]]), torch.ones(1, 4, dtype=torch.bool)
    known = {"sampler_weight": torch.tensor([[1.0, 2.0, 0.5, 2.0]]), "token_entropy": entropy}
    control, advantages = erltool.EntropyBonus(0.1), torch.tensor([2.0])
    loss = policy_loss(log_probs, old, advantages, mask, control=control, **known)
    loss.loss.backward()
    assert log_probs.grad[0].tolist() == pytest.approx([-2 / 4, -4 / 4, -1 / 4, 0])
    assert entropy.grad[0].tolist() == pytest.approx([-0.1 / 4] * 4)
    assert loss.loss.item() == pytest.approx((-2 * (1 + 2 + 0.5 + 2 * 1.2) - 0.1 * 4) / 4)
    with pytest.raises(ErltoolError, match="sampler_weight of shape"):
        policy_loss(log_probs, old, advantages, mask, sampler_weight=torch.ones(1, 3))


@pytest.mark.parametrize("cap", [1.005, 1e9])
def test_the_update_s_gradient_is_of_the_weighted_surrogate(config, engine, cap):
    """On policy it is the sum of -w A grad(log pi) / N, with w = min(pi / pi_sampler, cap); cap 1e9 cuts none."""
    trainer = trainer_of(config(sampler_correction=cap))
    batch = trainer.sample()
    updates, rows = trainer.updates, torch.arange(8)
    scored = updates.score(batch, rows, True)
    updates.backward(scored, updates.choose(scored))
    found = torch.cat([p.grad.flatten() for p in updates.parameters])
    rollouts, mask = batch.rollouts.take(rows), batch.rollouts.take(rows).response_mask
    ours, _ = response_log_probs(trainer.policy, rollouts)
    ratio = (ours.detach() - rollouts.log_probs).exp()
    weight = torch.where(ratio > cap, cap, ratio)
    assert ((ratio > cap) & mask).any() == (cap < 2)
    assert torch.equal(scored.tokens.sampler_weight[mask], weight[mask])
    loss = -(weight * batch.advantages[rows][:, None] * ours)[mask].sum() / mask.sum()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, updates.parameters)])
    assert torch.allclose(found, wanted, atol=1e-6) and wanted.abs().max() > 1e-3
    plain = -(batch.advantages[rows][:, None] * ours)[mask]
    assert not torch.allclose(weight[mask], torch.ones(len(plain)), atol=1e-4)


def test_the_correction_s_truncated_tokens_are_counted_and_micro_batches_do_not_matter(config):
    whole = list(erltool.train(config(sampler_correction=1.005, steps=4, control=KLCov(0.2, 1.0))))
    parts = list(erltool.train(config(sampler_correction=1.005, steps=4, control=KLCov(0.2, 1.0), micro_batch=3)))
    for one, other in zip(whole, parts, strict=True):
        weight, mask = one.tokens.sampler_weight, one.tokens.response_mask
        cut = (weight[mask] >= 1.005).float().mean().item()
        assert one.metrics["sampler_truncated_fraction"] == pytest.approx(cut) and 0 < cut < 1
        assert weight.max() == pytest.approx(1.005)
        assert one.metrics["grad_norm"] == pytest.approx(other.metrics["grad_norm"], rel=1e-3)
    tokens = whole[0].tokens
    assert torch.equal(tokens.push, tokens._replace(advantages=tokens.weighted, sampler_weight=None).push)
    assert (tokens.push != tokens._replace(sampler_weight=None).push).any()


def test_with_our_own_sampler_the_weights_are_one_and_the_run_is_the_same(tiny_config, rewarded):
    off = list(erltool.train(tiny_config(eval_every=0)))
    assert all(s.tokens.sampler_weight is None for s in off)
    on = list(erltool.train(tiny_config(eval_every=0, sampler_correction=2)))
    for one, other in zip(off, on, strict=True):
        assert (other.tokens.sampler_weight - 1).abs().max() < 1e-4
        assert other.metrics["sampler_truncated_fraction"] == 0
        assert one.metrics["grad_norm"] == pytest.approx(other.metrics["grad_norm"], rel=1e-2)
    # The second update's old log-probs are the sampler's: a cap of 1 does not cut a weight of exactly 1.
    at_one = list(erltool.train(tiny_config(eval_every=0, steps=2, sampler_correction=1)))
    assert at_one[1].metrics["sampler_truncated_fraction"] == 0


def test_verl_gets_the_correction_too():
    export = export_verl(TrainConfig(sampler_correction=2, control=KLCov(0.1, 1.0)))
    assert export.overrides["algorithm.rollout_correction.rollout_is"] == "token"
    assert export.overrides["algorithm.rollout_correction.rollout_is_threshold"] == 2
    assert any("kl-cov's penalty, too" in theirs for _, theirs in export.differs)
    assert not any("rollout_correction" in key for key in export_verl(TrainConfig()).overrides)


# --- the real one ------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_vllm_itself_samples_from_the_policy():
    pytest.importorskip("vllm")
    config = TrainConfig(
        task="countdown", policy="countdown", dtype="bf16", sampler="vllm", sampler_correction=2, steps=8,
        prompts_per_iteration=16, max_response_tokens=12, eval_every=1, eval_prompts=32, device="cuda",
    )  # fmt: skip
    steps = list(erltool.train(config))
    assert max(s.metrics.get("sampler_mismatch", 0) for s in steps) < 1  # weights that were not given: several nats
    assert all(s.metrics["sampler_truncated_fraction"] < 0.05 for s in steps)
    policy = load_policy("countdown", dtype="bf16", device="cuda")
    sample, prompts = VllmSampler(policy), [p.prompt for p in load_task("countdown").train[:32]]
    options = {"max_response_tokens": 12, "temperature": 0}
    ours, theirs = (f(policy, prompts, 1, **options).responses for f in (erltool.sample_groups, sample))
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 28
