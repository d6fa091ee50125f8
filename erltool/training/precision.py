"""The precision gauge: how exactly a policy's log-probs are known, and which share of KL-Cov's penalty is rounding.

A number type, a 4-bit base, the batch in which a response is scored, and an adapter added to its base all change a
token's log-prob a little. Part of that is another policy (type, base), which trains like any other. The rest is noise:
two log-probs of the same policy that differ. A ratio pi / pi_old contains it, and KL-Cov's |log ratio| has gradient
+-coef however small the difference is. So the gauge makes one update, and measures the log ratio of the next update's
tokens twice: as they are, and in fp32 with the same weights before and after. Their difference is noise. With the
weights put back, the same batch has the same log-probs, bit for bit; but after the smallest change of the weights every
rounding falls anew, so a ratio is noisy even where both log-probs come from the same forward pass.
"""

import math
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from erltool.controls.paper import KLCov
from erltool.errors import ErltoolError
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts
from erltool.tasks.task import Task, load_task
from erltool.training.config import TrainConfig
from erltool.training.loop import _Trainer
from erltool.training.start import configured_policy
from erltool.training.update import Batch, Updater

ALONE = 16  # responses that are scored one by one
CHOSEN = 0.2  # KL-Cov's fraction here: the tokens of highest covariance
# KL-Cov's tokens on which its penalty is measured, and the most iterations sampled to have so many. A few tokens with
# much noise make most of its share: on 46 tokens of SmolLM2 three seeds gave 3, 17 and 71 %.
TOKENS, ITERATIONS = 500, 12
LITTLE = 0.1  # share of the penalty below which noise does not matter


@dataclass(frozen=True)
class Difference:
    """Sizes of the differences between two log-probs of the same tokens, nats."""

    what: str
    mean: float
    p99: float
    largest: float


@dataclass(frozen=True)
class Penalty:
    """KL-Cov's penalty on its tokens in second updates of iterations."""

    old: str  # where the old log-probs come from
    moved: float  # mean |log ratio| in fp32, nats
    noise: float  # mean |log ratio as computed - the same in fp32|, nats; NaN where fp32 does not fit into memory
    k1: float
    """size of the noise over size of the computed log ratio, each summed; above 1 where they cancel"""
    k2: float
    """the same of squares"""
    zone: float
    """nats: the noise of 99 % of these tokens is smaller"""
    outside: float
    """k2 again, of the tokens with larger computed log ratios; NaN where there are none"""
    tokens: int
    """number of tokens measured"""


@dataclass(frozen=True)
class Precision:
    """What the gauge measured. Printing it gives a table of at most 79 columns."""

    differences: tuple[Difference, ...]
    penalties: tuple[Penalty, ...]

    @property
    def remedy(self) -> str:
        """What to do about the noise in KL-Cov's penalty: here, and in a trainer that takes the sampler's log-probs."""
        sampler, ours = (_remedy(p) for p in self.penalties)
        return f"Here {ours}.\nA trainer whose old log-probs are the sampler's: {sampler}."

    def __str__(self) -> str:
        lines = [f"{'log-probs of the same tokens, nats':46}{'mean':>10}{'99 %':>10}{'largest':>11}"]
        lines += [f"{d.what:46}{d.mean:>10.1e}{d.p99:>10.1e}{d.largest:>11.1e}" for d in self.differences]
        head = "KL-Cov, second update; old log-probs"
        lines += ["", f"{head:38}{'moved':>8}{'noise':>8}{'k1':>5}{'k2':>5}{'zone':>7}{'outside':>8}"]
        lines += [
            f"{p.old:38}{p.moved:>8.2g}{p.noise:>8.2g}{p.k1:>5.0%}{p.k2:>5.0%}{p.zone:>7.1g}{p.outside:>8.0%}"
            for p in self.penalties
        ]
        lines.append("(moved: in fp32; k1, k2: noise as a share of the penalty; it may cancel; zone:")
        lines.append(f"99 % of the noise is smaller; outside: k2 beyond it; {self.penalties[0].tokens} tokens)")
        return "\n".join(lines + [line for text in self.remedy.splitlines() for line in textwrap.wrap(text, 79)])


