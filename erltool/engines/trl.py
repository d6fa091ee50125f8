"""Any entropy control inside TRL's GRPOTrainer, on as many devices as accelerate runs it on. Needs the extra `trl`.

    from erltool.engines.trl import EntropyControlGRPOTrainer
    trainer = EntropyControlGRPOTrainer(model, reward_funcs, GRPOConfig(..., num_iterations=2), control=KLCov(), ...)

The control chooses once a generation batch, over the responses of all ranks, by the log-probs of the policy that
sampled them. So the choice depends neither on the micro-batch nor on the number of ranks. TRL's loss gets advantages
(B, T) that are 0 on dropped tokens, and the control's terms are added with the same normaliser. A control with its own
surrogate (CISPO, GSPO) replaces TRL's.

Differences from `erltool.train`: a fraction is of the generation batch, so an update may hold more or fewer chosen
tokens. Covariances are those before the first update. `dapo` divides by the generation batch's tokens per update, which
are the update's own where a batch has one update.

The output folder is also a run, which `read_run` opens. It has a row of metrics for each update that TRL logs
(logging_steps=1 for all); `eval_accuracy` is TRL's eval_reward. TRL's evaluation loss does not contain the control.
"""

import inspect
import json
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

import erltool
from erltool.controls.base import Choice, Control
from erltool.controls.catalog import control_from_dict, control_to_dict
from erltool.controls.controllers import Controller
from erltool.controls.loss import added_terms
from erltool.engines.trl_folder import Folder
from erltool.engines.trl_settings import check_dropout, check_settings, check_trainer
from erltool.entropy.advantages import zero_spread_fraction
from erltool.entropy.covariance import token_covariance
from erltool.entropy.tokens import Tokens
from erltool.errors import ErltoolError
from erltool.files import write_whole, writing
from erltool.policies.rollouts import Rollouts
from erltool.text import shown
from erltool.training.start import versions
from erltool.training.step import Step, measure

try:
    import trl
    from trl import GRPOConfig, GRPOTrainer
except ImportError as e:
    raise ErltoolError(f"erltool.engines.trl needs TRL ({e}): pip install 'erltool[trl]'") from e

if TYPE_CHECKING:

    class _Base(GRPOTrainer):  # the trainer that the mixin extends, with the types after its __init__
        args: GRPOConfig
        model: PreTrainedModel
        num_generations: int
        max_completion_length: int
        epsilon_low: float
        epsilon_high: float
else:
    _Base = object
SHOWN = ("mean_covariance", "group_covariance", "covariance_top", "selected", "control_value", "clip_fraction", "kl_")
STATE = "entropy_control.json"  # in TRL's checkpoints: the control as its controller has changed it
logger = logging.getLogger(__name__)


