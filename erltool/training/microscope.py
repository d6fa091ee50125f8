"""The microscope: which tokens of one update spend the entropy, and what it costs to spare them.

At one policy it takes many batches as the run would. For each criterion and dose it makes the step that the run would
make without the tokens that the criterion puts first (controls/dose.py), measures it on fresh responses of the policy,
and takes it back:

    entropy     exact entropy after the step minus before, mean over the contexts of a fresh batch, nats
    reward      importance-weighted: mean of (pi_after(response) / pi_before(response) - 1) (R - mean R of the group's
                other responses) on the same batch, an unbiased estimate of the change of the expected reward

One fresh batch says little about a reward. So both are also measured to first order on all fresh batches together: the
step times the gradient of entropy and of reward there. Prices are of these. A step is -learning_rate * g / (sqrt(mean
g^2) + eps), with g the batch's gradient and the mean over all batches. That is Adam's step without momentum, which
spreads it over the following updates.
"""

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from erltool.controls.dose import CRITERIA, by_dose
from erltool.entropy.advantages import group_advantages
from erltool.entropy.covariance import masked_mean, token_covariance
from erltool.entropy.tokens import Tokens
from erltool.errors import ErltoolError
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts, response_statistics
from erltool.policies.sampling import sample_groups
from erltool.runs.folder import Run
from erltool.runs.microscope import BLOCKS, COLUMNS, NONE, QUADRANTS, Microscope
from erltool.tasks.task import Task, load_task, rewards_of
from erltool.training.config import TrainConfig
from erltool.training.loop import policies_at
from erltool.training.start import config_of

_log = logging.getLogger(__name__)

AT = 0.0, 0.25, 0.5, 0.75
SHARES = 0.05, 0.1, 0.2, 0.4
ORACLES = {
    "oracle": "largest fall of the entropy by each token's own gradient, through all weights",
    "oracle-spare": "the same minus its progress, both as fractions of the batch's",
}
"""Criteria that no control can use, because they need the gradients of other responses: what could be reached."""
EPS = 1e-8  # Adam's
EXACT_AT = 0.2  # the share at which steps are also measured exactly, and by new responses


@dataclass(frozen=True)
class Batch:
    """Responses to an update's prompts, and their rewards (B,)."""

    rollouts: Rollouts
    rewards: Tensor


def examine(
    policy: Policy,
    task: Task,
    config: TrainConfig,
    *,
    batches: int = 50,
    shares: Sequence[float] = SHARES,
    criteria: Sequence[str] = (*CRITERIA, *ORACLES),
    sampled: int = 4,
    seed: int = 0,
    at: tuple[float, int] = (math.nan, 0),
    progress: Callable[[int], object] = lambda done: None,
) -> Microscope:
    """Makes and measures the steps of `batches` updates with the run's configuration, at the policy as it is.

    Exact changes are those of the whole update and of each criterion at share 0.2. For the first `sampled` batches
    these also get 4 updates' worth of new responses. `at` is the fraction of the entropy that is spent and the number
    of updates so far, for the rows. The policy is left as it was. `progress` is called with the number of batches done
    since its last call. The seed decides all numbers. Raises ErltoolError for fewer batches than blocks, an unknown
    criterion, and where no batch has a gradient.
    """
    if batches < BLOCKS:
        raise ErltoolError(f"microscope: {batches} batches; give at least {BLOCKS}, for the intervals")
    if unknown := [c for c in criteria if c not in (*CRITERIA, *ORACLES)]:
        raise ErltoolError(f"microscope: criterion {unknown[0]!r} is not known: {', '.join((*CRITERIA, *ORACLES))}")
    bench = _Bench(policy, task, config, seed)
    every = bench.sample(2 * batches)
    updates, fresh = every[:batches], every[batches:]
    bench.learn(updates)
    bench.pool(fresh)
    rows: list[dict] = []
    for number, (update, other) in enumerate(zip(updates, fresh, strict=True)):
        of_batch = bench.cases(update, other, criteria, shares, number < sampled)
        rows += [{"at": at[0], "run_step": at[1], "batch": number} | row for row in of_batch]
        progress(1)
    return Microscope(pd.DataFrame(rows, columns=list(COLUMNS)))


