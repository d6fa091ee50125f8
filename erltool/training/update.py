"""One optimiser update on sampled responses: score, choose, backward, optimise.

An update first scores all its tokens and lets the control choose among them. Then it computes the gradient in
micro-batches, whose size does not change the result.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from erltool.controls.base import Choice, reaches_zero_advantage
from erltool.controls.controllers import Steered
from erltool.controls.loss import control_loss
from erltool.entropy.covariance import masked_mean, token_covariance
from erltool.entropy.log_probs import TokenStatistics, entropy_changes
from erltool.entropy.tokens import Tokens, truncated_weights
from erltool.errors import Diverged
from erltool.policies.heads import OwnHead
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts, contexts, response_statistics
from erltool.tasks.chain import Description
from erltool.training.config import OWN, TrainConfig
from erltool.training.step import (
    Described,
    Step,
    distinct_fraction,
    entropy_change_summary,
    measure,
    needed,
    token_texts,
)

PROMPTS, SAMPLING, CONTROL, EVALUATION, DROPOUT, PROBING = range(6)  # purposes of random draws
SAMPLER_IS_EXACT = 1e-4  # nats; with a larger difference training's forward pass computes old log-probs again


def generator(seed: int, purpose: int, at: int, device: torch.device) -> torch.Generator:
    """Generator for a purpose at an iteration or step, so that a checkpoint need not save any."""
    words = np.random.SeedSequence([seed, purpose, at])
    return torch.Generator(device).manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1)


@dataclass(frozen=True)
class Batch:
    """An iteration's responses."""

    rollouts: Rollouts
    rewards: Tensor  # (B,)
    advantages: Tensor  # (B,)
    zero_spread: float  # fraction of the sampled groups whose responses have the same reward
    iteration: int
    seconds: float  # that sampling took
    entropy: Tensor | None = None  # (B, T) of the contexts under the sampling policy, where the control needs it
    old_log_probs: Tensor | None = None  # (B, T) by training's forward pass, where the sampler's do not serve


@dataclass(frozen=True)
class Scored:
    """The responses of an update, with their tokens as scored before it."""

    rollouts: Rollouts
    tokens: Tokens  # with gradient where the update is one micro-batch
    live: Tensor  # (B,) bool: responses that can get a gradient
    on_policy: bool


