"""Checks of the lessons' exercises, which name the learner's mistake: `workshop.check_NAME(your_function)`.

The exercises (exercise.py) stand in the order of the lessons. The lesson says what to write, and in how many minutes.
`workshop.steered_runs` compares runs that participants steered by hand (steered.py).
"""

import math
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from erltool.controls.loss import policy_loss
from erltool.entropy import bandit
from erltool.entropy.advantages import group_advantages
from erltool.entropy.covariance import group_covariance, masked_mean, response_mean, token_covariance
from erltool.entropy.log_probs import token_log_probs
from erltool.entropy.tokens import token_budget, top_tokens
from erltool.lessons.exercise import Exercise
from erltool.lessons.steered import steered_runs as steered_runs
from erltool.runs.compare import paired_difference


def _t(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


check_law = Exercise(
    lambda entropy, a, b: -a * math.exp(entropy) + b,
    {"at entropy 0.5": (0.5, 0.35, 0.73), "with nothing left to spend": (0.0, 0.35, 0.73)},
    {
        "the law is taken to be linear in H, without the exponential": lambda h, a, b: -a * h + b,
        "a has the wrong sign, so that entropy adds to accuracy": lambda h, a, b: a * math.exp(h) + b,
        "the exponential falls with H instead of rising": lambda h, a, b: -a * math.exp(-h) + b,
    },
)


def _without_epsilon(rewards, group_size):
    groups = rewards.view(-1, group_size)
    return ((groups - groups.mean(-1, keepdim=True)) / groups.std(-1, keepdim=True)).flatten()


check_advantages_of = Exercise(
    group_advantages,
    {"two groups": (_t(1, 0, 0, 1, 0, 0, 0, 1), 4), "a group without spread": (_t(1, 1, 1, 1, 1, 0, 0, 0), 4)},
    {
        "nothing is divided by the standard deviation, as in Dr. GRPO": partial(group_advantages, estimator="dr_grpo"),
        "the standard deviation divides by n instead of n - 1": lambda r, n: (
            group_advantages(r, n) * (n / (n - 1)) ** 0.5
        ),
        "rewards are scaled over all groups together": partial(group_advantages, estimator="reinforce++"),
        "the divisor has no small epsilon, so that a group without spread is 0/0": _without_epsilon,
    },
)

# Four responses of 3, 2, 1 and 3 tokens. The padding holds large values, which change any mean that includes them.
_A = _t(1.5, -0.5, 1.0, -1.0)
_LOG_PROBS = _t([-0.1, -0.4, -2.0], [-0.3, -3.0, -9.0], [-0.2, -9.0, -9.0], [-1.5, -0.7, -0.1])
_OLD = _LOG_PROBS - _t([0.5, -0.5, 0.1], [0.4, -0.6, 2.0], [-0.4, 2.0, -2.0], [0.3, -0.7, 0.05])
_MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)

check_covariance_of = Exercise(
    token_covariance,
    {"responses of 3, 2, 1 and 3 tokens": (_A, _LOG_PROBS, _MASK)},
    {
        "the means include the padding": lambda a, x, m: (x - x.mean()) * (a - a.mean())[:, None] * m,
        "nothing is centred": lambda a, x, m: x * a[:, None] * m,
        "each response is centred on its own mean, from which its one advantage never differs": lambda a, x, m: 0 * x,
        "the mean advantage counts responses instead of tokens": lambda a, x, m: (
            (x - masked_mean(x, m)) * (a - a.mean())[:, None] * m
        ),
        "padding is left in the result": lambda a, x, m: (
            (x - masked_mean(x, m)) * (a[:, None] - masked_mean(a[:, None].expand(m.shape), m))
        ),
    },
)


def _loss(x, old, a, m, eps, worse=torch.maximum, average=masked_mean):
    ratio = (x - old).exp()
    return average(worse(-a[:, None] * ratio, -a[:, None] * ratio.clamp(1 - eps, 1 + eps)), m)


check_clipped_loss = Exercise(
    lambda x, old, a, m, eps: policy_loss(x, old, a, m, clip=(eps, eps)).loss,
    {"after an update": (_LOG_PROBS, _OLD, _A, _MASK, 0.2), "at ratio 1": (_LOG_PROBS, _LOG_PROBS, _A, _MASK, 0.2)},
    {
        "each response is averaged first, so that the tokens of long responses count less": partial(
            _loss, average=lambda loss, m: response_mean(loss, m).mean()
        ),
        "the smaller loss is taken (min) instead of the larger one (max)": partial(_loss, worse=torch.minimum),
        "the clipped loss is used alone": partial(_loss, worse=lambda plain, clipped: clipped),
        "the ratio is inverted, old over new": lambda x, old, a, m, eps: _loss(old, x, a, m, eps),
        "the sign is that of an objective to maximise": lambda *args: -_loss(*args),
    },
)