def _remedy(penalty: Penalty) -> str:
    if math.isnan(penalty.noise):
        return "the noise is not known, because the policy does not fit into memory in fp32"
    if penalty.k1 < LITTLE:
        return "the penalty is of what moved; k1, k2 and k3 all do"
    if penalty.k2 < LITTLE:
        return "use k2 or k3, quadratic near 0, where k1 takes rounding for movement"
    if penalty.outside < LITTLE:
        return f"use k2 or k3 with dead_zone={penalty.zone:.2g}, beyond which the penalty is of what moved"
    return "use fp32, or Clip-Cov, which has no such penalty"


def gauge(config: TrainConfig) -> Precision:
    """Measures a policy's precision; nothing is kept.

    Its own update is one iteration's first. The penalty is measured on the responses that the untrained policy gives in
    as many iterations as `TOKENS` of KL-Cov's tokens need, at most `ITERATIONS`. Everything else is of one iteration.
    Differences of type and base are those of the untrained policy against the same in fp32 and without quantisation,
    where these fit into memory. Raises ErltoolError for a configuration without adapter or with one update per
    iteration, and where no group of the iteration has different rewards, so that no update moves the policy.
    """
    if not config.lora_rank or config.updates_per_iteration < 2:
        raise ErltoolError("precision: needs lora_rank above 0 and updates_per_iteration of at least 2; set them")
    config = replace(config, eval_every=0, record_every=0)
    task = load_task(config.task)
    trainer = _Trainer(config, task, configured_policy(config, task))
    updates, batch = trainer.updates, trainer.sample()
    scores = score(updates, batch.rollouts)
    differences = [_difference("sampler against training's forward", batch.rollouts.log_probs, scores, batch.rollouts)]
    alone = batch.rollouts.take(range(min(ALONE, len(batch.rollouts))))
    one_by_one = torch.zeros_like(alone.log_probs)
    for row in range(len(alone)):
        one = alone.take([row])
        one_by_one[row, : one.token_ids.shape[1]] = score(updates, one)[0]
    together = scores[: len(alone), : alone.token_ids.shape[1]]
    differences.append(_difference("a response alone against in its batch", one_by_one, together, alone))
    differences += _other_policies(config, task, batch.rollouts, scores)
    penalties = _penalties(updates, [batch, *_more(trainer, batch)], task)
    moved = score(updates, batch.rollouts)
    with warnings.catch_warnings():  # peft warns of what is measured here
        warnings.simplefilter("ignore", UserWarning)
        trainer.policy.model.merge_adapter()  # type: ignore[operator]  # a PeftModel's
    merged = score(updates, batch.rollouts)
    differences.append(_difference("adapter added to its base, after one update", merged, moved, batch.rollouts))
    return Precision(tuple(differences), penalties)


@torch.no_grad()
def score(updates: Updater, rollouts: Rollouts) -> Tensor:
    """Log-probs (B, T) in the configuration's micro-batches, without gradient."""
    return updates.statistics(rollouts, torch.ones(len(rollouts), dtype=torch.bool)).log_probs.detach()


def _difference(what: str, a: Tensor, b: Tensor, rollouts: Rollouts) -> Difference:
    size = (a - b).abs()[rollouts.response_mask].double()
    return Difference(what, float(size.mean()), float(size.quantile(0.99)), float(size.max()))


def _other_policies(config: TrainConfig, task: Task, rollouts: Rollouts, scores: Tensor) -> Iterator[Difference]:
    """Differences from the untrained policy without quantisation, and from that in fp32. Both have an adapter that adds
    nothing yet."""

    def scored(**changes) -> tuple[Policy, Tensor] | None:
        try:
            policy = configured_policy(replace(config, **changes), task)
        except ErltoolError:  # it does not fit
            return None
        return policy, score(Updater(config, policy, None), rollouts)

    dense = (None, scores) if config.base == "none" else scored(base="none")
    if config.base != "none" and dense is not None:
        yield _difference(f"{config.base} against the weights as they are", scores, dense[1], rollouts)
    exact = scored(base="none", dtype="fp32")
    if dense is not None and exact is not None:
        kind = "the computing type against fp32"
        yield _difference(kind, dense[1], exact[1], rollouts)


