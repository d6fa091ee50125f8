"""The step that `train` yields for each optimiser update, and its measurements."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from erltool.entropy.covariance import group_covariance, masked_mean, response_mean, top_means
from erltool.entropy.tokens import Tokens, kl_estimate
from erltool.errors import ErltoolError
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts
from erltool.runs.alarms import Alarm
from erltool.runs.folder import DESCRIBED_COLUMNS, LIKELIEST_COLUMNS, PUSH_COLUMNS, TOKEN_COLUMNS
from erltool.tables import Table
from erltool.tasks.chain import Description

TOP_SHARES = {f"covariance_top_{share:g}": share for share in (0.0002, 0.002, 0.02, 0.2, 0.5)}  # as in Table 1


@dataclass(frozen=True)
class Step:
    """One optimiser update: its metrics, and the tokens from which they were measured."""

    metrics: dict[str, float]
    """Keys as in runs.METRICS."""
    rollouts: Rollouts
    """The update's B responses."""
    rewards: Tensor
    """(B,)"""
    tokens: Tokens
    """Log-probs, entropy and advantages before the update, (B, T)."""
    covariance: Tensor
    """(B, T), nats"""
    selected: Tensor
    """(B, T) bool: tokens on which the control acted."""
    token_texts: list[str]
    """The text of each response token, in row-major order of the mask."""
    group_size: int
    entropy_change: tuple[Tensor, Tensor] | None = None
    """Predicted and measured change of each context's entropy, (B, T) each, nats; None where not measured."""
    described: "Described | None" = None
    """The task's description of the responses, where it has one."""
    likeliest: "Likeliest | None" = None
    """The likeliest tokens at the first prompts' places; None where not measured (TrainConfig.record_probes)."""
    probes: pd.DataFrame | None = None
    """What the policy before the update responded to the run's probe prompts, runs.PROBE_COLUMNS; None as above."""
    alarms: tuple[Alarm, ...] = ()
    """New warnings after this step (alarms.py). The run's folder does not hold them: they follow from its metrics."""

    def table(self, prompts: int | None = None) -> pd.DataFrame:
        """The tokens of all prompts or the first `prompts`, with the columns runs.TOKEN_COLUMNS, PUSH_COLUMNS where the
        slopes are known, DESCRIBED_COLUMNS where the task describes responses, LIKELIEST_COLUMNS where measured."""
        where = self.rollouts.response_mask.clone()
        if prompts is not None:
            where[prompts * self.group_size :] = False
        response, position = (x.numpy() for x in where.nonzero().cpu().T)
        of_token = {
            "token_id": self.rollouts.token_ids, "log_prob": self.tokens.log_probs,
            "old_log_prob": self.tokens.old_log_probs, "entropy": needed(self.tokens, "token_entropy"),
            "advantage": self.tokens.advantages, "covariance": self.covariance, "selected": self.selected,
        }  # fmt: skip
        known: tuple[str, ...] = TOKEN_COLUMNS
        if self.tokens.entropy_slope is not None:
            of_token |= {"push": self.tokens.push, "dose": self.tokens.dose}
            known = (*known, *PUSH_COLUMNS)
        columns = {name: x[where].cpu().numpy() for name, x in of_token.items()} | {
            "step": self.metrics["step"],
            "prompt_index": response // self.group_size,
            "response_index": response % self.group_size,
            "position": position,
            "prompt": [self.rollouts.prompts[b] for b in response],
            "reward": self.rewards.cpu().numpy()[response],
            "text": self.token_texts[: len(response)],
        }
        if self.described is not None:
            columns |= self.described.columns(response, where)
            known = (*known, *DESCRIBED_COLUMNS)
        if self.likeliest is not None:
            columns |= self.likeliest.columns(len(response))
            known = (*known, *LIKELIEST_COLUMNS)
        return Table(columns)[list(known)]


