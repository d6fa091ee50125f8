"""The microscope: which tokens of one update spend the entropy, and what it costs to spare them.

At one policy it takes many batches as the run would. For each criterion and dose it makes the step that the run would
make without control and without the tokens that the criterion puts first (controls/dose.py), measures it on fresh
responses of the policy, and takes it back:

    entropy     exact entropy after the step minus before, mean over the contexts of a fresh batch, nats
    reward      importance-weighted: mean of (pi_after(response) / pi_before(response) - 1) (R - mean R of the group's
                other responses) on the same batch, an unbiased estimate of the change of the expected reward

One fresh batch says little about a reward. So both are also measured to first order on all fresh batches together: the
step (bench.py) times the gradient of entropy and of reward there. Prices are of these.

Controls are asked in an iteration's last update, because many act only on what has moved since sampling: the policy is
first moved as far as the iteration's other updates move it without control. Their changes are to first order too, with
the gradients at the policy before the iteration.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from erltool.controls.base import Control, NoControl
from erltool.controls.dose import CRITERIA, Silence
from erltool.controls.loss import control_loss
from erltool.controls.paper import KLCov, RandomKL
from erltool.entropy.covariance import token_covariance
from erltool.entropy.tokens import Tokens
from erltool.errors import ErltoolError
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts
from erltool.runs.folder import Run
from erltool.runs.microscope import BASELINE, BLOCKS, COLUMNS, NONE, QUADRANTS, Microscope, quadrants
from erltool.tasks.task import Task, load_task
from erltool.training.bench import EPS, Bench, Examined, silenced_by
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
MOMENTUM = 0.9  # Adam's
EXACT_AT = 0.2  # the share at which steps are also measured exactly, and by new responses
Progress = Callable[[int], object]


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
    progress: Progress = lambda done: None,
) -> Microscope:
    """Makes and measures the steps of `batches` updates with the run's configuration, without its control, at the
    policy as it is.

    Exact changes are those of the whole update and of each criterion at share 0.2. For the first `sampled` batches
    these also get 4 updates' worth of new responses. `at` is the fraction of the entropy that is spent and the number
    of updates so far, for the rows. The policy is left as it was. `progress` is called with the number of batches done
    since its last call. The seed decides all numbers. Raises ErltoolError for fewer batches than blocks, an unknown
    criterion, a reward that is not finite, and where no batch has a gradient.
    """
    if unknown := [c for c in criteria if c not in (*CRITERIA, *ORACLES)]:
        raise ErltoolError(f"microscope: criterion {unknown[0]!r} is not known: {', '.join((*CRITERIA, *ORACLES))}")
    bench, updates, fresh = _bench(policy, task, config, batches, seed)
    rows = (
        _criteria(bench, update, other, criteria, shares, number < sampled)
        for number, (update, other) in enumerate(zip(updates, fresh, strict=True))
    )
    return _measurements(rows, at, progress)


def examine_controls(
    policy: Policy,
    task: Task,
    config: TrainConfig,
    controls: Mapping[str, Control],
    *,
    batches: int = 50,
    seed: int = 0,
    at: tuple[float, int] = (math.nan, 0),
    progress: Progress = lambda done: None,
) -> Microscope:
    """The same for controls, by name, in an iteration's last update.

    The case "none" is that update without control. Each control has a baseline case, BASELINE and its name: for KL-Cov
    its random selection, for others tokens silenced at random, as much dose as the control removed in this batch (none
    where it added some). A row's `dose` is what the control removed, as a fraction, below 0 for added; `tokens` and
    quadrants are of those that it selects. There are no exact changes. Errors as for `examine`, and for a control that
    needs a reference policy.
    """
    for name, control in controls.items():
        if "ref_log_probs" in control.needs:
            raise ErltoolError(f"microscope: control {name} needs a reference policy; leave it out")
    bench, updates, _ = _bench(policy, task, config, batches, seed)
    return _measurements(_controls(bench, updates, controls), at, progress)


def _bench(policy, task, config: TrainConfig, batches: int, seed: int) -> tuple[Bench, list[Examined], list[Examined]]:
    """The bench, ready to measure, and the batches of updates and of fresh responses."""
    if batches < BLOCKS:
        raise ErltoolError(f"microscope: {batches} batches; give at least {BLOCKS}, for the intervals")
    bench = Bench(policy, task, config, seed)
    every = bench.sample(2 * batches)
    bench.learn(every[:batches])
    bench.pool(every[batches:])
    return bench, every[:batches], every[batches:]


def _measurements(rows: Iterator[Iterator[dict]], at: tuple[float, int], progress: Progress) -> Microscope:
    """The rows of one batch after the other as a table."""
    table: list[dict] = []
    for number, of_batch in enumerate(rows):
        table += [{"at": at[0], "run_step": at[1], "batch": number} | row for row in of_batch]
        progress(1)
    return Microscope(pd.DataFrame(table, columns=list(COLUMNS)))


# --- along a run ----------------------------------------------------------------------------------------------------


def examine_run(
    run: Run,
    at: Sequence[float] = AT,
    controls: Mapping[str, Control] | None = None,
    trust_remote_code: bool = False,
    **settings,
) -> Iterator[Microscope]:
    """`examine`, or with `controls` `examine_controls`, at the policies of a run that have spent these fractions of its
    entropy, in ascending order.

    The run is made again up to the last of them (`policies_at`), so it needs no checkpoint. Warnings say where that
    does not give the recorded entropy, and that the steps leave out the run's own control. `settings` are those of
    `examine`. Raises ErltoolError for a run whose entropy did not fall.
    """
    config, steps = config_of(run, trust_remote_code), spent_at(run, sorted(at))
    task = load_task(config.task)
    if config.control != NoControl():
        _log.warning("run %s: the steps leave out its control, %s", run.name, config.control.name)
    for share, (step, policy, metrics) in zip(sorted(at), policies_at(config, steps), strict=True):
        recorded = run.metrics.loc[run.metrics["step"] == step, "policy_entropy"]
        if metrics and len(recorded) and abs(metrics["policy_entropy"] - recorded.iloc[0]) > 0.01 * recorded.iloc[0]:
            _log.warning(
                "run %s: made again, update %d has entropy %.4f, and it was %.4f: another machine or version made it",
                run.name, step, metrics["policy_entropy"], recorded.iloc[0],
            )  # fmt: skip
        if controls is None:
            yield examine(policy, task, config, at=(share, step), **settings)
        else:
            yield examine_controls(policy, task, config, controls, at=(share, step), **settings)


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


# --- criteria -------------------------------------------------------------------------------------------------------


def _criteria(
    bench: Bench, update: Examined, fresh: Examined, criteria: Sequence[str], shares: Sequence[float], sampled: bool
) -> Iterator[dict]:
    """The row of each criterion and share for one batch, after that of the whole update."""
    with torch.no_grad():
        tokens = bench.tokens(update)
    rows = bench.live(update)
    differentiated = bench.tokens(Examined(update.rollouts.take(rows.cpu()), update.rewards[rows])).log_probs
    mask, before = tokens.response_mask, bench.statistics(fresh)
    seed = int(bench.prompts.integers(2**62))
    scores = {c: CRITERIA[c](tokens) for c in criteria if c in CRITERIA}
    if set(criteria) & set(ORACLES):
        scores |= {c: s for c, s in _influences(bench, tokens, update).items() if c in criteria}
    for criterion, share in [(NONE, 0.0), *itertools.product(scores, shares)]:
        gone = torch.zeros_like(mask)
        if criterion != NONE:
            gone = silenced_by(scores[criterion], tokens, share, seed)
        weights = (tokens.advantages * mask / mask.sum().clamp(min=1)).masked_fill(gone, 0)
        step = bench.lengths * bench.gradient(differentiated, weights[rows, : differentiated.shape[1]])
        removed = tokens.dose[gone].sum() / tokens.dose.sum().clamp(min=EPS)
        row = {"criterion": criterion, "share": share, "dose": float(removed)} | _of_tokens(tokens, gone)
        if criterion == NONE or share == EXACT_AT:
            with bench.moved(step):
                row |= bench.measured(fresh, before)
                row |= _correlations(bench, update, tokens) if criterion == NONE else {}
                row |= bench.sampled(seed) if sampled else {}
        yield row | bench.first_order(step)


def _influences(bench: Bench, tokens: Tokens, update: Examined) -> dict[str, Tensor]:
    """The oracles' scores: what each token's own step does to entropy and reward, by central differences of its
    log-prob along their gradients."""
    effects = {}
    for name, direction in bench.directions.items():
        with bench.moved(direction):
            up = bench.statistics(update)[0]
        with bench.moved(-direction):
            down = bench.statistics(update)[0]
        effects[name] = (tokens.advantages * (up - down) / 2).masked_fill(~tokens.response_mask, 0)
    dose, spent, gained = tokens.dose.clamp(min=1e-12), effects["entropy"], effects["reward"]
    spare = -spent / spent.sum().abs().clamp(min=EPS) - gained / gained.sum().abs().clamp(min=EPS)
    return {"oracle": -spent / dose, "oracle-spare": spare / dose}


def _correlations(bench: Bench, update: Examined, before: Tokens) -> dict[str, float]:
    """Of the update's contexts, after its step: those in which a token has a gradient."""
    mask = before.response_mask
    context = _contexts(update.rollouts)[mask]
    change = (bench.statistics(update)[1] - before.known("token_entropy"))[mask]
    moved = _sums(context, before.dose[mask]) > 0
    measured = _sums(context, change) / _sums(context, torch.ones_like(change))
    covariance = token_covariance(before.advantages, before.log_probs, mask)
    found = {}
    for name, predicted in (("push", before.push), ("covariance", -covariance)):
        pair = torch.stack([_sums(context, predicted[mask])[moved], measured[moved]]).double()
        varies = len(pair[0]) > 1 and bool((pair.std(1) > 0).all())
        found[f"{name}_correlation"] = float(torch.corrcoef(pair)[0, 1]) if varies else math.nan
    return found


