import contextlib

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from bitsandbytes.nn import Linear4bit

from erltool.policies import lora
from erltool.policies.load import load_policy
from erltool.policies.rollouts import response_log_probs
from erltool.policies.sampling import sample_groups

PROMPTS = ["3 5 7=22:", "1 2 3=6:", "9 9 1=80:"]


def with_some_adapter(policy):
    """B starts at 0, where A has no gradient; with random A and B both have one."""
    generator = torch.Generator().manual_seed(5)
    for p in policy.trainable().values():
        p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return policy


def gradients(policy, rollouts):
    log_probs, entropy = response_log_probs(policy, rollouts)
    (log_probs.sum() + 0.3 * entropy.sum()).backward()
    found = {name: p.grad.clone() for name, p in policy.trainable().items()}
    for p in policy.trainable().values():
        p.grad = None
    return found, log_probs.detach()


def roll(policy, tokens=8):
    generator = torch.Generator().manual_seed(0)
    return sample_groups(policy, PROMPTS, 4, max_response_tokens=tokens, generator=generator)


def unfused(policy):
    for layer in lora.lora_layers(policy.model):
        vars(layer).pop("forward", None)
        vars(layer).pop("dense", None)
    return policy


def test_value_and_gradient_are_pefts(tiny_policy):
    policy = with_some_adapter(load_policy(str(tiny_policy), lora_rank=4))
    assert all("forward" in vars(layer) for layer in lora.lora_layers(policy.model))
    rollouts = roll(policy)
    ours, values = gradients(policy, rollouts)
    theirs, expected = gradients(unfused(policy), rollouts)
    torch.testing.assert_close(values, expected)
    assert len(ours) == 2 * 7 * 2 and all(g.abs().max() > 0 for g in ours.values())
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-4)


def test_bias_dropout_and_no_gradient(tiny_policy):
    with_dropout = load_policy(str(tiny_policy), lora_rank=4, lora_dropout=0.5)
    assert not any("forward" in vars(layer) for layer in lora.lora_layers(with_dropout.model))
    layer = lora.lora_layers(with_some_adapter(load_policy(str(tiny_policy), lora_rank=4)).model)[0]
    base = layer.get_base_layer()
    base.bias = torch.nn.Parameter(torch.randn(base.out_features), requires_grad=False)
    x = torch.randn(2, 3, base.in_features)
    delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = x @ (base.weight + delta).T + base.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_after_a_rollout_a_4_bit_base_gives_the_gradients_of_the_dequantised_one(tiny_policy, dtype):
    """bitsandbytes repacks 4-bit weights on some CPUs at the first use in eval mode, and gradients vanish."""
    policy = with_some_adapter(load_policy(str(tiny_policy), base="nf4", dtype=dtype, lora_rank=4))
    dense = with_some_adapter(load_policy(str(tiny_policy), dtype=dtype, lora_rank=4))
    pairs = list(zip(lora.lora_layers(policy.model), lora.lora_layers(dense.model), strict=True))
    assert len(pairs) == 14 and all(isinstance(four.get_base_layer(), Linear4bit) for four, _ in pairs)
    for four, full in pairs:
        weight = four.get_base_layer().weight
        full.get_base_layer().weight.data = dequantize_4bit(weight.data, weight.quant_state)
    rollouts = roll(policy)
    policy.model.eval()
    with torch.no_grad(), policy.reference():
        response_log_probs(policy, rollouts)
    policy.model.train()
    ours, values = gradients(policy, rollouts)
    expected, same = gradients(dense, rollouts)
    torch.testing.assert_close(values, same)
    assert all(g.abs().max() > 0 for g in ours.values())
    for name, grad in ours.items():
        torch.testing.assert_close(grad, expected[name])


def test_what_bitsandbytes_does_without_the_guard():
    """Checks that the fault still exists; if this test fails, the guard can be removed."""
    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, where the weights are repacked")
    layers = [Linear4bit(128, 128, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4") for _ in range(2)]
    model = torch.nn.Sequential(*layers).to("cpu")
    x = torch.randn(4, 128, dtype=torch.bfloat16, requires_grad=True)
    model.train()(x).sum().backward()
    assert x.grad.abs().max() > 0
    x.grad = None
    with torch.no_grad():
        model.eval()(x.detach())
    out = model.train()(x)
    if out.requires_grad:
        out.sum().backward()
    assert x.grad is None or x.grad.abs().max() == 0


@pytest.mark.parametrize("kept", [None, True, False])
@pytest.mark.parametrize("base", ["none", "nf4"])
def test_bf16_does_not_swallow_what_a_few_updates_add(tiny_policy, base, kept):
    """Added to a product that bf16 has rounded already, a sum below half its last place left no trace."""
    policy = load_policy(str(tiny_policy), base=base, dtype="bf16", lora_rank=4)
    layer = lora.lora_layers(policy.model)[0]
    a, b = lora.adapter_weights(layer)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, a.shape[1], generator=generator).bfloat16()
    with policy.reference(), torch.no_grad():
        without = layer(x).float()
    up = torch.randn(b.shape, generator=generator)
    added = layer.scaling["default"] * (x.float() @ a.detach().T) @ up.T
    scale = without.std() / added.std() / 3000  # half the last place is 1/512 to 1/256 of a number
    b.data, added = scale * up, scale * added
    with torch.no_grad(), contextlib.nullcontext() if kept is None else lora.dense_weights(policy.model, base=kept):
        arrived = layer(x).float() - without
    slope = (arrived * added).sum() / added.square().sum()
    assert 0.97 < slope < 1.03, "0.3 where it is added to a rounded product"


@pytest.mark.parametrize("base", [True, False])
def test_kept_weights_give_the_same_and_are_let_go(tiny_policy, base):
    policy = with_some_adapter(load_policy(str(tiny_policy), base="nf4", dtype="fp32", lora_rank=4))
    rollouts = roll(policy)
    with torch.no_grad():
        plain, _ = response_log_probs(policy, rollouts)
        with lora.dense_weights(policy.model, base=base):
            kept, _ = response_log_probs(policy, rollouts)
    torch.testing.assert_close(plain, kept)
    assert all(layer.dense is None for layer in lora.lora_layers(policy.model))
    torch.testing.assert_close(rollouts.log_probs, plain, atol=1e-4, rtol=1e-4)
