"""GRPO with a verifier's rewards and one entropy control.

Shao et al. 2024 (arXiv 2402.03300) with the controls of Cui et al. 2025 (arXiv 2505.22617). There is no value network
and no reward model, a KL to the reference only by `ReferenceKL`, and one device.

An iteration samples `prompts_per_iteration` groups, then makes `updates_per_iteration` optimiser updates, each on other
groups (update.py). Random generators are seeded by (seed, purpose, iteration or step), so that a run resumes exactly.
"""

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from erltool.entropy.advantages import group_advantages
from erltool.errors import ErltoolError
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts, concatenate
from erltool.policies.vllm_sampler import require_vllm
from erltool.runs.alarms import Watch
from erltool.runs.folder import read_run
from erltool.runs.writer import RunWriter, check_place
from erltool.tasks.task import Problem, Task, load_task
from erltool.threads import Courtesy
from erltool.training.config import VLLM, TrainConfig
from erltool.training.evaluate import eval_problems, evaluate
from erltool.training.probes import Probes, Recording
from erltool.training.sampled import sample_rewarded, sampler_of
from erltool.training.saved import Saved, read_saved, save_policy
from erltool.training.start import configured_policy, made_by
from erltool.training.step import Step
from erltool.training.update import PROMPTS, SAMPLING, Batch, Updater, generator

RESAMPLING_ROUNDS = 4  # of dynamic sampling
Steps = Generator[Step, Mapping[str, float] | None, None]


def train(config: TrainConfig, out: str | Path | None = None, resume: bool = False) -> Steps:
    """Trains, and yields a `Step` after every optimiser update.

    With `out` the run is written to that folder (runs/folder.py), to which no other process can write until the
    generator ends. A folder that holds a run is refused unless `resume`, which continues the run from its last
    checkpoint, bit for bit on the same machine. Closing the generator after an iteration's last step leaves a
    checkpoint. Settings are checked at once; the work is done as steps are requested.

    With `controller=Steered()` a run is steered as it goes: `steps.send({"fraction": 0.05})` instead of `next(steps)`
    makes the next update with that number of the control, and every later one. The folder's configuration has the
    changes, so that it repeats the run; without a folder `config.steered` makes the same configuration.

    Raises ErltoolError for what a user can mend, including NaN in rewards or gradients: weights and files are then as
    before the step. Raises its subclass InUse where another process writes to the folder.
    """
    if resume and out is None:
        raise ErltoolError("resume: needs the run's folder; give out=")
    if out is not None:
        check_place(Path(out), config.to_dict(), resume)
    if config.sampler == VLLM:
        require_vllm()  # before a large policy loads
    task = load_task(config.task)
    policy = configured_policy(config, task)
    if "ref_log_probs" in config.control.needs and not policy.has_adapter:
        raise ErltoolError(f"control {config.control.name}: full fine-tuning keeps no reference; use lora_rank above 0")
    trainer = _Trainer(config, task, policy)
    if out is not None:
        trainer.open(Path(out), resume)
    return trainer.steps()


def policies_at(config: TrainConfig, steps: Iterable[int]) -> Iterator[tuple[int, Policy, dict[str, float]]]:
    """The policy of a run after each of these numbers of updates, in ascending order, with the metrics of its last
    update ({} for 0). The run is made again from its beginning, without evaluation and without a folder.

    It is one policy, which trains on between: put back whatever you change. A number inside an iteration means the
    iteration's end.
    """
    config, task = replace(config, eval_every=0, record_probes=0), load_task(config.task)
    trainer = _Trainer(config, task, configured_policy(config, task))
    metrics: dict[str, float] = {}
    for wanted in steps:
        while trainer.step < wanted:
            metrics = [step.metrics for step in trainer.iterate()][-1]
        yield trainer.step, trainer.policy, metrics