class Updater:
    """Policy, optimiser and control of a run after `step` updates."""

    def __init__(self, config: TrainConfig, policy: Policy, describe: Callable[[str, str], Description] | None):
        self.config, self.policy, self.describe = config, policy, describe
        self.parameters = list(policy.trainable().values())
        self.optimizer = torch.optim.AdamW(self.parameters, config.learning_rate, weight_decay=0.0, fused=True)
        self.control = config.control  # the controller changes it from update to update
        self.step = 0
        self.moved = False  # whether any gradient was not 0: until then Adam changes nothing

    def draws(self, purpose: int) -> torch.Generator:
        """Generator for a purpose in the next update."""
        return generator(self.config.seed, purpose, self.step, self.policy.device)

    def score(self, batch: Batch, rows: Tensor, first: bool) -> Scored:
        """Scores the tokens of an update on the iteration's responses `rows`; `first` of its updates or not."""
        # Until the policy moves away from the sampling one, pi / pi_old is exactly 1, not about 1.
        on_policy = first or not self.moved
        rollouts, rewards, advantages = batch.rollouts.take(rows), batch.rewards[rows], batch.advantages[rows]
        mask, live = rollouts.response_mask, self.live_rows(rollouts, advantages, on_policy)
        known = self.statistics(rollouts, live)
        log_probs, reference = known.log_probs, self.reference(rollouts, live)
        old = rollouts.log_probs if batch.old_log_probs is None else batch.old_log_probs[rows, : mask.shape[1]]
        old = log_probs.detach() if on_policy else old
        cap = self.config.sampler_correction
        weight = truncated_weights(old, rollouts.log_probs, cap) if cap else None
        before = None if batch.entropy is None else batch.entropy[rows, : mask.shape[1]]
        before = known.token_entropy.detach() if on_policy else before
        if self.config.mask_truncated:
            mask = mask & rollouts.finished[:, None]
        advantages = advantages[:, None].expand(mask.shape)
        tokens = Tokens(
            old_log_probs=old, advantages=advantages, response_mask=mask, ref_log_probs=reference, rewards=rewards,
            group_size=self.config.group_size, old_token_entropy=before, sampler_weight=weight, **known._asdict(),
        )  # fmt: skip
        return Scored(rollouts, tokens, live, on_policy)

    def live_rows(self, rollouts: Rollouts, advantages: Tensor, on_policy: bool) -> Tensor:
        """Responses (B,) bool, on the CPU, that can get a gradient; the others are scored, but not differentiated. Most
        groups of a trained policy have equal rewards and so no gradient."""
        counted = torch.ones(len(rollouts), dtype=torch.bool)
        if self.config.mask_truncated:
            counted = rollouts.finished.cpu()
        return counted if reaches_zero_advantage(self.control, on_policy) else counted & (advantages != 0).cpu()

    def with_sampling_policy(self, batch: Batch, first: Scored) -> tuple[Batch, float]:
        """The iteration with what the later updates must know of the sampling policy, and the largest difference, nats,
        between the sampler's log-probs and the first scores.

        Where the difference is too large, and always where another program samples, the later updates' old log-probs
        are computed again, in the batches in which their new ones will be. The gradient of |log pi - log pi_old| is 1
        however small the difference, so rounding noise would trigger it. (In bf16 some noise stays: after an update,
        roundings fall anew. precision.py measures it.) Old entropies are computed where the control needs them.
        """
        mismatch = (first.tokens.log_probs.detach() - first.rollouts.log_probs).abs().max().item()
        is_exact = mismatch <= SAMPLER_IS_EXACT and self.config.sampler == OWN
        with_entropy = "old_token_entropy" in self.config.control.needs
        if is_exact and not with_entropy:
            return batch, mismatch
        log_probs, entropy = batch.rollouts.log_probs.clone(), torch.zeros_like(batch.rollouts.log_probs)
        with torch.no_grad():
            for rows in torch.arange(len(entropy)).chunk(self.config.updates_per_iteration)[1:]:
                rollouts = batch.rollouts.take(rows)
                live, width = self.live_rows(rollouts, batch.advantages[rows], False), rollouts.token_ids.shape[1]
                known = self.statistics(rollouts, live)
                log_probs[rows, :width], entropy[rows, :width] = known.log_probs, known.token_entropy
        if not is_exact:
            batch = replace(batch, old_log_probs=log_probs)
        return replace(batch, entropy=entropy) if with_entropy else batch, mismatch

    def statistics(self, rollouts: Rollouts, live: Tensor) -> TokenStatistics:
        """Those of an update, (B, T): with gradient if it is one micro-batch, else without."""
        batches = self.micro_batches(rollouts)
        if len(batches) == 1:
            return self.forward(rollouts, live)
        columns = self.blank(rollouts)
        with torch.no_grad():
            for rows in batches:
                micro_batch = rollouts.take(rows)
                width = micro_batch.token_ids.shape[1]
                for column, values in zip(columns, self.forward(micro_batch, live[rows]), strict=True):
                    column[rows, :width] = values
        return columns

    def blank(self, rollouts: Rollouts) -> TokenStatistics:
        return TokenStatistics(*(torch.zeros_like(rollouts.log_probs) for _ in TokenStatistics._fields))

    def forward(self, rollouts: Rollouts, live: Tensor) -> TokenStatistics:
        """Statistics (B, T); where gradients are enabled, only the live rows have them."""
        if live.all():
            return self.of_distinct(rollouts)
        columns = self.blank(rollouts)
        for rows, gradient in ((live.nonzero()[:, 0], torch.is_grad_enabled()), ((~live).nonzero()[:, 0], False)):
            if not len(rows):
                continue
            taken = rollouts.take(rows)
            with torch.set_grad_enabled(gradient):
                found = self.of_distinct(taken)
            rows, padding = rows.to(rollouts.token_ids.device), (0, columns[0].shape[1] - taken.token_ids.shape[1])
            columns = TokenStatistics(
                *(
                    column.index_copy(0, rows, torch.nn.functional.pad(values, padding))
                    for column, values in zip(columns, found, strict=True)
                )
            )
        return columns

    def of_distinct(self, rollouts: Rollouts) -> TokenStatistics:
        """`response_statistics`, which reads equal responses to a prompt once. Most are equal in a trained policy. With
        dropout each response has its own."""
        first, place = rollouts.distinct()
        if len(first) == len(rollouts) or self.config.lora_dropout:
            return response_statistics(self.policy, rollouts, self.config.temperature)
        found = response_statistics(self.policy, rollouts.take(first), self.config.temperature)
        place, padding = place.to(rollouts.token_ids.device), (0, rollouts.token_ids.shape[1] - found[0].shape[1])
        return TokenStatistics(*(torch.nn.functional.pad(column.index_select(0, place), padding) for column in found))

    def micro_batches(self, rollouts: Rollouts) -> list[slice]:
        size = self.config.micro_batch or len(rollouts)
        return [slice(start, min(start + size, len(rollouts))) for start in range(0, len(rollouts), size)]

    def choose(self, scored: Scored) -> Choice:
        """The control's choice for the whole update."""
        clip = self.config.clip_eps_low, self.config.clip_eps_high
        return self.control.choose(scored.tokens, clip, self.draws(CONTROL))

    def backward(self, scored: Scored, choice: Choice) -> Tensor:
        """Computes the gradient in micro-batches; returns the tokens (B, T) whose gradient the clip has cut."""
        batches = self.micro_batches(scored.rollouts)
        if len(batches) == 1:
            return self.backward_of(scored.tokens, choice)
        clipped = torch.zeros_like(scored.tokens.response_mask)
        for rows in batches:
            micro_batch = scored.rollouts.take(rows)
            width = micro_batch.token_ids.shape[1]
            known = self.forward(micro_batch, scored.live[rows])
            tokens = scored.tokens.rows(rows, width)._replace(**known._asdict())
            if scored.on_policy:
                tokens = tokens._replace(old_log_probs=known.log_probs.detach())
            clipped[rows, :width] = self.backward_of(tokens, choice.rows(rows, width))
        return clipped

    def backward_of(self, tokens: Tokens, choice: Choice) -> Tensor:
        """Adds the gradient of a micro-batch; returns its clipped tokens."""
        loss = control_loss(tokens, choice)
        if loss.loss.requires_grad:
            loss.loss.backward()
        return loss.clipped

    def optimise(self, scored: Scored, choice: Choice, clipped: Tensor, entropy_change: bool) -> Step:
        """Measures the update and makes the optimiser's step; with `entropy_change` measures that too."""
        rollouts, rewards, group_size = scored.rollouts, needed(scored.tokens, "rewards"), self.config.group_size
        log_probs, entropy = scored.tokens.log_probs.detach(), needed(scored.tokens, "token_entropy").detach()
        tokens = scored.tokens._replace(log_probs=log_probs, token_entropy=entropy, advantages=choice.advantages)
        covariance = token_covariance(tokens.advantages, tokens.log_probs, tokens.response_mask)
        for p in self.parameters:  # where no response was live, Adam's momentum acts as for a gradient of 0
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        metrics = measure(rollouts, tokens, covariance, choice.selected, clipped, grad_norm)
        texts = token_texts(self.policy, rollouts)
        metrics["distinct_fraction"] = distinct_fraction(rollouts.responses, group_size)
        described = None
        if self.describe is not None:
            described = Described.of(rollouts, self.describe, texts)
            metrics |= described.measure(tokens, covariance)
        if tokens.sampler_weight is not None:
            cut = tokens.old_log_probs - rollouts.log_probs > math.log(self.config.sampler_correction)
            metrics["sampler_truncated_fraction"] = masked_mean(cut.float(), tokens.response_mask).item()
        self.check_finite(metrics)
        change = self.make(rollouts, metrics, entropy_change)
        return Step(
            metrics, rollouts, rewards, tokens, covariance, choice.selected, texts, group_size, change, described
        )

    def make(self, rollouts: Rollouts, metrics: dict[str, float], entropy_change: bool) -> tuple[Tensor, Tensor] | None:
        """Makes the optimiser's step and the controller's, and adds what these decide to `metrics`. With
        `entropy_change` returns each context's, predicted and measured, (B, T) each."""
        self.moved |= metrics["grad_norm"] > 0
        before = self.contexts(rollouts) if entropy_change else None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if (controller := self.config.controller) is not None:
            metrics |= controller.values(self.control)
            entropy = metrics["policy_entropy"]
            self.control = controller.after(self.control, self.config.control, self.step, entropy)
        if before is None:
            return None
        change = self.entropy_change(rollouts, *before)
        metrics.update(entropy_change_summary(*change, rollouts.response_mask))
        return change

    def repeat_steering(self) -> None:
        """Makes the changes that a steered schedule has at the next update, where they came after the last one: from a
        hand, or after a checkpoint."""
        if isinstance(self.config.controller, Steered):
            self.control = self.config.controller.after(self.control, self.config.control, self.step, math.nan)

    def contexts(self, rollouts: Rollouts) -> tuple[Tensor, Tensor | OwnHead]:
        """Hidden states of the update's contexts, and the head, copied where it trains."""
        with torch.no_grad():
            head = self.policy.head
            return contexts(self.policy, rollouts), head.clone() if head.requires_grad else head

    def entropy_change(self, rollouts: Rollouts, before: Tensor, head: Tensor | OwnHead) -> tuple[Tensor, Tensor]:
        after, head_after = self.contexts(rollouts)
        change = entropy_changes(before, after, head, head_after, temperature=self.config.temperature)
        blank = torch.zeros(rollouts.response_mask.shape, device=before.device)
        predicted, measured = (blank.masked_scatter(rollouts.response_mask, x) for x in change)
        return predicted, measured

    def reference(self, rollouts: Rollouts, live: Tensor) -> Tensor | None:
        """The reference policy's log-probs (B, T), where the control needs them."""
        if "ref_log_probs" not in self.config.control.needs:
            return None
        with torch.no_grad(), self.policy.reference():
            return self.statistics(rollouts, live).log_probs

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
        """Inside, seed and step decide which inputs an adapter drops; the random state outside does not change."""
        if not self.config.lora_dropout:
            yield
            return
        with torch.random.fork_rng(), self.policy.dropping():
            torch.manual_seed(self.draws(DROPOUT).initial_seed())
            yield
