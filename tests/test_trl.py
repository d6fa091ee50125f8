"""The controls inside TRL's trainer, and our losses against TRL's and verl's own.

Run as a script it trains the policy countdown for `test_two_processes_are_one`, under `accelerate launch`.
"""

import json
import math
import os
import subprocess
import sys
import zlib
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import erltool
from erltool import (
    CEGPPO,
    CISPO,
    GSPO,
    ClipCov,
    ClipHigher,
    CovarianceKernel,
    EntropyBonus,
    EntropyShapedAdvantage,
    HighEntropyMask,
    KLCov,
    NoControl,
    RandomClip,
    ReferenceKL,
    TargetEntropy,
    control_loss,
    parse_control,
    policy_loss,
)
from erltool.errors import ErltoolError
from erltool.resources import shipped

pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[trl]'")

from accelerate import Accelerator  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

import erltool.engines.trl as ours  # noqa: E402
from erltool.engines.trl import EntropyControlGRPOTrainer, EntropyControlMixin  # noqa: E402
from erltool.engines.trl_folder import Folder  # noqa: E402
from erltool.engines.trl_settings import check_settings, check_trainer  # noqa: E402

GROUP = 4


# --- TRL's loss on given log-probs --------------------------------------------------------------------


class Given(GRPOTrainer):
    """TRL's trainer with its loss and nothing else: one micro-batch, with given log-probs and entropies."""

    def __init__(self, loss_type, log_probs, entropies, epsilon=0.2):
        self.args = SimpleNamespace(delta=None, steps_per_generation=1, num_iterations=2, loss_type=loss_type)
        self.loss_type, self.given = loss_type, (log_probs, entropies, None)
        self.epsilon_low = self.epsilon_high = epsilon
        self.accelerator, self.model = Accelerator(cpu=True), SimpleNamespace(training=True)
        self.top_entropy_quantile, self.importance_sampling_level, self.beta = 1.0, "token", 0.0
        self.off_policy_mask_threshold, self.use_vllm = None, False
        self._entropy_bonus_enabled = self.aux_loss_enabled = False
        self.current_gradient_accumulation_steps, self.max_completion_length = 1, log_probs.shape[1]
        self._metrics = {"train": defaultdict(list)}
        self.state = SimpleNamespace(global_step=1)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        return self.given


class GivenControl(EntropyControlMixin, Given):
    """The same trainer with a control."""

    def __init__(self, control, loss_type, log_probs, entropies):
        Given.__init__(self, loss_type, log_probs, entropies)
        self.entropy_control, self.clip_eps, self._sampled_at = control, (0.2, 0.2), 0
        self.epsilon_low, self.epsilon_high = control.clip_of((0.2, 0.2))

    def _note(self, *args):
        pass


def random_update(generator, dtype=torch.float64):
    """Log-probs with gradient, old log-probs, advantages (B, T), mask and entropies of a random shape."""
    responses = GROUP * int(torch.randint(1, 6, (), generator=generator))
    width = int(torch.randint(2, 40, (), generator=generator))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    old = -normal(responses, width).abs()
    log_probs = (old + 0.3 * normal(responses, width)).requires_grad_()
    advantages = normal(responses, 1).expand(responses, width)
    lengths = torch.randint(1, width + 1, (responses, 1), generator=generator)
    return log_probs, old, advantages, torch.arange(width) < lengths, normal(responses, width).abs()


def trl_inputs(old, advantages, mask, **more):
    blank = torch.zeros(mask.shape, dtype=torch.long)
    return {
        "prompt_ids": blank, "prompt_mask": blank, "completion_ids": blank, "completion_mask": mask.long(),
        "advantages": advantages, "old_per_token_logps": old, "num_items_in_batch": mask.sum(),
    } | more  # fmt: skip


def value_and_gradient(loss, log_probs):
    return loss.detach(), torch.autograd.grad(loss, log_probs)[0]