class _Trainer:
    """State of a run between steps: the updates, and the position in the data."""

    def __init__(self, config: TrainConfig, task: Task, policy: Policy):
        self.config, self.task, self.policy = config, task, policy
        self.updates = Updater(config, policy, getattr(task, "describe", None))
        self.sampler = sampler_of(config, policy)
        self.probes = Probes(config, task, policy, self.sampler)
        self.fingerprint = policy.fingerprint()
        self.iteration = self.position = self.saved_step = 0
        self.between_iterations = True
        self.writer: RunWriter | None = None
        self.watch = Watch()

    @property
    def step(self) -> int:
        """Number of updates so far."""
        return self.updates.step

    # --- the algorithm ------------------------------------------------------------------------------

    def steps(self) -> Steps:
        courtesy = Courtesy()
        try:
            while self.step < self.config.steps:
                courtesy.look()
                yield from self.iterate()
        finally:
            courtesy.close()
            with contextlib.closing(self.writer) if self.writer else contextlib.nullcontext():
                # Closed between iterations (by a break or Ctrl-C): a checkpoint saves all steps.
                if self.between_iterations and self.step > self.saved_step:
                    self.checkpoint()

    def iterate(self) -> Steps:
        """One iteration: samples responses, then makes each update on its own part of them. What is sent steers."""
        config, updates, measured = self.config, self.updates, self.evaluate_if_due()
        every = config.entropy_change_every
        entropy_change = bool(every) and self.iteration % every == 0
        self.between_iterations = False
        batch = self.sample()
        for update, rows in enumerate(torch.arange(len(batch.rollouts)).chunk(config.updates_per_iteration)):
            first, last = update == 0, update == config.updates_per_iteration - 1
            recording = None
            if config.record_probes and self.is_recorded(self.step + 1):
                recording = Recording(self.probes, batch.rollouts.take(rows), self.step + 1)
            started = time.perf_counter()
            with updates.dropout_draws():
                scored = updates.score(batch, rows, first)
                if first:
                    batch, measured["sampler_mismatch"] = updates.with_sampling_policy(batch, scored)
                choice = updates.choose(scored)
                clipped = updates.backward(scored, choice)
                step = updates.optimise(scored, choice, clipped, entropy_change)
            seconds = time.perf_counter() - started + batch.seconds / config.updates_per_iteration
            if recording is not None:
                step = recording.completed(step)
            wanted = yield self.finish(step, batch, seconds, measured if first else {}, last)
            if wanted and self.step < self.config.steps:
                self.steer(wanted)

    def finish(self, step: Step, batch: Batch, seconds: float, measured: dict[str, float], last: bool) -> Step:
        """Completes the step's metrics, and writes it to the run's folder; `last` of its iteration or not."""
        self.iteration += last
        step.metrics.update(step=self.step, iteration=batch.iteration, zero_spread_fraction=batch.zero_spread)
        step.metrics["tokens_per_second"] = step.metrics["response_tokens"] / seconds
        step.metrics.update(measured)
        if self.step == self.config.steps:
            step.metrics.update(self.evaluate_if_due(last=True))
        step = replace(step, alarms=self.watch.see(step.metrics))
        self.record(step)
        self.between_iterations = last
        if last and (self.iteration % self.config.checkpoint_every == 0 or self.step == self.config.steps):
            self.checkpoint()  # after the metrics, which a checkpoint must not precede
        return step

    def steer(self, wanted: Mapping[str, float]) -> None:
        """Changes numbers of the control from the next update on. The folder has them before it has that update."""
        self.config = self.updates.config = self.config.steered(self.step + 1, wanted)
        self.updates.repeat_steering()
        if self.writer is not None:
            self.writer.write_config(self.config.to_dict())

    def sample(self) -> Batch:
        """An iteration's responses with their rewards and advantages."""
        config, started = self.config, time.perf_counter()
        draws = generator(config.seed, SAMPLING, self.iteration, self.policy.device)
        rounds: list[tuple[Rollouts, Tensor]] = []
        spread: list[bool] = []
        for _ in range(RESAMPLING_ROUNDS if config.dynamic_sampling else 1):
            rounds.append(self.sample_round(draws))
            groups = rounds[-1][1].view(-1, config.group_size)
            spread += (groups.amax(-1) > groups.amin(-1)).tolist()
            if sum(spread) >= config.prompts_per_iteration:
                break
        rollouts, rewards = rounds[0]
        if len(rounds) > 1:
            # Groups with spread first; where they are too few, others fill the update.
            chosen = sorted(range(len(spread)), key=lambda g: not spread[g])[: config.prompts_per_iteration]
            rows = (torch.tensor(chosen)[:, None] * config.group_size + torch.arange(config.group_size)).flatten()
            rollouts, rewards = concatenate([r for r, _ in rounds]).take(rows), torch.cat([r for _, r in rounds])[rows]
        advantages = group_advantages(rewards, config.group_size, config.advantages)
        zero_spread = 1 - sum(spread) / len(spread)
        return Batch(rollouts, rewards, advantages, zero_spread, self.iteration, time.perf_counter() - started)

    def sample_round(self, draws: torch.Generator) -> tuple[Rollouts, Tensor]:
        """A group of responses to each of the next prompts, and their rewards (B,)."""
        problems = self.next_problems(self.config.prompts_per_iteration)
        where = f"step {self.step + 1}"
        return sample_rewarded(self.sampler, self.policy, self.task, self.config, problems, draws, where)

    def evaluate_if_due(self, last: bool = False) -> dict[str, float]:
        config = self.config
        if not config.eval_every or (self.iteration % config.eval_every and not last):
            return {}
        measured = {"eval_accuracy": self.accuracy(config.temperature, config.eval_samples)}
        if (temperature := config.eval_temperature) is not None:
            samples = config.eval_samples if temperature else 1  # greedy responses are all the same
            measured["eval_accuracy_tempered"] = self.accuracy(temperature, samples)
        return measured

    def accuracy(self, temperature: float, samples: int) -> float:
        """Mean reward on the run's held-out problems, in [0, 1]."""
        config, problems = self.config, eval_problems(self.task, self.config.eval_prompts)
        return evaluate(
            self.policy, self.task, problems, samples, max_response_tokens=config.max_response_tokens,
            temperature=temperature, batch=config.sampling_batch, sample=self.sampler,
        ).average  # fmt: skip

    def next_problems(self, count: int) -> list[Problem]:
        """The next training problems: each once an epoch, in an order that seed and epoch decide."""
        problems: list[Problem] = []
        size = len(self.task.train)
        while len(problems) < count:
            epoch, start = divmod(self.position, size)
            order = np.random.default_rng([self.config.seed, PROMPTS, epoch]).permutation(size)
            taken = order[start : start + count - len(problems)]
            problems += [self.task.train[i] for i in taken]
            self.position += len(taken)
        return problems

    # --- the run's folder ---------------------------------------------------------------------------

    def open(self, out: Path, resume: bool) -> None:
        """Begins the run in its folder, or restores trainer and folder to the newest checkpoint."""
        self.writer = RunWriter(out, {"config": self.config.to_dict(), "made_by": made_by(self.policy)}, resume)
        try:
            newest = self.writer.newest() if resume else None
            if newest:
                self.restore(out, read_saved(newest[1], newest[0], self.policy, self.config.control))
            if resume:  # the folder is unchanged so far, as it must be where a run cannot go on
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
        updates = self.updates
        settings = updates.optimizer.state_dict()["param_groups"]  # follow from the configuration, which is the same
        updates.optimizer.load_state_dict({"state": saved.optimizer, "param_groups": settings})
        updates.step, updates.moved, updates.control = saved.step, saved.moved, saved.control
        updates.repeat_steering()
        self.iteration, self.position, self.saved_step = saved.iteration, saved.position, saved.step
        for row in read_run(out).metrics.to_dict("records"):  # alarms depend on all earlier steps
            if row["step"] <= self.step:
                self.watch.see(row)

    def record(self, step: Step) -> None:
        if self.writer is None:
            return
        if self.is_recorded(self.step):
            self.writer.tokens.append(step.table(self.config.record_prompts))
        if step.probes is not None:
            self.writer.probes.append(step.probes)
        self.writer.write_step(step.metrics)

    def is_recorded(self, step: int) -> bool:
        """Whether the update of this number has its tokens recorded: the last one of every `record_every`th iteration,
        since on the first every ratio is 1, so KL-Cov does not act."""
        every, (round_, update) = self.config.record_every, divmod(step - 1, self.config.updates_per_iteration)
        return bool(every) and update == self.config.updates_per_iteration - 1 and round_ % every == 0

    def checkpoint(self) -> None:
        if self.writer is None:
            return
        updates, optimizer = self.updates, self.updates.optimizer.state_dict()["state"]
        saved = Saved(
            self.policy.trainable(), optimizer, self.fingerprint, self.step, self.iteration, self.position,
            updates.moved, updates.control,
        )  # fmt: skip
        self.writer.checkpoint(self.step, saved.to_bytes(), self.save_policy)
        self.saved_step = self.step

    def save_policy(self, folder: Path) -> None:
        save_policy(self.policy, folder)