def _contexts(rollouts: Rollouts) -> Tensor:
    """Number of the context of each response token, (B, T); tokens after the same prompt and the same earlier tokens
    share one. 0 outside the mask."""
    known: dict[tuple, int] = {}
    mask = rollouts.response_mask
    numbers = [
        known.setdefault((*prompt, -1, *ids[:t]), len(known))
        for prompt, ids in zip(rollouts.prompt_ids, rollouts.response_ids, strict=True)
        for t in range(len(ids))
    ]
    filled = torch.zeros(mask.shape, dtype=torch.long, device=mask.device)
    return filled.masked_scatter(mask, torch.tensor(numbers, device=mask.device))


def _sums(group: Tensor, values: Tensor) -> Tensor:
    """Sum of the values of each group."""
    return torch.zeros(int(group.max()) + 1, device=values.device).index_add(0, group, values)


def _of_tokens(tokens: Tokens, chosen: Tensor) -> dict[str, float]:
    """Fraction of the response tokens that are chosen, and which quadrants they are in."""
    mask = tokens.response_mask
    every = quadrants(tokens.log_probs[mask].detach().cpu().numpy(), tokens.advantages[mask].cpu().numpy())
    side = every[chosen[mask].cpu().numpy()]
    found = {name: float((side == name).mean()) if len(side) else math.nan for name in QUADRANTS}
    return {"tokens": len(side) / max(len(every), 1)} | found


