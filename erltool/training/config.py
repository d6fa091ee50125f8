"""TrainConfig: all settings of a run in one frozen value. Its fields are the flags of the command line."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

from erltool.controls.base import Control, NoControl
from erltool.controls.catalog import control_from_dict, control_to_dict, controller_from_dict, shortened
from erltool.controls.controllers import Controller, Steered
from erltool.entropy.advantages import ESTIMATORS
from erltool.errors import ErltoolError
from erltool.resources import POLICIES

BASES = ("none", "nf4", "int8")
TEMPLATES = ("none", "chat", "boxed", "question")
OWN, VLLM = "own", "vllm"
SAMPLERS = (OWN, VLLM)
DEVICE = r"auto|cpu|cuda(:\d+)?"
MOST = 2**63  # the limit of random generators' seeds and of tensors' sizes


def _about(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ErltoolError for a wrong type, an impossible value or an impossible combination.

    A step is one optimiser update. An iteration samples responses, then makes `updates_per_iteration` steps, each on
    other responses.
    """

    task: str = _about("chain:sharpening", "the task, which gives prompts and a verifier")
    policy: str = _about(
        "sharpening", f"{', '.join(POLICIES)}, smollm2-135m, a model's folder, a GGUF file or a hub id"
    )
    base: str = _about("none", f"quantisation of the frozen weights: {', '.join(BASES)}")
    dtype: str = _about("auto", "type of weights and computation: fp32, bf16, auto (as stored; fp32 if bf16 is slow)")
    template: str = _about("auto", f"template around each prompt: auto, {', '.join(TEMPLATES)}")
    shots: int = _about(0, "worked examples before every prompt, taken from the training problems")
    control: Control = _about(
        NoControl(), "entropy control, e.g. kl-cov:chain or kl-cov:fraction=0.1,coef=2; + composes several"
    )
    controller: Controller | None = _about(None, "changes the control over the run, e.g. target-entropy:target=0.3")
    advantages: str = _about("grpo", f"advantage estimator: {', '.join(ESTIMATORS)}")
    steps: int = _about(200, "optimiser updates in total")
    seed: int = _about(0, "seed of every random draw")
    prompts_per_iteration: int = _about(64, "prompts sampled in an iteration")
    group_size: int = _about(8, "responses to each prompt")
    updates_per_iteration: int = _about(4, "optimiser updates on an iteration's responses")
    micro_batch: int = _about(0, "responses in one backward pass, 0 for the whole update; changes memory, not results")
    learning_rate: float = _about(1e-3, "Adam's learning rate; 3e-4 suits full fine-tuning of the shipped policies")
    lora_rank: int = _about(16, "rank of LoRA on all linear layers; 0 trains all weights")
    lora_alpha: float = _about(32.0, "LoRA's output is scaled by lora_alpha / lora_rank")
    lora_dropout: float = _about(0.0, "fraction of the adapter's inputs that training drops")
    gradient_checkpointing: bool = _about(False, "keep only each layer's input and recompute the rest; saves memory")
    compile: bool = _about(False, "compile decoder layers for training; needs a C++ compiler and half a minute")
    trust_remote_code: bool = _about(False, "let a model run its own code")
    max_grad_norm: float = _about(1.0, "largest norm of the gradient; a larger one is scaled down to it")
    temperature: float = _about(1.0, "temperature of sampling and of every log-probability and entropy")
    top_p: float = _about(
        1.0, "train on samples from the likeliest tokens with this total probability; evaluate on all"
    )
    sampling_batch: int = _about(0, "responses sampled at a time, 0 for all; changes memory and the random draws")
    sampler: str = _about(
        OWN, "who samples: own, or vllm on the same GPU (extra vllm), whose log-probs are not quite ours"
    )
    sampler_correction: float = _about(
        0.0, "largest weight pi / pi_sampler of a token's loss, 2 as published; 0 for no weights"
    )
    max_response_tokens: int = _about(28, "longest response in tokens, EOS included; 12 suits countdown")
    mask_truncated: bool = _about(False, "give no loss to responses cut by max_response_tokens")
    clip_eps_low: float = _about(0.2, "the surrogate clips ratios below 1 minus this")
    clip_eps_high: float = _about(0.2, "the surrogate clips ratios above 1 plus this")
    dynamic_sampling: bool = _about(False, "replace groups with equal rewards by groups of further prompts")
    eval_every: int = _about(5, "iterations between held-out evaluations, 0 for none")
    eval_prompts: int = _about(256, "held-out prompts in each evaluation")
    eval_samples: int = _about(2, "responses to each held-out prompt")
    eval_temperature: float | None = _about(None, "temperature of a second held-out accuracy; 0 is greedy")
    checkpoint_every: int = _about(10, "iterations between checkpoints")
    record_every: int = _about(10, "iterations between recordings of tokens, 0 for none")
    record_prompts: int = _about(4, "prompts in each recording of tokens")
    record_probes: int = _about(0, "fixed held-out prompts sampled at each recording, with their likeliest tokens")
    entropy_change_every: int = _about(0, "iterations between measurements of an update's entropy change, 0 for none")
    device: str = _about("auto", "cpu, cuda or auto")

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _checked(f.name, getattr(self, f.name), hints[f.name]))
        for name in ("steps", "prompts_per_iteration", "updates_per_iteration", "checkpoint_every",
                     "max_response_tokens", "eval_prompts", "eval_samples", "record_prompts"):  # fmt: skip
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("seed", "shots", "micro_batch", "sampling_batch", "lora_rank", "eval_every", "record_every",
                     "record_probes", "entropy_change_every"):  # fmt: skip
            self._require(getattr(self, name) >= 0, name, "at least 0")
        for name in ("learning_rate", "lora_alpha", "max_grad_norm", "temperature", "clip_eps_high"):
            self._require(0 < getattr(self, name) < math.inf, name, "above 0 and finite")
        second = self.eval_temperature
        self._require(second is None or type(second) in (int, float) and 0 <= second < math.inf, "eval_temperature",
                      "at least 0 and finite")  # fmt: skip
        self._require(self.controller is None or isinstance(self.controller, Controller), "controller",
                      "a controller, as TargetEntropy(target=0.3)")  # fmt: skip
        self._require(0 < self.top_p <= 1, "top_p", "in (0, 1]")
        self._require(self.sampler in SAMPLERS, "sampler", f"one of {', '.join(SAMPLERS)}")
        cap = self.sampler_correction
        self._require(cap == 0 or 1 <= cap < math.inf, "sampler_correction", "0, or at least 1 and finite")
        self._require(0 <= self.lora_dropout < 1, "lora_dropout", "in [0, 1)")
        self._require(self.base in BASES, "base", f"one of {', '.join(BASES)}")
        self._require(self.dtype in ("auto", "fp32", "bf16"), "dtype", "auto, fp32 or bf16")
        self._require(self.template in ("auto", *TEMPLATES), "template", f"auto, {', '.join(TEMPLATES)}")
        self._require(0 < self.clip_eps_low <= 1, "clip_eps_low", "in (0, 1]: a ratio is never below 0")
        self._require(self.group_size >= 2, "group_size", "at least 2: a group of one has no baseline")
        self._require(self.advantages in ESTIMATORS, "advantages", f"one of {', '.join(ESTIMATORS)}")
        self._require(re.fullmatch(DEVICE, self.device) is not None, "device", "auto, cpu, cuda or cuda:NUMBER")
        self._check_combinations()

    def _check_combinations(self):
        updates, multiple = (
            self.updates_per_iteration,
            f"a multiple of updates_per_iteration={self.updates_per_iteration}",
        )
        self._require(self.steps % updates == 0, "steps", f"{multiple}: a run ends with a whole iteration")
        self._require(self.prompts_per_iteration % updates == 0, "prompts_per_iteration",
                      f"{multiple}: an update takes whole groups")  # fmt: skip
        if updates < self.control.min_updates:
            raise ErltoolError(
                f"updates_per_iteration={updates}: control {self.control.name} cannot act on the "
                f"first update after sampling, where pi = pi_old; use at least {self.control.min_updates}"
            )
        if self.base != "none" and not self.lora_rank:
            raise ErltoolError(f"base={self.base}: quantised weights cannot train; use lora_rank above 0, or base=none")
        if self.dtype == "bf16" and not self.lora_rank:
            raise ErltoolError(
                "dtype=bf16: with lora_rank=0 the trained weights would be bf16, and rounding loses most of an update "
                "(at a rate of 1e-5, 93 % of the weights stay as they are); use dtype=auto, or lora_rank above 0"
            )
        if self.lora_dropout and not self.lora_rank:
            raise ErltoolError(
                f"lora_dropout={self.lora_dropout:g}: with lora_rank=0 there is no adapter whose inputs it could drop; "
                "use lora_dropout=0, or lora_rank above 0"
            )
        if self.lora_dropout and self.micro_batch:
            raise ErltoolError(
                f"lora_dropout={self.lora_dropout:g}: the dropped inputs would depend on micro_batch; use micro_batch=0"
            )
        if self.sampler == VLLM:
            self._check_vllm()
        for member in self.control.parts:
            for name, why in member.conflicts(self):
                where = f"control {self.control.name}" if name == "control" else f"{name}={getattr(self, name)}"
                raise ErltoolError(f"{where}: {why}")
        if self.controller is not None:
            self.controller.check(self.control)

    def _check_vllm(self):
        """Raises ErltoolError for what vLLM cannot do, whatever the machine."""
        if self.base == "int8":
            raise ErltoolError(
                "sampler=vllm: base int8 rounds a layer's inputs too, which no weights can repeat; use base=nf4 or none"
            )
        if self.trust_remote_code:
            raise ErltoolError(
                "sampler=vllm: vLLM has code of its own for a model; leave trust_remote_code out, or use sampler=own"
            )
        if self.top_p < 1 and self.temperature != 1:
            raise ErltoolError(
                "sampler=vllm: its log-probs are before the temperature, or of the top_p tokens only; "
                "use top_p=1 or temperature=1"
            )

    def _require(self, holds: bool, name: str, range_: str):
        if not holds:
            raise ErltoolError(f"{name}={getattr(self, name)!r}: must be {range_}")

    @property
    def prompts_per_update(self) -> int:
        return self.prompts_per_iteration // self.updates_per_iteration

    def steered(self, step: int, numbers: Mapping[str, float]) -> "TrainConfig":
        """The same run with these numbers of its control, `fraction` or `coef`, from update `step` on. Raises
        ErltoolError where the controller is not `Steered`, or the control refuses a number."""
        if not isinstance(self.controller, Steered):
            raise ErltoolError("steering a run needs controller=Steered() in its configuration")
        return dataclasses.replace(self, controller=self.controller.then(step, numbers))

    def to_dict(self) -> dict:
        """Fields for JSON, with control and controller as dictionaries."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        controller = None if self.controller is None else control_to_dict(self.controller)
        return fields | {"control": control_to_dict(self.control), "controller": controller}

    @classmethod
    def from_dict(cls, fields: dict, *, trust_remote_code: bool = False) -> "TrainConfig":
        """The inverse of `to_dict`.

        Fields may come from a stranger's file, so a model's own code runs only if the argument `trust_remote_code` asks
        for it too. Raises ErltoolError where only the fields do, for an unknown field, and for other than a dictionary.
        """
        if not isinstance(fields, dict):
            raise ErltoolError(f"TrainConfig: needs its fields by name, not {type(fields).__name__}")
        known = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"fields are {', '.join(known)}"
                raise ErltoolError(f"TrainConfig has no field {shortened(name)}: {hint}")
        if fields.get("trust_remote_code") and not trust_remote_code:
            raise ErltoolError(
                "trust_remote_code: a file cannot let a model run its own code; if you trust this model, use "
                "--trust-remote-code, in Python trust_remote_code=True"
            )
        fields = dict(fields)
        if isinstance(fields.get("control"), dict):
            fields["control"] = control_from_dict(fields["control"])
        if isinstance(fields.get("controller"), dict):
            fields["controller"] = controller_from_dict(fields["controller"])
        return cls(**fields)


def _checked(name: str, value, kind: type | types.UnionType):
    """The value as the field's type; only an int becomes a float. Raises ErltoolError for another type."""
    if kind is float and type(value) is int and abs(value) < MOST:
        return float(value)
    if isinstance(kind, type) and (not isinstance(value, kind) or kind is int and type(value) is bool):
        raise ErltoolError(f"{name}={shortened(value)}: must be {kind.__name__}, not {type(value).__name__}")
    if kind is int and isinstance(value, int) and abs(value) >= MOST:
        raise ErltoolError(f"{name}: must be below {MOST}")
    if isinstance(value, str) and (not value or "\0" in value):  # a folder's name may hold any other character
        raise ErltoolError(f"{name}: must be text, not empty and without a NUL")
    return value