_Z = _t(0.55, 0.25, 0.15, 0.05).log()
_STEPS = {"likely pushed up": (_Z, _t(0.1, 0, 0, 0)), "two pushed at once": (_t(3, 0, -3), _t(0, 0.1, -0.05))}

check_first_order = Exercise(
    bandit.first_order_change,
    _STEPS,
    {
        "the minus sign of the covariance is missing": lambda z, dz: -bandit.first_order_change(z, dz),
        "the means are over actions with equal weights instead of under the policy": lambda z, dz: (
            -((z - z.mean()) * (dz - dz.mean())).mean()
        ),
        "the product is averaged under the policy, but nothing is centred": lambda z, dz: (
            -(torch.softmax(z, -1) * torch.log_softmax(z, -1) * dz).sum()
        ),
    },
)


check_policy_gradient_change = Exercise(
    bandit.predicted_change,
    {"likely is good": (_Z, _t(1, 0, 0, 0), 0.1), "rare is good": (_Z, _t(0, 0, 0, 1), 0.1)},
    {
        "the factor pi is missing, as in Theorem 2": partial(bandit.predicted_change, method="npg"),
        "values are used instead of advantages: subtract their mean under the policy first": lambda z, v, eta: (
            bandit.first_order_change(z, eta * torch.softmax(z, -1) * v)
        ),
        "the minus sign is missing": lambda *args: -bandit.predicted_change(*args),
    },
)


def _top_share(covariance, share, weight=lambda c: c.clamp(min=0), count=token_budget):
    values, n = weight(covariance), count(share, len(covariance))
    return values.sort(descending=True).values[:n].sum() / values.sum()


_TEN = _t(-1.6, 0.9, 0.1, -0.3, 2.4, 0.0, 0.4, -0.1, 0.2, -0.2)

check_top_share = Exercise(
    _top_share,
    {"a fifth of ten tokens": (_TEN, 0.2), "a share of less than one token": (_TEN, 0.01)},
    {
        "large negative covariances count too, by their absolute value": partial(_top_share, weight=torch.abs),
        "the denominator includes negative covariances": partial(_top_share, weight=lambda c: c),
        "a share of less than one token selects no token": partial(_top_share, count=lambda share, n: int(share * n)),
        "the lowest are taken instead of the highest": lambda c, share: (
            c.clamp(min=0).sort().values[: token_budget(share, len(c))].sum() / c.clamp(min=0).sum()
        ),
    },
)


def _cov(x, y, n=None):
    return ((x - x.mean()) * (y - y.mean())).sum() / (n or len(x))


check_group_cov = Exercise(
    lambda log_pi, a: group_covariance(a, log_pi[:, None], torch.ones(len(a), 1), len(a))[0],
    {"four responses": (_t(-0.2, -0.5, -1.0, -2.0), _t(0.9, 0.9, -0.9, -0.9))},
    {
        "the factor pi is missing: Cov(log pi, A) belongs to Theorem 2, Equation 8 to Theorem 1": _cov,
        "the sum is divided by n - 1 instead of n": lambda x, a: _cov(x, x.exp() * a, len(x) - 1),
        "the products are averaged without centring": lambda x, a: (x * x.exp() * a).mean(),
    },
)


def _push(p, y, a):
    score = p * (p.log() - (p * p.log()).sum())
    return a * ((p * score).sum() - score[y])


_P = _t(0.6, 0.3, 0.1)

check_push = Exercise(
    _push,
    {
        "the likely token is right": (_P, 0, 1.0),
        "the rare token is wrong": (_P, 2, -1.0),
        "rare and right": (_P, 2, 1.0),
    },
    {
        "the sign is turned: reinforcing a likely token lowers the entropy": lambda p, y, a: -_push(p, y, a),
        "the mean of S under the policy is left out": lambda p, y, a: -a * p[y] * (p[y].log() - (p * p.log()).sum()),
        "S has no entropy in it: p log p instead of p (H + log p)": lambda p, y, a: (
            a * ((p * p * p.log()).sum() - p[y] * p[y].log())
        ),
        "this is the covariance with the mean log-probability under the policy": lambda p, y, a: (
            -a * (p[y].log() - (p * p.log()).sum())
        ),
    },
)

check_optimum = Exercise(
    lambda reward, bonus: torch.softmax(reward / bonus, -1),
    {"a bonus of 0.3": (_t(0, 1, 0, 0.5), 0.3), "a bonus of 3": (_t(0, 1, 0, 0.5), 3.0)},
    {
        "the reward is multiplied by the bonus, so that a larger bonus sharpens the policy": lambda r, c: torch.softmax(
            r * c, -1
        ),
        "the bonus does not enter": lambda r, c: torch.softmax(r, -1),
        "only the best action is played, as without a bonus": lambda r, c: (r == r.max()).double(),
    },
)


