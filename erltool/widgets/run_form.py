"""RunForm: a run's configuration in a form, and the memory and the time that it needs, before it starts."""

import logging
import math
import re
import threading
import time
import typing
from dataclasses import replace

import traitlets
from matplotlib.figure import Figure

from erltool.controls.base import Control
from erltool.controls.catalog import control_to_dict, parse_control
from erltool.errors import ErltoolError
from erltool.plots import COLOURS, new_axes
from erltool.runs.compare import control_text
from erltool.text import visible
from erltool.training.config import BASES, TrainConfig
from erltool.widgets.run_choices import CHOICES, STARTS
from erltool.widgets.run_plan import plan_of
from erltool.widgets.trained_run import TURN
from erltool.widgets.view import CHOSEN, View, javascript, message

ASKED = (
    "policy", "base", "task", "control", "steps", "learning_rate", "lora_rank", "prompts_per_iteration", "group_size",
    "max_response_tokens", "micro_batch", "gradient_checkpointing", "seed", "device",
)  # fmt: skip
ONLY = {"base": BASES, "gradient_checkpointing": ("no", "yes")}
"""Choices of a field that takes no other value."""
OFFERED = {name: tuple(entries) for name, entries in CHOICES.items()} | {"device": ("auto", "cpu", "cuda")}
"""Suggestions of a field of text; it takes other text, too."""
NO_PACE = {"steps", "seed", "learning_rate"}  # fields that do not change how long an iteration takes
KINDS = typing.get_type_hints(TrainConfig)
_log = logging.getLogger(__name__)


class RunForm(View):
    """`RunForm(config)`: choose policy, task, control and sizes; `.result` is the TrainConfig, for the next cell.

    The view shows the memory plan for this machine (prompts of run_plan.PROMPT_TOKENS tokens) against the free memory,
    and what to lower for common GPUs. Nothing is loaded and nothing starts, but for `measure`, which makes one
    iteration. A field that the form does not have stays as in `config`. `values` are the fields as text; `choose` sets
    them from Python. `wrong` says at each field in one line what is wrong there, and `problem` is the first of these
    lines; `.result` then raises ErltoolError with it. A plan above the free memory is not a problem, since it may be
    for another machine: a line beside the plan says so.
    """

    _esm = javascript("run_form.js")
    values = traitlets.Dict(traitlets.Unicode()).tag(**CHOSEN)
    """Text of each field of ASKED"""
    plan = traitlets.Dict().tag(sync=True)
    """The memory plan: rows (when, name, GiB) and the sentences beside it; empty where there is a problem"""
    fields: traitlets.List[dict] = traitlets.List().tag(sync=True)
    wrong = traitlets.Dict().tag(sync=True)
    """Field -> what is wrong with it; "" -> what is wrong with none of them"""
    pace = traitlets.Dict().tag(sync=True)
    """Of `measure`: `iteration` and `evaluation`, seconds each, and `words`; while it runs `words` alone; else empty"""
    starts = traitlets.Dict(STARTS).tag(sync=True)

    def __init__(self, config: TrainConfig | None = None):
        self._base = config if isinstance(config, TrainConfig) else TrainConfig()
        self._measured: tuple[dict, float, float] | None = None
        about = TrainConfig.__dataclass_fields__
        super().__init__(
            fields=[
                {"name": n, "help": about[n].metadata["help"], "only": ONLY.get(n, ()),
                 "offered": [[o, CHOICES.get(n, {}).get(o, "")] for o in OFFERED.get(n, ())], "menu": n in CHOICES}
                for n in ASKED
            ],
            values={name: _text(getattr(self._base, name)) for name in ASKED},
        )  # fmt: skip
        if config is not None and config is not self._base:
            self.problem = f"RunForm: give a TrainConfig, not {type(config).__name__}"
            self.wrong = {"": self.problem}
            return
        self._look()
        self.observe(lambda change: self._look(), "values")
        self.on_msg(lambda _, content, buffers: self._on_button(content))

    def choose(self, **fields) -> "RunForm":
        """Sets fields to values of a TrainConfig, or to their text. Returns the form."""
        self.values = {**self.values, **{n: v if isinstance(v, str) else _text(v) for n, v in fields.items()}}
        return self

    @property
    def result(self) -> TrainConfig:
        """The configuration as the form has it now. Raises ErltoolError where `problem` is set."""
        if self.problem:
            raise ErltoolError(self.problem)
        return self._config()

    def measure(self) -> "RunForm":
        """Loads the policy, makes one iteration with its evaluations, and says in `pace` how long the run will take.
        Returns the form. Where the configuration cannot train here, `problem` says why."""
        if self.problem:
            return self
        config, values = self._config(), dict(self.values)
        self.pace = {"words": "measuring one iteration\u2026"}
        try:
            iteration, evaluation = _iteration_seconds(config)
        except ErltoolError as e:
            return self._failed(str(e))
        except Exception as e:
            _log.exception("RunForm: the measured iteration failed")
            return self._failed(f"{type(e).__name__}: {' '.join(str(e).split())}")
        self._measured = values, iteration, evaluation
        self.pace = self._pace()
        return self

    def _failed(self, problem: str) -> "RunForm":
        with self.hold_sync():
            self.pace, self.problem = {}, visible(problem)
            self.wrong = _placed(self.problem)
        return self

    def _on_button(self, content) -> None:
        """{"command": "measure"}: not in the thread that answers the notebook."""
        if isinstance(content, dict) and content.get("command") == "measure" and "iteration" not in self.pace:
            if self.pace or self.problem:
                return
            threading.Thread(target=self.measure, name="RunForm").start()

    def _pace(self) -> dict:
        """The trait `pace` of what was measured, if it is of these values; else {}."""
        if self._measured is None or self.problem:
            return {}
        values, iteration, evaluation = self._measured
        if any(values[n] != self.values.get(n) for n in values if n not in NO_PACE):
            return {}
        config = self._config()
        iterations = config.steps // config.updates_per_iteration
        evaluations = math.ceil(iterations / config.eval_every) + 1 if config.eval_every else 0
        seconds = iterations * iteration + evaluations * evaluation
        words = f"about {_duration(seconds)} to finish: {iterations} iterations of {iteration:.2g} s, measured"
        if evaluations:
            words += f", and {evaluations} evaluations of {evaluation:.2g} s"
        return {"iteration": iteration, "evaluation": evaluation, "words": f"{words}."}

    @property
    def sentence(self) -> str:
        words = [self.pace["words"]] if "iteration" in self.pace else []
        return self.problem or " ".join([self.plan["about"] + ":", *self.plan["says"], *words])

    def picture(self) -> Figure:
        """The plan's peak as one bar of its parts, against the free memory."""
        if self.problem:
            return message(self.problem)
        ax = new_axes(width=8.4, height=1.6)[0]
        at, peak, free = 0.0, self.plan["peak"], self.plan["free"]
        for k, (name, size) in enumerate(self.plan["bar"]):
            ax.barh(0, size, left=at, color=COLOURS[k % 4], edgecolor="white", linewidth=0.8)
            if size > 0.12 * max(peak, free or 0):
                ax.text(at + size / 2, 0, name, ha="center", va="center", fontsize=7, color="white")
            at += size
        ax.text(at, 0, f" {peak:.2f} GiB at the peak", va="center", fontsize=9)
        if free is not None:
            ax.axvline(free, color="black", linestyle=":")
            ax.text(free, 0.62, f"{free:.1f} free ", ha="right", fontsize=8)
        parts = ", ".join(f"{name} {size:.2f}" for name, size in self.plan["bar"])
        ax.set(xlabel=f"memory (GiB): {parts}", xlim=(0, 1.3 * max(peak, free or 0)), ylim=(-0.6, 0.9), yticks=[])
        ax.set_title(self.plan["about"], fontsize=9, parse_math=False)
        return ax.figure

    def _look(self) -> None:
        """Sends the plan of the values, or their problems, as one message."""
        plan: dict = {}
        problem, wrong = "", self._wrong_texts()
        try:
            plan = plan_of(self._config())
        except ErltoolError as e:
            problem = str(e)
        except Exception as e:
            _log.exception("RunForm: the plan failed")
            problem = f"{type(e).__name__}: {' '.join(str(e).split())}"
        with self.hold_sync():
            self.plan, self.problem = plan, visible(problem)
            self.wrong = _placed(self.problem) | {n: visible(w) for n, w in wrong.items()}
            if not self.pace or "iteration" in self.pace:
                self.pace = self._pace()

    def _wrong_texts(self) -> dict[str, str]:
        """Fields whose text is no value, each with why; and what is wrong among the others."""
        wrong, fields = {}, self._base.to_dict()
        for name, text in self.values.items():
            try:
                fields |= {name: _value(name, text)} if name in ASKED else {}
            except ErltoolError as e:
                wrong[name] = str(e)
        try:
            TrainConfig.from_dict(fields, trust_remote_code=self._base.trust_remote_code)
        except ErltoolError as e:
            wrong = _placed(str(e)) | wrong
        return wrong

    def _config(self) -> TrainConfig:
        if wrong := [name for name in self.values if name not in ASKED]:
            raise ErltoolError(f"RunForm: no field {wrong[0]!r}; there are {', '.join(ASKED)}")
        fields = self._base.to_dict() | {name: _value(name, text) for name, text in self.values.items()}
        return TrainConfig.from_dict(fields, trust_remote_code=self._base.trust_remote_code)