def _more(trainer: _Trainer, batch: Batch) -> Iterator[Batch]:
    """The next iterations' responses of the same policy, as many as `TOKENS` need."""
    each = CHOSEN * int(batch.rollouts.response_mask.sum()) / trainer.config.updates_per_iteration
    for iteration in range(1, min(math.ceil(TOKENS / each), ITERATIONS)):
        trainer.iteration = iteration  # its draws follow from it
        yield trainer.sample()


def _penalties(updates: Updater, batches: list[Batch], task: Task) -> tuple[Penalty, ...]:
    """KL-Cov's penalty in the second update, with old log-probs of the sampler and as erltool takes them; the policy
    stays moved."""
    before = [p.detach().clone() for p in updates.parameters]
    halves = [torch.arange(len(b.rollouts)).chunk(updates.config.updates_per_iteration)[:2] for b in batches]
    ours = []
    for batch, (first, _) in zip(batches, halves, strict=True):
        with torch.no_grad():
            ours.append(updates.with_sampling_policy(batch, updates.score(batch, first, True))[0])
    scored = updates.score(batches[0], halves[0][0], True)
    choice = updates.choose(scored)
    updates.optimise(scored, choice, updates.backward(scored, choice), False)
    if not updates.moved:
        raise ErltoolError("precision: no group has different rewards, so nothing moves; use an easier task or shots")
    chosen: list[Tensor] = []
    rollouts = [batch.rollouts.take(second) for batch, (_, second) in zip(batches, halves, strict=True)]
    ratios: dict[str, list[Tensor]] = {"of the sampler": [], "as erltool takes them": []}
    for own, sampled, (_, second) in zip(ours, rollouts, halves, strict=True):
        with torch.no_grad():
            tokens = updates.score(own, second, False).tokens
        chosen.append(KLCov(CHOSEN).choose_tokens(tokens, tokens.response_mask, None))
        for found, old in zip(ratios.values(), (sampled.log_probs, tokens.old_log_probs), strict=True):
            found.append((tokens.log_probs - old)[chosen[-1]])
    moves = _in_fp32(updates, task, rollouts, before)
    moved = torch.cat([move[tokens] for move, tokens in zip(moves, chosen, strict=True)]).double()
    penalties = []
    for name, found in ratios.items():
        computed = torch.cat(found).double()
        noise = computed - moved
        zone = float(noise.abs().quantile(0.99))
        outside = computed.abs() > zone
        penalties.append(
            Penalty(
                old=name,
                moved=float(moved.abs().mean()),
                noise=float(noise.abs().mean()),
                k1=_share(noise, computed, 1),
                k2=_share(noise, computed, 2),
                zone=zone,
                outside=_share(noise[outside], computed[outside], 2),
                tokens=len(noise),
            )
        )
    return tuple(penalties)


def _share(noise: Tensor, computed: Tensor, power: int) -> float:
    """Size of the noise over size of what was computed, each raised to the power and summed; NaN where that is 0."""
    return float(noise.abs().pow(power).sum() / computed.abs().pow(power).sum()) if computed.any() else math.nan


def _in_fp32(updates: Updater, task: Task, batches: list[Rollouts], before: list[Tensor]) -> list[Tensor]:
    """How far the log-probs (B, T) of each batch move from the weights `before` to the policy's, computed in fp32 on
    the same base; NaN where that does not fit into memory."""
    config = replace(updates.config, dtype="fp32")
    try:
        exact = Updater(config, configured_policy(config, task), None)
    except ErltoolError:
        return [torch.full_like(rollouts.log_probs, math.nan) for rollouts in batches]
    log_probs = []
    for weights in (before, updates.parameters):
        for p, w in zip(exact.parameters, weights, strict=True):
            p.data.copy_(w)
        log_probs.append([score(exact, rollouts) for rollouts in batches])
    return [new - old for old, new in zip(*log_probs, strict=True)]