class EntropyControlMixin(_Base):
    """A control for a subclass of TRL's GRPOTrainer; name the mixin before that class among the bases.

    `control` is any of erltool's, and `controller` changes it from update to update. `record_every` and
    `record_prompts` are TrainConfig's: iterations between recordings of tokens (0 for none), and prompts recorded.
    At construction it raises ErltoolError, naming the setting, where the control could not act or the result would be
    wrong, and for a trainer that lacks a method.
    """

    def __init__(
        self,
        model,
        reward_funcs=None,
        args: GRPOConfig | None = None,
        *more,
        control: Control,
        controller: Controller | None = None,
        record_every: int = 10,
        record_prompts: int = 4,
        **kwargs,
    ):
        check_trainer(super())
        if args is not None:  # before a large model is loaded
            check_settings(args, control)
        super().__init__(model, reward_funcs, args, *more, **kwargs)
        check_settings(self.args, control)
        check_dropout(self.model, control)
        if controller is not None:
            controller.check(control)
        self.entropy_control = self._first_control = control  # a controller replaces the former
        self.controller = controller
        self.clip_eps = self.epsilon_low, self.epsilon_high
        self.record_every, self.record_prompts = record_every, record_prompts
        self.epsilon_low, self.epsilon_high = control.clip_of(self.clip_eps)
        self._folder: Folder | None = None  # in the main process only
        self._opened = False
        self._window: list[dict[str, Tensor]] = []  # columns of the update's micro-batches
        self._row: dict[str, float] | None = None
        self._clock = time.perf_counter()

    # --- once a generation batch ----------------------------------------------------------------------

    def _calculate_rewards(self, *args):
        by_function = super()._calculate_rewards(*args)
        self._rewards = (by_function * self.reward_weights.to(by_function.device)).nansum(1)  # of all ranks
        return by_function

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        if not self._opened:
            self._open()
        mask, step = loss_mask(output), self.state.global_step
        columns = self._score(output) | {"mask": mask}
        columns = {name: x.masked_fill(~mask, 0) for name, x in columns.items()}
        x = gathered(self.accelerator, columns | {"advantage": as_column(output["advantages"], mask)})
        advantages = x["advantage"][:, :1].expand(x["mask"].shape)
        tokens = Tokens(
            x["log_prob"], x["log_prob"], advantages, x["mask"].bool(), x.get("entropy"), rewards=self._rewards,
            group_size=self.num_generations,
        )  # fmt: skip
        generator = _generator(self.args.seed, step, self._step % self.args.gradient_accumulation_steps)
        rows = torch.arange(len(mask), device=mask.device) + self.accelerator.process_index * len(mask)
        choice = self.entropy_control.choose(tokens, self.clip_eps, generator).rows(rows, mask.shape[1])
        output["advantages"], output["chosen"] = choice.advantages, choice.chosen
        output["reward"] = self._rewards[rows]
        # The rows of several generation batches in one update are counted on.
        output["row"] = rows + len(tokens.log_probs) * (self._step // self._generate_every)
        self._sampled_at, self._prompts = step, list(self._logs["prompt"])
        self._zero_spread = zero_spread_fraction(self._rewards, self.num_generations)
        return output

    def _score(self, output) -> dict[str, Tensor]:
        """Columns (B, T) "log_prob" of this rank's responses before any update and, where it is needed, "entropy"."""
        if "old_per_token_logps" in output and "token_entropy" not in self.entropy_control.needs:
            return {"log_prob": output["old_per_token_logps"]}
        ids, attention = (
            torch.cat([output[f"prompt_{kind}"], output[f"completion_{kind}"]], 1) for kind in ("ids", "mask")
        )
        takes = inspect.signature(super()._get_per_token_logps_and_entropies).parameters
        images = {name: output[name] for name in takes if name in output}
        with torch.no_grad():
            log_probs, entropy, *_ = super()._get_per_token_logps_and_entropies(
                self.model, ids, attention, output["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size, compute_entropy=True, **images,
            )  # fmt: skip
        return {"log_prob": log_probs, "entropy": entropy}

    @property
    def _generate_every(self) -> int:
        """Micro-batches from one generation batch."""
        return (self.args.steps_per_generation or 1) * self.args.num_iterations

    # --- once a micro-batch ---------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        scored = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._scored = scored[:2]
        return scored

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        inputs, control = dict(inputs), self.entropy_control
        # TRL shuffles and splits the batch by rows, so the choice is stored in them.
        choice = Choice(control, inputs["advantages"], inputs["chosen"], control.clip_of(self.clip_eps), 1.0)
        if self.state.global_step == self._sampled_at:
            # The weights are still the sampler's. Without old log-probs TRL's ratio is exactly 1. Scored again it would
            # be about 1, and the gradient of |log pi - log pi_old| is 1 however small the difference.
            inputs.pop("old_per_token_logps", None)
        kept = choice.advantages.masked_fill(choice.dropped, 0)
        inputs["advantages"] = kept if control.owner.clipped_ratio else torch.zeros_like(kept)
        loss = super()._compute_loss(model, inputs)
        (log_probs, entropy), self._scored = self._scored, None
        old = inputs.get("old_per_token_logps", log_probs.detach())
        tokens = Tokens(log_probs, old, choice.advantages, loss_mask(inputs), entropy)
        surrogate, clipped = control.owner.surrogate(tokens, choice.clip)
        added = [added_terms(tokens, choice)]
        if not control.owner.clipped_ratio:
            added.append(surrogate.masked_fill(choice.dropped, 0))
        for per_token in added:
            if per_token is not None:
                loss = loss + self._normalised(per_token.masked_fill(~tokens.response_mask, 0), inputs)
        self._note(tokens, choice.selected, clipped & tokens.response_mask, inputs)
        return loss

    def _normalised(self, per_token: Tensor, inputs) -> Tensor:
        """Sum over a micro-batch's tokens, divided as TRL divides its loss."""
        micro_batches, kind = self.current_gradient_accumulation_steps, self.args.loss_type
        if kind == "grpo":
            return (per_token.sum(-1) / loss_mask(inputs).sum(-1).clamp(min=1)).mean() / micro_batches
        if kind == "dr_grpo":
            return per_token.sum() / (len(per_token) * self.max_completion_length * micro_batches)
        divisor = micro_batches / (self.args.steps_per_generation or 1) / self.accelerator.num_processes
        return per_token.sum() / (inputs["num_items_in_batch"].clamp(min=1) * divisor)

    # --- once an update -------------------------------------------------------------------------------

    def _note(self, tokens: Tokens, selected: Tensor, clipped: Tensor, inputs) -> None:
        """Keeps a micro-batch's tokens; after the last one of an update, measures it over all ranks."""
        mask = tokens.response_mask
        ids, last = inputs["completion_ids"], inputs["completion_mask"].sum(-1).clamp(min=1) - 1
        ends = torch.tensor([*self.eos_token_ids], device=mask.device)
        columns = {
            "log_prob": tokens.log_probs, "old_log_prob": tokens.old_log_probs, "entropy": tokens.token_entropy,
            "advantage": tokens.advantages, "mask": mask, "selected": selected, "clipped": clipped, "token_id": ids,
        }  # fmt: skip
        columns = {name: x.detach().masked_fill(~mask, 0) for name, x in columns.items()}
        finished = torch.isin(ids.gather(1, last[:, None])[:, 0], ends)
        of_rows = {"row": inputs["row"], "reward": inputs["reward"], "finished": finished}
        self._window.append(columns | {name: as_column(x, mask) for name, x in of_rows.items()})
        if self.accelerator.sync_gradients:
            self._measure_update()

    def _measure_update(self) -> None:
        x, self._window = gathered(self.accelerator, joined(self._window)), []
        order = x["row"][:, 0].argsort()
        x = {name: column[order] for name, column in x.items()}
        mask, ids, rows, group = x["mask"].bool(), x["token_id"].long(), x["row"][:, 0].long(), self.num_generations
        selected, clipped, rewards = x["selected"].bool(), x["clipped"].bool(), x["reward"][:, 0]
        whole = len(rows) % group == 0 and bool((rows.view(-1, group) == rows[::group, None] // group * group
                                                 + torch.arange(group, device=rows.device)).all())  # fmt: skip
        prompts = [_as_text(self._prompts[int(row) % len(self._prompts)]) for row in rows]
        rollouts = Rollouts(prompts, [], [], ids, mask, x["log_prob"], x["finished"][:, 0].bool())
        log_probs, old = x["log_prob"], x["old_log_prob"]
        tokens = Tokens(log_probs, old, x["advantage"], mask, x["entropy"], None, rewards, group if whole else None)
        covariance = token_covariance(tokens.advantages, tokens.log_probs, mask)
        grad_norm = torch.zeros(())  # known after the backward pass: `log` has it
        row = measure(rollouts, tokens, covariance, selected, clipped, grad_norm)
        if not whole:  # TRL has shuffled responses, so the update has only parts of groups
            row = {name: value for name, value in row.items() if not name.startswith(("group_covariance", "all_"))}
        step = self.state.global_step + 1
        iteration, nth = divmod(self.state.global_step * self.args.gradient_accumulation_steps, self._generate_every)
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        row |= {"step": step, "iteration": iteration, "zero_spread_fraction": self._zero_spread}
        row["tokens_per_second"] = row["response_tokens"] / seconds
        if self.controller is not None:
            control, entropy = self.entropy_control, row["policy_entropy"]
            row |= self.controller.values(control)
            self.entropy_control = self.controller.after(control, self._first_control, step, entropy)
        self._row = row
        for name, value in row.items():
            if name.startswith(SHOWN):
                self._metrics["train"][f"erltool/{name}"].append(float(value))
        last_of_iteration = nth + self.args.gradient_accumulation_steps >= self._generate_every
        due = self.record_every and iteration % self.record_every == 0 and last_of_iteration
        if due and self._folder is not None:
            texts = [self._tokenizer.decode([i]) for i in ids[mask].tolist()]
            update = Step(row, rollouts, rewards, tokens, covariance, selected, texts, group)
            self._folder.writer.tokens.append(_table(update, rows % len(self._prompts), self.record_prompts))

    # --- the output folder ----------------------------------------------------------------------------

    def _open(self) -> None:
        """Runs at the first generation, when TRL knows the run's length and whether it resumes from a checkpoint."""
        step, folder = self.state.global_step, Path(self.args.output_dir or ".")
        saved = folder / f"checkpoint-{step}" / STATE
        if step and self.controller is not None:
            self.entropy_control = read_control(saved, self.entropy_control.name)
        every = self.state.logging_steps if self.args.logging_strategy == "steps" else math.inf
        if self.accelerator.is_main_process:
            self._folder = Folder(folder, every, step, {"config": self._config(), "made_by": self._made_by()})
        self._opened = True

    def _config(self) -> dict:
        """The settings by their names in TrainConfig."""
        a = self.args
        dataset = getattr(self.train_dataset, "info", None)
        return {
            "task": (dataset and dataset.dataset_name) or "trl", "policy": self.model.config.name_or_path,
            "control": control_to_dict(self._first_control),
            "controller": control_to_dict(self.controller) if self.controller else None,
            "steps": self.state.max_steps, "seed": a.seed,
            "advantages": {"group": "grpo", "none": "dr_grpo"}.get(str(a.scale_rewards), str(a.scale_rewards)),
            "prompts_per_iteration": (a.generation_batch_size or 0) // self.num_generations,
            "group_size": self.num_generations,
            "updates_per_iteration": max(1, self._generate_every // a.gradient_accumulation_steps),
            "micro_batch": a.per_device_train_batch_size, "learning_rate": a.learning_rate,
            "temperature": a.temperature, "top_p": a.top_p, "max_response_tokens": a.max_completion_length,
            "clip_eps_low": self.clip_eps[0], "clip_eps_high": self.clip_eps[1], "loss_type": a.loss_type,
        }  # fmt: skip

    def _made_by(self) -> dict:
        device = {"ranks": self.accelerator.num_processes, "device": str(self.accelerator.device.type)}
        return versions(erltool, trl, torch) | device

    def train(self, *args, **kwargs):
        """TRL's `train`; no other process can write to the folder until it ends."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._folder is not None:
                self._folder.close()
            self._folder, self._opened = None, False

    def log(self, logs, start_time=None):
        super().log(logs, start_time)
        if self._folder is None:
            return
        if "eval_reward" in logs:
            self._folder.evaluated(logs["eval_reward"], last=self.state.global_step >= self.state.max_steps)
        elif "loss" in logs and self._row is not None:
            row, self._row = self._row | {"grad_norm": logs.get("grad_norm")}, None
            for alarm in self._folder.write(row):
                logger.warning(str(alarm))
        elif "train_runtime" in logs:
            self._folder.writer.write_tokens()

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self._folder is not None:
            self._folder.checkpoint()
            file = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}" / STATE
            with writing(file):
                write_whole(file, json.dumps(control_to_dict(self.entropy_control)).encode())


class EntropyControlGRPOTrainer(EntropyControlMixin, GRPOTrainer):
    """TRL's GRPOTrainer with an entropy control; see EntropyControlMixin."""


# --- helpers --------------------------------------------------------------------------------------------


def loss_mask(inputs) -> Tensor:
    """Tokens (B, T) that count in TRL's loss: the policy's, not a tool's."""
    mask = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()


def as_column(values: Tensor, mask: Tensor) -> Tensor:
    """Values (B,) of responses as a column (B, T)."""
    return values[:, None].expand(mask.shape)


def gathered(accelerator, columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Columns (B, T) of all ranks, in their order, in fp32, padded with 0 to the longest."""
    stacked = torch.stack([x.float() for x in columns.values()], -1)
    stacked = accelerator.gather(accelerator.pad_across_processes(stacked, dim=1))
    return dict(zip(columns, stacked.unbind(-1), strict=True))


def joined(micro_batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Columns (B, T) of micro-batches in one, padded with 0 to the longest."""
    width = max(columns["mask"].shape[1] for columns in micro_batches)
    return {
        name: torch.cat([torch.nn.functional.pad(b[name], (0, width - b[name].shape[1])) for b in micro_batches])
        for name in micro_batches[0]
    }


def _generator(seed: int, step: int, micro_batch: int) -> torch.Generator:
    """The same generator on every rank."""
    words = np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) >> 1)


def _as_text(prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, default=str)


def _table(update: Step, rows: Tensor, prompts: int) -> pd.DataFrame:
    """The update's tokens of the first `prompts` of its prompts; `rows` (B,) are its responses' rows in the batch."""
    table, group = update.table(), update.group_size
    row_of = rows.cpu().numpy()[table["prompt_index"] * group + table["response_index"]]
    table = table.assign(prompt_index=row_of // group, response_index=row_of % group)
    return table[table["prompt_index"].isin(sorted(set(table["prompt_index"]))[:prompts])]


def read_control(file: Path, name: str) -> Control:
    """The control in a checkpoint. Raises ErltoolError where its file is missing, damaged, or of another control."""
    if not file.is_file():
        raise ErltoolError(f"{file}: not there, so {name} cannot resume; start another run")
    try:
        control = control_from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as e:
        raise ErltoolError(f"{file}: damaged ({shown(e, 120)}), so {name} cannot resume; start another run") from e
    if control.name != name:
        raise ErltoolError(f"{file}: is of control {control.name}, not {name}; start another run")
    return control
