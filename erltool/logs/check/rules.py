"""The rules: each is one small function of Settings that gives a Finding or None. `check` asks them all.

A rule is silent where a setting that it needs is not known.
"""

from collections.abc import Callable, Iterable

from erltool.logs.check.own import LOSSES
from erltool.logs.check.settings import CLIP_COV, ERROR, KL_COV, NOTE, SEVERITIES, WARNING, Finding, Settings
from erltool.text import shown

PAPER = "arXiv 2505.22617"
CODE = {  # where a framework keeps what a rule speaks of
    "verl": {"loss": "verl/trainer/ppo/core_algos.py", "total": "verl/workers/utils/losses.py",
             "config": "verl/trainer/config"},
    "TRL": {"loss": "trl/trainer/grpo_trainer.py", "total": "trl/trainer/grpo_trainer.py",
            "config": "trl/trainer/grpo_config.py"},
    "SkyRL": {"loss": "skyrl/backends/skyrl_train/utils/ppo_utils.py",
              "total": "skyrl/backends/skyrl_train/workers/worker.py", "config": "skyrl/train/config/config.py"},
    "prime-rl": {"loss": "src/prime_rl/trainer/rl/loss.py", "total": "src/prime_rl/trainer/rl/loss.py",
                 "config": "prime_rl/configs/orchestrator.py"},
    "erltool": {"loss": "erltool/controls/paper.py", "total": "erltool/controls/loss.py",
                "config": "erltool/training/config.py"},
}  # fmt: skip
MUCH = 0.02  # fraction of tokens from which on percent was likely meant: ten times the paper's largest, 0.002
LITTLE = 2e-3  # percent from which down a fraction was likely meant: a tenth of the paper's smallest, 0.02 %
BAND = 0.5  # lower end of a band from which on it is meant for scaled advantages; the paper's is 1
SUMMED = 1e-2  # from which on a number was not divided by an update's tokens, thousands at least
LORA_RATE, FULL_RATE = 5e-6, 5e-5  # learning rates below and above which LoRA and full fine-tuning seem mistaken


def check(settings: Settings) -> list[Finding]:
    """The findings, the worst first."""
    found = [finding for rule in RULES if (finding := rule(settings)) is not None]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def found(rule: str, severity: str, s: Settings, field: str, why: str, remedy: str, source: str) -> Finding:
    """A finding at a field. `source` is a kind of code in CODE, or else a source by itself."""
    value = s.values.get(field, getattr(s, field))
    number = f"{value:g}" if isinstance(value, float) else shown(value, 40)
    place = CODE[s.framework].get(source)
    release = " ".join(filter(None, (s.framework, s.release)))
    return Finding(rule, severity, f"{s.keys.get(field, field)}={number}", why, remedy,
                   f"{release} {place}" if place else source)  # fmt: skip


def once(s: Settings) -> bool:
    """Whether each response gets one update, with the trainer's own log-probs in the ratio, which is then 1."""
    return s.updates_per_rollout is not None and s.updates_per_rollout <= 1 and s.sampler_old is False


def ours(s: Settings) -> bool:
    """Whether the control is this package's, in whatever framework."""
    return s.framework == "erltool" or s.whole_update


def in_micro_batches(s: Settings) -> bool:
    """Whether tokens are chosen by covariance in each micro-batch."""
    return s.loss in (CLIP_COV, KL_COV) and not s.whole_update


def higher(s: Settings) -> bool:
    """Whether the clip is wider above than below."""
    return s.clip_low is not None and s.clip_high is not None and s.clip_high > s.clip_low


def key(s: Settings, field: str) -> str:
    return s.keys.get(field, field)


# --- Clip-Cov and KL-Cov ---------------------------------------------------------------------------


def silent_kl_cov(s: Settings) -> Finding | None:
    if s.loss == KL_COV and once(s):
        return found("silent-kl-cov", ERROR, s, "loss",
                     f"KL-Cov with {s.updates_per_rollout or 0:g} update on a rollout never acts: |log ratio| and its "
                     "gradient are 0 on the first update after sampling",
                     "make at least 2 updates on a rollout: a smaller mini-batch, or more epochs", "loss")  # fmt: skip
    return None


def percent_for_fraction(s: Settings) -> Finding | None:
    share = s.kl_cov_fraction or 0
    if s.loss == KL_COV and share >= MUCH and not ours(s):
        return found("percent-for-fraction", ERROR if share > 1 else WARNING, s, "kl_cov_fraction",
                     f"is a fraction, {100 * share:g} % of the tokens; the paper's are 0.2 % (7B) and "
                     "0.02 % (32B), and its scripts' k_percent is in percent",
                     f"use {share / 100:g} if percent was meant", "loss")  # fmt: skip
    return None