def examine_run(
    run: Run, at: Sequence[float] = AT, trust_remote_code: bool = False, **settings
) -> Iterator[Microscope]:
    """`examine` at the policies of a run that have spent these fractions of its entropy, in ascending order.

    The run is made again up to the last of them (`policies_at`), so it needs no checkpoint. A warning says where that
    does not give the recorded entropy. `settings` are those of `examine`. Raises ErltoolError for a run whose entropy
    did not fall.
    """
    config, steps = config_of(run, trust_remote_code), spent_at(run, sorted(at))
    task = load_task(config.task)
    for share, (step, policy, metrics) in zip(sorted(at), policies_at(config, steps), strict=True):
        recorded = run.metrics.loc[run.metrics["step"] == step, "policy_entropy"]
        if metrics and len(recorded) and abs(metrics["policy_entropy"] - recorded.iloc[0]) > 0.01 * recorded.iloc[0]:
            _log.warning(
                "run %s: made again, update %d has entropy %.4f, and it was %.4f: another machine or version made it",
                run.name, step, metrics["policy_entropy"], recorded.iloc[0],
            )  # fmt: skip
        yield examine(policy, task, config, at=(share, step), **settings)


def spent_at(run: Run, shares: Sequence[float], smooth: int = 5) -> list[int]:
    """The updates after which a run has first spent these fractions of its whole fall of entropy; 0 for 0. Entropies
    are means of `smooth` iterations. Raises ErltoolError where the entropy did not fall."""
    by_iteration = run.metrics.groupby("iteration").agg({"policy_entropy": "mean", "step": "max"})
    entropy = by_iteration["policy_entropy"].rolling(smooth, min_periods=1).mean()
    fall = entropy.iloc[0] - entropy.iloc[-1]
    if not fall > 0:
        raise ErltoolError(f"microscope: the entropy of run {run.name} did not fall; give another run")
    spent = (entropy.iloc[0] - entropy) / fall
    return [int(by_iteration.loc[spent[spent >= share].index[0], "step"]) if share > 0 else 0 for share in shares]


