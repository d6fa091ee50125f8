"""One optimiser update on responses that were sampled: score, choose, backward, optimise.

Every update looks at all its tokens first (log-probs, entropy, what the control chooses), then makes the gradient in
micro-batches of any size with the same result.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from erltool.controls.base import Choice, reaches_zero_advantage
from erltool.controls.loss import control_loss
from erltool.entropy.covariance import token_covariance
from erltool.entropy.log_probs import entropy_changes
from erltool.entropy.tokens import Tokens
from erltool.errors import Diverged
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts, contexts, response_log_probs
from erltool.tasks.chain import Description
from erltool.training.config import TrainConfig
from erltool.training.step import Described, Step, distinct_fraction, entropy_change_summary, measure, part_texts

PROMPTS, SAMPLING, CONTROL, EVALUATION, DROPOUT = range(5)  # purposes of random draws
SAMPLER_IS_EXACT = 1e-4  # nats; above, old log-probs are computed again by training's own forward


def generator(seed: int, purpose: int, at: int, device: torch.device) -> torch.Generator:
    """Generator of a purpose at an iteration or step: nothing to save, nothing shared."""
    words = np.random.SeedSequence([seed, purpose, at])
    return torch.Generator(device).manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))


@dataclass(frozen=True)
class Batch:
    """An iteration's responses."""

    rollouts: Rollouts
    rewards: Tensor
    """(B,)"""
    advantages: Tensor
    """(B,)"""
    zero_spread: float
    """Share of the sampled groups whose responses have the same reward."""
    iteration: int
    seconds: float
    """That sampling took."""


@dataclass(frozen=True)
class Scored:
    """The responses of an update, and what is known of their tokens before it."""

    part: Rollouts
    tokens: Tokens
    """With gradient where the update is one micro-batch."""
    live: Tensor
    """(B,) bool: responses that can get a gradient."""
    on_policy: bool

    @property
    def detached(self) -> Tokens:
        log_probs, entropy = self.tokens.log_probs.detach(), self.tokens.token_entropy.detach()
        return self.tokens._replace(log_probs=log_probs, token_entropy=entropy)