def percent_for_clip_fraction(s: Settings) -> Finding | None:
    share = s.clip_cov_fraction or 0
    if s.loss == CLIP_COV and share >= MUCH and not ours(s):
        return found("percent-for-fraction", ERROR if share > 1 else WARNING, s, "clip_cov_fraction",
                     f"is a fraction, {100 * share:g} % of the tokens; the paper's is 0.02 %",
                     f"use {share / 100:g} if percent was meant", "loss")  # fmt: skip
    return None


def fraction_for_percent(s: Settings) -> Finding | None:
    percent = s.kl_cov_percent or 1
    if s.loss == KL_COV and percent <= LITTLE:
        return found("fraction-for-percent", WARNING, s, "kl_cov_percent",
                     f"is in percent here, {percent / 100:g} of the tokens; the paper's scripts have 0.2 and "
                     "0.02", f"use {100 * percent:g} if a fraction was meant", PAPER)  # fmt: skip
    return None


def loss_not_chosen(s: Settings) -> Finding | None:
    fields = {CLIP_COV: ("clip_cov_fraction", "clip_cov_low"),
              KL_COV: ("kl_cov_fraction", "kl_cov_percent", "kl_cov_coef")}  # fmt: skip
    for loss, names in fields.items():
        idle = next((name for name in names if name in s.chosen), None)
        unread = s.loss is not None and (s.loss != loss or s.whole_update)
        if idle and unread and s.framework in ("verl", "SkyRL"):
            return found("loss-not-chosen", WARNING, s, idle,
                         f"has no effect: {key(s, 'loss')} is {shown(s.values.get('loss', s.loss), 80)}",
                         f"set {key(s, 'loss')}={loss}, or drop it", "loss")  # fmt: skip
    return None


def loss_not_registered(s: Settings) -> Finding | None:
    if s.whole_update and s.registered is False:
        return found("loss-not-registered", ERROR, s, "loss",
                     f"{s.framework} does not know this loss: its workers do not import {LOSSES}",
                     f"set {key(s, 'registered')}={LOSSES}", "loss")  # fmt: skip
    return None


def unscaled_band(s: Settings) -> Finding | None:
    if s.loss == CLIP_COV and s.scaled is False and (s.clip_cov_low or 0) >= BAND:
        return found("unscaled-band", WARNING, s, "clip_cov_low",
                     "the band assumes advantages divided by their standard deviation, and these are not: hardly a "
                     "token reaches it", "divide by the standard deviation, or lower the band", "loss")  # fmt: skip
    return None


def one_response_selection(s: Settings) -> Finding | None:
    if in_micro_batches(s) and s.micro_batch == 1 and s.dynamic_batch is False and not s.per_token and s.estimator:
        return found("one-response-selection", ERROR, s, "micro_batch",
                     "the covariance is centred in each micro-batch, and over one response it is 0 on every token: "
                     + ("Clip-Cov drops none" if s.loss == CLIP_COV else "KL-Cov's choice is arbitrary"),
                     "use as many responses in a micro-batch as fit", "loss")  # fmt: skip
    return None


def micro_batch_selection(s: Settings) -> Finding | None:
    if in_micro_batches(s) and 1 < (s.micro_batch or 0) < (s.update_share or 0) and s.dynamic_batch is False:
        return found("micro-batch-selection", WARNING, s, "micro_batch",
                     "tokens are chosen in each micro-batch, not over the update's "
                     f"{s.update_share or 0:g} responses on a device: the choice, and at least one "
                     "token of each, depends on this number",
                     f"use {s.update_share or 0:g} if it fits, else keep it the same in all runs",
                     "loss")  # fmt: skip
    return None


def packed_selection(s: Settings) -> Finding | None:
    if in_micro_batches(s) and s.dynamic_batch:
        return found("packed-selection", WARNING, s, "dynamic_batch",
                     "tokens are chosen in each micro-batch, and how responses are packed decides which: a long "
                     "response alone has covariance 0", "use micro-batches of a fixed number of responses",
                     "loss")  # fmt: skip
    return None


def noisy_penalty(s: Settings) -> Finding | None:
    if s.loss == KL_COV and s.dtype in ("bf16", "fp16") and not once(s):
        return found("noisy-penalty", NOTE, s, "dtype",
                     f"in {s.dtype} log pi and log pi_old differ by rounding alone, and |log ratio| has its full "
                     "gradient however small it is: on the first update the penalty has random signs",
                     "compute log-probs in fp32, in micro-batches of one size", "loss")  # fmt: skip
    return None


