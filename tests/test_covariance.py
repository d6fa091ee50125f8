import math

import numpy as np
import pytest
import torch

from erltool import ErltoolError, mean_covariance, token_covariance
from erltool.entropy.covariance import group_covariance, masked_mean, response_mean, top_means


def test_two_by_three_by_hand():
    # Response tokens: log-probs -1, -2, -3 | -2, -4 and advantages 1, 1, 1 | -1, -1.
    # Means: -12/5 = -2.4 and 1/5 = 0.2.
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -4.0, 99.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = torch.tensor([[1.4 * 0.8, 0.4 * 0.8, -0.6 * 0.8], [0.4 * -1.2, -1.6 * -1.2, 0.0]])
    found = token_covariance(torch.tensor([1.0, -1.0]), log_probs, mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mean_covariance(torch.tensor([1.0, -1.0]), log_probs, mask), expected.sum() / 5)


def test_mean_equals_numpys_biased_covariance(generator):
    log_probs, advantages = torch.randn(2, 4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) > 0.3
    expected = np.cov(log_probs[mask], advantages[mask], bias=True)[0, 1]
    assert mean_covariance(advantages, log_probs, mask).item() == pytest.approx(expected, abs=1e-6)


def test_shifting_either_changes_nothing(generator):
    log_probs, advantages = torch.randn(2, 4, 6, generator=generator)
    mask = torch.ones(4, 6, dtype=torch.bool)
    torch.testing.assert_close(
        token_covariance(advantages + 3, log_probs - 5, mask), token_covariance(advantages, log_probs, mask)
    )


@pytest.mark.parametrize("hostile", [1e6, float("inf"), float("nan")])
def test_adversarial_padding_never_enters(generator, hostile):
    log_probs, advantages = torch.randn(2, 4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) > 0.3
    expected = token_covariance(advantages, log_probs, mask)
    found = token_covariance(advantages.masked_fill(~mask, hostile), log_probs.masked_fill(~mask, -hostile), mask)
    torch.testing.assert_close(found, expected)
    assert (found[~mask] == 0).all()


def test_one_response_alone_has_covariance_exactly_zero(generator):
    log_probs = torch.randn(1, 9, generator=generator)
    assert (token_covariance(torch.tensor([0.7]), log_probs, torch.ones(1, 9, dtype=torch.bool)).abs() < 1e-6).all()


def test_empty_mask_gives_zeros():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert (token_covariance(torch.ones(2), torch.ones(2, 3), mask) == 0).all()
    assert mean_covariance(torch.ones(2), torch.ones(2, 3), mask) == 0


def test_shapes_that_disagree_are_named():
    with pytest.raises(ErltoolError, match="advantages"):
        token_covariance(torch.ones(3), torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ErltoolError, match="log_probs"):
        token_covariance(torch.ones(2), torch.ones(2, 4), torch.ones(2, 3, dtype=torch.bool))


# --- Eq 8, Eq 5 and Table 1 ------------------------------------------------------------------------


def test_hand_worked_eq_8():
    """Two prompts of two responses. First: mean log pi = -1 and -2, A = 1 and -1, so pi A = e^-1 and -e^-2;
    Cov = ((-1 + 1.5)(e^-1 - m) + (-2 + 1.5)(-e^-2 - m)) / 2 with m their mean = 0.25 (e^-1 + e^-2)."""
    log_probs = torch.tensor([[-0.5, -1.5, 99.0], [-2.0, -2.0, -2.0], [-1.0, 7.0, 7.0], [-3.0, 7.0, 7.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 0, 0]]).bool()
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.0])
    found = group_covariance(advantages, log_probs, mask, 2)
    torch.testing.assert_close(found, torch.tensor([0.25 * (math.exp(-1) + math.exp(-2)), 0.0]))
    torch.testing.assert_close(group_covariance(advantages[:, None].expand(4, 3), log_probs, mask, 2), found)


def test_a_response_without_tokens_does_not_count_in_eq_8(generator):
    """Such a response is one that `mask_truncated` leaves out. It has no probability, least of all 1."""
    log_probs, advantages = torch.randn(4, 3, generator=generator), torch.randn(4, generator=generator)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1] = False
    rest = [0, 2, 3]
    expected = group_covariance(advantages[rest], log_probs[rest], mask[rest], 3)
    torch.testing.assert_close(group_covariance(advantages, log_probs, mask, 4), expected)
    assert group_covariance(advantages, log_probs, mask & False, 4) == 0


def test_eq_8_is_theorem_1_on_one_token_responses(generator):
    """Many one-token responses from a bandit: the group's covariance is the exact one of Theorem 1."""
    from erltool.entropy import bandit

    logits, values = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 0.3])
    log_p, n = torch.log_softmax(logits, -1), 200_000
    actions = torch.multinomial(log_p.exp(), n, replacement=True, generator=generator)
    a = bandit.centred(logits, values)[actions]
    found = group_covariance(a, log_p[actions][:, None], torch.ones(n, 1), n)
    assert found[0] == pytest.approx(-bandit.predicted_change(logits, values, 1.0, "pg").item(), abs=2e-3)


def test_eq_8_of_one_response_and_of_equal_rewards_is_0_and_a_wrong_size_is_named():
    log_probs, mask = torch.randn(6, 4), torch.ones(6, 4).bool()
    assert (group_covariance(torch.randn(6), log_probs, mask, 1) == 0).all()
    assert (group_covariance(torch.zeros(6), log_probs, mask, 3) == 0).all()
    with pytest.raises(ErltoolError, match="group_size 4 does not divide the 6 responses"):
        group_covariance(torch.zeros(6), log_probs, mask, 4)


def test_the_two_entropy_averages_differ_where_lengths_do():
    entropy = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    assert masked_mean(entropy, mask) == 1.4
    assert response_mean(entropy, mask).tolist() == [1.0, 3.0] and response_mean(entropy, mask).mean() == 2
    assert response_mean(entropy, torch.zeros(2, 4)).tolist() == [0.0, 0.0]


def test_top_means_are_means_of_the_sorted_tail(generator):
    covariance = torch.randn(10, 100, generator=generator)
    mask = torch.rand(10, 100, generator=generator) < 0.7
    covariance[~mask] = 1e6
    ordered = covariance[mask].sort(descending=True).values
    shares = (2e-4, 0.02, 0.2, 0.5, 1.0)
    counts = [max(1, int(s * len(ordered) + 1e-9)) for s in shares]
    expected = torch.stack([ordered[:c].mean() for c in counts])
    torch.testing.assert_close(top_means(covariance, mask, shares), expected, atol=1e-5, rtol=1e-4)
    assert top_means(covariance, torch.zeros_like(mask), shares).tolist() == [0.0] * 5
