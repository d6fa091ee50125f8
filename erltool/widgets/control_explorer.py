"""ControlExplorer: recorded runs by control and parameter value, against the run without control."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from erltool.errors import ErltoolError
from erltool.plots import COLOURS, LABELS, as_text, new_axes
from erltool.runs.compare import end_values, paired_difference
from erltool.runs.folder import METRICS, Run, read_run, read_runs
from erltool.tables import Table
from erltool.text import listed, visible
from erltool.training.config import TrainConfig
from erltool.widgets.view import CHOSEN, View, javascript, message

SHOWN = ("policy_entropy", "eval_accuracy", "response_length", "mean_covariance")
END = ("entropy_end", "accuracy_late", "accuracy_best", "length_end")  # columns of compare.end_values
ALWAYS = ("none", "random-clip")  # the run without control and the random baseline: beside every other control
FIRST = ("clip-cov", "kl-cov")
POINTS = 300  # of a line
# Fields of a configuration that do not change what is learned: runs that differ only in these are compared.
UNDECIDED = {
    "control", "controller", "seed", "steps", "micro_batch", "sampling_batch", "gradient_checkpointing", "compile",
    "device", "trust_remote_code", "eval_every", "eval_prompts", "eval_samples", "eval_temperature", "checkpoint_every",
    "record_every", "record_prompts", "entropy_change_every",
}  # fmt: skip
DASHES = ((), (7, 3), (2, 2), (9, 3, 2, 3))


@dataclass(frozen=True)
class ControlExplorerResult:
    """What is on show."""

    end: pd.DataFrame
    """One row a run: `run`, `control`, `seed`, then the columns of compare.end_values"""
    curves: pd.DataFrame
    """One row a run and recorded step: `run`, `control`, `seed`, `step` and the metrics of SHOWN"""


@dataclass(frozen=True)
class _Group:
    """Runs that differ only in their seed."""

    control: str
    parameters: dict
    """The control's fields: a number, or a text."""
    setting: int
    runs: tuple[int, ...]

    @property
    def label(self) -> str:
        return label_of(self.control, self.parameters)