def noise_of_dropout(s: Settings) -> Finding | None:
    if s.loss == KL_COV and (s.lora_dropout or 0) > 0 and (s.lora_rank or 0) > 0:
        return found("noise-of-dropout", WARNING, s, "lora_dropout",
                     "KL-Cov penalises every difference between log pi and log pi_old, and dropout adds random ones",
                     "use no dropout", "loss")  # fmt: skip
    return None


def band_out_of_reach(s: Settings) -> Finding | None:
    if s.framework == "SkyRL" and s.loss == CLIP_COV and (s.clip_cov_low or 0) >= SUMMED:
        return found("band-out-of-reach", ERROR, s, "clip_cov_low",
                     "SkyRL divides the advantages by the update's tokens before the loss, and with them every "
                     "covariance: no token reaches the band, and Clip-Cov drops none",
                     "divide both ends of the band by the tokens of an update", "loss")  # fmt: skip
    return None


def summed_penalty(s: Settings) -> Finding | None:
    if s.framework == "SkyRL" and s.loss == KL_COV and (s.kl_cov_coef or 0) >= SUMMED:
        return found("summed-penalty", ERROR, s, "kl_cov_coef",
                     "SkyRL divides the advantages by the update's tokens before the loss, but not the penalty: it is "
                     "as many times too strong", "divide it by the tokens of an update", "loss")  # fmt: skip
    return None


def weak_kl_cov(s: Settings) -> Finding | None:
    if s.loss == KL_COV and 0 < (s.kl_cov_coef or 0) < 0.5 and s.framework == "verl":
        return found("weak-kl-cov", NOTE, s, "kl_cov_coef",
                     "the paper's coefficient is 1; verl's default is a tenth of it",
                     f"set {key(s, 'kl_cov_coef')}=1 to reproduce the paper", PAPER)  # fmt: skip
    return None


def clip_of_kl_cov(s: Settings) -> Finding | None:
    if (
        s.loss == KL_COV
        and s.clip_low != s.clip_high
        and {"clip_low", "clip_high"} & s.chosen
        and s.framework in ("verl", "SkyRL")
    ):
        return found("clip-of-kl-cov", WARNING, s, "clip_high",
                     "has no effect: the surrogate of kl_cov is not clipped", "drop it, or use another loss",
                     "loss")  # fmt: skip
    return None


# --- advantages and clip ------------------------------------------------------------------------------


def group_of_one(s: Settings) -> Finding | None:
    if s.grouped and s.group_size == 1:
        effect = {"verl": "the advantage is the reward itself", "TRL": "TRL refuses it", "erltool": "refused"}
        return found("group-of-one", ERROR, s, "group_size",
                     f"{s.estimator} compares the responses to a prompt, and a group of one has no baseline: "
                     + effect.get(s.framework, "the advantage is 0 or the reward itself"),
                     "sample 8 or 16 responses to a prompt", "config" if s.framework != "verl" else "loss")  # fmt: skip
    return None


def silent_clip_higher(s: Settings) -> Finding | None:
    if higher(s) and once(s) and s.loss != KL_COV:
        return found("silent-clip-higher", WARNING, s, "clip_high",
                     "with one update on a rollout every ratio is 1 and nothing is clipped, so clip-higher has no "
                     "effect", "make at least 2 updates on a rollout", "loss")  # fmt: skip
    return None


def two_pushes(s: Settings) -> Finding | None:
    if higher(s) and (s.entropy_coef or 0) > 0 and s.entropy_on is not False:
        return found("two-pushes", WARNING, s, "entropy_coef",
                     f"rewards entropy while {key(s, 'clip_high')}={s.clip_high or 0:g} lets rare tokens rise further: "
                     "together the entropy easily explodes", "use one of the two",
                     "arXiv 2503.14476 (DAPO)")  # fmt: skip
    return None


# --- entropy ----------------------------------------------------------------------------------------


def entropy_punished(s: Settings) -> Finding | None:
    coef = s.entropy_coef or 0
    if coef < 0 and s.entropy_on is not False:
        return found("entropy-punished", ERROR, s, "entropy_coef",
                     "the loss is the policy's minus coefficient times entropy, so a value below 0 lowers the entropy",
                     f"use {-coef:g} to reward it", "total")  # fmt: skip
    return None


