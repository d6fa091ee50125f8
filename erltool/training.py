"""GRPO on a group-sampled batch with a verifier's rewards, one entropy control, and nothing else.

Shao et al. 2024 (arXiv 2402.03300) with the controls of Cui et al. 2025 (arXiv 2505.22617). Left out: a value
network, reward models, a KL to the reference unless `ReferenceKL` asks for it, more than one device.

An iteration samples `prompts_per_iteration` groups and makes `updates_per_iteration` optimiser updates, each on
its own share of the groups. Every update looks at all its tokens first (log-probs, entropy, covariance, what
the control selects), then makes the gradient in micro-batches of any size with the same result. All random
draws come from generators seeded by (seed, purpose, iteration), so a run continues from a checkpoint exactly.
"""

import contextlib
import logging
import math
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from erltool.advantages import group_advantages
from erltool.alarms import Watch
from erltool.checkpoints import checkpoint_steps, was_ever_saved
from erltool.config import BASES, DEVICE, TEMPLATES, TrainConfig
from erltool.controls.base import Choice, reaches_zero_advantage
from erltool.controls.loss import control_loss
from erltool.covariance import token_covariance
from erltool.errors import Diverged, ErltoolError
from erltool.evaluate import accuracy
from erltool.loading import load_policy
from erltool.logprobs import entropy_changes
from erltool.plan import check_fits
from erltool.policy import Policy
from erltool.rollouts import Rollouts, concatenate, contexts, response_log_probs
from erltool.runs import Run, holds_run, read_run
from erltool.runwriter import RunWriter, check_place
from erltool.sampling import sample_groups
from erltool.saved import Saved, load_saved, read_saved, save_policy
from erltool.step import Described, Step, distinct_fraction, entropy_change_summary, measure, part_texts
from erltool.tasks import Problem, Task, load_task, rewards_of
from erltool.threads import Courtesy
from erltool.tokens import Tokens

_log = logging.getLogger(__name__)

PROMPTS, SAMPLING, CONTROL, EVALUATION, DROPOUT = range(5)  # purposes of random draws
SAMPLER_IS_EXACT = 1e-4  # nats; above, old log-probs are computed again by training's own forward
RESAMPLING_ROUNDS = 4  # of dynamic sampling
PROMPT_TOKENS = 128  # of a prompt, for the memory plan that is made before there is a tokenizer


