"""RunForm: a run's configuration in a form, and the memory that it needs, before anything is loaded."""

import logging
import typing

import traitlets
from matplotlib.figure import Figure

from erltool.controls.base import Control
from erltool.controls.catalog import CONTROLS, PRESETS, control_to_dict, parse_control
from erltool.errors import ErltoolError
from erltool.plots import COLOURS, new_axes
from erltool.resources import POLICIES
from erltool.runs.compare import control_text
from erltool.tasks.chain import REGIMES
from erltool.text import visible
from erltool.training.config import BASES, TrainConfig
from erltool.widgets.view import CHOSEN, View, javascript, message

GIB = 2**30
PROMPT_TOKENS = 256  # of the longest prompts, as in `erltool plan`
ASKED = (
    "policy", "base", "task", "control", "steps", "learning_rate", "lora_rank", "prompts_per_iteration", "group_size",
    "max_response_tokens", "micro_batch", "gradient_checkpointing", "seed", "device",
)  # fmt: skip
ONLY = {"base": BASES, "gradient_checkpointing": ("no", "yes")}
"""Choices of a field that takes no other value."""
OFFERED = {
    "policy": (*POLICIES, "smollm2-135m", *(f"Qwen/Qwen2.5-{size}" for size in ("0.5B", "1.5B", "3B", "7B"))),
    "task": ("countdown", *(f"chain:{name}" for name in REGIMES), "addition:20", "gsm8k", "math", "dapo-math"),
    "control": (*CONTROLS, *(f"{name}:{preset}" for name in ("clip-cov", "kl-cov") for preset in PRESETS)),
    "device": ("auto", "cpu", "cuda"),
}
"""Suggestions of a field of text; it takes other text, too."""
KINDS = typing.get_type_hints(TrainConfig)
_log = logging.getLogger(__name__)


class RunForm(View):
    """`RunForm(config)`: choose policy, base, task, control and sizes; `.result` is the TrainConfig, for the next cell.

    Beside the fields stand the memory plan for this machine (prompts of PROMPT_TOKENS tokens), the free memory, and
    what to lower for common GPUs. Nothing is loaded and nothing starts. A field that the form does not have stays as in
    `config`. `values` are the fields as text; `choose` sets them from Python. `problem` says in one line what is wrong
    with a field, a combination or a policy; `.result` then raises ErltoolError with it. A plan above the free memory is
    not a problem, since it may be for another machine: a line beside the plan says so.
    """

    _esm = javascript("run_form.js")
    values = traitlets.Dict(traitlets.Unicode()).tag(**CHOSEN)
    """Text of each field of ASKED"""
    plan = traitlets.Dict().tag(sync=True)
    """The memory plan: rows (when, name, GiB) and the sentences beside it; empty where there is a problem"""
    fields: traitlets.List[dict] = traitlets.List().tag(sync=True)

    def __init__(self, config: TrainConfig | None = None):
        self._base = config if isinstance(config, TrainConfig) else TrainConfig()
        about = TrainConfig.__dataclass_fields__
        super().__init__(
            fields=[
                {"name": n, "help": about[n].metadata["help"], "only": ONLY.get(n, ()), "offered": OFFERED.get(n, ())}
                for n in ASKED
            ],
            values={name: _text(getattr(self._base, name)) for name in ASKED},
        )
        if config is not None and config is not self._base:
            self.problem = f"RunForm: give a TrainConfig, not {type(config).__name__}"
            return
        self._look()
        self.observe(lambda change: self._look(), "values")

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

    @property
    def sentence(self) -> str:
        return self.problem or " ".join([self.plan["about"] + ":", *self.plan["says"]])

    def picture(self) -> Figure:
        """The plan as two bars, sampling and the update, which take turns; each begins with what always stays."""
        if self.problem:
            return message(self.problem)
        ax = new_axes(width=8.4, height=2.2)[0]
        for row, turn in enumerate(("update", "sampling")):
            at = 0.0
            for when, name, size in self.plan["rows"]:
                if when not in ("always", turn):
                    continue
                ax.barh(row, size, left=at, color=COLOURS[when == turn], edgecolor="white", linewidth=0.8)
                if size > 0.14 * self.plan["peak"]:
                    ax.text(at + size / 2, row, _short(name), ha="center", va="center", fontsize=7, color="white")
                at += size
            ax.text(at, row, f" {at:.2f} GiB", va="center", fontsize=9)
        ax.set_yticks(range(2), ["update", "sampling"])
        ax.set(xlabel="memory (GiB); blue always stays", xlim=(0, 1.18 * self.plan["peak"]))
        ax.set_title(self.plan["about"], fontsize=9, parse_math=False)
        return ax.figure

    def _look(self) -> None:
        """Sends the plan of the values, or their problem, as one message."""
        plan: dict = {}
        problem = ""
        try:
            plan = _plan(self._config())
        except ErltoolError as e:
            problem = str(e)
        except Exception as e:
            _log.exception("RunForm: the plan failed")
            problem = f"{type(e).__name__}: {' '.join(str(e).split())}"
        with self.hold_sync():
            self.plan, self.problem = plan, visible(problem)

    def _config(self) -> TrainConfig:
        if wrong := [name for name in self.values if name not in ASKED]:
            raise ErltoolError(f"RunForm: no field {wrong[0]!r}; there are {', '.join(ASKED)}")
        fields = self._base.to_dict() | {name: _value(name, text) for name, text in self.values.items()}
        return TrainConfig.from_dict(fields, trust_remote_code=self._base.trust_remote_code)


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


def _plan(config: TrainConfig) -> dict:
    """The trait `plan`, for the device that the configuration asks for."""
    from erltool.policies.load import resolve_device
    from erltool.training.memory import CARDS, advice, free_memory, plan_memory

    device = resolve_device(config.device)
    plan, free = plan_memory(config, PROMPT_TOKENS, device.type), free_memory(device)
    known = f", {free / GIB:.1f} are free" if free < 1e18 else ""
    says = [f"about {plan.peak / GIB:.2f} GiB at the peak on {device.type}{known}."]
    if plan.peak > free:
        changes = advice(config, free, PROMPT_TOKENS, device.type)
        says.append(f"It would be refused here; use {', '.join(changes) if changes else 'a smaller policy'}.")
    cards = []
    for card in CARDS:
        changes = advice(config, card * 1e9, PROMPT_TOKENS, "cuda")
        size = f"{card} GB" + (" or more" if changes == [] else "")
        cards.append(f"{size}: {'too small' if changes is None else ', '.join(changes) or 'as it is'}")
        if changes == []:
            break
    says.append(f"On a GPU of {'; '.join(cards)}.")
    times = {"always": plan.stays, "sampling": plan.sampling, "update": plan.update}
    about = f"{config.policy} (base {config.base}) on {config.task}, {_text(config.control)}"
    return {
        "about": visible(about),
        "rows": [[when, name, size / GIB] for when, sizes in times.items() for name, size in sizes.items() if size],
        "peak": plan.peak / GIB,
        "says": says,
    }


def _short(name: str) -> str:
    return name.split(",")[-1].strip() if name.startswith("weights") else name.split(" of ")[0].split(",")[0]
