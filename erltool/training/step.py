"""One optimiser update: the step that `train` yields, and what is measured of it."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from erltool.entropy.covariance import group_covariance, masked_mean, response_mean, top_means
from erltool.entropy.tokens import Tokens, kl_estimate
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts
from erltool.runs.alarms import Alarm
from erltool.runs.folder import DESCRIBED_COLUMNS, TOKEN_COLUMNS
from erltool.tables import Table
from erltool.tasks.chain import Description

TOP_SHARES = {f"covariance_top_{share:g}": share for share in (0.0002, 0.002, 0.02, 0.2, 0.5)}  # as in Table 1


@dataclass(frozen=True)
class Step:
    """One optimiser update: what was measured, and the tokens it was measured on."""

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
    """(B, T) bool: tokens that the control acted on."""
    token_texts: list[str]
    """Text of each token of the vocabulary that occurs, by position in `rollouts.token_ids[response_mask]`."""
    group_size: int
    entropy_change: tuple[Tensor, Tensor] | None = None
    """Predicted and measured change of each context's entropy over the update, (B, T) each, nats; where measured."""
    described: "Described | None" = None
    """What the task says of the responses, where it can tell."""
    alarms: tuple[Alarm, ...] = ()
    """What the metrics up to this step warn of, each once (alarms.py); not written to the run's folder, which has the
    metrics that say it."""

    def table(self, prompts: int | None = None) -> pd.DataFrame:
        """The update's tokens, those of the first `prompts` prompts or all; columns as in runs.TOKEN_COLUMNS, with
        DESCRIBED_COLUMNS where the task can tell."""
        mask = self.rollouts.response_mask
        keep = torch.zeros_like(mask)
        keep[: len(mask) if prompts is None else prompts * self.group_size] = True
        where = mask & keep
        response, position = (x.numpy() for x in where.nonzero().cpu().T)
        of_token = {
            "token_id": self.rollouts.token_ids, "log_prob": self.tokens.log_probs,
            "old_log_prob": self.tokens.old_log_probs, "entropy": self.tokens.token_entropy,
            "advantage": self.tokens.advantages, "covariance": self.covariance, "selected": self.selected,
        }  # fmt: skip
        columns = {name: x[where].cpu().numpy() for name, x in of_token.items()} | {
            "step": self.metrics["step"],
            "prompt_index": response // self.group_size,
            "response_index": response % self.group_size,
            "position": position,
            "prompt": [self.rollouts.prompts[b] for b in response],
            "reward": self.rewards.cpu().numpy()[response],
            "text": self.token_texts[: len(response)],
        }
        if self.described is None:
            return Table(columns)[list(TOKEN_COLUMNS)]
        said = [self.described.responses[b] for b in response]
        columns |= {
            "strategy": [d.strategy for d in said],
            "first_wrong": [d.first_wrong for d in said],
            "fork": self.described.forks[where.cpu()].numpy(),
        }
        return Table(columns)[[*TOKEN_COLUMNS, *DESCRIBED_COLUMNS]]


@dataclass(frozen=True)
class Described:
    """What a task says of an update's responses."""

    responses: list[Description]
    forks: Tensor
    """(B, T) bool, on the CPU: tokens at which a response had a choice."""

    @classmethod
    def of(cls, part: Rollouts, describe: Callable[[str, str], Description], texts: list[str]) -> "Described":
        """`texts` are those of the response tokens, in row-major order of the mask."""
        responses = [describe(p, r) for p, r in zip(part.prompts, part.responses, strict=True)]
        forks = torch.zeros(part.response_mask.shape, dtype=torch.bool)
        at = 0
        for row, (said, length) in enumerate(zip(responses, part.response_mask.sum(1).tolist(), strict=True)):
            token_of = [t for t, text in enumerate(texts[at : at + length]) for _ in text]  # of each character
            at += length
            forks[row, [token_of[c] for c in said.forks if c < len(token_of)]] = True
        return cls(responses, forks)

    def measure(self, tokens: Tokens, covariance: Tensor) -> dict[str, float]:
        """Metrics of runs.METRICS; a share of what did not occur is absent."""
        of = {name: sum(getattr(d, name) for d in self.responses) for name in COUNTED}
        thinking = sum(d.strategy == "steps" for d in self.responses)
        found = {"thinking_fraction": thinking / len(self.responses)}
        if of["steps"]:
            found["right_step_fraction"] = of["right_steps"] / of["steps"]
        if of["products"]:
            found["right_product_fraction"] = of["right_products"] / of["products"]
        forks = self.forks.to(covariance.device) & tokens.response_mask.bool()
        if self.forks.any():
            pair = torch.stack([masked_mean(x, forks) for x in (tokens.token_entropy, covariance)])
            found["fork_entropy"], found["fork_covariance"] = pair.tolist()
        return found