class ControlExplorer(View):
    """`ControlExplorer(runs)`: runs by control and parameter, over their seeds; `.result` is what is on show.

    `runs` are `Run`s, runs' folders, or folders that hold runs (runs.read_runs), one or several. The reader chooses
    controls, and recorded values of their parameters; `none` and the random baseline `random-clip` stay beside them.
    A thin line is a run, a thick one the mean over seeds where all have a value. Beyond POINTS steps a point is the
    mean of several. The table has compare.end_values: mean over seeds, lowest and highest, and the difference to `none`
    paired by seed. Runs that differ in another field of TrainConfig (advantages, learning_rate, ...) are in different
    settings. The widget shows what cannot be compared as `problem`.
    """

    _esm = javascript("control_explorer.js")
    data = traitlets.Dict().tag(sync=True)
    setting = traitlets.Int(0).tag(**CHOSEN)
    chosen = traitlets.Dict().tag(**CHOSEN)
    """Control -> position in `groups` of the parameters on show."""
    metrics = traitlets.List(traitlets.Enum(SHOWN)).tag(**CHOSEN)

    def __init__(self, runs, *, metrics: Iterable[str] = SHOWN[:2]):
        try:
            self._runs, problem = _comparable(runs)
        except ErltoolError as e:
            self._runs, problem = [], f"ControlExplorer: {e}"
        self.groups, settings = _grouped(self._runs)
        self._end = end_values({str(i): run for i, run in enumerate(self._runs)}).reset_index(drop=True)
        self._last = float(max((r.metrics["step"].max() for r in self._runs), default=0))
        tables = [r.metrics.reindex(columns=["step", *SHOWN]).astype(float) for r in self._runs]
        self._binned = {
            m: np.array([binned(t["step"], t[m], self._last) for t in tables], np.float32) for m in SHOWN
        }  # (runs, spans) each
        super().__init__(problem=visible(problem), data=self._data(settings), metrics=list(metrics))
        here = set(self.data["controls"])
        self.chosen = dict.fromkeys(here & {*FIRST} or here, -1)
        self.observe(lambda change: setattr(self, "chosen", dict(self.chosen)), "setting")

    def choose(self, control: str, /, **parameters) -> "ControlExplorer":
        """Puts a control on show with these parameters; its other parameters change as little as possible.

        Raises ErltoolError for a control, or parameters, that were not recorded together in this setting.
        """
        here = self._recorded(control)
        wanted = {k: _plain(v) for k, v in parameters.items()}
        fits = [i for i in here if wanted.items() <= self.groups[i].parameters.items()]
        if not fits:
            labels = [self.groups[i].label for i in here] or self.data["controls"]
            asked = ", ".join([control, *(f"{k}={v}" for k, v in parameters.items())])
            raise ErltoolError(f"ControlExplorer: {asked} was not recorded here; there are {'; '.join(labels)}")
        self.chosen = self.chosen | {control: self._nearest(fits, self.chosen.get(control, -1))}
        return self

    @traitlets.validate("chosen")
    def _of_this_setting(self, proposal) -> dict:
        """The same controls, each with parameters that were recorded in this setting; ALWAYS among them."""
        kept = {}
        for control in self.data["controls"]:
            here, at = self._recorded(control), proposal.value.get(control, -1)
            if here and (control in proposal.value or control in ALWAYS):
                kept[control] = at if at in here else self._nearest(here, at)
        return kept

    def _recorded(self, control: str) -> list[int]:
        """Positions of a control's groups in the setting on show."""
        return [i for i, g in enumerate(self.groups) if (g.control, g.setting) == (control, self.setting)]

    def _nearest(self, candidates: list[int], at: int) -> int:
        """The candidate that differs from group `at` in the fewest parameters; without such a group, the one with the
        most runs."""
        if not 0 <= at < len(self.groups):
            return max(candidates, key=lambda i: (len(self.groups[i].runs), -i))
        now = self.groups[at].parameters
        return min(candidates, key=lambda i: sum(now.get(k) != v for k, v in self.groups[i].parameters.items()))

    def _data(self, settings: list[str]) -> dict:
        controls = list(dict.fromkeys(g.control for g in self.groups))
        return {
            "controls": controls,
            "styles": {c: dict(zip(("colour", "dash"), _style(c, controls), strict=True)) for c in controls},
            "settings": settings,
            "groups": [
                {"control": g.control, "parameters": g.parameters, "setting": g.setting, "runs": list(g.runs),
                 "label": g.label, "end": self._end_of(g),
                 "failed": int((self._end["failed"].iloc[[*g.runs]] != "").sum())}
                for g in self.groups
            ],
            "metrics": {m: axis_label(m) for m in SHOWN},
            "steps": middles(self._last).astype(np.float32).tobytes(),
            "last": self._last,
            "curves": {m: self._binned[m].tobytes() for m in SHOWN},
        }  # fmt: skip

    def _end_of(self, group: _Group) -> dict[str, list[float] | None]:
        """Mean, lowest and highest of each END column over a group's runs; `difference`: accuracy_late less that of
        `none`, and its interval. None for what was not measured."""
        rows = self._end.loc[list(group.runs)]
        ends: dict[str, list[float] | None] = {"difference": None}
        for column in END:
            values = rows[column].dropna().astype(float) if column in rows else ()
            ends[column] = [float(f(values)) for f in (np.mean, np.min, np.max)] if len(values) else None
        baseline = [g for g in self.groups if (g.control, g.setting) == ("none", group.setting)]
        if baseline and group.control != "none":
            pair = [self._end.loc[list(g.runs)].set_index("seed")["accuracy_late"] for g in (group, baseline[0])]
            try:
                d = paired_difference(*(p.dropna() for p in pair))
            except ErltoolError:
                return ends
            if d.seeds > 1:
                ends["difference"] = [d.mean, d.low, d.high]
        return ends

    @property
    def shown(self) -> list[_Group]:
        """The groups on show, `none` first."""
        return [self.groups[i] for i in self.chosen.values()]

    @property
    def result(self) -> ControlExplorerResult:
        """The chosen runs' end values and curves, as they were recorded."""
        end, curves = [], []
        for group in self.shown:
            for i in group.runs:
                run = self._runs[i]
                names = {"run": run.name, "control": group.label, "seed": run.config["seed"]}
                end.append(names | self._end.loc[i].to_dict())
                curves.append(run.metrics.reindex(columns=["step", *SHOWN]).assign(**names))
        order = ["run", "control", "seed", "step", *SHOWN]
        return ControlExplorerResult(
            Table(end), Table(pd.concat(curves, ignore_index=True)[order] if curves else pd.DataFrame(columns=order))
        )

    @property
    def sentence(self) -> str:
        if not self.groups:
            return self.problem
        texts = []
        for group in self.shown:
            ends, n = self._end_of(group), len(group.runs)
            values = (ends["entropy_end"], ends["accuracy_late"])
            entropy, accuracy = (f"{v[0]:.3f}" if v else "not measured" for v in values)
            texts.append(f"{group.label}, {n} seed{'s' * (n > 1)}: {entropy} and {accuracy}")
        return "Entropy at the end (nats/token) and late held-out accuracy: " + "; ".join(texts) + "."

    def picture(self) -> Figure:
        """The chosen metrics by step: a thin line a run, a thick one the mean over a group's seeds."""
        if not self.groups or not self.metrics:
            return message(self.problem or "no metric is chosen")
        axes, steps = new_axes(len(self.metrics)), middles(self._last)
        for ax, metric in zip(axes, self.metrics, strict=True):
            for group in self.shown:
                colour, dash = _style(group.control, self.data["controls"])
                rows = self._binned[metric][list(group.runs)]
                for row in rows if len(rows) > 1 else ():
                    at = np.isfinite(row)
                    ax.plot(steps[at], row[at], color=colour, linewidth=0.7, alpha=0.5)
                mean, style = rows.mean(0), (0, dash) if dash else "-"
                at = np.isfinite(mean)
                ax.plot(steps[at], mean[at], color=colour, linewidth=2, linestyle=style, label=as_text(group.label))
            ax.set(xlabel="optimiser step", ylabel=self.data["metrics"][metric])
            ax.grid(alpha=0.25)
        axes[0].legend(fontsize=7)
        return axes[0].figure