@dataclass(frozen=True)
class Likeliest:
    """The K likeliest tokens at the first N places of an update's responses, in row-major order of the mask."""

    texts: list[list[str]]
    """N of K, the likeliest first; not to be trusted, as no text of a model is."""
    before: Tensor
    """(N, K) their probabilities before the update"""
    after: Tensor
    """(N, K) after it"""
    entropy_after: Tensor
    """(N,) of the place's whole distribution, nats"""

    def columns(self, tokens: int) -> dict[str, list]:
        """LIKELIEST_COLUMNS of the first `tokens` places: empty lists and NaN where nothing was measured."""
        missing = max(0, tokens - len(self.texts))
        lists = (self.texts, *(list(p.float().cpu().numpy()) for p in (self.before, self.after)))
        columns = [(values + [[]] * missing)[:tokens] for values in lists]
        entropy = (self.entropy_after.tolist() + [math.nan] * missing)[:tokens]
        return dict(zip(LIKELIEST_COLUMNS, [*columns, entropy], strict=True))


@dataclass(frozen=True)
class Described:
    """A task's description of an update's responses."""

    responses: list[Description]
    forks: Tensor
    """(B, T) bool, on the CPU: tokens at which a response had a choice."""

    @classmethod
    def of(cls, rollouts: Rollouts, describe: Callable[[str, str], Description], texts: list[str]) -> "Described":
        """`texts` as in `Step.token_texts`."""
        responses = [describe(p, r) for p, r in zip(rollouts.prompts, rollouts.responses, strict=True)]
        forks = torch.zeros(rollouts.response_mask.shape, dtype=torch.bool)
        start = 0
        for row, (response, length) in enumerate(zip(responses, rollouts.response_mask.sum(1).tolist(), strict=True)):
            token_of = [t for t, text in enumerate(texts[start : start + length]) for _ in text]  # of each character
            start += length
            forks[row, [token_of[c] for c in response.forks if c < len(token_of)]] = True
        return cls(responses, forks)

    def columns(self, response: Sequence[int] | np.ndarray, where: Tensor) -> dict[str, list | np.ndarray]:
        """DESCRIBED_COLUMNS of the tokens `where` (B, T), of which `response` (N,) are the rows."""
        descriptions = [self.responses[b] for b in response]
        return {
            "strategy": [d.strategy for d in descriptions],
            "first_wrong": [d.first_wrong for d in descriptions],
            "fork": self.forks[where.cpu()].numpy(),
        }

    def measure(self, tokens: Tokens, covariance: Tensor) -> dict[str, float]:
        """Keys as in runs.METRICS; a fraction of zero occurrences is absent."""
        counted = ("steps", "right_steps", "products", "right_products")
        count = {name: sum(getattr(d, name) for d in self.responses) for name in counted}
        thinking = sum(d.strategy == "steps" for d in self.responses)
        metrics = {"thinking_fraction": thinking / len(self.responses)}
        if count["steps"]:
            metrics["right_step_fraction"] = count["right_steps"] / count["steps"]
        if count["products"]:
            metrics["right_product_fraction"] = count["right_products"] / count["products"]
        forks = self.forks.to(covariance.device) & tokens.response_mask.bool()
        if self.forks.any():
            pair = torch.stack([masked_mean(x, forks) for x in (needed(tokens, "token_entropy"), covariance)])
            metrics["fork_entropy"], metrics["fork_covariance"] = pair.tolist()
        return metrics