def _pass_at_k(right, n, k):
    from erltool.training.evaluate import pass_at_k  # which imports the models

    return float(pass_at_k(np.array(right), n, k))


check_pass_at_k = Exercise(
    _pass_at_k,
    {"1 right of 16, k = 8": (1, 16, 8), "4 of 8, k = 2": (4, 8, 2), "fewer than k wrong": (12, 16, 8)},
    {
        "draws are taken with replacement: 1 - (1 - c/n)^k is biased, too low": lambda c, n, k: 1 - (1 - c / n) ** k,
        "the fraction of right responses is returned, which is pass@1": lambda c, n, k: c / n,
        "all k have to be right instead of one": lambda c, n, k: math.comb(c, k) / math.comb(n, k),
    },
)

check_entropy_of = Exercise(
    lambda logits, tokens, temperature: token_log_probs(logits, tokens, temperature=temperature)[1].mean(),
    {f"temperature {t}": (_t([2.0, 0.5, 0.0], [0.0, 1.0, 3.0]), torch.tensor([0, 1]), t) for t in (0.5, 1.0)},
    {
        "the sampled tokens' -log pi is averaged: a one-sample estimate, not the entropy": lambda z, tokens, t: (
            -token_log_probs(z, tokens, temperature=t)[0].mean()
        ),
        "the temperature is left out": lambda z, tokens, t: bandit.entropy(z).mean(),
        "the logits are multiplied by the temperature": lambda z, tokens, t: bandit.entropy(z * t).mean(),
        "the logarithm is of base 2: bits, not nats": lambda z, tokens, t: bandit.entropy(z / t).mean() / math.log(2),
    },
)


def _kl_cov_mask(covariance, mask, fraction):
    return top_tokens(covariance, mask, token_budget(fraction, int(mask.sum())))


_COVARIANCE = token_covariance(_A, _LOG_PROBS, _MASK)

check_kl_cov_mask = Exercise(
    _kl_cov_mask,
    {"a third": (_COVARIANCE, _MASK, 0.34), "less than one token": (_COVARIANCE, _MASK, 0.01),
     "nine tenths": (_COVARIANCE, _MASK, 0.9)},
    {
        "tokens are ranked by absolute covariance": lambda c, m, f: _kl_cov_mask(c.abs(), m, f),
        "each response gives the same fraction, at least one token each": lambda c, m, f: torch.cat(
            [_kl_cov_mask(row, rows, f) for row, rows in zip(c[:, None], m[:, None], strict=True)]
        ),
        "a fraction below one token selects no token": lambda c, m, f: top_tokens(c, m, int(f * m.sum())),
        "the fraction is of all positions with padding": lambda c, m, f: top_tokens(c, m, token_budget(f, m.numel())),
        "padding is ranked, too": lambda c, m, f: top_tokens(c, torch.ones_like(m), token_budget(f, int(m.sum()))),
    },
)  # fmt: skip


def _in_micro_batches(advantages, log_probs, mask, size, centred="ax"):
    """Covariance; the factors in `centred` (a: advantages, x: log-probs) are centred in each micro-batch."""
    batches = [slice(b, b + size) for b in range(0, len(mask), size)]
    factors = []
    for value, name in ((advantages, "a"), (log_probs, "x")):
        whole = masked_mean(value, mask)
        factors.append([value[s] - (masked_mean(value[s], mask[s]) if name in centred else whole) for s in batches])
    return torch.cat([a * x * mask[s] for a, x, s in zip(*factors, batches, strict=True)])


check_covariance_in_parts = Exercise(
    lambda a, x, m, size: token_covariance(a, x, m),
    {
        name: (_A[:, None].expand(4, 3), _LOG_PROBS, _MASK, size)
        for name, size in {"micro-batch 1": 1, "micro-batch 2": 2, "the whole update": 4}.items()
    },
    {
        "both means are taken inside each micro-batch: three sizes, three answers": _in_micro_batches,
        "the advantages are still centred inside each micro-batch": partial(_in_micro_batches, centred="a"),
        "the log-probabilities are still centred inside each micro-batch": partial(_in_micro_batches, centred="x"),
    },
)


def _paired(values, baseline):
    d = paired_difference(pd.Series(values), pd.Series(baseline))
    return d.mean, d.low, d.high


def _interval(mean, half):
    return mean, mean - half, mean + half