def train(config: TrainConfig, out: str | Path | None = None, resume: bool = False) -> Iterator[Step]:
    """Trains, and yields a `Step` after every optimiser update.

    With `out` the run is written to that folder as it goes (runs.py); a folder that holds a run is refused
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


def configured_policy(config: TrainConfig, task: Task) -> Policy:
    """The policy that a configuration asks for, as it is before the first step.

    Raises ErltoolError before anything is loaded where its memory plan is above what is free.
    """
    check_fits(config, PROMPT_TOKENS)
    policy = load_policy(
        config.policy,
        base=config.base,
        dtype=config.dtype,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        gradient_checkpointing=config.gradient_checkpointing,
        compile=config.compile,
        trust_remote_code=config.trust_remote_code,
        device=config.device,
        seed=config.seed,
    )
    return policy.with_template(config.template, task.examples(config.shots))


def policy_for_evaluation(
    what: str, base: str = "none", template: str | None = None, device: str = "auto", trust_remote_code: bool = False
) -> tuple[Policy, TrainConfig | None]:
    """The policy of a run as it was last saved, with its configuration; or a policy as it is, and None.

    A run's adapter/ that is not of its newest checkpoint, as a kill or a full disk leaves it, is made again from that
    one, which is said in a warning. A policy without template of its own choosing is asked to reason and box where it
    has a chat template. A model's own code runs only with `trust_remote_code`, whatever a run's config.json says.
    Raises ErltoolError, also for a run that was cut before its first checkpoint.
    """
    _check_asked(base, template, device)
    run = Path(what)
    if not (run / "metrics.jsonl").is_file() and not holds_run(run):
        policy = load_policy(
            what, base=base, lora_rank=0, dtype="stored", device=device, trust_remote_code=trust_remote_code
        )
        chosen = template or ("boxed" if policy.tokenizer.chat_template else "none")
        return policy.with_template(chosen), None
    read = read_run(run)
    config = replace(config_of(read, trust_remote_code), device=device)
    if base not in ("none", config.base):
        raise ErltoolError(f"base={base}: run {what} was trained on base={config.base}; leave it out")
    if not was_ever_saved(run) and not checkpoint_steps(run):
        raise ErltoolError(f"run {what}: holds no adapter; it was cut before its first checkpoint, or recorded without")
    policy = configured_policy(config, load_task(config.task))
    _check_base(policy, read)
    load_saved(policy, run, config.control)
    if template:
        policy = policy.with_template(template, policy.template.shots)
    return policy, config


def _check_base(policy: Policy, run: Run) -> None:
    """Raises ErltoolError where the run's base has other weights now, and warns where that cannot be told: in another
    type, or quantised by another device, the same weights have other bytes."""
    was, known = run.made_by, run.made_by.get("policy_fingerprint")
    if not policy.has_adapter or known is None or known == policy.fingerprint():  # which reads all weights
        return
    if was.get("dtype") == str(policy.causal_lm.dtype) and not policy.quantised:
        raise ErltoolError(
            f"run {run.path}: its adapter was trained on other weights than those of {policy.source!r} now; "
            "restore the base that it was trained on, or train again"
        )
    _log.warning(
        "run %s: its base had other bytes when it was trained (%s on %s), so that its numbers may differ",
        run.path, was.get("dtype", "type unknown"), was.get("device", "a device unknown"),
    )  # fmt: skip


def config_of(run: Run, trust_remote_code: bool = False) -> TrainConfig:
    """The configuration that a run was trained with. Raises ErltoolError where its config.json has another form, and
    where it lets the model run code of its own, unless `trust_remote_code` says the same."""
    try:
        return TrainConfig.from_dict(run.config, trust_remote_code=trust_remote_code)
    except ErltoolError as e:
        raise ErltoolError(f"{run.path / 'config.json'}: {e}") from e


def _check_asked(base: str, template: str | None, device: str) -> None:
    """Raises ErltoolError, before a policy is loaded, for what no policy can be evaluated by."""
    for name, value, known in (("base", base, BASES), ("template", template, (None, "auto", *TEMPLATES))):
        if value not in known:
            raise ErltoolError(f"{name}={value!r}: must be {', '.join(filter(None, known))}")
    if not re.fullmatch(DEVICE, device):
        raise ErltoolError(f"device={device!r}: must be auto, cpu, cuda or cuda:NUMBER")


@dataclass(frozen=True)
class _Batch:
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
class _Scored:
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


class _Trainer:
    """State of a run between steps: policy, optimiser, how far it came, and the data position."""

    def __init__(self, config: TrainConfig, task: Task, policy: Policy):
        self.config, self.task, self.policy = config, task, policy
        self.parameters = list(policy.trainable().values())
        self.optimizer = torch.optim.AdamW(self.parameters, config.learning_rate, weight_decay=0.0, fused=True)
        self.fingerprint = policy.fingerprint()
        self.control = config.control  # a controller changes it from update to update
        self.step = self.iteration = self.position = 0
        self.clip = config.clip_eps_low, config.clip_eps_high
        self.writer: RunWriter | None = None
        self.saved_step = 0
        self.between_iterations = True
        self.watch = Watch()
        self.moved = False  # whether any gradient so far was not 0: until then Adam changes nothing

    # --- the algorithm ------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
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
        config = self.config
        measured = self.evaluate_if_due()
        self.between_iterations = False
        batch = self.sample()
        for update, rows in enumerate(torch.arange(len(batch.rollouts)).chunk(config.updates_per_iteration)):
            started, last = time.perf_counter(), update == config.updates_per_iteration - 1
            with self.dropout_draws():
                # Until the policy moves away from the sampling one, pi / pi_old is exactly 1, not about 1.
                scored = self.score(batch, rows, on_policy=update == 0 or not self.moved)
                if update == 0:
                    batch, measured["sampler_mismatch"] = self.with_exact_log_probs(batch, scored)
                choice = self.control.choose(scored.tokens, self.clip, self.generator(CONTROL, self.step))
                clipped = self.backward(scored, choice)
                step = self.optimise(scored, choice, clipped)
            self.step += 1
            self.iteration += last
            step.metrics.update(step=self.step, iteration=batch.iteration, zero_spread_fraction=batch.zero_spread)
            seconds = time.perf_counter() - started + batch.seconds / config.updates_per_iteration
            step.metrics["tokens_per_second"] = step.metrics["response_tokens"] / seconds
            step.metrics.update(measured)
            measured = {}
            if self.step == config.steps:
                step.metrics.update(self.evaluate_if_due(last=True))
            step = replace(step, alarms=self.watch.see(step.metrics))
            self.record(step)
            self.between_iterations = last
            if last and self.checkpoint_is_due():  # only once the step is on disk: it must not be ahead of the metrics
                self.checkpoint()
            yield step

    def sample(self) -> "_Batch":
        """An iteration's responses with their rewards and advantages."""
        config, started, generator = self.config, time.perf_counter(), self.generator(SAMPLING)
        kept: list[tuple[Rollouts, Tensor]] = []
        spread: list[bool] = []
        for _ in range(RESAMPLING_ROUNDS if config.dynamic_sampling else 1):
            kept.append(self.sample_round(generator))
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
        return _Batch(rollouts, rewards, advantages, zero_spread, self.iteration, time.perf_counter() - started)

    def sample_round(self, generator: torch.Generator) -> tuple[Rollouts, Tensor]:
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
            generator=generator,
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

    def score(self, batch: "_Batch", rows: Tensor, on_policy: bool) -> "_Scored":
        """What is known of the tokens of an update on these responses of the iteration."""
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
        return _Scored(part, tokens, live, on_policy)

    def live_rows(self, part: Rollouts, advantages: Tensor, on_policy: bool) -> Tensor:
        """Responses (B,) bool, on the CPU, that can get a gradient; the others are scored, but not differentiated.

        Those without spread are most of a trained policy's groups.
        """
        counted = torch.ones(len(part), dtype=torch.bool)
        if self.config.mask_truncated:
            counted = part.finished.cpu()
        return counted if reaches_zero_advantage(self.control, on_policy) else counted & (advantages != 0).cpu()

    def with_exact_log_probs(self, batch: "_Batch", first: "_Scored") -> tuple["_Batch", float]:
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

    def backward(self, scored: "_Scored", choice: Choice) -> Tensor:
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

    def optimise(self, scored: "_Scored", choice: Choice, clipped: Tensor) -> Step:
        """Measures an update whose gradient is there, and makes it."""
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
        if (describe := getattr(self.task, "describe", None)) is not None:
            described = Described.of(part, describe, texts)
            metrics |= described.measure(tokens, covariance)
        self.check_finite(metrics)
        change = self.make_update(part, metrics)
        return Step(
            metrics, part, tokens.rewards, tokens, covariance, choice.selected, texts, group_size, change, described
        )

    def make_update(self, part: Rollouts, metrics: dict[str, float]) -> tuple[Tensor, Tensor] | None:
        """The optimiser's step, and the controller's; returns the change of entropy, predicted and measured, (B, T)
        each, where that is due, and adds to `metrics` what is known only now."""
        self.moved |= metrics["grad_norm"] > 0
        before = self.contexts(part) if self.entropy_change_is_due() else None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if (controller := self.config.controller) is not None:
            metrics["control_value"] = controller.value(self.control)
            given, entropy = self.config.control, metrics["policy_entropy"]
            self.control = controller.after(self.control, given, self.step + 1, entropy)
        if before is None:
            return None
        change = self.entropy_change(part, *before)
        metrics.update(entropy_change_summary(*change, part.response_mask))
        return change

    def entropy_change_is_due(self) -> bool:
        every = self.config.entropy_change_every
        return bool(every) and self.iteration % every == 0

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

    @contextlib.contextmanager
    def dropout_draws(self):
        """Inside, what an adapter drops is decided by the seed and the step; outside nothing has changed."""
        if not self.config.lora_dropout:
            yield
            return
        with torch.random.fork_rng(), self.policy.dropping():
            torch.manual_seed(self.generator(DROPOUT, self.step).initial_seed())
            yield

    # --- random draws, all of them ------------------------------------------------------------------

    def generator(self, purpose: int, at: int | None = None) -> torch.Generator:
        """Generator of a purpose at an iteration (or step): nothing to save, nothing shared."""
        words = np.random.SeedSequence([self.config.seed, purpose, self.iteration if at is None else at])
        return torch.Generator(self.policy.device).manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))

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
        own = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": saved.optimizer, "param_groups": own})
        self.step, self.iteration, self.position = saved.step, saved.iteration, saved.position
        self.moved, self.control, self.saved_step = saved.moved, saved.control, saved.step
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
            self.optimizer.state_dict()["state"],
            self.fingerprint,
            self.step,
            self.iteration,
            self.position,
            self.moved,
            self.control,
        )
        self.writer.checkpoint(self.step, saved.to_bytes(), self.save_policy)
        self.saved_step = self.step

    def save_policy(self, folder: Path) -> None:
        save_policy(self.policy, folder)


def eval_problems(task: Task, count: int) -> list[Problem]:
    """The same held-out problems for every run, spread evenly over the task's own order."""
    at = np.linspace(0, len(task.held_out) - 1, min(count, len(task.held_out))).round().astype(int)
    return [task.held_out[i] for i in at]


def made_by(policy: Policy) -> dict:
    """Versions and machine that a run is made by, for config.json."""
    import bitsandbytes
    import peft
    import transformers

    import erltool
    from erltool.resources import commit

    return {
        "erltool": erltool.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "bitsandbytes": bitsandbytes.__version__,
        "device": torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "policy_fingerprint": policy.fingerprint(),
        "dtype": str(policy.causal_lm.dtype),
        "log_probs": str(policy.path),
    }