# --- controls -------------------------------------------------------------------------------------------------------


def _controls(bench: Bench, updates: list[Examined], controls: Mapping[str, Control]) -> Iterator[Iterator[dict]]:
    """Each batch's rows, asked as the last of the updates with which it was sampled."""
    at_once = bench.config.updates_per_iteration
    for start in range(0, len(updates), at_once):
        iteration = updates[start : start + at_once]
        steps = [bench.lengths * bench.surrogate(bench.tokens(batch)) for batch in iteration]
        for number, batch in enumerate(iteration):
            yield _of_batch(bench, batch, _moved_so_far(bench, steps[:number] + steps[number + 1 :]), controls)


def _moved_so_far(bench: Bench, steps: Sequence[Tensor]) -> Tensor:
    """How far Adam has moved the policy within an iteration after these steps. Its momentum has made only a part of
    them yet, and the rest of steps of earlier iterations, for which the mean step stands."""
    moved = torch.zeros_like(bench.lengths)
    for ago, step in enumerate(reversed(steps), 1):
        left = MOMENTUM**ago
        moved += (1 - left) * step + left * bench.directions["reward"]
    return moved


def _of_batch(bench: Bench, batch: Examined, before: Tensor, controls: Mapping[str, Control]) -> Iterator[dict]:
    """The row of each control and of its baseline for one batch, after the whole update's; `before` is how far the
    iteration's other updates have moved the policy."""
    seed = int(bench.prompts.integers(2**62))
    old_log_probs, old_entropy = bench.statistics(batch)
    with bench.moved(before):
        tokens = bench.tokens(batch)._replace(old_log_probs=old_log_probs, old_token_entropy=old_entropy)
        whole, full = _asked(bench, tokens, NoControl(), seed)
        rows = [{"criterion": NONE, "dose": 0.0} | whole]
        for name, control in controls.items():
            row, left = _asked(bench, tokens, control, seed)
            removed = 1 - left / full if full else 0.0
            baseline, still = _asked(bench, tokens, _baseline(control, removed), seed)
            rows.append({"criterion": name, "dose": removed} | row)
            rows.append({"criterion": BASELINE + name, "dose": 1 - still / full if full else 0.0} | baseline)
    return iter(rows)


def _baseline(control: Control, removed: float) -> Control:
    """The random selection that a control is compared with."""
    if isinstance(control, KLCov):
        return RandomKL(control.fraction, control.coef, control.estimator, control.dead_zone)
    return Silence("random", min(max(removed, 0.0), 1.0))


def _asked(bench: Bench, tokens: Tokens, control: Control, seed: int) -> tuple[dict, float]:
    """What a control's step does, and the dose that it leaves."""
    clip = bench.config.clip_eps_low, bench.config.clip_eps_high
    choice = control.choose(tokens, clip, torch.Generator(tokens.log_probs.device).manual_seed(seed))
    loss = control_loss(tokens, choice)
    step = -bench.lengths * bench.gradient(loss.loss, torch.ones((), device=loss.loss.device))
    left = tokens._replace(advantages=choice.advantages).dose.masked_fill(choice.dropped | loss.clipped, 0)
    return {"share": 0.0, **_of_tokens(tokens, choice.selected), **bench.first_order(step)}, float(left.sum())
