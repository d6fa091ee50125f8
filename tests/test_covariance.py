import numpy as np
import pytest
import torch

from erltool import ErltoolError, mean_covariance, token_covariance


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
