import math

import pytest
import torch

from erltool import ErltoolError, token_log_probs
from erltool.entropy.log_probs import LITTLE, _unrounded, entropy_changes


def plain(logits, tokens, temperature=1.0):
    log_p = torch.log_softmax(logits.float() / temperature, -1)
    return log_p.gather(-1, tokens[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("chunk_elements", [1, 37, 100, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunked_equals_plain_in_value_and_gradient(generator, chunk_elements, temperature):
    hidden = torch.randn(3, 5, 8, generator=generator, requires_grad=True)
    weight = torch.randn(19, 8, generator=generator, requires_grad=True)
    tokens = torch.randint(19, (3, 5), generator=generator)
    out = torch.randn(2, 3, 5, generator=generator)

    def gradients(log_probs, entropy):
        return torch.autograd.grad((out[0] * log_probs + out[1] * entropy).sum(), (hidden, weight))

    expected = plain(hidden @ weight.T, tokens, temperature)
    found = token_log_probs(hidden, tokens, weight, temperature=temperature, chunk_elements=chunk_elements)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(*found), gradients(*expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_through_one_output_alone_and_from_logits(generator, which):
    logits = torch.randn(4, 6, generator=generator, requires_grad=True)
    tokens = torch.randint(6, (4,), generator=generator)
    (found,) = torch.autograd.grad(token_log_probs(logits, tokens, chunk_elements=12)[which].sum(), logits)
    (expected,) = torch.autograd.grad(plain(logits, tokens)[which].sum(), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradient_to_hidden_states_under_a_frozen_weight(generator, which, temperature):
    hidden = torch.randn(5, 8, generator=generator, requires_grad=True)
    weight, tokens = torch.randn(19, 8, generator=generator), torch.randint(19, (5,), generator=generator)
    out = torch.randn(5, generator=generator)
    found = token_log_probs(hidden, tokens, weight, temperature=temperature, chunk_elements=40)[which]
    expected = plain(hidden @ weight.T, tokens, temperature)[which]
    (found,), (expected,) = (torch.autograd.grad((out * x).sum(), hidden) for x in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_logits_of_a_bf16_model_are_not_rounded(generator, temperature, device):
    """A bf16 logit of 20 is a multiple of 1/8: log-probs erred by 0.03 nats, and each update rounded anew."""
    hidden = torch.randn(50, 64, generator=generator).bfloat16().to(device)
    weight = (0.8 * torch.randn(2000, 64, generator=generator)).bfloat16().to(device)
    rare = torch.randint(2000, (10,), generator=generator).to(device)
    tokens = torch.cat([(hidden @ weight.T).argmax(-1)[:40], rare])
    expected = plain(hidden.float() @ weight.float().T, tokens, temperature)
    assert (hidden @ weight.T).max() > 16
    found = token_log_probs(hidden, tokens, weight, temperature=temperature, chunk_elements=40_000)
    for value, exact in zip(found, expected, strict=True):
        assert (value - exact).abs().max() < 2e-3
    rounded = plain(hidden @ weight.T, tokens, temperature)
    assert (rounded[0] - expected[0]).abs().max() > 0.01
    hidden.requires_grad_()
    (gradient,) = torch.autograd.grad(token_log_probs(hidden, tokens, weight, temperature=temperature)[0].sum(), hidden)
    full = hidden.detach().float().requires_grad_()
    (exact,) = torch.autograd.grad(plain(full @ weight.float().T, tokens, temperature)[0].sum(), full)
    assert (gradient.float() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_of_a_flat_distribution_are_not_rounded(generator, kept):
    """Every token matters there, whatever the type of the head's weight."""
    hidden, weight = (torch.randn(n, 64, generator=generator) / 8 for n in (30, 2000))
    hidden[:, 0], weight[:, 0] = 20, 1
    hidden, weight = hidden.to(torch.bfloat16 if kept == torch.float32 else kept), weight.to(kept)
    exact = hidden.double() @ weight.double().T
    found = _unrounded(hidden, weight, None, LITTLE)
    assert found.dtype == torch.float32 and (found - exact).abs().max() < 2e-4
    assert ((hidden @ weight.to(hidden.dtype).T) - exact).abs().max() > 5e-3


def test_entropy_of_the_uniform_is_log_v_and_the_input_is_left_alone():
    logits = torch.zeros(2, 3, 7)
    log_probs, entropy = token_log_probs(logits, torch.zeros(2, 3, dtype=torch.long))
    torch.testing.assert_close(entropy, torch.full((2, 3), math.log(7)))
    torch.testing.assert_close(log_probs, torch.full((2, 3), -math.log(7)))
    assert (logits == 0).all()


def test_a_forbidden_token_has_no_part_in_the_entropy():
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    log_probs, entropy = token_log_probs(logits, torch.tensor([1]))
    assert entropy.item() == pytest.approx(math.log(2))
    (log_probs + entropy).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_bf16_hidden_states_give_fp32_numbers_and_bf16_gradients(generator):
    hidden = torch.randn(4, 8, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(9, 8, generator=generator).bfloat16()
    log_probs, entropy = token_log_probs(hidden, torch.arange(4), weight)
    log_probs.sum().backward()
    assert log_probs.dtype == entropy.dtype == torch.float32 and hidden.grad.dtype == torch.bfloat16


def test_empty_input_gives_empty_output():
    log_probs, entropy = token_log_probs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    assert log_probs.shape == entropy.shape == (0,)


def test_bad_input_names_the_remedy():
    with pytest.raises(ErltoolError, match="leading dimensions"):
        token_log_probs(torch.zeros(2, 3, 5), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ErltoolError, match="above 0"):
        token_log_probs(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long), temperature=0)


class Capped(torch.nn.Module):
    """A head that is more than a product: a bias, a cap, a scale."""

    def __init__(self, generator):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(11, 6, generator=generator))
        self.bias = torch.nn.Parameter(torch.randn(11, generator=generator))
        self.vocabulary = 11

    def forward(self, hidden):
        return 3 * torch.tanh((hidden @ self.weight.T + self.bias) / 2)


@pytest.mark.parametrize("chunk_elements", [1, 40, 10**6])
def test_a_head_that_is_a_function_gives_the_values_and_gradients_of_its_logits(generator, chunk_elements):
    head = Capped(generator)
    hidden = torch.randn(5, 3, 6, generator=generator, requires_grad=True)
    tokens = torch.randint(11, (5, 3), generator=generator)
    leaves = [hidden, *head.parameters()]
    found = token_log_probs(hidden, tokens, head, temperature=0.7, chunk_elements=chunk_elements)
    ours = torch.autograd.grad(found[0].sum() + 0.3 * found[1].sum(), leaves)
    expected = token_log_probs(head(hidden), tokens, temperature=0.7)
    theirs = torch.autograd.grad(expected[0].sum() + 0.3 * expected[1].sum(), leaves)
    for a, b in zip((*found, *ours), (*expected, *theirs), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(token_log_probs(hidden, tokens, head, temperature=0.7)[0], found[0])
    empty = token_log_probs(hidden[:0], tokens[:0], head)
    assert [x.shape for x in empty] == [(0, 3), (0, 3)]


def test_entropy_changes_of_a_head_that_is_a_function(generator):
    before, after = Capped(generator), Capped(generator)
    old, new = (torch.randn(7, 6, generator=generator) for _ in range(2))
    predicted, measured = entropy_changes(old, new, before, after, chunk_elements=22)
    p, q = (torch.softmax(head(x), -1) for head, x in ((before, old), (after, new)))
    torch.testing.assert_close(measured, torch.special.entr(q).sum(-1) - torch.special.entr(p).sum(-1))
    change = after(new) - before(old)
    log_p = p.log()
    covariance = (p * log_p * change).sum(-1) - (p * log_p).sum(-1) * (p * change).sum(-1)
    torch.testing.assert_close(predicted, -covariance)