def _placed(problem: str) -> dict[str, str]:
    """The field that a problem is about, the first one that it names, and the problem; {} without one."""
    if not problem:
        return {}
    begin = problem.partition(";")[0]  # before the remedy
    named = [(m.start(), name) for name in ASKED if (m := re.search(rf"(?<![\w-]){name}(?![\w-])", begin))]
    return {min(named)[1] if named else "": problem}


def _iteration_seconds(config: TrainConfig) -> tuple[float, float]:
    """Seconds of one iteration, and of one evaluation, 0 without any."""
    from erltool.training.loop import train

    once = replace(config, steps=config.updates_per_iteration, eval_every=min(1, config.eval_every), record_every=0)
    with TURN:  # no run of a RunMonitor meanwhile
        steps = train(once)
        began = time.perf_counter()
        metrics = [step.metrics for step in steps]
        whole = time.perf_counter() - began
    iteration = sum(m["response_tokens"] / m["tokens_per_second"] for m in metrics)
    return iteration, max(0.0, whole - iteration) / 2 if once.eval_every else 0.0  # evaluated before it and after it


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )  # fmt: skip


def _text(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Control):
        return control_text(control_to_dict(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str):
    """A field's value from its text. Raises ErltoolError."""
    text, kind = text.strip(), KINDS[name]
    if name == "control":
        return parse_control(text)
    if name in ONLY and text not in ONLY[name]:
        raise ErltoolError(f"{name}={text!r}: must be one of {', '.join(ONLY[name])}")
    if kind is bool:
        return text == "yes"
    try:
        return kind(text)
    except ValueError as e:
        raise ErltoolError(f"{name}={text!r}: must be {'a whole number' if kind is int else 'a number'}") from e