def entropy_bonus_off(s: Settings) -> Finding | None:
    if s.framework == "SkyRL" and s.entropy_on is False and "entropy_coef" in s.chosen and s.entropy_coef:
        return found("entropy-bonus-off", WARNING, s, "entropy_coef",
                     f"has no effect: {key(s, 'entropy_on')} is false", f"set {key(s, 'entropy_on')}=true, or drop it",
                     "config")  # fmt: skip
    return None


def shuffled_entropy(s: Settings) -> Finding | None:
    old = s.framework == "verl" and _release(s.release) < (0, 4, 1)
    if old and s.dynamic_batch:
        return found("shuffled-entropy", WARNING, s, "dynamic_batch",
                     "up to verl 0.4.0 dynamic batches leave the entropies in another order than the response mask, so "
                     "the logged entropy is wrong", "update verl to 0.4.1 or later before fitting a law to it",
                     "thunlp/JustRL issue 5; verl v0.4.0 verl/workers/actor/dp_actor.py")  # fmt: skip
    return None


def entropy_unmeasured(s: Settings) -> Finding | None:
    if s.framework == "verl" and s.entropy_measured is False:
        return found("entropy-unmeasured", NOTE, s, "entropy_measured",
                     "with bypass_mode verl logs no entropy", f"set {key(s, 'entropy_measured')}=true to watch it",
                     "verl pull request 4239")  # fmt: skip
    return None


# --- sampling and learning rate -----------------------------------------------------------------------


def truncated_sampling(s: Settings) -> Finding | None:
    cut = {"top_p": (1 if s.top_p is None else s.top_p) < 1, "top_k": (s.top_k or 0) > 0, "min_p": bool(s.min_p)}
    field = next((name for name, holds in cut.items() if holds), None)
    if field and s.sampler_ratio:
        return found("truncated-sampling", WARNING, s, field,
                     "the ratio to the inference engine's log-probs compares the whole distribution with a truncated "
                     "one, and is below 1 on every token by the mass that was cut",
                     "sample from the whole distribution", "config")  # fmt: skip
    return None


def greedy_sampling(s: Settings) -> Finding | None:
    if s.temperature == 0:
        return found("greedy-sampling", ERROR, s, "temperature",
                     "greedy responses to a prompt are all the same, so every advantage is 0", "use 1",
                     "config")  # fmt: skip
    return None


def two_temperatures(s: Settings) -> Finding | None:
    if s.temperature is not None and s.loss_temperature is not None and s.temperature != s.loss_temperature:
        return found("two-temperatures", WARNING, s, "loss_temperature",
                     f"log-probs are of another temperature than the sampling, {s.temperature:g}",
                     "leave it out, then both are the same", "config")  # fmt: skip
    return None


def slow_lora(s: Settings) -> Finding | None:
    rank = s.lora_rank or 0
    if rank > 0 and 0 < (s.learning_rate or 0) < LORA_RATE:
        return found("slow-lora", WARNING, s, "learning_rate",
                     f"suits full fine-tuning; {key(s, 'lora_rank')}={rank:g} needs about ten times as much",
                     "use 1e-5 to 1e-4", "verl docs/advance/ppo_lora.rst")  # fmt: skip
    return None


def fast_full(s: Settings) -> Finding | None:
    if s.lora_rank == 0 and (s.learning_rate or 0) >= FULL_RATE:
        return found("fast-full", WARNING, s, "learning_rate",
                     "suits LoRA; full fine-tuning of a language model diverges at it", "use about 1e-6",
                     "config")  # fmt: skip
    return None


def _release(text: str) -> tuple[int, ...]:
    """0.4.0 as numbers; the newest where it is none, such as a commit."""
    parts: Iterable[str] = text.split(".")[:3]
    numbers = tuple(int(part) for part in parts if part.isdigit())
    return numbers if len(numbers) >= 2 else (99,)


RULES: tuple[Callable[[Settings], Finding | None], ...] = (
    silent_kl_cov,
    percent_for_fraction,
    percent_for_clip_fraction,
    fraction_for_percent,
    loss_not_chosen,
    loss_not_registered,
    unscaled_band,
    one_response_selection,
    micro_batch_selection,
    packed_selection,
    noisy_penalty,
    noise_of_dropout,
    band_out_of_reach,
    summed_penalty,
    weak_kl_cov,
    clip_of_kl_cov,
    group_of_one,
    silent_clip_higher,
    two_pushes,
    entropy_punished,
    entropy_bonus_off,
    shuffled_entropy,
    entropy_unmeasured,
    truncated_sampling,
    greedy_sampling,
    two_temperatures,
    slow_lora,
    fast_full,
)