COUNTED = ("steps", "right_steps", "products", "right_products")


def measure(
    part: Rollouts,
    rewards: Tensor,
    tokens: Tokens,
    covariance: Tensor,
    selected: Tensor,
    clipped: Tensor,
    grad_norm: Tensor,
    group_size: int,
) -> dict[str, float]:
    """What is measured of an update before it is made, keys as in runs.METRICS; the device is waited for once."""
    mask, responses = tokens.response_mask, part.response_mask
    groups = rewards.view(-1, group_size)
    of_groups = group_covariance(tokens.advantages, tokens.log_probs, mask, group_size)
    kl = tokens.old_log_probs - tokens.log_probs
    count = mask.sum().clamp(min=1)
    values = {
        "reward": rewards.mean(),
        "policy_entropy": masked_mean(tokens.token_entropy, responses),
        "sampled_nll": -masked_mean(tokens.log_probs, responses),
        "response_entropy": response_mean(tokens.token_entropy, responses).mean(),
        "mean_covariance": masked_mean(covariance, mask),
        "group_covariance": of_groups.mean(),
        "response_length": responses.sum() / len(part),
        "response_tokens": responses.sum(),
        "truncated_fraction": 1 - part.finished.float().mean(),
        "selected_fraction": selected.sum() / count,
        "selected_tokens": selected.sum(),
        "clip_fraction": clipped.sum() / count,
        "kl_k1": masked_mean(kl_estimate(kl, "k1"), mask),
        "kl_k3": masked_mean(kl_estimate(kl, "k3"), mask),
        "grad_norm": grad_norm,
        "all_wrong_fraction": (groups == 0).all(-1).double().mean(),
        "all_right_fraction": (groups == 1).all(-1).double().mean(),
    }
    values |= dict(zip(TOP_SHARES, top_means(covariance, mask, list(TOP_SHARES.values())), strict=True))
    of_rewards = groups.mean(-1)
    one_by_one = torch.stack([v.double() for v in values.values()])
    numbers = torch.cat([one_by_one, of_groups.double(), of_rewards.double()]).tolist()
    rest = numbers[len(values) :]
    by_accuracy = covariance_by_accuracy(rest[: len(of_groups)], rest[len(of_groups) :])
    values = dict(zip(values, numbers[: len(values)], strict=True))
    whole = ("response_tokens", "selected_tokens")
    return {"step": 0, "iteration": 0} | {k: int(v) if k in whole else v for k, v in values.items()} | by_accuracy


def distinct_fraction(responses: list[str], group_size: int) -> float:
    """Number of different responses in a group over its size, mean over groups."""
    groups = [responses[at : at + group_size] for at in range(0, len(responses), group_size)]
    return sum(len(set(group)) for group in groups) / len(responses)


def covariance_by_accuracy(covariances: list[float], accuracies: list[float]) -> dict[str, float]:
    """Mean Eq 8 covariance of the prompts whose group is right up to a third, two thirds, and above (Fig 8 right);
    a group that is all right or all wrong has none. Absent where there is no such prompt."""
    found: dict[str, list[float]] = {}
    for covariance, share in zip(covariances, accuracies, strict=True):
        if 0 < share < 1:
            name = "hard" if share <= 1 / 3 else "middle" if share <= 2 / 3 else "easy"
            found.setdefault(f"group_covariance_{name}", []).append(covariance)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}


def entropy_change_summary(predicted: Tensor, measured: Tensor, mask: Tensor) -> dict[str, float]:
    """Means over contexts of both changes, and their correlation over contexts (0 where one does not vary)."""
    p, m = (x[mask].double() for x in (predicted, measured))
    p_off, m_off = p - p.mean(), m - m.mean()
    spread = (p_off.square().sum() * m_off.square().sum()).sqrt()
    correlation = (p_off * m_off).sum() / spread if spread > 0 else 0.0
    return {
        "entropy_change": float(m.mean()),
        "entropy_change_predicted": float(p.mean()),
        "entropy_change_correlation": float(correlation),
    }


def part_texts(policy: Policy, part: Rollouts) -> list[str]:
    """Text of every response token, in row-major order of the mask."""
    ids = part.token_ids[part.response_mask].tolist()
    texts = {i: policy.tokenizer.decode([i]) for i in set(ids)}
    return [texts[i] for i in ids]
