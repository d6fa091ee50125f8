"""The exact softmax policy over a few actions, where the paper's theorems can be checked in closed form.

Logits z are (A,), or (S, A) for a table of S states. Every function works on the last axis and keeps the type that it
gets (float64 shows differences of 1e-10). Entropies are in nats. Cui et al. 2025 (arXiv 2505.22617), Lemma 1 and
Theorems 1 and 2:

    dH ~ -Cov_{a ~ pi}(log pi(a), dz(a))              any small change dz of the logits        (Lemma 1)
    dH ~ -eta Cov_{a ~ pi}(log pi(a), pi(a) A(a))     one policy gradient step                 (Theorem 1)
    dH ~ -eta Cov_{a ~ pi}(log pi(a), A(a))           one natural policy gradient step         (Theorem 2)

Each error is of second order: half the step has a quarter of the error.
"""

import torch
from torch import Tensor

from erltool.errors import ErltoolError

METHODS = ("pg", "npg")


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the last axis, nats: (...). An action with logit -inf adds nothing."""
    log_p = torch.log_softmax(logits, -1)
    return torch.special.entr(log_p.exp()).sum(-1)


def policy_covariance(logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cov_{a ~ softmax(logits)}(x(a), y(a)) over the last axis: (...)."""
    p = torch.softmax(logits, -1)
    x, y = (v - (p * v).sum(-1, keepdim=True) for v in (x, y))
    return (p * x * y).sum(-1)


def entropy_change(logits: Tensor, change: Tensor) -> Tensor:
    """H(z + dz) - H(z), exactly, nats: (...)."""
    return entropy(logits + change) - entropy(logits)


def first_order_change(logits: Tensor, change: Tensor) -> Tensor:
    """-Cov_{a ~ pi}(log pi, dz), nats: (...). The first-order `entropy_change` of Lemma 1."""
    return -policy_covariance(logits, torch.log_softmax(logits, -1), change)


def centred(logits: Tensor, values: Tensor) -> Tensor:
    """Advantages of action values under the policy: A(a) = values(a) - E_pi[values], so that E_pi[A] = 0."""
    return values - (torch.softmax(logits, -1) * values).sum(-1, keepdim=True)


def step(logits: Tensor, advantages: Tensor, eta: float, method: str = "pg") -> Tensor:
    """Change dz of the logits in one exact step, shaped as `logits`.

    "pg" steps along the gradient of E_pi[A] in the logits, eta * pi * A; "npg" along the natural gradient, eta * A.
    Advantages are centred first. Raises ErltoolError for another method.
    """
    a = centred(logits, advantages)
    if method not in METHODS:
        raise ErltoolError(f"method {method!r}: must be one of {', '.join(METHODS)}")
    return eta * (torch.softmax(logits, -1) * a if method == "pg" else a)


def predicted_change(logits: Tensor, advantages: Tensor, eta: float, method: str = "pg") -> Tensor:
    """dH that Theorem 1 ("pg") or 2 ("npg") predicts for one `step`, nats: (...)."""
    return first_order_change(logits, step(logits, advantages, eta, method))


def mean_over_states(values: Tensor, visits: Tensor | None = None) -> Tensor:
    """Mean of per-state values (S,), weighted by how often each state is visited (any positive scale)."""
    return values.mean(-1) if visits is None else (values * visits).sum(-1) / visits.sum(-1)


def sampled_covariance(
    logits: Tensor, rewards: Tensor, group_size: int, groups: int, generator: torch.Generator
) -> Tensor:
    """Estimates of Cov_pi(log pi, A) from sampled groups, one a group, (groups,).

    A group is `group_size` actions from the one-state policy (A,), with A = r - the group's mean reward. Its estimate
    is mean_i (log pi_i - their mean)(A_i - their mean), as training computes it for a prompt. The expectation is (1 - 1
    / group_size) times the exact covariance; the standard deviation falls as 1 / sqrt(group_size). Raises ErltoolError
    for groups of 1.
    """
    if group_size < 2:
        raise ErltoolError(f"group_size {group_size}: must be at least 2, because one response has no covariance")
    log_p = torch.log_softmax(logits, -1)
    actions = torch.multinomial(log_p.exp().expand(groups, -1), group_size, replacement=True, generator=generator)
    x, a = log_p[actions], rewards[actions]
    return ((x - x.mean(-1, keepdim=True)) * (a - a.mean(-1, keepdim=True))).mean(-1)