check_paired_interval = Exercise(
    _paired,
    {"five seeds": (np.array([0.41, 0.35, 0.52, 0.44, 0.38]), np.array([0.33, 0.30, 0.40, 0.41, 0.29]))},
    {
        "the seeds are not paired: the spread between seeds stays in": lambda v, b: _interval(
            (v - b).mean(), stats.t.ppf(0.975, 2 * len(v) - 2) * math.sqrt((v.var(ddof=1) + b.var(ddof=1)) / len(v))
        ),
        "1.96 stands for Student's t, which is 2.78 with five seeds": lambda v, b: _interval(
            (v - b).mean(), 1.96 * (v - b).std(ddof=1) / math.sqrt(len(v))
        ),
        "the standard deviation has n in its denominator instead of n - 1": lambda v, b: _interval(
            (v - b).mean(), stats.t.ppf(0.975, len(v) - 1) * (v - b).std() / math.sqrt(len(v))
        ),
        "the spread of one difference is given instead of their mean's: divide by the root of n": lambda v, b: (
            _interval((v - b).mean(), stats.t.ppf(0.975, len(v) - 1) * (v - b).std(ddof=1))
        ),
    },
)


def _forecast_error(h, r, k, shape=np.exp, fitted=None, judged=None, power=2):
    """Error on the points from `judged` on of the law fitted to the first `fitted(n)` points; both are k by default."""
    x, n = shape(h), len(h)
    known = slice(0, k if fitted is None else fitted(n))
    slope, intercept = np.polyfit(x[known], r[known], 1)
    error = np.abs(r - intercept - slope * x)[k if judged is None else judged :]
    return np.mean(error**power) ** (1 / power)


_H = np.array([0.9, 0.7, 0.62, 0.5, 0.43, 0.31, 0.22, 0.15, 0.12, 0.08])
_R = np.array([0.21, 0.29, 0.35, 0.36, 0.41, 0.47, 0.46, 0.52, 0.49, 0.54])
check_forecast_error = Exercise(
    _forecast_error,
    {"the first 3 points": (_H, _R, 3), "the first half": (_H, _R, 5)},
    {
        "the law is fitted to all points, including those to forecast": partial(_forecast_error, fitted=int),
        "the error includes the fitted points": partial(_forecast_error, judged=0),
        "the law is taken to be linear in H": partial(_forecast_error, shape=np.asarray),
        "errors are averaged without squares": partial(_forecast_error, power=1),
    },
)


def _entropy_before(steps, entropy, at, window, inside=lambda s, at, window: (s > at - window) & (s <= at)):
    return entropy[inside(steps, at, window)].mean()


check_entropy_before = Exercise(
    _entropy_before,
    {
        "every fourth step": (np.arange(4, 44, 4), np.linspace(1, 0.1, 10) ** 2, 24, 8),
        "every step": (np.arange(1, 21), np.linspace(1, 0.3, 20) ** 3, 10, 5),
    },
    {
        "the window includes both ends": partial(_entropy_before, inside=lambda s, at, w: (s >= at - w) & (s <= at)),
        "later steps are included": partial(_entropy_before, inside=lambda s, at, w: abs(s - at) <= w / 2),
        "all steps up to the measurement are averaged": partial(_entropy_before, inside=lambda s, at, w: s <= at),
        "the step `at` is left out": partial(_entropy_before, inside=lambda s, at, w: (s >= at - w) & (s < at)),
    },
)

check_adapter_weights = Exercise(
    lambda shapes, rank: sum(rank * (i + o) for i, o in shapes),
    {"one layer": ([(576, 1536)], 16), "three layers": ([(576, 576), (576, 192), (1536, 576)], 8)},
    {
        "the frozen weights are counted, too": lambda shapes, r: sum(i * o + r * (i + o) for i, o in shapes),
        "one of the two factors is forgotten": lambda shapes, r: sum(r * i for i, _ in shapes),
        "the factors' sizes are multiplied instead of added": lambda shapes, r: sum(r * i * r * o for i, o in shapes),
        "only the layers' inputs and outputs are counted, without the rank": lambda shapes, r: sum(map(sum, shapes)),
    },
)

check_seconds_left = Exercise(
    lambda tokens, rate, left: left * (tokens / rate).mean(),
    {
        "a slow update among fast ones": (_t(4000, 4000, 4000), _t(2000, 500, 2000), 10),
        "responses that grow": (_t(1000, 2000, 6000), _t(2000, 1500, 1000), 4),
    },
    {
        "rates are averaged instead of times": lambda tokens, rate, left: left * tokens.mean() / rate.mean(),
        "the last update stands for all": lambda tokens, rate, left: left * tokens[-1] / rate[-1],
        "finished updates are counted, too": lambda tokens, rate, left: (left + len(tokens)) * (tokens / rate).mean(),
    },
)

EXERCISES = {name.removeprefix("check_"): e for name, e in list(globals().items()) if isinstance(e, Exercise)}