class _Bench:
    """A policy whose weights are moved, measured and put back."""

    def __init__(self, policy: Policy, task: Task, config: TrainConfig, seed: int):
        self.policy, self.task, self.config = policy, task, config
        self.parameters = list(policy.trainable().values())
        self.weights = [p.detach().clone() for p in self.parameters]
        self.draws = torch.Generator(policy.device).manual_seed(seed)
        self.prompts = np.random.default_rng(seed)

    # --- responses ------------------------------------------------------------------------------------

    def responses(self, prompts: np.random.Generator, count: int, draws: torch.Generator) -> Batch:
        """A group of responses to each of `count` training problems."""
        config, size = self.config, self.config.group_size
        problems = [self.task.train[i] for i in prompts.integers(len(self.task.train), size=count)]
        rollouts = sample_groups(
            self.policy, [p.prompt for p in problems], size, max_response_tokens=config.max_response_tokens,
            temperature=config.temperature, top_p=config.top_p, batch=config.sampling_batch, generator=draws,
        )  # fmt: skip
        rewards = rewards_of(self.task, [p for p in problems for _ in range(size)], rollouts.responses)
        return Batch(rollouts, torch.tensor(rewards, device=self.policy.device))

    def sample(self, count: int) -> list[Batch]:
        """The responses of `count` updates, sampled an iteration's worth at a time."""
        per_update, at_once = self.config.prompts_per_update, self.config.updates_per_iteration
        batches: list[Batch] = []
        while len(batches) < count:
            whole = self.responses(self.prompts, at_once * per_update, self.draws)
            rows = torch.arange(len(whole.rollouts)).chunk(at_once)
            batches += [Batch(whole.rollouts.take(r), whole.rewards[r]) for r in rows]
        return batches[:count]

    def tokens(self, batch: Batch) -> Tokens:
        """A batch's tokens, with gradient, on policy: every ratio is 1."""
        known = response_statistics(self.policy, batch.rollouts, self.config.temperature)
        mask = batch.rollouts.response_mask
        advantages = group_advantages(batch.rewards, self.config.group_size, self.config.advantages)
        return Tokens(
            old_log_probs=known.log_probs.detach(), advantages=advantages[:, None].expand(mask.shape),
            response_mask=mask, rewards=batch.rewards, group_size=self.config.group_size, **known._asdict(),
        )  # fmt: skip

    @torch.no_grad()
    def statistics(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy (B, T)."""
        return response_statistics(self.policy, batch.rollouts, self.config.temperature)[:2]

    # --- gradients and steps, each one vector over all parameters -------------------------------------

    def gradient(self, of: Tensor, weights: Tensor) -> Tensor:
        """Gradient (P,) of sum(weights * of); the graph stays."""
        if not of.requires_grad:
            return torch.zeros(sum(p.numel() for p in self.parameters), device=of.device)
        found = torch.autograd.grad(of, self.parameters, weights, retain_graph=True, allow_unused=True)
        return torch.cat([
            (torch.zeros_like(p) if g is None else g).flatten().float()
            for p, g in zip(self.parameters, found, strict=True)
        ])  # fmt: skip

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Those of the mean entropy and of the surrogate, whose step is the update's."""
        tokens = self.tokens(batch)
        share = tokens.response_mask / tokens.response_mask.sum()
        return self.gradient(tokens.known("token_entropy"), share), self.gradient(
            tokens.log_probs, tokens.advantages * share
        )

    def learn(self, updates: Sequence[Batch]) -> None:
        """Finds the length of each parameter's step, and the oracles' directions, from the updates themselves."""
        pairs = [self.gradients(batch) for batch in updates]
        entropy, surrogate = (torch.stack(g).mean(0) for g in zip(*pairs, strict=True))
        if not surrogate.any():
            raise ErltoolError("microscope: no batch has a gradient: the rewards of every group are equal")
        squares = torch.stack([g.square() for _, g in pairs]).mean(0)
        self.lengths = self.config.learning_rate / (squares.sqrt() + EPS)
        self.directions = {"entropy": self.lengths * entropy, "reward": self.lengths * surrogate}

    def pool(self, fresh: Sequence[Batch]) -> None:
        """Finds gradients (blocks, P) of the mean entropy and of the expected reward, from blocks of fresh batches."""
        shape = BLOCKS, len(self.lengths)
        self.fresh = {name: torch.zeros(shape, device=self.lengths.device) for name in self.directions}
        for number, batch in enumerate(fresh):
            block, tokens = number % BLOCKS, self.tokens(batch)
            held = len(range(block, len(fresh), BLOCKS))
            share = tokens.response_mask / tokens.response_mask.sum()
            above = self.above_others(batch).flatten()[:, None] * tokens.response_mask / len(batch.rewards)
            self.fresh["entropy"][block] += self.gradient(tokens.known("token_entropy"), share) / held
            self.fresh["reward"][block] += self.gradient(tokens.log_probs, above.float()) / held

    def above_others(self, batch: Batch) -> Tensor:
        """(prompts, group) reward minus the mean of the group's other responses."""
        size, rewards = self.config.group_size, batch.rewards.double().view(-1, self.config.group_size)
        return rewards - (rewards.sum(-1, keepdim=True) - rewards) / (size - 1)

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

    # --- one batch ------------------------------------------------------------------------------------

    def cases(
        self, update: Batch, fresh: Batch, criteria: Sequence[str], shares: Sequence[float], sampled: bool
    ) -> Iterator[dict]:
        """Each case's row."""
        with torch.no_grad():
            tokens = self.tokens(update)
        rows = self.live(update)
        differentiated = self.tokens(Batch(update.rollouts.take(rows.cpu()), update.rewards[rows])).log_probs
        mask, dose, before = tokens.response_mask, tokens.dose, self.statistics(fresh)
        seed = int(self.prompts.integers(2**62))
        scores = {c: CRITERIA[c](tokens) for c in criteria if c in CRITERIA}
        if set(criteria) & set(ORACLES):
            scores |= {c: s for c, s in self.influences(tokens, update).items() if c in criteria}
        for criterion, share in [(NONE, 0.0), *itertools.product(scores, shares)]:
            silenced = torch.zeros_like(mask)
            if criterion != NONE:
                order = torch.Generator(dose.device).manual_seed(seed)
                silenced = by_dose(scores[criterion].masked_fill(~mask, -torch.inf), dose, share, order)
            weights = (tokens.advantages * mask / mask.sum()).masked_fill(silenced, 0)
            step = self.lengths * self.gradient(differentiated, weights[rows, : differentiated.shape[1]])
            row = {
                "criterion": criterion, "share": share, "dose": float(dose[silenced].sum() / dose.sum().clamp(min=EPS)),
                "tokens": float(silenced.sum() / mask.sum()), **_quadrants(tokens, silenced),
            }  # fmt: skip
            if criterion == NONE or share == EXACT_AT:
                with self.moved(step):
                    row |= self.measured(fresh, before)
                    row |= self.correlations(update, tokens) if criterion == NONE else {}
                    row |= self.sampled(seed) if sampled else {}
            for what, blocks in self.fresh.items():
                row |= {f"{what}_{block}": float(value) for block, value in enumerate(blocks @ step)}
            yield row

    def live(self, batch: Batch) -> Tensor:
        """Responses (n,) of groups with different rewards: no other has a gradient. Those of the first group if none is
        such."""
        groups = batch.rewards.view(-1, self.config.group_size)
        spread = groups.amax(-1) > groups.amin(-1)
        spread[0] |= ~spread.any()
        return spread.repeat_interleave(self.config.group_size).nonzero()[:, 0]

    def influences(self, tokens: Tokens, update: Batch) -> dict[str, Tensor]:
        """The oracles' scores: what each token's own step does to entropy and reward, by central differences of its
        log-prob along their gradients."""
        effects = {}
        for name, direction in self.directions.items():
            with self.moved(direction):
                up = self.statistics(update)[0]
            with self.moved(-direction):
                down = self.statistics(update)[0]
            effects[name] = (tokens.advantages * (up - down) / 2).masked_fill(~tokens.response_mask, 0)
        dose, spent, gained = tokens.dose.clamp(min=1e-12), effects["entropy"], effects["reward"]
        spare = -spent / spent.sum().abs().clamp(min=EPS) - gained / gained.sum().abs().clamp(min=EPS)
        return {"oracle": -spent / dose, "oracle-spare": spare / dose}

    def correlations(self, update: Batch, before: Tokens) -> dict[str, float]:
        """Of the update's contexts, after its step: those in which a token has a gradient."""
        mask = before.response_mask
        context = _contexts(update.rollouts)
        change = (self.statistics(update)[1] - before.known("token_entropy"))[mask]
        moved = _sums(context, before.dose[mask]) > 0
        measured = _sums(context, change) / _sums(context, torch.ones_like(change))
        covariance = token_covariance(before.advantages, before.log_probs, mask)
        found = {}
        for name, predicted in (("push", before.push), ("covariance", -covariance)):
            of_context = _sums(context, predicted[mask])
            pair = torch.stack([of_context[moved], measured[moved]]).double()
            varies = len(pair[0]) > 1 and bool((pair.std(1) > 0).all())
            found[f"{name}_correlation"] = float(torch.corrcoef(pair)[0, 1]) if varies else math.nan
        return found

    def measured(self, fresh: Batch, before: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Exact changes on a fresh batch."""
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


def _quadrants(tokens: Tokens, chosen: Tensor) -> dict[str, float]:
    """Fractions of the chosen tokens on each side of the means, as in runs/microscope.py."""
    mask, taken = tokens.response_mask, chosen.sum()
    rare, wrong = (x < masked_mean(x, mask) for x in (tokens.log_probs, tokens.advantages))
    sides = (rare & wrong, rare & ~wrong, ~rare & wrong, ~rare & ~wrong)
    return {name: float((chosen & side).sum() / taken) for name, side in zip(QUADRANTS, sides, strict=True)}


def _contexts(rollouts: Rollouts) -> Tensor:
    """Number of the context of each response token, (N,) in row-major order of the mask; tokens after the same prompt
    and the same earlier tokens share one."""
    known: dict[tuple, int] = {}
    lengths, numbers = rollouts.response_mask.sum(1).tolist(), []
    for prompt, ids, length in zip(rollouts.prompt_ids, rollouts.token_ids.tolist(), lengths, strict=True):
        numbers += [known.setdefault((*prompt, -1, *ids[:t]), len(known)) for t in range(length)]
    return torch.tensor(numbers, device=rollouts.token_ids.device)


def _sums(group: Tensor, values: Tensor) -> Tensor:
    """Sum of the values of each group."""
    return torch.zeros(int(group.max()) + 1, device=values.device).index_add(0, group, values)