def same(one, other, atol=1e-6):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("loss_type", ["dapo", "dr_grpo", "grpo"])
def test_without_control_our_loss_is_trls(loss_type, generator):
    for _ in range(20):
        log_probs, old, advantages, mask, entropies = random_update(generator)
        theirs = Given(loss_type, log_probs, entropies)._compute_loss(None, trl_inputs(old, advantages[:, 0], mask))
        if loss_type == "dapo":
            mine = policy_loss(log_probs, old, advantages, mask).loss
        elif loss_type == "dr_grpo":
            mine = policy_loss(log_probs, old, advantages, mask).loss * mask.sum() / mask.numel()
        else:  # a mean of responses' means is a GSPO loss's normaliser: row by row
            rows = [
                policy_loss(*(x[b : b + 1] for x in (log_probs, old, advantages, mask))).loss for b in range(len(mask))
            ]
            mine = torch.stack(rows).mean()
        same(value_and_gradient(theirs, log_probs), value_and_gradient(mine, log_probs))


CONTROLLED = [
    NoControl(), ClipHigher(), EntropyBonus(0.1), ClipCov(0.2, -1, 1), KLCov(0.2, 2.0), KLCov(0.2, 2.0, "k2"),
    RandomClip(0.3), HighEntropyMask(), CISPO(), EntropyShapedAdvantage(), CEGPPO(), CovarianceKernel(),
    KLCov(0.1) + EntropyBonus(0.05), ClipCov(0.2, -1, 1, clip_eps=1.0) + EntropyBonus(0.05), CISPO() + RandomClip(0.3),
]  # fmt: skip


@pytest.mark.parametrize("control", CONTROLLED, ids=lambda c: c.name)
def test_inside_trls_trainer_a_control_makes_our_loss(control, generator):
    for _ in range(10):
        log_probs, old, advantages, mask, entropies = random_update(generator)
        entropies = entropies + 0.1 * log_probs  # with a gradient, as a policy's
        tokens = erltool.Tokens(old, old, advantages, mask, entropies.detach())
        choice = control.choose(tokens, generator=generator)
        trainer = GivenControl(control, "dapo", log_probs, entropies)
        inputs = trl_inputs(old, choice.advantages, mask, chosen=choice.chosen)
        theirs = value_and_gradient(trainer._compute_loss(None, inputs), log_probs)
        log_probs2 = log_probs.detach().requires_grad_()
        entropies2 = entropies.detach() + 0.1 * (log_probs2 - log_probs2.detach())
        mine = control_loss(erltool.Tokens(log_probs2, old, advantages, mask, entropies2), choice)
        same(theirs, value_and_gradient(mine.loss, log_probs2))


def test_gspo_inside_trl_is_gspo_of_trl(generator):
    control = GSPO(0.2, 0.2)
    for _ in range(10):
        log_probs, old, advantages, mask, entropies = random_update(generator)
        trl_own = Given("grpo", log_probs, entropies)
        trl_own.importance_sampling_level = "sequence"
        theirs = trl_own._compute_loss(None, trl_inputs(old, advantages[:, 0], mask))
        none = torch.zeros_like(mask)[..., None]
        trainer = GivenControl(control, "grpo", log_probs, entropies)
        mine = trainer._compute_loss(None, trl_inputs(old, advantages, mask, chosen=none))
        same(value_and_gradient(theirs, log_probs), value_and_gradient(mine, log_probs))


def test_on_the_first_update_the_ratio_is_exactly_one(generator):
    log_probs, old, advantages, mask, entropies = random_update(generator)
    trainer = GivenControl(KLCov(0.5, 100.0), "dapo", log_probs, entropies)
    trainer.state.global_step = trainer._sampled_at
    inputs = trl_inputs(old, advantages, mask, chosen=mask[..., None])
    found = value_and_gradient(trainer._compute_loss(None, inputs), log_probs)
    plain = policy_loss(log_probs, log_probs.detach(), advantages, mask)
    same(found, value_and_gradient(plain.loss, log_probs))
    assert "old_per_token_logps" in inputs  # the buffer is for the next update, too


