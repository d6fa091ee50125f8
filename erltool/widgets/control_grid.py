"""What ControlExplorer compares: groups of runs by setting and control, their end values, and how they differ."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from erltool.errors import ErltoolError
from erltool.plots import COLOURS, LABELS
from erltool.runs.compare import paired_difference
from erltool.runs.folder import METRICS, Run, read_run, read_runs
from erltool.text import listed, visible
from erltool.training.config import TrainConfig

END = ("entropy_end", "accuracy_late", "accuracy_best", "length_end")  # columns of compare.end_values
GREEDY, LATE = "average@0", "accuracy_late"  # the map's accuracy: greedy at the end, or where that is unknown
NONE, RANDOM = "none", "random-"  # the run without control; how names of random baselines begin
LEVEL = 0.95  # of every interval
POINTS = 300  # of a line
# Fields of a configuration that do not change what is learned: runs that differ only in these are compared.
UNDECIDED = {
    "control", "controller", "seed", "steps", "micro_batch", "sampling_batch", "gradient_checkpointing", "compile",
    "device", "trust_remote_code", "eval_every", "eval_prompts", "eval_samples", "eval_temperature", "checkpoint_every",
    "record_every", "record_prompts", "record_probes", "entropy_change_every",
}  # fmt: skip
DASHES = ((), (7, 3), (2, 2), (9, 3, 2, 3))
BLACK = (NONE, "random-clip", "random-kl")  # in black, since they are no controls; each with dashes of its own


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    control: str
    parameters: dict
    """The control's fields: a number, or a text."""
    setting: int
    runs: tuple[int, ...]

    @property
    def label(self) -> str:
        return label_of(self.control, self.parameters)


def grouped(runs: list[Run]) -> tuple[list[Group], list[str]]:
    """Groups of runs by setting and by control with its parameters, those without control and at random first; and the
    settings' texts, that with the most runs first."""
    texts = _settings([TrainConfig().to_dict() | r.config for r in runs])
    settings = sorted(dict.fromkeys(texts), key=lambda text: -texts.count(text))
    members: dict[tuple, list[int]] = {}
    for i, run in enumerate(runs):
        name, parameters = parts_of(run.config["control"], run.config.get("controller"))
        members.setdefault((name, tuple(parameters.items()), settings.index(texts[i])), []).append(i)
    groups = [Group(name, dict(p), setting, tuple(at)) for (name, p, setting), at in members.items()]
    return sorted(groups, key=_order), settings


def _settings(configs: list[dict]) -> list[str]:
    """A text a run: the fields that differ among runs. Where there are several policies or tasks, it is the regime,
    and behind it each field that differs within the regime, but for a value that more than half of its runs have."""
    subjects = [(str(c["policy"]), str(c["task"])) for c in configs]
    several = len(set(subjects)) > 1
    names = {s: s[0] if len({t for p, t in subjects if p == s[0]}) == 1 else " on ".join(s) for s in set(subjects)}
    texts = []
    for config, subject in zip(configs, subjects, strict=True):
        among = [c for c, s in zip(configs, subjects, strict=True) if s == subject]
        fields = [f for f in config if f not in UNDECIDED and len({str(c[f]) for c in among}) > 1]
        usual = {f: Counter(str(c[f]) for c in among).most_common(1)[0] for f in fields if several}
        shown = [f for f in fields if f not in usual or usual[f][0] != str(config[f]) or 2 * usual[f][1] <= len(among)]
        texts.append(visible(", ".join([names[subject]] * several + [f"{f} {config[f]}" for f in shown])))
    return texts


def _order(group: Group):
    rank = 0 if group.control == NONE else 1 if group.control.startswith(RANDOM) else 2
    values = [(isinstance(v, str), v if isinstance(v, float) else 0.0, str(v)) for v in group.parameters.values()]
    return rank, group.control, group.setting, values


def parts_of(control: Mapping, controller: Mapping | None = None) -> tuple[str, dict[str, float | str]]:
    """Name and parameters of a control, and of its controller, as a configuration holds them. The parameters of several
    have the name of theirs before them."""
    if several := [control, controller] if controller else control.get("members"):
        members = [parts_of(member) for member in several]
        name = (" under " if controller else "+").join(n for n, _ in members)
        return name, {f"{n} {k}": v for n, fields in members for k, v in fields.items()}
    return visible(control.get("name")), {visible(k): plain(v) for k, v in control.items() if k != "name"}


def label_of(name: str, parameters: Mapping[str, float | str]) -> str:
    """A control with its parameters, for a reader."""
    shown = ", ".join(f"{k} {f'{v:g}' if isinstance(v, float) else v}" for k, v in parameters.items() if v != "none")
    return f"{name} ({shown})" if shown else name