def measure(
    rollouts: Rollouts, tokens: Tokens, covariance: Tensor, selected: Tensor, clipped: Tensor, grad_norm: Tensor
) -> dict[str, float]:
    """Metrics of an update before its optimiser step, keys as in runs.METRICS; synchronises with the device once."""
    mask, responses = tokens.response_mask, rollouts.response_mask
    rewards, entropy, group_size = needed(tokens, "rewards"), needed(tokens, "token_entropy"), tokens.group_size or 1
    groups = rewards.view(-1, group_size)
    of_groups = group_covariance(tokens.advantages, tokens.log_probs, mask, group_size)
    kl = tokens.old_log_probs - tokens.log_probs
    count = mask.sum().clamp(min=1)
    values = {
        "reward": rewards.mean(),
        "policy_entropy": masked_mean(entropy, responses),
        "sampled_nll": -masked_mean(tokens.log_probs, responses),
        "response_entropy": response_mean(entropy, responses).mean(),
        "mean_covariance": masked_mean(covariance, mask),
        "group_covariance": of_groups.mean(),
        "response_length": responses.sum() / len(rollouts),
        "response_tokens": responses.sum(),
        "truncated_fraction": 1 - rollouts.finished.float().mean(),
        "selected_fraction": selected.sum() / count,
        "selected_tokens": selected.sum(),
        "clip_fraction": clipped.sum() / count,
        "kl_k1": masked_mean(kl_estimate(kl, "k1"), mask),
        "kl_k3": masked_mean(kl_estimate(kl, "k3"), mask),
        "grad_norm": grad_norm,
        "all_wrong_fraction": (groups == 0).all(-1).double().mean(),
        "all_right_fraction": (groups == 1).all(-1).double().mean(),
    }
    if tokens.entropy_slope is not None:
        values["mean_push"] = masked_mean(tokens.push, mask)
    values |= dict(zip(TOP_SHARES, top_means(covariance, mask, list(TOP_SHARES.values())), strict=True))
    stacked = torch.stack([v.double() for v in values.values()])
    numbers = torch.cat([stacked, of_groups.double(), groups.mean(-1).double()]).tolist()
    of_values, of_prompts = numbers[: len(values)], numbers[len(values) :]
    metrics: dict[str, float] = {"step": 0, "iteration": 0} | dict(zip(values, of_values, strict=True))
    metrics |= {name: int(metrics[name]) for name in ("response_tokens", "selected_tokens")}
    return metrics | covariance_by_accuracy(of_prompts[: len(groups)], of_prompts[len(groups) :])


def needed(tokens: Tokens, field: str) -> Tensor:
    """An optional field of the tokens. Raises ErltoolError where it is missing."""
    if (value := getattr(tokens, field)) is None:
        raise ErltoolError(f"step: its tokens have no {field}; pass it to Tokens")
    return value


def distinct_fraction(responses: list[str], group_size: int) -> float:
    """Number of different responses in a group over its size, mean over groups."""
    groups = [responses[start : start + group_size] for start in range(0, len(responses), group_size)]
    return sum(len(set(group)) for group in groups) / len(responses)


def covariance_by_accuracy(covariances: list[float], accuracies: list[float]) -> dict[str, float]:
    """Mean Eq 8 covariance of hard, middle and easy prompts: accuracy up to 1/3, up to 2/3, and above (Fig 8 right).
    Groups that are all right or all wrong do not count. A difficulty without a group is absent."""
    by_difficulty: dict[str, list[float]] = {}
    for covariance, accuracy in zip(covariances, accuracies, strict=True):
        if 0 < accuracy < 1:
            name = "hard" if accuracy <= 1 / 3 else "middle" if accuracy <= 2 / 3 else "easy"
            by_difficulty.setdefault(f"group_covariance_{name}", []).append(covariance)
    return {name: sum(values) / len(values) for name, values in sorted(by_difficulty.items())}


def entropy_change_summary(predicted: Tensor, measured: Tensor, mask: Tensor) -> dict[str, float]:
    """Both changes, mean over contexts, and their correlation over contexts (0 where one does not vary)."""
    p, m = (x[mask].double() for x in (predicted, measured))
    p_off, m_off = p - p.mean(), m - m.mean()
    spread = (p_off.square().sum() * m_off.square().sum()).sqrt()
    correlation = (p_off * m_off).sum() / spread if spread > 0 else 0.0
    return {
        "entropy_change": float(m.mean()),
        "entropy_change_predicted": float(p.mean()),
        "entropy_change_correlation": float(correlation),
    }


def token_texts(policy: Policy, rollouts: Rollouts) -> list[str]:
    """The text of each response token, in row-major order of the mask."""
    ids = rollouts.token_ids[rollouts.response_mask].tolist()
    texts = {i: str(policy.tokenizer.decode([i])) for i in set(ids)}
    return [texts[i] for i in ids]
