"""Entropy slope, push and dose of a token, against the exact policy, autograd and finite differences."""

import pytest
import torch

from erltool import ErltoolError, load_policy, sample_groups
from erltool.entropy import bandit
from erltool.entropy.log_probs import token_statistics
from erltool.entropy.push import entropy_slope, token_dose, token_push
from erltool.policies.rollouts import response_statistics


def one_hot_step(logits, tokens):
    """e_y - pi: the gradient of log pi(y) in the logits."""
    return torch.nn.functional.one_hot(tokens, logits.shape[-1]) - logits.softmax(-1)


def some(states=200, actions=7, seed=0):
    draws = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(states, actions, generator=draws, dtype=torch.float64)
    return logits, torch.randint(actions, (states,), generator=draws)


def test_the_push_is_the_exact_policys_first_order_change():
    logits, tokens = some()
    for eta in (1.0, -0.3):
        exact = bandit.first_order_change(logits, eta * one_hot_step(logits, tokens))
        assert (eta * entropy_slope(logits, tokens) - exact).abs().max() < 1e-10


def test_the_error_of_the_push_is_of_second_order():
    logits, tokens = some()
    step, slope = one_hot_step(logits, tokens), entropy_slope(logits, tokens)
    errors = [(bandit.entropy_change(logits, eta * step) - eta * slope).abs().mean() for eta in (0.02, 0.01)]
    assert errors[1] / errors[0] == pytest.approx(0.25, abs=0.01)


def test_two_tokens_by_hand():
    """p = (3/4, 1/4): S = (3/16, -3/16) log 3, whose mean is 3/32 log 3."""
    logits = torch.tensor([[3.0, 1.0]] * 2, dtype=torch.float64).log()
    slopes = entropy_slope(logits, torch.tensor([0, 1]))
    log3 = torch.log(torch.tensor(3.0, dtype=torch.float64))
    torch.testing.assert_close(slopes, torch.stack([-log3 * 3 / 32, log3 * 9 / 32]))


def test_a_uniform_policy_and_a_certain_one_have_no_slope():
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    for logits in (torch.zeros(1, 3, dtype=torch.float64), certain):
        assert entropy_slope(logits, torch.tensor([0])).abs().max() < 1e-15


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [7, 2**24])
def test_the_kernel_has_the_same_slope_and_norm(temperature, chunk):
    logits, tokens = some()
    logits[:, 0] = torch.where(tokens != 0, -torch.inf, logits[:, 0])  # forbidden tokens
    known = token_statistics(logits.float(), tokens, temperature=temperature, chunk_elements=chunk)
    tempered = logits / temperature
    assert (known.entropy_slope - entropy_slope(tempered, tokens)).abs().max() < 1e-6
    assert (known.gradient_norm - one_hot_step(tempered, tokens).norm(dim=-1)).abs().max() < 1e-6


def test_the_norm_of_a_nearly_certain_token_is_not_lost_to_rounding():
    logits = torch.tensor([[0.0, -14.0, -15.0]])
    norm = token_statistics(logits, torch.tensor([0])).gradient_norm
    exact = one_hot_step(logits.double(), torch.tensor([0])).norm(dim=-1)
    assert norm.item() == pytest.approx(exact.item(), rel=1e-3)


def test_the_slope_is_what_autograd_finds_on_a_transformer():
    """The gradient of a context's entropy in its logits, times the gradient of log pi(y)."""
    policy = load_policy("sharpening", lora_rank=0)
    rollouts = sample_groups(policy, ["3+5-2:", "7-1:"], 4, max_response_tokens=12)
    known = response_statistics(policy, rollouts)
    mask = rollouts.response_mask
    prompt, length = rollouts.prompt_ids[0], int(mask[0].sum())
    ids = torch.tensor([[*prompt, *rollouts.token_ids[0, :length].tolist()]])
    logits = policy.model(ids).logits[0, len(prompt) - 1 : -1].detach().requires_grad_()
    tokens = rollouts.token_ids[0, :length]
    log_p = logits.log_softmax(-1)
    (of_entropy,) = torch.autograd.grad(torch.special.entr(log_p.exp()).sum(), logits, retain_graph=True)
    (of_log_prob,) = torch.autograd.grad(log_p.gather(-1, tokens[:, None]).sum(), logits)
    torch.testing.assert_close(known.entropy_slope[0, :length], (of_entropy * of_log_prob).sum(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(known.gradient_norm[0, :length], of_log_prob.norm(dim=-1), atol=1e-6, rtol=0)
    assert not known.entropy_slope[~mask].any() and not known.gradient_norm[~mask].any()


def test_push_and_dose_have_the_updates_weight_and_no_value_outside_the_mask():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    slope = torch.tensor([[-0.1, 0.2, torch.nan], [0.4, torch.nan, 1.0]])
    norm = torch.tensor([[0.5, 1.0, torch.nan], [1.0, 1.0, torch.nan]])
    log_ratio = torch.tensor([[0.0, 1.0, torch.nan], [-1.0, 0.0, 0.0]])
    advantages, e = torch.tensor([2.0, -1.0]), torch.e
    push, dose = token_push(advantages, slope, mask, log_ratio), token_dose(advantages, norm, mask, log_ratio)
    torch.testing.assert_close(push, torch.tensor([[-0.2, 0.4 * e, 0.0], [-0.4 / e, 0.0, 0.0]]))
    torch.testing.assert_close(dose, torch.tensor([[1.0, 2 * e, 0.0], [1 / e, 0.0, 0.0]]))
    assert not token_push(torch.zeros(2), slope, mask).any()
    with pytest.raises(ErltoolError, match="advantages of shape"):
        token_push(torch.zeros(3), slope, mask)