# --- verl ------------------------------------------------------------------------------------------------


def published_clip_cov(old, log_probs, advantages, mask, fraction, low, high, eps):
    """verl 0.9, trainer/ppo/core_algos.py, compute_policy_loss_clip_cov, up to the random draw (all are taken)."""
    ratio = torch.exp(log_probs - old)
    losses = -advantages * ratio, -advantages * torch.clamp(ratio, 1 - eps, 1 + eps)
    cov = (advantages - advantages[mask].mean()) * (log_probs - log_probs[mask].mean()).detach()
    cov[~mask | (losses[1] > losses[0])] = -torch.inf
    band = (cov < high) & (cov > low)
    assert int(band.sum()) <= max(int(fraction * mask.sum().item()), 1)
    return (torch.maximum(*losses) * ~band)[mask].sum() / mask.sum()


def published_kl_cov(old, log_probs, advantages, mask, fraction, coef):
    """verl 0.9, trainer/ppo/core_algos.py, compute_policy_loss_kl_cov."""
    losses, penalty = -advantages * torch.exp(log_probs - old), coef * (log_probs - old).abs()
    valid = torch.nonzero(mask.reshape(-1))[:, 0]
    adv, logp = advantages[mask], log_probs[mask].detach()
    cov = (adv - adv.mean()) * (logp - logp.mean())
    chosen = valid[torch.topk(cov, max(1, int(len(cov) * fraction))).indices]
    paid = torch.zeros(mask.numel(), dtype=torch.bool).index_fill(0, chosen, True).view(mask.shape)
    return (losses + penalty * paid)[mask].sum() / mask.sum()


def verl_function(name, **policy_loss_fields):
    """verl's own function by its config dataclasses; skips where the package cannot be imported."""
    core = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed", exc_type=ImportError)
    from verl.workers.config import ActorConfig, PolicyLossConfig

    loss = PolicyLossConfig(loss_mode=name, **policy_loss_fields)
    config = ActorConfig(strategy="fsdp", rollout_n=GROUP, ppo_micro_batch_size_per_gpu=1, policy_loss=loss)
    function = core.get_policy_loss_fn(name)
    return lambda old, log_probs, advantages, mask: function(old, log_probs, advantages, mask.double(), "token-mean",
                                                             config)[0]  # fmt: skip


PUBLISHED, INSTALLED = "published lines", "installed package"


@pytest.mark.parametrize(
    "name, whose",
    [
        ("clip_cov", PUBLISHED),
        ("kl_cov", PUBLISHED),
        *(pytest.param(n, INSTALLED, marks=pytest.mark.slow) for n in ("clip_cov", "kl_cov", "vanilla")),  # its import
    ],
)
def test_at_one_micro_batch_our_loss_is_verls(name, whose, generator):
    # With so large a fraction both take Clip-Cov's whole band, so that random choices need not agree.
    control = {"clip_cov": ClipCov(1.0, 0.1, 0.5), "kl_cov": KLCov(0.3, 0.7), "vanilla": NoControl()}[name]
    fields = {
        "clip_cov": {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1, "clip_cov_ub": 0.5},
        "kl_cov": {"kl_cov_ratio": 0.3, "ppo_kl_coef": 0.7},
        "vanilla": {},
    }[name]
    published = {
        "clip_cov": lambda *x: published_clip_cov(*x, 1.0, 0.1, 0.5, 0.2),
        "kl_cov": lambda *x: published_kl_cov(*x, 0.3, 0.7),
    }
    theirs = verl_function(name, **fields) if whose == INSTALLED else published[name]
    for _ in range(20):
        log_probs, old, advantages, mask, _ = random_update(generator)
        if name == "vanilla":  # its dual clip, which we leave out, acts at ratios above 3 with advantages below 0
            old = old.clamp(min=log_probs.detach() - 1.0)
        mine = policy_loss(log_probs, old, advantages, mask, control=control).loss
        loss = theirs(old, log_probs, advantages, mask)
        same(value_and_gradient(loss, log_probs), value_and_gradient(mine, log_probs))