class Updater:
    """Policy, optimiser and control of a run, as they are after `step` updates."""

    def __init__(self, config: TrainConfig, policy: Policy, describe: Callable[[str, str], Description] | None):
        self.config, self.policy, self.describe = config, policy, describe
        self.parameters = list(policy.trainable().values())
        self.optimizer = torch.optim.AdamW(self.parameters, config.learning_rate, weight_decay=0.0, fused=True)
        self.control = config.control  # the controller changes it from update to update
        self.step = 0
        self.moved = False  # whether any gradient so far was not 0: until then Adam changes nothing

    def draws(self, purpose: int) -> torch.Generator:
        """Generator of a purpose in the next update."""
        return generator(self.config.seed, purpose, self.step, self.policy.device)

    def score(self, batch: Batch, rows: Tensor, first: bool) -> Scored:
        """What is known of the tokens of an update on these responses of the iteration, before it."""
        # Until the policy moves away from the sampling one, pi / pi_old is exactly 1, not about 1.
        on_policy = first or not self.moved
        part, rewards, advantages = batch.rollouts.take(rows), batch.rewards[rows], batch.advantages[rows]
        mask, live = part.response_mask, self.live_rows(part, advantages, on_policy)
        log_probs, entropy = self.log_probs(part, live)
        if self.config.mask_truncated:
            mask = mask & part.finished[:, None]
        tokens = Tokens(
            log_probs,
            log_probs.detach() if on_policy else part.log_probs,
            advantages[:, None].expand(mask.shape),
            mask,
            entropy,
            self.reference_log_probs(part, live),
            rewards,
            self.config.group_size,
        )
        return Scored(part, tokens, live, on_policy)

    def live_rows(self, part: Rollouts, advantages: Tensor, on_policy: bool) -> Tensor:
        """Responses (B,) bool, on the CPU, that can get a gradient; the others are scored, but not differentiated.

        Those without spread are most of a trained policy's groups.
        """
        counted = torch.ones(len(part), dtype=torch.bool)
        if self.config.mask_truncated:
            counted = part.finished.cpu()
        return counted if reaches_zero_advantage(self.control, on_policy) else counted & (advantages != 0).cpu()

    def with_exact_log_probs(self, batch: Batch, first: Scored) -> tuple[Batch, float]:
        """The iteration with old log-probs made again for the later updates, where those of the sampler are not exact;
        and the largest difference, nats, to the scores of the first update.

        The gradient of |log pi - log pi_old| is 1 however small the difference, so rounding must not make one: they are
        made in the very batches in which the later updates will make the new ones.
        """
        mismatch = (first.tokens.log_probs.detach() - first.part.log_probs).abs().max().item()
        if mismatch <= SAMPLER_IS_EXACT:
            return batch, mismatch
        exact = batch.rollouts.log_probs.clone()
        with torch.no_grad():
            for rows in torch.arange(len(exact)).chunk(self.config.updates_per_iteration)[1:]:
                part = batch.rollouts.take(rows)
                live = self.live_rows(part, batch.advantages[rows], on_policy=False)
                exact[rows, : part.token_ids.shape[1]] = self.log_probs(part, live)[0]
        return replace(batch, rollouts=replace(batch.rollouts, log_probs=exact)), mismatch

    def log_probs(self, part: Rollouts, live: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy of an update, (B, T): with gradient if it is one micro-batch, else without."""
        pieces = self.micro_batches(part)
        if len(pieces) == 1:
            return self.forward(part, live)
        lp, entropy = torch.zeros_like(part.log_probs), torch.zeros_like(part.log_probs)
        with torch.no_grad():
            for rows in pieces:
                piece = part.take(rows)
                width = piece.token_ids.shape[1]
                lp[rows, :width], entropy[rows, :width] = self.forward(piece, live[rows])
        return lp, entropy

    def forward(self, part: Rollouts, live: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy (B, T); where gradients are enabled, only the live rows have them."""
        if live.all():
            return response_log_probs(self.policy, part, self.config.temperature)
        lp, entropy = torch.zeros_like(part.log_probs), torch.zeros_like(part.log_probs)
        for rows, gradient in ((live.nonzero()[:, 0], torch.is_grad_enabled()), ((~live).nonzero()[:, 0], False)):
            if not len(rows):
                continue
            piece = part.take(rows)
            with torch.set_grad_enabled(gradient):
                found = response_log_probs(self.policy, piece, self.config.temperature)
            rows, room = rows.to(lp.device), (0, lp.shape[1] - piece.token_ids.shape[1])
            lp, entropy = (
                x.index_copy(0, rows, torch.nn.functional.pad(y, room))
                for x, y in zip((lp, entropy), found, strict=True)
            )
        return lp, entropy

    def micro_batches(self, part: Rollouts) -> list[Tensor]:
        return list(torch.arange(len(part)).split(self.config.micro_batch or len(part)))

    def choose(self, scored: Scored) -> Choice:
        """What the control decides for the update."""
        clip = self.config.clip_eps_low, self.config.clip_eps_high
        return self.control.choose(scored.tokens, clip, self.draws(CONTROL))

    def backward(self, scored: Scored, choice: Choice) -> Tensor:
        """Makes the gradient of an update in micro-batches; returns the tokens (B, T) whose gradient the clip has
        cut."""
        tokens, pieces = scored.tokens, self.micro_batches(scored.part)
        if len(pieces) == 1:
            return self.backward_of(tokens, choice)
        clipped = torch.zeros_like(tokens.response_mask)
        for rows in pieces:
            piece = scored.part.take(rows)
            width = piece.token_ids.shape[1]
            log_probs, entropy = self.forward(piece, scored.live[rows])
            known = tokens.rows(rows, width)._replace(log_probs=log_probs, token_entropy=entropy)
            if scored.on_policy:
                known = known._replace(old_log_probs=log_probs.detach())
            clipped[rows, :width] = self.backward_of(known, choice.rows(rows, width))
        return clipped

    def backward_of(self, tokens: Tokens, choice: Choice) -> Tensor:
        """Adds a micro-batch's gradient to the parameters'; returns its clipped tokens."""
        loss = control_loss(tokens, choice)
        if loss.loss.requires_grad:
            loss.loss.backward()
        return loss.clipped

    def optimise(self, scored: Scored, choice: Choice, clipped: Tensor, entropy_change: bool) -> Step:
        """Measures an update whose gradient is there, and makes it; with `entropy_change` measures that, too."""
        part, group_size = scored.part, self.config.group_size
        tokens = scored.detached._replace(advantages=choice.advantages)
        covariance = token_covariance(tokens.advantages, tokens.log_probs, tokens.response_mask)
        for p in self.parameters:  # no response was live: Adam's momentum moves on, as it does for a gradient of 0
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        metrics = measure(part, tokens.rewards, tokens, covariance, choice.selected, clipped, grad_norm, group_size)
        texts = part_texts(self.policy, part)
        metrics["distinct_fraction"] = distinct_fraction(part.responses, group_size)
        described = None
        if self.describe is not None:
            described = Described.of(part, self.describe, texts)
            metrics |= described.measure(tokens, covariance)
        self.check_finite(metrics)
        change = self.make(part, metrics, entropy_change)
        return Step(
            metrics, part, tokens.rewards, tokens, covariance, choice.selected, texts, group_size, change, described
        )

    def make(self, part: Rollouts, metrics: dict[str, float], entropy_change: bool) -> tuple[Tensor, Tensor] | None:
        """The optimiser's step, and the controller's; returns the change of entropy, predicted and measured, (B, T)
        each, where that is asked for, and adds to `metrics` what is known only now."""
        self.moved |= metrics["grad_norm"] > 0
        before = self.contexts(part) if entropy_change else None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if (controller := self.config.controller) is not None:
            metrics["control_value"] = controller.value(self.control)
            given, entropy = self.config.control, metrics["policy_entropy"]
            self.control = controller.after(self.control, given, self.step, entropy)
        if before is None:
            return None
        change = self.entropy_change(part, *before)
        metrics.update(entropy_change_summary(*change, part.response_mask))
        return change

    def contexts(self, part: Rollouts) -> tuple[Tensor, Tensor]:
        """Hidden states of the update's contexts, and the head as it is now, which may train."""
        with torch.no_grad():
            head = self.policy.head
            return contexts(self.policy, part), head.clone() if head.requires_grad else head

    def entropy_change(self, part: Rollouts, before: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        after, head_after = self.contexts(part)
        change = entropy_changes(before, after, head, head_after, temperature=self.config.temperature)
        blank = torch.zeros(part.response_mask.shape, device=before.device)
        return tuple(blank.masked_scatter(part.response_mask, x) for x in change)

    def reference_log_probs(self, part: Rollouts, live: Tensor) -> Tensor | None:
        if "ref_log_probs" not in self.config.control.needs:
            return None
        with torch.no_grad(), self.policy.reference():
            return self.log_probs(part, live)[0]

    def check_finite(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                self.optimizer.zero_grad(set_to_none=True)
                raise Diverged(
                    f"step {self.step + 1}: {name} is {value}; the update was not made; "
                    "resume from the last checkpoint, or start again with a lower learning_rate"
                )

    @contextlib.contextmanager
    def dropout_draws(self):
        """Inside, what an adapter drops is decided by the seed and the step; outside nothing has changed."""
        if not self.config.lora_dropout:
            yield
            return
        with torch.random.fork_rng(), self.policy.dropping():
            torch.manual_seed(self.draws(DROPOUT).initial_seed())
            yield