def plain(value) -> float | str:
    """A parameter's value as a number or a text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return "none" if value is None else visible(value)


def style_of(control: str, controls: list[str]) -> tuple[int | None, tuple]:
    """Colour of a control, a position in COLOURS or None for black, and its dashes; a pair of its own for each."""
    if control in BLACK:
        return None, DASHES[BLACK.index(control) + (control != NONE)]
    i = [c for c in controls if c not in BLACK].index(control)
    return i % 4, DASHES[(i + i // 4) % len(DASHES)]


def colour_of(control: str, controls: list[str]) -> tuple[str, tuple]:
    """The same for a figure on white."""
    at, dash = style_of(control, controls)
    return COLOURS[4 if at is None else at], dash


# --- what is compared with what -------------------------------------------------------------------------


def baselines(groups: list[Group], at: int) -> tuple[int | None, int | None]:
    """Positions of the group without control and of the random baseline beside group `at`, in its setting.

    The baseline is the one that has the most of the control's parameters, then as many equal ones, then fewest others.
    """
    group = groups[at]
    here = [i for i, g in enumerate(groups) if g.setting == group.setting]
    none = next((i for i in here if groups[i].control == NONE), None)
    own = {k.rpartition(" ")[2]: v for k, v in group.parameters.items()}

    def kinship(i: int) -> tuple[int, int, int]:
        theirs = groups[i].parameters
        return len(own.keys() & theirs), len(own.items() & theirs.items()), -len(theirs.keys() - own)

    at_random = [i for i in here if groups[i].control.startswith(RANDOM)]
    return none, max(at_random, key=kinship, default=None)


def accuracy_column(end: pd.DataFrame) -> str:
    """The map's accuracy: greedy at the end where every run has it, else the late held-out one."""
    return GREEDY if GREEDY in end and end[GREEDY].notna().all() else LATE


def ends_of(
    end: Mapping[str, np.ndarray], group: Group, none: Group | None, accuracy: str
) -> dict[str, list[float | None] | None]:
    """Mean, lowest and highest of each END column and of `accuracy` over a group's runs, and against the runs without
    control, paired by seed: `difference` of accuracy, and `held`, the ratio of the entropies at the end. Each of these
    is [mean, low, high] at LEVEL, without bounds for one seed; None for what was not measured. `end` has the columns as
    arrays, (runs,) each: a table would take a millisecond for each number."""
    at = [*group.runs]
    ends: dict[str, list[float | None] | None] = {"difference": None, "held": None}
    for name, column in [*zip(END, END, strict=True), ("accuracy", accuracy)]:
        values = end[column][at] if column in end else np.empty(0)
        values = values[np.isfinite(values)]
        ends[name] = [float(f(values)) for f in (np.mean, np.min, np.max)] if len(values) else None
    if none is None or group == none:
        return ends
    for name, column, back in (("difference", accuracy, float), ("held", "entropy_end", np.exp)):
        ours, theirs = (_by_seed(end, column, g, logarithm=name == "held") for g in (group, none))
        try:
            d = paired_difference(ours, theirs, LEVEL)
        except ErltoolError:
            continue
        ends[name] = [float(back(d.mean)), *(float(back(v)) if d.seeds > 1 else None for v in (d.low, d.high))]
    return ends


def _by_seed(end: Mapping[str, np.ndarray], column: str, group: Group, logarithm: bool) -> pd.Series:
    """What was measured of a column, or its logarithm where it is above 0, by seed."""
    values, seeds = end[column][[*group.runs]], end["seed"][[*group.runs]]
    kept = np.isfinite(values) & ((values > 0) | (not logarithm))
    return pd.Series(np.log(values[kept]) if logarithm else values[kept], index=seeds[kept].astype(int))


def quantile_of(group: Group) -> float | None:
    """Student's quantile of a mean over a group's runs at LEVEL; None for one run."""
    n = len(group.runs)
    return float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) if n > 1 else None


def map_of(groups: list[Group]) -> tuple[list[str], list[int]]:
    """Controls and settings of the map: settings with a control and with runs to compare it with, or all where none has
    both; in the order of the runs."""
    settings = list(dict.fromkeys(g.setting for g in sorted(groups, key=lambda g: g.runs)))
    both = [
        s for s in settings
        if any(g.setting == s and g.control == NONE for g in groups)
        and any(g.setting == s and g.control != NONE for g in groups)
    ]  # fmt: skip
    columns = both or settings
    return list(dict.fromkeys(g.control for g in groups if g.setting in columns)), columns


# --- lines -----------------------------------------------------------------------------------------------


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


def line_of(run: Run, metric: str, last: float) -> np.ndarray:
    """`binned` of a run's metric; NaN throughout where it has none."""
    values = run.metrics[metric].to_numpy(float) if metric in run.metrics else ()
    return binned(run.metrics["step"].to_numpy(float) if len(values) else (), values, last)


def middles(last: float) -> np.ndarray:
    """The middle step of each span of `binned`."""
    width = max(1, math.ceil(last / POINTS))
    return np.arange(math.ceil(last / width)) * width + (width + 1) / 2


# --- what is read ----------------------------------------------------------------------------------------


def comparable(runs) -> tuple[list[Run], str]:
    """The runs that can be compared, and a line on those left out. Raises ErltoolError where none is left."""
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
    problems = [f"left out: {'; '.join(left_out)}"] if left_out else []
    if unmeasured := [r.name for r in kept if not _is_evaluated(r)]:
        names = listed(unmeasured, 3)
        problems.append(f"no held-out accuracy was measured in {names}; train with eval_every above 0")
    return kept, "; ".join(problems)


def _is_evaluated(run: Run) -> bool:
    return "eval_accuracy" in run.metrics and bool(run.metrics["eval_accuracy"].notna().any())


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
