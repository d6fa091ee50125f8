"""GRPO on a group-sampled batch with a verifier's rewards, one entropy control, and nothing else.

Shao et al. 2024 (arXiv 2402.03300) with the controls of Cui et al. 2025 (arXiv 2505.22617). Left out: a value
network, reward models, a KL to the reference unless `ReferenceKL` asks for it, more than one device.

An iteration samples `prompts_per_iteration` groups and makes `updates_per_iteration` optimiser updates, each on
its own share of the groups. Every update looks at all its tokens first (log-probs, entropy, covariance, what
the control selects), then makes the gradient in micro-batches of any size with the same result. All random
draws come from generators seeded by (seed, purpose, iteration), so a run continues from a checkpoint exactly.
"""

import contextlib
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from erltool.entropy.advantages import group_advantages
from erltool.errors import ErltoolError
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts, concatenate
from erltool.policies.sampling import sample_groups
from erltool.runs.alarms import Watch
from erltool.runs.folder import read_run
from erltool.runs.writer import RunWriter, check_place
from erltool.tasks.task import Problem, Task, load_task, rewards_of
from erltool.threads import Courtesy
from erltool.training.config import TrainConfig
from erltool.training.evaluate import accuracy, eval_problems
from erltool.training.saved import Saved, read_saved, save_policy
from erltool.training.start import configured_policy, made_by
from erltool.training.step import Step
from erltool.training.update import PROMPTS, SAMPLING, Batch, Updater, generator

RESAMPLING_ROUNDS = 4  # of dynamic sampling


def train(config: TrainConfig, out: str | Path | None = None, resume: bool = False) -> Generator[Step, None, None]:
    """Trains, and yields a `Step` after every optimiser update.

    With `out` the run is written to that folder as it goes (runs/folder.py); a folder that holds a run is refused
    unless `resume`, which continues it from its last checkpoint, bit for bit on the same machine. Closing the
    generator after an iteration's last step leaves a checkpoint there. The checks are made at once, the work
    as steps are asked for; from then to the generator's end nobody else writes to the folder. Raises ErltoolError
    for what a user can mend, NaN in rewards or gradients among it; the weights, and what was written, are then as
    before the step. Raises InUse, which is one, where another process writes to the folder.
    """
    if resume and out is None:
        raise ErltoolError("resume: needs the run's folder; give out=")
    if out is not None:
        check_place(Path(out), config.to_dict(), resume)
    task = load_task(config.task)
    policy = configured_policy(config, task)
    if "ref_log_probs" in config.control.needs and not policy.has_adapter:
        raise ErltoolError(f"control {config.control.name}: full fine-tuning keeps no reference; use lora_rank above 0")
    trainer = _Trainer(config, task, policy)
    if out is not None:
        trainer.open(Path(out), resume)
    return trainer.steps()


