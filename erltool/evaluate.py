"""Accuracy on problems, by sampling."""

import torch

from erltool.policy import Policy
from erltool.rollouts import sample_groups
from erltool.tasks import Problem, Task


def accuracy(
    policy: Policy,
    task: Task,
    problems: list[Problem],
    samples: int,
    *,
    max_response_tokens: int,
    temperature: float = 1.0,
    batch: int = 0,
    seed: int = 0,
) -> float:
    """Mean reward of `samples` responses to each problem, in [0, 1].

    The same seed gives every policy the same random numbers, so that two evaluations differ by the policies
    more than by luck.
    """
    generator = torch.Generator(policy.device).manual_seed(seed)
    rollouts = sample_groups(
        policy,
        [p.prompt for p in problems],
        samples,
        max_response_tokens=max_response_tokens,
        temperature=temperature,
        batch=batch,
        generator=generator,
    )
    rewards = [task.reward(problems[i // samples], r) for i, r in enumerate(rollouts.responses)]
    return sum(rewards) / len(rewards)
