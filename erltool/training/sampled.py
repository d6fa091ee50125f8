"""Responses of a policy to a task's problems, with their rewards."""

import math

import torch
from torch import Tensor

from erltool.errors import ErltoolError
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts
from erltool.policies.sampling import Sampler, sample_groups
from erltool.policies.vllm_sampler import VllmSampler
from erltool.tasks.task import Problem, Task, rewards_of
from erltool.training.config import VLLM, TrainConfig


def sampler_of(config: TrainConfig, policy: Policy) -> Sampler:
    """What samples in a run of this policy. Raises ErltoolError where this machine has no vLLM and the run wants it."""
    if config.sampler == VLLM:
        return VllmSampler(policy, cut=config.top_p < 1, most=config.sampling_batch)
    return sample_groups


def sample_rewarded(
    sample: Sampler, policy: Policy, task: Task, config: TrainConfig, problems: list[Problem], draws: torch.Generator,
    where: str,
) -> tuple[Rollouts, Tensor]:  # fmt: skip
    """A group of responses to each problem, by `sample` as the configuration says, and their rewards (B,).

    Raises ErltoolError, beginning with `where`, for a reward that is not finite.
    """
    size = config.group_size
    rollouts = sample(
        policy, [p.prompt for p in problems], size, generator=draws, top_p=config.top_p,
        max_response_tokens=config.max_response_tokens, temperature=config.temperature, batch=config.sampling_batch,
    )  # fmt: skip
    rewards = rewards_of(task, [p for p in problems for _ in range(size)], rollouts.responses)
    for prompt, reward in zip(rollouts.prompts, rewards, strict=True):
        if not math.isfinite(reward):
            raise ErltoolError(
                f"{where}: reward of a response to {prompt!r} is {reward}; "
                f"the verifier of task {task.name} must return finite numbers"
            )
    return rollouts, torch.tensor(rewards, device=policy.device)