class _Trainer:
    """State of a run between steps: the updates made, and the data position."""

    def __init__(self, config: TrainConfig, task: Task, policy: Policy):
        self.config, self.task, self.policy = config, task, policy
        self.updates = Updater(config, policy, getattr(task, "describe", None))
        self.fingerprint = policy.fingerprint()
        self.iteration = self.position = self.saved_step = 0
        self.between_iterations = True
        self.writer: RunWriter | None = None
        self.watch = Watch()

    @property
    def step(self) -> int:
        """Updates made so far."""
        return self.updates.step

    # --- the algorithm ------------------------------------------------------------------------------

    def steps(self) -> Generator[Step, None, None]:
        courtesy = Courtesy()
        try:
            while self.step < self.config.steps:
                courtesy.look()
                yield from self.iterate()
        finally:
            courtesy.close()
            with contextlib.closing(self.writer) if self.writer else contextlib.nullcontext():
                # Closed between iterations (a break, Ctrl-C in the command line): nothing need be lost.
                if self.between_iterations and self.writer is not None and self.step > self.saved_step:
                    self.checkpoint()

    def iterate(self) -> Iterator[Step]:
        """One iteration: responses are sampled, then each update is made on its own share of them."""
        config, updates, measured = self.config, self.updates, self.evaluate_if_due()
        self.between_iterations = False
        batch = self.sample()
        for update, rows in enumerate(torch.arange(len(batch.rollouts)).chunk(config.updates_per_iteration)):
            started, first = time.perf_counter(), update == 0
            with updates.dropout_draws():
                scored = updates.score(batch, rows, first)
                if first:
                    batch, measured["sampler_mismatch"] = updates.with_exact_log_probs(batch, scored)
                choice = updates.choose(scored)
                clipped = updates.backward(scored, choice)
                step = updates.optimise(scored, choice, clipped, self.entropy_change_is_due())
            seconds = time.perf_counter() - started + batch.seconds / config.updates_per_iteration
            last = update == config.updates_per_iteration - 1
            yield self.finish(step, batch, seconds, measured if first else {}, last)

    def finish(self, step: Step, batch: Batch, seconds: float, measured: dict[str, float], last: bool) -> Step:
        """The step with all that is measured of it, written to the run's folder; `last` of its iteration or not."""
        self.iteration += last
        step.metrics.update(step=self.step, iteration=batch.iteration, zero_spread_fraction=batch.zero_spread)
        step.metrics["tokens_per_second"] = step.metrics["response_tokens"] / seconds
        step.metrics.update(measured)
        if self.step == self.config.steps:
            step.metrics.update(self.evaluate_if_due(last=True))
        step = replace(step, alarms=self.watch.see(step.metrics))
        self.record(step)
        self.between_iterations = last
        if last and self.checkpoint_is_due():  # once the step is on disk: never ahead of the metrics
            self.checkpoint()
        return step

    def entropy_change_is_due(self) -> bool:
        every = self.config.entropy_change_every
        return bool(every) and self.iteration % every == 0

    def sample(self) -> Batch:
        """An iteration's responses with their rewards and advantages."""
        config, started = self.config, time.perf_counter()
        draws = generator(config.seed, SAMPLING, self.iteration, self.policy.device)
        kept: list[tuple[Rollouts, Tensor]] = []
        spread: list[bool] = []
        for _ in range(RESAMPLING_ROUNDS if config.dynamic_sampling else 1):
            kept.append(self.sample_round(draws))
            groups = kept[-1][1].view(-1, config.group_size)
            spread += (groups.amax(-1) > groups.amin(-1)).tolist()
            if sum(spread) >= config.prompts_per_iteration:
                break
        rollouts, rewards = kept[0]
        if len(kept) > 1:
            # Groups with spread first; where they are too few, others fill the update up.
            chosen = sorted(range(len(spread)), key=lambda g: not spread[g])[: config.prompts_per_iteration]
            rows = (torch.tensor(chosen)[:, None] * config.group_size + torch.arange(config.group_size)).flatten()
            rollouts, rewards = concatenate([r for r, _ in kept]).take(rows), torch.cat([r for _, r in kept])[rows]
        advantages = group_advantages(rewards, config.group_size, config.advantages)
        zero_spread = 1 - sum(spread) / len(spread)
        return Batch(rollouts, rewards, advantages, zero_spread, self.iteration, time.perf_counter() - started)

    def sample_round(self, draws: torch.Generator) -> tuple[Rollouts, Tensor]:
        """A group of responses to each of the next prompts, and their rewards (B,)."""
        config = self.config
        problems = self.next_problems(config.prompts_per_iteration)
        rollouts = sample_groups(
            self.policy,
            [p.prompt for p in problems],
            config.group_size,
            max_response_tokens=config.max_response_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            batch=config.sampling_batch,
            generator=draws,
        )
        return rollouts, self.rewards(problems, rollouts)

    def rewards(self, problems: list[Problem], rollouts: Rollouts) -> Tensor:
        size = self.config.group_size
        values = rewards_of(self.task, [p for p in problems for _ in range(size)], rollouts.responses)
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise ErltoolError(
                    f"step {self.step + 1}: reward of a response to {rollouts.prompts[i]!r} is {value}; "
                    f"the verifier of task {self.task.name} must return finite numbers"
                )
        return torch.tensor(values, device=self.policy.device)

    def evaluate_if_due(self, last: bool = False) -> dict[str, float]:
        config = self.config
        if not config.eval_every or (self.iteration % config.eval_every and not last):
            return {}
        found = {"eval_accuracy": self.accuracy(config.temperature, config.eval_samples)}
        if (temperature := config.eval_temperature) is not None:
            samples = config.eval_samples if temperature else 1  # greedily all are the same
            found["eval_accuracy_tempered"] = self.accuracy(temperature, samples)
        return found

    def accuracy(self, temperature: float, samples: int) -> float:
        """On the run's held-out problems, as the policy is now."""
        config = self.config
        return accuracy(
            self.policy,
            self.task,
            eval_problems(self.task, config.eval_prompts),
            samples,
            max_response_tokens=config.max_response_tokens,
            temperature=temperature,
            batch=config.sampling_batch,
        )

    def next_problems(self, count: int) -> list[Problem]:
        """The next training problems, each once an epoch, in an order of the seed's and the epoch's own."""
        problems, size = [], len(self.task.train)
        while len(problems) < count:
            epoch, at = divmod(self.position, size)
            order = np.random.default_rng([self.config.seed, PROMPTS, epoch]).permutation(size)
            taken = order[at : at + count - len(problems)]
            problems += [self.task.train[i] for i in taken]
            self.position += len(taken)
        return problems

    # --- the run's folder ---------------------------------------------------------------------------

    def open(self, out: Path, resume: bool) -> None:
        """Begins the run in its folder, or makes both what they were at its newest checkpoint."""
        self.writer = RunWriter(out, {"config": self.config.to_dict(), "made_by": made_by(self.policy)}, resume)
        try:
            newest = self.writer.newest() if resume else None
            if newest:
                self.restore(out, read_saved(newest[1], newest[0], self.policy, self.config.control))
            if resume:  # nothing was changed until here: what cannot go on stays as it is
                self.writer.go_on(newest and newest[0])
            if newest:
                self.writer.mend_adapter(self.step, self.save_policy)
        except BaseException:
            self.writer.close()
            raise

    def restore(self, out: Path, saved: Saved) -> None:
        if saved.fingerprint != self.fingerprint:
            raise ErltoolError(
                f"run {out}: policy {self.config.policy!r} has other weights than when the run began; "
                "put the old ones back, or start another run"
            )
        saved.give_weights(self.policy)
        # Rates and the like are the configuration's, which is the same.
        updates = self.updates
        own = updates.optimizer.state_dict()["param_groups"]
        updates.optimizer.load_state_dict({"state": saved.optimizer, "param_groups": own})
        updates.step, updates.moved, updates.control = saved.step, saved.moved, saved.control
        self.iteration, self.position, self.saved_step = saved.iteration, saved.position, saved.step
        for row in read_run(out).metrics.to_dict("records"):  # what is warned of depends on all steps before
            if row["step"] <= self.step:
                self.watch.see(row)

    def record(self, step: Step) -> None:
        if self.writer is None:
            return
        every, (round_, update) = self.config.record_every, divmod(self.step - 1, self.config.updates_per_iteration)
        # The last update of an iteration: on the first every ratio is 1, and KL-Cov cannot be seen to act.
        if every and update == self.config.updates_per_iteration - 1 and round_ % every == 0:
            self.writer.tokens.append(step.table(self.config.record_prompts))
        self.writer.write_step(step.metrics)

    def checkpoint_is_due(self) -> bool:
        due = self.iteration % self.config.checkpoint_every == 0 or self.step == self.config.steps
        return self.writer is not None and due

    def checkpoint(self) -> None:
        saved = Saved(
            self.policy.trainable(),
            self.updates.optimizer.state_dict()["state"],
            self.fingerprint,
            self.step,
            self.iteration,
            self.position,
            self.updates.moved,
            self.updates.control,
        )
        self.writer.checkpoint(self.step, saved.to_bytes(), self.save_policy)
        self.saved_step = self.step

    def save_policy(self, folder: Path) -> None:
        save_policy(self.policy, folder)