def axis_label(metric: str) -> str:
    """A metric's name and unit."""
    return f"{LABELS.get(metric, metric.replace('_', ' '))} ({METRICS[metric][0]})"


def binned(steps: npt.ArrayLike, values: npt.ArrayLike, last: float) -> np.ndarray:
    """Means of values over equal spans of the steps 1 to `last`, at most POINTS of them; NaN for a span without."""
    width = max(1, math.ceil(last / POINTS))
    bins = math.ceil(last / width)
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    kept = np.isfinite(values) & np.isfinite(steps)
    at = ((steps[kept] - 1) // width).astype(int)
    count = np.bincount(at, minlength=bins)
    return np.bincount(at, values[kept], bins) / np.where(count, count, np.nan)


def middles(last: float) -> np.ndarray:
    """The middle step of each span of `binned`."""
    width = max(1, math.ceil(last / POINTS))
    return np.arange(math.ceil(last / width)) * width + (width + 1) / 2


def _comparable(runs) -> tuple[list[Run], str]:
    """The runs that can be compared, and a line on those left out. Raises ErltoolError where none is left, or where
    their tasks or policies differ."""
    kept, left_out = [], []
    for source in _sources(runs):
        members: list[Run] = []
        try:
            members = opened(source)
        except ErltoolError as e:
            left_out.append(str(e))
        for run in members:
            if not isinstance(run.config.get("control"), Mapping) or "seed" not in run.config:
                left_out.append(f"run {run.path}: its config.json names no control and seed")
            elif run.metrics.empty:
                left_out.append(f"run {run.path}: has no steps yet")
            else:
                kept.append(run)
    if not kept:
        raise ErltoolError("; ".join(left_out) or "there are no runs; give runs, their folders, or a folder of them")
    subjects = sorted({f"{r.config.get('policy')} on {r.config.get('task')}" for r in kept})
    if len(subjects) > 1:
        raise ErltoolError(f"runs of {' and of '.join(subjects)} do not compare; give those of one policy and task")
    problems = [f"left out: {'; '.join(left_out)}"] if left_out else []
    if unmeasured := [r.name for r in kept if r.evaluated().empty]:
        names = listed(unmeasured, 3)
        problems.append(f"no held-out accuracy was measured in {names}; train with eval_every above 0")
    return kept, "; ".join(problems)


def _sources(runs) -> list:
    if isinstance(runs, Run | str | Path):
        return [runs]
    if not isinstance(runs, Iterable):
        raise ErltoolError(f"give runs, their folders, or a folder of them, not {type(runs).__name__}")
    return list(runs.values() if isinstance(runs, Mapping) else runs)


def opened(source) -> list[Run]:
    """The run, or the runs, of a source. Raises ErltoolError where it holds none."""
    if isinstance(source, Run):
        return [source]
    if not isinstance(source, str | Path):
        raise ErltoolError(f"a {type(source).__name__} is no run, and no folder")
    if (Path(source) / "config.json").is_file() or not Path(source).is_dir():
        return [read_run(source)]
    return list(read_runs(source).values())


def _grouped(runs: list[Run]) -> tuple[list[_Group], list[str]]:
    """Groups of runs by setting and by control with its parameters, those of ALWAYS first; and the settings' texts.

    The setting with the most runs is the first, since the widget opens with it."""
    configs = [TrainConfig().to_dict() | r.config for r in runs]
    fields = [f for f in (configs[0] if configs else ()) if f not in UNDECIDED and len({c[f] for c in configs}) > 1]
    texts = [visible(", ".join(f"{f} {c[f]}" for f in fields)) for c in configs]
    settings = sorted(set(texts), key=lambda text: (-texts.count(text), text))
    members: dict[tuple, list[int]] = {}
    for i, run in enumerate(runs):
        name, parameters = parts_of(run.config["control"], run.config.get("controller"))
        members.setdefault((name, tuple(parameters.items()), settings.index(texts[i])), []).append(i)
    groups = [_Group(name, dict(p), setting, tuple(at)) for (name, p, setting), at in members.items()]
    return sorted(groups, key=_order), settings


def _order(group: _Group):
    rank = ALWAYS.index(group.control) if group.control in ALWAYS else len(ALWAYS)
    values = [(isinstance(v, str), v if isinstance(v, float) else 0.0, str(v)) for v in group.parameters.values()]
    return rank, group.control, group.setting, values


def parts_of(control: Mapping, controller: Mapping | None = None) -> tuple[str, dict[str, float | str]]:
    """Name and parameters of a control, and of its controller, as a configuration holds them. The parameters of several
    have the name of theirs before them."""
    if several := [control, controller] if controller else control.get("members"):
        members = [parts_of(member) for member in several]
        name = (" under " if controller else "+").join(n for n, _ in members)
        return name, {f"{n} {k}": v for n, fields in members for k, v in fields.items()}
    return visible(control.get("name")), {visible(k): _plain(v) for k, v in control.items() if k != "name"}


def label_of(name: str, parameters: Mapping[str, float | str]) -> str:
    """A control with its parameters, for a reader."""
    shown = ", ".join(f"{k} {f'{v:g}' if isinstance(v, float) else v}" for k, v in parameters.items() if v != "none")
    return f"{name} ({shown})" if shown else name


def _plain(value) -> float | str:
    """A parameter's value as a number or a text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return "none" if value is None else visible(value)


def _style(control: str, controls: list[str]) -> tuple[str, tuple]:
    """Colour and dashes of a control: black for ALWAYS, a pair of its own for each other one."""
    if control in ALWAYS:
        return COLOURS[4], DASHES[2 * ALWAYS.index(control)]
    i = [c for c in controls if c not in ALWAYS].index(control)
    return COLOURS[i % 4], DASHES[(i + i // 4) % len(DASHES)]