def test_known_difference_centred_per_micro_batch(generator):
    """One response a micro-batch has covariance 0 in verl, and which tokens it takes is then a matter of rounding."""
    log_probs, old, advantages, mask, _ = random_update(generator)
    log_probs = log_probs.detach()
    whole = published_kl_cov(old, log_probs, advantages, mask, 0.3, 1.0)
    rows = range(len(mask))
    parts = [published_kl_cov(*(x[b : b + 1] for x in (old, log_probs, advantages, mask)), 0.3, 1.0) for b in rows]
    weights = mask.sum(-1) / mask.sum()
    assert (torch.stack(parts) * weights).sum() != pytest.approx(float(whole), abs=1e-6)
    adv, logp = advantages[0][mask[0]], log_probs[0][mask[0]]
    assert ((adv - adv.mean()) * (logp - logp.mean())).abs().max() < 1e-12
    tokens, first = erltool.Tokens(log_probs, old, advantages, mask), torch.tensor([0])
    choice = KLCov(0.3).choose(tokens)
    assert torch.equal(control_loss(tokens.rows(first), choice.rows(first)).selected, choice.selected[:1])


def test_known_difference_share_is_a_fraction_and_at_least_one_token(generator):
    """verl's `kl_cov_ratio` is a fraction, though its code counts `k_percent_nums`: the released script's k_percent is
    in percent, so 0.2 there is 0.002 here. Both take at least one token; ours none at fraction 0."""
    log_probs, old, advantages, mask, _ = random_update(generator)
    tiny, none = KLCov(1e-9), KLCov(0.0)
    assert policy_loss(log_probs, old, advantages, mask, control=tiny).selected.sum() == 1
    assert policy_loss(log_probs, old, advantages, mask, control=none).selected.sum() == 0
    mine = policy_loss(log_probs, old, advantages, mask, control=tiny).loss
    theirs = published_kl_cov(old, log_probs, advantages, mask, 1e-9, 1.0)
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), abs=1e-9)


# --- settings --------------------------------------------------------------------------------------------


def settings(folder, **fields):
    defaults = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4,
        "num_generations": GROUP, "num_iterations": 2, "max_completion_length": 8, "max_steps": 6, "loss_type": "dapo",
        "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True,
        "bf16": False, "disable_tqdm": True, "activation_checkpointing": False, "seed": 3,
    }  # fmt: skip
    return GRPOConfig(**defaults | fields)


