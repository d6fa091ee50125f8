import pytest
import torch

from erltool import ErltoolError, group_advantages
from erltool.entropy.advantages import ESTIMATORS, zero_spread_fraction

REWARDS = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("grpo", [0.8660, 0.8660, -0.8660, -0.8660, 1.5, -0.5, -0.5, -0.5]),
        ("dr_grpo", [0.5, 0.5, -0.5, -0.5, 0.75, -0.25, -0.25, -0.25]),
        ("rloo", [2 / 3, 2 / 3, -2 / 3, -2 / 3, 1, -1 / 3, -1 / 3, -1 / 3]),
        ("reinforce++", [1.2076, 1.2076, -0.7246, -0.7246, 1.2076, -0.7246, -0.7246, -0.7246]),
        ("reinforce++-baseline", [1.0, 1.0, -1.0, -1.0, 1.5, -0.5, -0.5, -0.5]),
    ],
)
def test_hand_worked_values(estimator, expected):
    # reinforce++: mean 3/8, std with n - 1 is 0.51755; the baseline's centred values have std 0.5.
    found = group_advantages(REWARDS, 4, estimator)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rewards_may_be_whole_numbers_or_verdicts(estimator):
    for rewards in (REWARDS.long(), REWARDS.bool()):
        assert torch.equal(group_advantages(rewards, 4, estimator), group_advantages(REWARDS, 4, estimator))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_rewards_give_exactly_zero(estimator):
    assert (group_advantages(torch.full((6,), 0.1), 3, estimator) == 0).all()


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if e != "reinforce++"])
def test_a_group_without_spread_is_exactly_zero_beside_one_with(estimator):
    found = group_advantages(torch.tensor([0.1, 0.1, 0.1, 0.0, 1.0, 0.0]), 3, estimator)
    assert (found[:3] == 0).all() and (found[3:] != 0).all()


def test_order_within_a_group_does_not_matter():
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7])
    torch.testing.assert_close(group_advantages(REWARDS, 4)[order], group_advantages(REWARDS[order], 4))


def test_zero_spread_fraction_counts_groups():
    assert zero_spread_fraction(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2) == 0.5


@pytest.mark.parametrize(
    ("rewards", "size", "estimator", "words"),
    [
        ([1.0, float("nan")], 2, "grpo", "reward 1 is nan"),
        ([1.0, 0.0, 1.0], 2, "grpo", "groups of 2"),
        ([1.0, 0.0], 1, "grpo", "at least 2"),
        ([1.0, 0.0], 2, "ppo", "not known"),
    ],
)
def test_bad_input_is_one_line(rewards, size, estimator, words):
    with pytest.raises(ErltoolError, match=words):
        group_advantages(torch.tensor(rewards), size, estimator)
