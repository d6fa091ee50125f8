import gc
import weakref
from dataclasses import replace

import pytest
import torch

import erltool
from erltool import ErltoolError, TrainConfig, load_policy
from erltool.policies.lora import lora_layers
from erltool.policies.sources import find_model
from erltool.training.memory import CARDS, GIB, advice, free_memory, model_shape, plan_memory


@pytest.mark.parametrize("source", ["countdown", "tiny"])
def test_weights_and_adapter_are_counted_exactly(source, tiny_policy):
    source = str(tiny_policy) if source == "tiny" else source
    shape, policy = model_shape(source), load_policy(source, lora_rank=8)
    linear = [layer.get_base_layer().weight for layer in lora_layers(policy.model)]
    assert shape.linear == sum(w.numel() for w in linear)
    assert shape.adapter(8) == sum(p.numel() for p in policy.trainable().values())
    assert shape.other == policy.head.numel()


def test_a_deleted_policy_is_gone_when_free_memory_is_counted():
    """A LoRA layer refers to itself, so a second run could be refused for the memory of the first."""
    policy = load_policy("countdown", lora_rank=4)
    kept = [weakref.ref(layer) for layer in lora_layers(policy.model)]
    gc.disable()
    try:
        del policy
        free_memory(torch.device("cpu"))
    finally:
        gc.enable()
    assert kept and not any(layer() for layer in kept)


def test_qwen_is_known_without_the_hub(monkeypatch):
    monkeypatch.setattr("erltool.policies.sources.hub_reachable", lambda: False)
    shape = model_shape("Qwen/Qwen2.5-7B")
    assert shape.linear + shape.other == pytest.approx(7.61e9, rel=0.01)  # as its card says
    with pytest.raises(ErltoolError, match="copy the model's folder here"):
        model_shape("someone/some-model")


def test_more_of_anything_needs_more():
    def peak(**fields):
        return plan_memory(TrainConfig(policy="Qwen/Qwen2.5-7B", **fields)).peak

    base = peak()
    assert peak(base="nf4") < peak(base="int8") < base < peak(max_response_tokens=100) < peak(max_response_tokens=1000)
    assert peak(micro_batch=8) < base < peak(prompts_per_iteration=128) and peak(gradient_checkpointing=True) < base
    assert peak(lora_rank=0) > peak(lora_rank=64) > base
    one, group = (plan_memory(TrainConfig(policy="Qwen/Qwen2.5-7B", sampling_batch=n)).sampling for n in (1, 8))
    assert one == group  # a group is sampled whole


@pytest.mark.parametrize("stored", [torch.float64, torch.float16, torch.float8_e4m3fn])
def test_weights_stored_in_any_type_have_a_plan(stored):
    shape = replace(model_shape("countdown"), stored=stored)
    assert plan_memory(TrainConfig(), shape=shape).peak > 0


def test_a_group_that_does_not_fit_one_row_is_planned_as_it_is_packed():
    """In a model 128 wide, eight responses of 24 tokens behind a prompt of 9 stand in two rows of four, not in one of
    193."""
    plan = plan_memory(
        TrainConfig(policy="countdown", max_response_tokens=24, prompts_per_iteration=16, updates_per_iteration=2), 9
    )
    assert f"activations of {8 * 2 * (9 + 4 * 23)} tokens" in plan.update


def test_the_update_does_not_grow_with_vocabulary_times_length():
    parts = [plan_memory(TrainConfig(policy="Qwen/Qwen2.5-7B", max_response_tokens=n)).update for n in (256, 2048)]
    assert parts[0]["logits of a chunk"] == parts[1]["logits of a chunk"] < 0.5 * GIB


def test_advice_makes_it_fit_or_says_that_nothing_does():
    config = TrainConfig(policy="Qwen/Qwen2.5-7B", max_response_tokens=1024)
    for card in CARDS:
        changes = advice(config, card * 1e9, 256, "cuda")
        fields = dict(c.split("=") for c in changes)
        fields = {k: v if k == "base" else v == "True" if v in ("True", "False") else int(v) for k, v in fields.items()}
        changed = TrainConfig(policy="Qwen/Qwen2.5-7B", max_response_tokens=1024, **fields)
        assert plan_memory(changed).peak <= card * 1e9
    assert advice(TrainConfig(policy="Qwen/Qwen2.5-32B"), 4e9, 256, "cuda") is None
    assert advice(TrainConfig(), 16e9, 256, "cuda") == []


def test_what_does_not_fit_is_refused_before_loading(monkeypatch):
    monkeypatch.setattr("erltool.training.memory.free_memory", lambda device: 2e9)
    monkeypatch.setattr("erltool.training.start.load_policy", lambda *a, **k: pytest.fail("loaded"))
    config = TrainConfig(policy="Qwen/Qwen2.5-7B", task="addition", device="cpu")
    with pytest.raises(ErltoolError, match=r"needs about [\d.]+ GiB \(.*\) and 1.9 are free; use a smaller policy"):
        erltool.train(config)


@pytest.mark.parametrize("source", ["nothing", "./no-such", "model.gguf", "a/b/c", "/tmp"])
def test_a_policy_that_is_none_is_named(source):
    with pytest.raises(ErltoolError, match="no config.json there|no such file"):
        find_model(source)


def test_several_devices_share_what_stays_and_the_responses():
    config = TrainConfig(policy="Qwen/Qwen2.5-7B", lora_rank=0, max_response_tokens=1024, micro_batch=8)
    one, two, many = (plan_memory(config, 256, gpus=n) for n in (1, 2, 8))
    assert many.stays["Adam's two moments, fp32"] * 8 == one.stays["Adam's two moments, fp32"]
    assert many.update["gradients"] * 8 == one.update["gradients"]
    activations = [next(v for k, v in p.update.items() if "activations" in k) for p in (one, many)]
    assert activations[0] == activations[1]  # of a micro-batch, which is a device's own
    caches = [next(v for k, v in p.sampling.items() if "cache" in k) for p in (one, many)]
    assert caches[0] == 8 * caches[1]
    assert one.peak > two.peak > many.peak > one.peak / 8
    # A layer is gathered whole on each device while it computes, so more devices do not shrink that part.
    assert many.stays["gathered: two layers"] == two.stays["gathered: two layers"] > 0
    with pytest.raises(ErltoolError, match="gpus=0: must be at least 1"):
        plan_memory(config, gpus=0)


def test_more_devices_make_room_for_a_larger_model():
    config = TrainConfig(policy="Qwen/Qwen2.5-7B", lora_rank=0, max_response_tokens=1024)
    assert advice(config, 80e9, 256, "cuda") is None
    assert advice(config, 80e9, 256, "cuda", gpus=8) is not None
