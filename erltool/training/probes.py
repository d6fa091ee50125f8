"""What a recorded step shows beyond its update: the likeliest tokens at each place, and a few prompts asked again and
again.

Neither changes the run: no gradient flows, and the draws come from a generator of their own.
"""

import functools
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from erltool.entropy.log_probs import likeliest
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts, contexts
from erltool.policies.sampling import Sampler
from erltool.runs.folder import DESCRIBED_COLUMNS, PROBE_COLUMNS
from erltool.tables import Table
from erltool.tasks.task import Task
from erltool.training.config import TrainConfig
from erltool.training.evaluate import eval_problems
from erltool.training.sampled import sample_rewarded
from erltool.training.step import Described, Likeliest, Step, token_texts
from erltool.training.update import PROBING, generator

OF_UPDATE, OF_PROBE = 10, 8  # likeliest tokens that are kept at each place
MOST_TOKENS = 64  # of a probe's response that are kept: fifty recordings stay below 2 MB


class Probes:
    """The probe prompts of a run: the same `record_probes` held-out problems and the same draws at every recording, so
    that a response changes only with the policy."""

    def __init__(self, config: TrainConfig, task: Task, policy: Policy, sampler: Sampler):
        self.config, self.task, self.policy, self.sampler = config, task, policy, sampler
        self.text_of = functools.cache(lambda i: str(policy.tokenizer.decode([i])))

    @functools.cached_property
    def problems(self) -> list:
        return eval_problems(self.task, self.config.record_probes)

    def sample(self, step: int) -> pd.DataFrame:
        """A group of responses to each probe prompt, one row a token: runs.PROBE_COLUMNS, and DESCRIBED_COLUMNS where
        the task describes responses. `step` is the update that follows."""
        config, size = self.config, self.config.group_size
        draws = generator(config.seed, PROBING, 0, self.policy.device)
        rollouts, rewards = sample_rewarded(
            self.sampler, self.policy, self.task, config, self.problems, draws, "probes"
        )
        described = None
        if (describe := getattr(self.task, "describe", None)) is not None:
            described = Described.of(rollouts, describe, token_texts(self.policy, rollouts))
        kept = rollouts.response_mask[:, :MOST_TOKENS]
        rollouts = replace(
            rollouts, response_mask=kept, token_ids=rollouts.token_ids[:, :MOST_TOKENS],
            log_probs=rollouts.log_probs[:, :MOST_TOKENS],
        )  # fmt: skip
        ids, p, entropy = self.places(rollouts, OF_PROBE)
        response, position = (x.numpy() for x in kept.nonzero().cpu().T)
        columns = {
            "step": step, "prompt_index": response // size, "response_index": response % size, "position": position,
            "prompt": [rollouts.prompts[b] for b in response], "reward": rewards.cpu().numpy()[response],
            "token_id": rollouts.token_ids[kept].cpu().numpy(), "text": token_texts(self.policy, rollouts),
            "log_prob": rollouts.log_probs[kept].cpu().numpy(), "entropy": entropy.cpu().numpy(),
            "likeliest": self.texts(ids), "likeliest_before": list(p.half().float().cpu().numpy()),
        }  # fmt: skip
        if described is None:
            return Table(columns)[list(PROBE_COLUMNS)]
        forks = replace(described, forks=described.forks[:, :MOST_TOKENS])
        return Table(columns | forks.columns(response, kept))[[*PROBE_COLUMNS, *DESCRIBED_COLUMNS]]

    def places(self, rollouts: Rollouts, count: int, ids: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`entropy.log_probs.likeliest` at each place of the responses, in row-major order of the mask; in the
        micro-batches of the run, so that memory suffices."""
        found, start = [], 0
        with torch.no_grad():
            for rows in torch.arange(len(rollouts)).split(self.config.micro_batch or len(rollouts)):
                hidden = contexts(self.policy, rollouts.take(rows))
                known = None if ids is None else ids[start : start + len(hidden)]
                start += len(hidden)
                found.append(likeliest(hidden, count, self.policy.head, ids=known, temperature=self.config.temperature))
        of_ids, p, entropy = (torch.cat(columns) for columns in zip(*found, strict=True))
        return of_ids, p, entropy

    def texts(self, ids: Tensor) -> list[list[str]]:
        return [[self.text_of(i) for i in row] for row in ids.tolist()]


class Recording:
    """One recorded update, from before it to after it."""

    def __init__(self, probes: Probes, rollouts: Rollouts, step: int):
        config = probes.config
        self.probes = probes
        self.rollouts = rollouts.take(range(min(len(rollouts), config.record_prompts * config.group_size)))
        self.sampled = probes.sample(step)
        self.ids, self.before, _ = probes.places(self.rollouts, OF_UPDATE)

    def completed(self, step: Step) -> Step:
        """The step with the likeliest tokens before and after it, and the responses to the probe prompts."""
        _, after, entropy = self.probes.places(self.rollouts, OF_UPDATE, self.ids)
        return replace(
            step, likeliest=Likeliest(self.probes.texts(self.ids), self.before, after, entropy), probes=self.sampled
        )
