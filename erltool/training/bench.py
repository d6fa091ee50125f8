"""A policy whose weights are moved, measured and put back: the microscope's instrument (training/microscope.py).

A step is -learning_rate * g / (sqrt(mean g^2) + eps), with g the batch's gradient and the mean over all batches. That
is Adam's step without momentum, which spreads it over the following updates.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from erltool.controls.dose import by_dose
from erltool.entropy.advantages import group_advantages
from erltool.entropy.covariance import masked_mean
from erltool.entropy.tokens import Tokens
from erltool.errors import ErltoolError
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts, response_statistics
from erltool.policies.sampling import sample_groups
from erltool.runs.microscope import BLOCKS
from erltool.tasks.task import Task
from erltool.training.config import TrainConfig
from erltool.training.sampled import sample_rewarded

EPS = 1e-8  # Adam's
OUTCOMES = "entropy", "reward"


@dataclass(frozen=True)
class Examined:
    """Responses to an update's prompts, and their rewards (B,)."""

    rollouts: Rollouts
    rewards: Tensor


class Bench:
    """Gradients, steps and measurements at one policy. Gradients and steps are one vector (P,) over all parameters."""

    def __init__(self, policy: Policy, task: Task, config: TrainConfig, seed: int):
        self.policy, self.task, self.config = policy, task, config
        self.parameters = list(policy.trainable().values())
        self.weights = [p.detach().clone() for p in self.parameters]
        self.draws = torch.Generator(policy.device).manual_seed(seed)
        self.prompts = np.random.default_rng(seed)

    # --- responses ------------------------------------------------------------------------------------

    def responses(self, prompts: np.random.Generator, count: int, draws: torch.Generator) -> Examined:
        """A group of responses to each of `count` training problems."""
        problems = [self.task.train[i] for i in prompts.integers(len(self.task.train), size=count)]
        made = sample_rewarded(sample_groups, self.policy, self.task, self.config, problems, draws, "microscope")
        return Examined(*made)

    def sample(self, count: int) -> list[Examined]:
        """The responses of `count` updates, sampled an iteration's worth at a time."""
        per_update, at_once = self.config.prompts_per_update, self.config.updates_per_iteration
        batches: list[Examined] = []
        while len(batches) < count:
            whole = self.responses(self.prompts, at_once * per_update, self.draws)
            rows = torch.arange(len(whole.rollouts)).chunk(at_once)
            batches += [Examined(whole.rollouts.take(r), whole.rewards[r]) for r in rows]
        return batches[:count]

    def tokens(self, batch: Examined) -> Tokens:
        """A batch's tokens, with gradient, on policy: every ratio is 1. The mask is the run's updates'."""
        known = response_statistics(self.policy, batch.rollouts, self.config.temperature)
        mask = batch.rollouts.response_mask
        if self.config.mask_truncated:
            mask = mask & batch.rollouts.finished[:, None]
        advantages = group_advantages(batch.rewards, self.config.group_size, self.config.advantages)
        return Tokens(
            old_log_probs=known.log_probs.detach(), advantages=advantages[:, None].expand(mask.shape),
            response_mask=mask, rewards=batch.rewards, group_size=self.config.group_size,
            old_token_entropy=known.token_entropy.detach(), **known._asdict(),
        )  # fmt: skip

    @torch.no_grad()
    def statistics(self, batch: Examined) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy (B, T)."""
        return response_statistics(self.policy, batch.rollouts, self.config.temperature)[:2]

    def live(self, batch: Examined) -> Tensor:
        """Responses (n,) of groups with different rewards: no other has a gradient. Those of the first group if none is
        such."""
        groups = batch.rewards.view(-1, self.config.group_size)
        spread = groups.amax(-1) > groups.amin(-1)
        spread[0] |= ~spread.any()
        return spread.repeat_interleave(self.config.group_size).nonzero()[:, 0]

    def above_others(self, batch: Examined) -> Tensor:
        """(prompts, group) reward minus the mean of the group's other responses."""
        size, rewards = self.config.group_size, batch.rewards.double().view(-1, self.config.group_size)
        return rewards - (rewards.sum(-1, keepdim=True) - rewards) / (size - 1)

    # --- gradients and steps --------------------------------------------------------------------------

    def gradient(self, of: Tensor, weights: Tensor) -> Tensor:
        """Gradient (P,) of sum(weights * of); the graph stays."""
        if not of.requires_grad:
            return torch.zeros(sum(p.numel() for p in self.parameters), device=of.device)
        found = torch.autograd.grad(of, self.parameters, weights, retain_graph=True, allow_unused=True)
        return torch.cat([
            (torch.zeros_like(p) if g is None else g).flatten().float()
            for p, g in zip(self.parameters, found, strict=True)
        ])  # fmt: skip

    def surrogate(self, tokens: Tokens) -> Tensor:
        """Gradient of the surrogate on policy, whose step is the whole update's."""
        return self.gradient(tokens.log_probs, tokens.advantages * _shares(tokens.response_mask))

    def learn(self, updates: Sequence[Examined]) -> None:
        """Finds the length of each parameter's step, and the directions of entropy and reward, from the updates."""
        sums = torch.zeros(3, sum(p.numel() for p in self.parameters), device=self.policy.device)
        for batch in updates:
            tokens = self.tokens(batch)
            surrogate = self.surrogate(tokens)
            entropy = self.gradient(tokens.known("token_entropy"), _shares(tokens.response_mask))
            for total, found in zip(sums, (entropy, surrogate, surrogate.square()), strict=True):
                total += found / len(updates)
        if not sums[2].any():
            raise ErltoolError("microscope: no batch has a gradient: the rewards of every group are equal")
        self.lengths = self.config.learning_rate / (sums[2].sqrt() + EPS)
        self.directions = dict(zip(OUTCOMES, self.lengths * sums[:2], strict=True))

    def pool(self, fresh: Sequence[Examined]) -> None:
        """Finds gradients (blocks, P) of the mean entropy and of the expected reward, from blocks of fresh batches."""
        shape = BLOCKS, len(self.lengths)
        self.fresh = {name: torch.zeros(shape, device=self.lengths.device) for name in OUTCOMES}
        for number, batch in enumerate(fresh):
            block, tokens, mask = number % BLOCKS, self.tokens(batch), batch.rollouts.response_mask
            held = len(range(block, len(fresh), BLOCKS))
            above = self.above_others(batch).flatten()[:, None] * mask / len(batch.rewards)
            self.fresh["entropy"][block] += self.gradient(tokens.known("token_entropy"), _shares(mask)) / held
            self.fresh["reward"][block] += self.gradient(tokens.log_probs, above.float()) / held

    @contextlib.contextmanager
    def moved(self, step: Tensor):
        """Inside, the weights are a step away."""
        # Through .data, because a graph on the weights waits for the next step; it finds them unchanged.
        parts = step.split([p.numel() for p in self.parameters])
        try:
            for p, w, d in zip(self.parameters, self.weights, parts, strict=True):
                p.data.copy_(w + d.view(w.shape))
            yield
        finally:
            for p, w in zip(self.parameters, self.weights, strict=True):
                p.data.copy_(w)

    # --- what a step does -----------------------------------------------------------------------------

    def first_order(self, step: Tensor) -> dict[str, float]:
        """Changes of entropy and reward on each block of fresh responses."""
        return {
            f"{what}_{block}": float(value)
            for what, blocks in self.fresh.items()
            for block, value in enumerate(blocks @ step)
        }

    def measured(self, fresh: Examined, before: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Exact changes on a fresh batch, whose statistics were `before`, at the weights as they are."""
        log_probs, entropy = self.statistics(fresh)
        weight = torch.expm1((log_probs - before[0]).double().sum(-1)).view(-1, self.config.group_size)
        return {
            "entropy_change": float(masked_mean(entropy - before[1], fresh.rollouts.response_mask)),
            "reward_change": float((weight * self.above_others(fresh)).mean()),
        }

    def sampled(self, seed: int) -> dict[str, float]:
        """Reward and entropy of new responses, with the same prompts and random numbers for all cases of a batch."""
        draws = torch.Generator(self.policy.device).manual_seed(seed)
        batch = self.responses(np.random.default_rng(seed), 4 * self.config.prompts_per_update, draws)
        entropy = masked_mean(self.statistics(batch)[1], batch.rollouts.response_mask)
        return {"sampled_reward": float(batch.rewards.mean()), "sampled_entropy": float(entropy)}


def silenced_by(scores: Tensor, tokens: Tokens, share: float, seed: int) -> Tensor:
    """Mask (B, T) of the tokens that hold a share of the update's dose and have the highest scores."""
    order = torch.Generator(tokens.dose.device).manual_seed(seed)
    return by_dose(scores.masked_fill(~tokens.response_mask, -torch.inf), tokens.dose, share, order)


def _shares(mask: Tensor) -> Tensor:
    """1 / N for each of the N response tokens."""
    return mask / mask.sum().clamp(min=1)