REFUSED = [
    (KLCov(), {"num_iterations": 1}, "num_iterations=1: control kl-cov cannot act"),
    (ClipHigher(), {"num_iterations": 1}, "num_iterations=1"),
    (NoControl(), {"use_liger_kernel": True}, "use_liger_kernel"),
    (ClipCov(), {"importance_sampling_level": "sequence"}, "importance_sampling_level=sequence"),
    (ClipCov(), {"scale_rewards": "none"}, "scale_rewards=none: the band .1, 5. of clip-cov"),
    (NoControl(), {"loss_type": "bnpo"}, "loss_type=bnpo"),
    (GSPO(), {}, "loss_type=dapo: control gspo is a mean of responses"),
    (NoControl(), {"top_entropy_quantile": 0.2}, "top_entropy_quantile=0.2"),
    (EntropyBonus(), {"entropy_coef": 0.1}, "entropy_coef=0.1"),
    (ReferenceKL(), {}, "beta=0.0"),
    (KLCov(), {"delta": 1.5}, "delta=1.5"),
    (CISPO(), {"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold=0.5"),
]


@pytest.mark.parametrize("control, fields, message", REFUSED, ids=[m.split(":")[0] for _, _, m in REFUSED])
def test_settings_that_would_be_wrong_are_refused(control, fields, message, tmp_path):
    with pytest.raises(ErltoolError, match=message):
        check_settings(settings(tmp_path, **fields), control)


def test_settings_that_are_right_are_not(tmp_path):
    check_settings(settings(tmp_path), KLCov())
    check_settings(settings(tmp_path, num_iterations=1), ClipCov())
    check_settings(settings(tmp_path, num_iterations=1, steps_per_generation=8), KLCov())
    check_settings(settings(tmp_path, scale_rewards="none"), ClipCov(low=0.2, high=0.9, bounds="quantile"))


def test_a_method_that_is_gone_is_named_at_construction(monkeypatch):
    monkeypatch.delattr(GRPOTrainer, "_compute_loss")
    with pytest.raises(ErltoolError, match="has no _compute_loss, which erltool.engines.trl needs; use trl=="):
        EntropyControlGRPOTrainer("no-such-model", None, None, control=KLCov())


def test_a_parameter_that_is_gone_is_named(monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", lambda self, model, batch_size: None)
    with pytest.raises(ErltoolError, match="takes no compute_entropy"):
        check_trainer(GRPOTrainer)


def test_an_untested_version_is_warned_of(monkeypatch):
    monkeypatch.setattr(ours.trl, "__version__", "1.99.0")
    with pytest.warns(UserWarning, match=r"trl 1.99.0: erltool.engines.trl was tested with trl 1.16.\* only"):
        check_trainer(GRPOTrainer)


# --- training --------------------------------------------------------------------------------------------


def scripted(prompts, trainer):
    """Responses that depend on the prompt and its position only: the same on any number of processes."""
    first = trainer.accelerator.process_index * len(prompts)
    ids, eos = [], trainer._tokenizer.eos_token_id
    for place, prompt in enumerate(prompts):
        seed = zlib.crc32(f"{prompt} {(first + place) % GROUP} {trainer.state.global_step}".encode())
        draws = torch.Generator().manual_seed(seed)
        length = int(torch.randint(2, 8, (), generator=draws))
        ids.append([*torch.randint(3, len(trainer._tokenizer), (length,), generator=draws).tolist(), eos])
    return {"prompt_ids": trainer._tokenizer(prompts)["input_ids"], "completion_ids": ids, "logprobs": None}


def parity(prompts, completions, completion_ids, **kwargs):
    return [float(sum(ids) % 2) for ids in completion_ids]


def trained(policy, args, control, resume=False, **fields):
    prompts = [p.prompt for p in erltool.load_task("countdown").train[:64]]
    trainer = EntropyControlGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        parity,
        args,
        Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(policy, padding_side="left"),
        control=control,
        record_every=1,
        record_prompts=64,
        rollout_func=scripted,
        **fields,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def chosen(run):
    """Every recorded token and whether it was selected."""
    keys = ["step", "prompt_index", "response_index", "position"]
    return run.tokens.sort_values(keys).set_index(keys)[["token_id", "selected", "advantage", "log_prob"]]


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def same_run(one, other, atol):
    a, b = chosen(one), chosen(other)
    assert a.index.equals(b.index)
    assert a["selected"].equals(b["selected"]) and a["selected"].any()
    assert (a["log_prob"] - b["log_prob"]).abs().max() < atol
    for key in ("policy_entropy", "mean_covariance", "group_covariance", "kl_k3", "grad_norm"):
        assert one.metrics[key].to_numpy() == pytest.approx(other.metrics[key].to_numpy(), abs=atol), key


CONTROL = "kl-cov:fraction=0.1,coef=2+entropy-bonus:coef=0.01"


@pytest.mark.filterwarnings("ignore")
def test_a_run_opens_and_does_not_depend_on_the_micro_batch(tiny_policy, tmp_path):
    control = parse_control(CONTROL)
    small = trained(tiny_policy, settings(tmp_path / "small"), control)
    args = settings(tmp_path / "large", per_device_train_batch_size=16, gradient_accumulation_steps=1)
    large = trained(tiny_policy, args, control)
    runs = [erltool.read_run(tmp_path / name) for name in ("small", "large")]
    same_run(*runs, atol=1e-4)
    assert losses(small) == pytest.approx(losses(large), abs=1e-5)
    run = runs[0]
    assert run.config["steps"] == 6 and run.config["control"]["name"] == "composed"
    assert list(run.metrics["step"]) == [1, 2, 3, 4, 5, 6] and list(run.metrics["iteration"]) == [0, 0, 1, 1, 2, 2]
    assert not set(run.metrics) - set(erltool.METRICS)
    assert (run.metrics["kl_k3"][::2] == 0).all() and (run.metrics["kl_k3"][1::2] > 0).all()
    budget = [max(1, math.floor(0.1 * n + 1e-9)) for n in run.metrics["response_tokens"]]
    assert list(run.metrics["selected_tokens"]) == budget  # here an update is the whole batch
    assert list(chosen(run)["selected"].groupby("step").sum()) == budget[1::2]
    assert "erltool/mean_covariance" in small.state.log_history[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_from_its_checkpoint(tiny_policy, tmp_path):
    control, steer = KLCov(0.1), {"controller": TargetEntropy(target=1.0)}
    prompts = Dataset.from_dict({"prompt": [p.prompt for p in erltool.load_task("countdown").held_out[:4]]})
    fields = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps",
              "eval_steps": 2, "per_device_eval_batch_size": 4}  # fmt: skip
    trained(tiny_policy, settings(tmp_path / "whole", **fields), control, **steer, eval_dataset=prompts)
    trained(
        tiny_policy,
        settings(tmp_path / "cut", max_steps=4, **fields),
        control,
        **steer,
        eval_dataset=prompts,
    )
    again = settings(tmp_path / "cut", **fields)
    with pytest.raises(ErltoolError, match="already holds a run; use train"):
        trained(tiny_policy, again, control, **steer, eval_dataset=prompts)
    trained(tiny_policy, again, control, **steer, resume=True, eval_dataset=prompts)
    whole, cut = (erltool.read_run(tmp_path / name) for name in ("whole", "cut"))
    assert list(cut.metrics["step"]) == [1, 2, 3, 4, 5, 6]
    assert cut.metrics["control_value"].to_list() == pytest.approx(whole.metrics["control_value"].to_list(), abs=1e-6)
    assert len(set(cut.metrics["control_value"])) > 3
    assert list(whole.evaluated()["step"]) == [3, 5, 6]
    assert set(cut.tokens["step"]) == {2, 4, 6}
    assert (tmp_path / "whole" / "checkpoint-4" / ours.STATE).is_file()


# --- the output folder -----------------------------------------------------------------------------------


def opened(path, step, steps=6, rate=0.1, version="1"):
    return Folder(path, 1, step, {"config": {"steps": steps, "learning_rate": rate}, "made_by": {"trl": version}})


@pytest.fixture
def folder(tmp_path):
    """A run's files in TRL's output folder, as a run of two steps leaves them."""
    found = opened(tmp_path / "out", 0)
    for step in (1, 2):
        found.write({"step": step, "iteration": 0, "reward": 0.5, "policy_entropy": 1.0, "mean_covariance": 0.1})
    found.close()
    return tmp_path / "out"


def test_a_torn_last_line_is_left_out_when_the_run_goes_on(folder, caplog):
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"step": 3, "rewa')
    again = opened(folder, 2)
    again.write({"step": 3, "iteration": 1})
    again.evaluated(0.5, last=True)
    again.close()
    run = erltool.read_run(folder)
    assert run.metrics["step"].tolist() == [1, 2, 3] and run.skipped_lines == 0
    assert run.evaluated()["step"].tolist() == [3] and not caplog.messages


def test_lines_that_are_missing_before_the_checkpoint_are_said(folder, caplog):
    opened(folder, 4).close()
    assert caplog.messages == [f"{folder / 'metrics.jsonl'}: ends at step 2, and the run goes on from step 4"]


def test_a_second_writer_of_an_output_folder_is_refused(folder):
    first = opened(folder, 2)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ErltoolError, match=f"process {os.getpid()} on .* is writing there"):
        opened(folder, 1)
    assert (folder / "metrics.jsonl").read_bytes() == before
    first.close()
    opened(folder, 1).close()
    assert erltool.read_run(folder).metrics["step"].tolist() == [1]


@pytest.mark.parametrize("step", [0, 2])
def test_a_models_config_in_the_output_folder_is_not_taken_for_the_runs(tmp_path, step):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    opened(tmp_path, step).close()
    assert json.loads((tmp_path / "config.json").read_text())["config"] == {"steps": 6, "learning_rate": 0.1}


def test_other_settings_and_versions_are_added_to_what_the_run_began_with(folder):
    opened(folder, 2, steps=8, rate=0.2, version="2").close()
    run = erltool.read_run(folder)
    assert run.config == {"steps": 8, "learning_rate": 0.1} and run.made_by == {"trl": "1"}
    assert run.continued_by == ({"step": 2, "trl": "2", "config": {"learning_rate": 0.2}},)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not there"),
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "damaged"),
        ('{"name": "kl-cov"}', "is of control kl-cov, not clip-cov"),
    ],
)
def test_a_state_of_a_control_that_is_none_is_one_line(tmp_path, text, message):
    file = tmp_path / ours.STATE
    if text is not None:
        file.write_text(text)
    with pytest.raises(ErltoolError, match=message) as e:
        ours.read_control(file, "clip-cov")
    assert str(e.value).startswith(str(file)) and "\n" not in str(e.value)


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_lets_go_of_its_folder_and_does_not_append_a_second_training(tiny_policy, tmp_path):
    trainer = trained(tiny_policy, settings(tmp_path / "run", max_steps=2), KLCov(0.1))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert not (tmp_path / "run" / ".lock").exists()
    with pytest.raises(ErltoolError, match="already holds a run; use train"):
        trainer.train()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def world(out: str, control: str, per_device: int, accumulation: int) -> None:
    batch = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation}
    args = settings(out, learning_rate=3e-4, **batch)
    trainer = trained(shipped("data/policies/countdown"), args, parse_control(control))
    if trainer.accelerator.is_main_process:
        (Path(out) / "losses.json").write_text(json.dumps(losses(trainer)))


@pytest.mark.slow
@pytest.mark.parametrize("control", ["kl-cov:fraction=0.1,coef=2", "clip-cov:fraction=0.1,low=0,high=9"])
def test_two_processes_are_one(control, tmp_path):
    # The launcher starts several processes only for GPUs; on the CPU accelerate then connects them by gloo.
    two_processes = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2",
                     "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    for processes, accumulation, launch in (("1", "4", []), ("2", "2", two_processes)):
        words = [sys.executable, *launch, __file__, str(tmp_path / processes), control, "4", accumulation]
        env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        subprocess.run(words, check=True, env=env, timeout=1800)
    one, two = (erltool.read_run(tmp_path / name) for name in ("1", "2"))
    assert (one.made_by["ranks"], two.made_by["ranks"]) == (1, 2)
    same_run(one, two, atol=1e-4)
    found = [json.loads((tmp_path / name / "losses.json").read_text()) for name in ("1", "2")]
    print("losses", *found, "selected", list(one.metrics["selected_tokens"]))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


if __name__ == "__main__":
    world(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
