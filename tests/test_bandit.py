import pytest
import torch

from erltool import ErltoolError
from erltool.entropy import bandit
from erltool.entropy.advantages import group_advantages


@pytest.fixture
def table(generator):
    """Logits and action values of 5 states with 4 actions, float64."""
    return [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_entropy_of_known_policies():
    assert bandit.entropy(torch.zeros(7, dtype=torch.float64)).item() == pytest.approx(
        torch.log(torch.tensor(7.0)).item()
    )
    assert bandit.entropy(torch.tensor([0.0, -torch.inf, -torch.inf])) == 0
    two = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert bandit.entropy(two.log()).item() == pytest.approx(-(two * two.log()).sum().item(), abs=1e-15)


def test_lemma_1_is_the_derivative_of_entropy(table):
    """Against central differences: the first-order change is exact in the limit."""
    logits, direction = table
    h = 1e-4
    slope = (bandit.entropy(logits + h * direction) - bandit.entropy(logits - h * direction)) / (2 * h)
    # The third derivative leaves an error of h^2, which Richardson extrapolation removes.
    half = (bandit.entropy(logits + h / 2 * direction) - bandit.entropy(logits - h / 2 * direction)) / h
    torch.testing.assert_close(bandit.first_order_change(logits, direction), (4 * half - slope) / 3, atol=1e-10, rtol=0)


def test_the_step_is_the_gradient_of_the_expected_advantage(table):
    logits, values = table
    logits = logits.requires_grad_()
    objective = (torch.softmax(logits, -1) * values).sum()
    gradient = torch.autograd.grad(objective, logits)[0]
    torch.testing.assert_close(bandit.step(logits.detach(), values, 1.0, "pg"), gradient, atol=1e-14, rtol=0)


def test_the_natural_step_is_the_gradient_behind_the_inverse_fisher_matrix(table):
    logits, values = (x[0] for x in table)
    p = torch.softmax(logits, -1)
    fisher = torch.diag(p) - torch.outer(p, p)
    natural = torch.linalg.pinv(fisher) @ bandit.step(logits, values, 1.0, "pg")
    ours = bandit.step(logits, values, 1.0, "npg")
    torch.testing.assert_close(natural - natural.mean(), ours - ours.mean(), atol=1e-10, rtol=0)  # up to a constant


@pytest.mark.parametrize("method", bandit.METHODS)
def test_half_the_step_leaves_a_quarter_of_the_error(table, method):
    logits, values = table

    def error(eta):
        change = bandit.step(logits, values, eta, method)
        return bandit.entropy_change(logits, change) - bandit.predicted_change(logits, values, eta, method)

    ratio = error(1e-3) / error(5e-4)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4.0), atol=0.05, rtol=0)


@pytest.mark.parametrize(("method", "weight"), [("pg", True), ("npg", False)])
def test_theorems_are_the_covariances_of_the_paper(table, method, weight):
    logits, values = table
    a, log_p = bandit.centred(logits, values), torch.log_softmax(logits, -1)
    expected = -0.3 * bandit.policy_covariance(logits, log_p, a * log_p.exp() if weight else a)
    torch.testing.assert_close(bandit.predicted_change(logits, values, 0.3, method), expected, atol=1e-14, rtol=0)


def test_likely_and_good_lowers_entropy_likely_and_bad_raises_it():
    logits = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    for method in bandit.METHODS:
        for values, sign in (([1.0, 0, 0], -1), ([-1.0, 0, 0], 1), ([0, 1.0, 0], 1), ([1.0, 1, 1], 0)):
            change = bandit.predicted_change(logits, torch.tensor(values, dtype=torch.float64), 0.1, method)
            assert torch.sign(change.round(decimals=12)) == sign


def test_uniform_and_certain_policies_do_not_change_to_first_order():
    values = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for logits in (torch.zeros(3, dtype=torch.float64), torch.tensor([80.0, 0, 0], dtype=torch.float64)):
        assert bandit.predicted_change(logits, values, 1.0, "npg").abs() < 1e-12


def test_states_are_weighted_by_their_visits():
    values = torch.tensor([1.0, 3.0])
    assert bandit.mean_over_states(values) == 2 and bandit.mean_over_states(values, torch.tensor([3.0, 1.0])) == 1.5


@pytest.mark.parametrize("group_size", [2, 8, 64])
def test_a_group_estimates_the_covariance_with_the_known_bias_and_noise(generator, group_size):
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    exact = bandit.policy_covariance(logits, torch.log_softmax(logits, -1), rewards)
    estimates = bandit.sampled_covariance(logits, rewards, group_size, 20_000, generator)
    expected = (1 - 1 / group_size) * exact
    assert (estimates.mean() - expected).abs() < 4 * estimates.std() / 20_000**0.5
    if group_size == 64:
        small = bandit.sampled_covariance(logits, rewards, 16, 20_000, generator).std()
        assert 1.8 < small / estimates.std() < 2.2


def test_the_estimate_is_what_training_computes_for_a_prompt(generator):
    """Dr. GRPO's advantages are r - mean: the group's token covariance is then this estimate."""
    from erltool import mean_covariance

    logits, rewards = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 0.5])
    seed = generator.initial_seed()
    estimate = bandit.sampled_covariance(logits, rewards, 6, 1, torch.Generator().manual_seed(seed))[0]
    log_p = torch.log_softmax(logits, -1)
    actions = torch.multinomial(log_p.exp(), 6, replacement=True, generator=torch.Generator().manual_seed(seed))
    advantages = group_advantages(rewards[actions], 6, "dr_grpo")
    expected = mean_covariance(advantages, log_p[actions][:, None], torch.ones(6, 1, dtype=torch.bool))
    torch.testing.assert_close(estimate, expected)


def test_bad_input_is_named():
    with pytest.raises(ErltoolError, match="must be one of pg, npg"):
        bandit.step(torch.zeros(2), torch.zeros(2), 1.0, "adam")
    with pytest.raises(ErltoolError, match="at least 2"):
        bandit.sampled_covariance(torch.zeros(2), torch.zeros(2), 1, 3, torch.Generator())
