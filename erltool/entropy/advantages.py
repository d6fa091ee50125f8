"""Advantages of responses from the rewards of their group, without a value network."""

import torch
from torch import Tensor

from erltool.errors import ErltoolError

ESTIMATORS = ("grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++-baseline")
EPS = 1e-6  # in the denominators, as in verl


def group_advantages(rewards: Tensor, group_size: int, estimator: str = "grpo") -> Tensor:
    """Advantage of each response, shape (B,), unitless; consecutive `group_size` responses share a prompt.

        grpo                  (r - mean_group) / (std_group + eps)        Shao et al. 2024, arXiv 2402.03300
        dr_grpo               r - mean_group                              Liu et al. 2025, arXiv 2503.20783
        rloo                  r - mean of the group's others              Ahmadian et al. 2024, arXiv 2402.14740
        reinforce++           (r - mean_all) / (std_all + eps)            Hu et al. 2025, arXiv 2501.03262
        reinforce++-baseline  r - mean_group, then over its std_all + eps       the same, for groups

    Standard deviations have n - 1 in the denominator. A group with equal rewards has advantages exactly 0. Under
    `reinforce++`, whose baseline is the mean of all, that holds only where all rewards are equal. `policy_loss` always
    has the length-free normaliser, the other half of Dr. GRPO.

    Raises ErltoolError for a reward that is not finite, a group of one (it has no baseline), a number of rewards that
    is no multiple of the group size, or an unknown estimator.
    """
    if estimator not in ESTIMATORS:
        raise ErltoolError(f"advantage estimator {estimator!r} is not known: use one of {', '.join(ESTIMATORS)}")
    if rewards.ndim != 1 or group_size < 2 or len(rewards) % group_size:
        raise ErltoolError(
            f"rewards of shape {tuple(rewards.shape)} do not make groups of {group_size}: "
            "give a flat tensor with a multiple of the group size, which is at least 2"
        )
    if not torch.isfinite(rewards).all():
        at = int((~torch.isfinite(rewards)).nonzero()[0])
        raise ErltoolError(f"reward {at} is {rewards[at].item()}: a verifier must return finite numbers")
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    groups = rewards.reshape(-1, group_size)
    if estimator == "reinforce++":
        return scaled(rewards - rewards.mean(), rewards)
    mean = groups.mean(-1, keepdim=True)
    # Rounding may put the mean of equal numbers beside them, but a group of equal rewards must be exactly 0.
    centred = (groups - mean) * _has_spread(groups)
    if estimator == "grpo":
        centred = centred / (groups.std(-1, keepdim=True) + EPS)
    elif estimator == "rloo":
        centred = centred * group_size / (group_size - 1)
    elif estimator == "reinforce++-baseline":
        centred = scaled(centred, centred)
    return centred.reshape(-1)


def zero_spread_fraction(rewards: Tensor, group_size: int) -> float:
    """Fraction of groups, in [0, 1], whose rewards are all equal and so have no gradient."""
    return 1.0 - _has_spread(rewards.reshape(-1, group_size)).float().mean().item()


def _has_spread(groups: Tensor) -> Tensor:
    return groups.amax(-1, keepdim=True) > groups.amin(-1, keepdim=True)


def scaled(centred: Tensor, rewards: Tensor) -> Tensor:
    """Centred rewards over the standard deviation of the rewards (n - 1) plus EPS; 0 where these are all equal."""
    spread = rewards.max() > rewards.min()
    return torch.where(spread, centred / (rewards.std() + EPS), torch.zeros_like(centred))
