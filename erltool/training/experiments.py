"""Experiments: a declared grid of runs, made one after another, resumable at any point.

A grid is a TOML file; the package's own are in data/experiments/:

    question = "does Clip-Cov hold more entropy than chance?"
    [train]                                # fields of TrainConfig that all runs share
    steps = 800
    [vary]                                 # every combination of these
    seed = [0, 1, 2]
    [vary.control]                         # a table gives its values names; a value that is a table sets its fields
    none = "none"
    kl-cov = "kl-cov:fraction=0.1,coef=2"
    one-update = { updates_per_iteration = 1, steps = 200 }
    [evaluate]                             # of each run's last policy, on held-out problems
    problems = 496
    samples = 8
    temperatures = [0.0, 0.6]              # besides that of sampling; 0 is greedy

A finished run is skipped, and an interrupted one resumes from its last checkpoint. Several processes may work on one
grid: each locks the run that it works on.
"""

import contextlib
import itertools
import json
import logging
import math
import re
import time
import tomllib
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from erltool.controls.base import Control
from erltool.controls.catalog import parse_control, parse_controller, shortened
from erltool.controls.controllers import Controller
from erltool.errors import Diverged, ErltoolError, InUse
from erltool.files import Hold, write_whole, writing
from erltool.policies.sources import find_model
from erltool.resources import shipped
from erltool.runs.folder import EVALUATION, Run, holds_record, read_run, read_runs
from erltool.tasks.task import load_task
from erltool.text import shown
from erltool.training.config import MOST, TrainConfig
from erltool.training.evaluate import Evaluation, eval_problems, evaluate
from erltool.training.loop import train
from erltool.training.start import policy_for_evaluation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grid:
    """A declared experiment: named configurations, and the evaluation of each run's last policy."""

    name: str
    question: str
    configs: dict[str, TrainConfig]
    """Configurations by the name of the run, as in "discovery-seed10-clip-cov"."""
    problems: int = 496
    """Held-out problems of the evaluation, spread evenly over the task's order."""
    samples: int = 8
    """Responses to each problem."""
    temperatures: tuple[float, ...] = ()
    """Temperatures besides that of sampling; 0 is greedy, with one response to each problem."""


def load_grid(source: str | Path, trust_remote_code: bool = False) -> Grid:
    """The grid in a TOML file, or the package's grid of that name.

    Raises ErltoolError, naming the cause: no such file, not TOML, an unknown table or field, a value of the wrong type,
    an impossible configuration, two runs of one name, or `trust_remote_code` in the file but not in the argument.
    """
    file = Path(source)
    if file.suffix != ".toml":
        file = shipped("data/experiments") / f"{source}.toml"
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        known = ", ".join(sorted(p.stem for p in shipped("data/experiments").glob("*.toml")))
        raise ErltoolError(f"experiment {source}: no such file; give a .toml file, or one of {known}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as e:
        raise ErltoolError(f"experiment {file}: not TOML ({shown(e, 120)})") from e
    try:
        return _grid(file, document, trust_remote_code)
    except ErltoolError as e:
        raise ErltoolError(f"experiment {file}: {e}") from e


def _grid(file: Path, document: dict, trust_remote_code: bool) -> Grid:
    kinds = {"question": str, "train": dict, "vary": dict, "evaluate": dict}
    if unknown := sorted(set(document) - set(kinds)):
        raise ErltoolError(f"unknown {shown(', '.join(unknown))}; tables are train, vary, evaluate")
    question, train, vary, evaluate = (document.get(name, kind()) for name, kind in kinds.items())
    for name, kind in kinds.items():
        if not isinstance(document.get(name, kind()), kind):
            raise ErltoolError(f"{name} must be {'text' if kind is str else f'a table, as in [{name}]'}")
    _check_evaluate(evaluate)
    named = {name: _named(name, values) for name, values in vary.items()}
    configs = {}
    for combination in itertools.product(*named.values()):
        name = "-".join([file.stem, *(label for label, _ in combination)])
        if name in configs:
            raise ErltoolError(f"two runs are named {name}; give the values of [vary] other names")
        setting, set_by = dict(train), dict[str, str]()
        for axis, (_, value) in zip(named, combination, strict=True):
            fields = value if isinstance(value, dict) else {axis: value}
            if both := sorted(set(fields) & set(set_by)):
                raise ErltoolError(
                    f"vary.{set_by[both[0]]} and vary.{axis} both set {shown(both[0])}; let only one set it"
                )
            setting, set_by = setting | fields, set_by | dict.fromkeys(fields, axis)
        try:
            configs[name] = _config(setting, trust_remote_code)
        except ErltoolError as e:
            raise ErltoolError(f"run {name}: {e}") from e
    evaluate = evaluate | {"temperatures": tuple(evaluate.get("temperatures", ()))}
    return Grid(file.stem, question, configs, **evaluate)


def _check_evaluate(table: dict) -> None:
    for name, value in table.items():
        if name == "temperatures":
            if not (isinstance(value, list) and all(type(t) in (int, float) and 0 <= t < math.inf for t in value)):
                raise ErltoolError(
                    f"[evaluate] temperatures={shortened(value)}: must be a list of numbers of at least 0"
                )
        elif name not in ("problems", "samples"):
            raise ErltoolError(f"[evaluate] has problems, samples and temperatures, not {shortened(name)}")
        elif type(value) is not int or not 1 <= value < MOST:
            raise ErltoolError(f"[evaluate] {name}={shortened(value)}: must be a whole number of at least 1")


def _config(setting: dict, trust_remote_code: bool) -> TrainConfig:
    parsed: dict[str, Control | Controller] = {}
    for name, parse, example in (
        ("control", parse_control, "kl-cov:fraction=0.1,coef=2"),
        ("controller", parse_controller, "target-entropy:target=0.3"),
    ):
        if name in setting:
            if not isinstance(setting[name], str):
                raise ErltoolError(f'{name}={shortened(setting[name])}: must be text, as in "{example}"')
            parsed[name] = parse(setting[name])
    return TrainConfig.from_dict(setting | parsed, trust_remote_code=trust_remote_code)


def _named(field_name: str, values) -> list[tuple[str, object]]:
    """Values of a varied field with their names; those of a list are the field and the value, as in "seed0"."""
    if isinstance(values, list):
        named = [(f"{field_name}{value}", value) for value in values]
    elif isinstance(values, dict):
        named = list(values.items())
    else:
        raise ErltoolError(f"vary.{field_name} must be a list or a table of values")
    if not named:
        raise ErltoolError(f"vary.{field_name} has no values; give some, or leave it out")
    known = {f.name for f in fields(TrainConfig)}
    for label, value in named:
        if not re.fullmatch(r"[\w.=+]+(-[\w.=+]+)*", label):
            raise ErltoolError(f"{shortened(label)} cannot name a folder; use letters, digits and - . _ =")
        if isinstance(value, dict) and (unknown := sorted(set(value) - known)):
            raise ErltoolError(
                f"vary.{field_name}.{label} sets {shown(', '.join(unknown))}, which TrainConfig does not have; "
                "if the name has a dot, put it in quotes"
            )
    return named


def recorded_runs(grid: Grid, folder: Path | None) -> dict[str, Run]:
    """All runs of a record (`record_runs`), or none where there is no record. Raises ErltoolError where it has a run of
    the grid with another configuration."""
    runs = read_runs(folder) if folder is not None and holds_record(folder) else {}
    defaults = TrainConfig().to_dict()  # for fields that are newer than the record
    for name, config in grid.configs.items():
        if name in runs and defaults | runs[name].config != config.to_dict():
            raise ErltoolError(f"{folder}: {name} was made with another configuration; record to another folder")
    return runs


def run_grid(grid: Grid, out: Path, done: Collection[str] = ()) -> Generator[tuple[str, "Progress"], None, None]:
    """Makes the runs of a grid in `out`/NAME, except those in `done`, finished ones, and those of other processes.

    Yields (name, Progress) after each iteration and at the end of a run. A run that diverges is recorded as failed, and
    the next one starts. Raises ErltoolError for what a user can mend, such as a full disk.
    """
    to_make = {name: config for name, config in grid.configs.items() if name not in done and not is_over(out / name)}
    check_sources(to_make.values())
    for name, config in to_make.items():
        folder = out / name
        with locked(folder) as mine:
            if not mine or is_over(folder):
                continue
            try:
                yield from _make(grid, name, folder)
            except InUse as e:  # another process resumes this run outside the grid
                _log.warning("%s; this run is left out", e)
                continue
            except Diverged as e:
                _write(folder, {"failed": str(e)})
            yield name, Progress(config.steps, config.steps, over=read_run(folder))


def _make(grid: Grid, name: str, folder: Path) -> Iterator[tuple[str, "Progress"]]:
    """Trains and evaluates one run, or resumes it."""
    started, config = time.monotonic(), grid.configs[name]
    with contextlib.closing(train(config, folder, resume=(folder / "config.json").is_file())) as steps:
        for step in steps:
            number = int(step.metrics["step"])
            if number % config.updates_per_iteration == 0:
                yield name, Progress(number, config.steps, step.metrics)
    evaluation = evaluate_run(folder, config, grid)
    _write(folder, {"seconds": round(time.monotonic() - started, 1)} | evaluation)


def check_sources(configs: Iterable[TrainConfig]) -> None:
    """Raises ErltoolError for a missing task or policy: before the first run, not hours later."""
    configs = list(configs)
    for task in dict.fromkeys(config.task for config in configs):
        load_task(task)
    for policy in dict.fromkeys(config.policy for config in configs):
        find_model(policy)


@dataclass(frozen=True)
class Progress:
    """The state of a run of a grid."""

    step: int
    steps: int
    metrics: dict = field(default_factory=dict)
    over: Run | None = None
    """The run, once it is finished or has failed."""


def evaluate_run(folder: Path, config: TrainConfig, grid: Grid) -> dict:
    """The content of evaluation.json: results of a run's last policy on the grid's held-out problems. All runs have the
    same problems and random numbers. "tempered" holds results by temperature."""
    policy, _ = policy_for_evaluation(str(folder), trust_remote_code=config.trust_remote_code)
    task = load_task(config.task)
    problems = eval_problems(task, grid.problems)

    def measured(temperature: float) -> dict:
        samples, length = grid.samples if temperature else 1, config.max_response_tokens
        return _document(evaluate(policy, task, problems, samples, max_response_tokens=length, temperature=temperature))

    tempered = {f"{t:g}": measured(t) for t in grid.temperatures}
    return measured(config.temperature) | ({"tempered": tempered} if tempered else {})


def _document(result: Evaluation) -> dict:
    right, samples = (result.rewards == 1).sum(1).tolist(), result.rewards.shape[1]
    pass_at = {f"pass@{k}": result.pass_at(k) for k in (1, 2, 4, 8, 16, 32) if k <= samples}
    return {"average": result.average, "samples": samples, "problems": len(right), "right": right} | pass_at


def _write(folder: Path, document: dict) -> None:
    with writing(folder / EVALUATION):
        write_whole(folder / EVALUATION, (json.dumps(document) + "\n").encode())


def is_over(folder: Path) -> bool:
    """Whether a run of a grid is finished, with its last policy evaluated, or has failed."""
    return (folder / EVALUATION).is_file()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Whether this process could lock a run of a grid. The lock ends with the block or with the process."""
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        hold = Hold(folder.parent, f".{folder.name}.lock")
    except InUse:
        yield False
        return
    try:
        yield True
    finally:
        hold.release()


def line_of(name: str, run: Run, width: int = 79) -> str:
    """A finished run in one line: entropy of the first and last 20 updates, held-out accuracy and pass@k."""
    evaluation = run.evaluation
    if "failed" in evaluation:
        return f"{name}: failed: {evaluation['failed']}"[:width]
    if "average" not in evaluation:
        return f"{name}: not evaluated: {EVALUATION} has no average"[:width]
    entropy = run.metrics["policy_entropy"]
    change = f"H {entropy.head(20).mean():.3f} to {entropy.tail(20).mean():.3f}"
    most = max((k for k in evaluation if k.startswith("pass@")), key=lambda k: int(k[5:]))
    return f"{name:36} {change}  avg {evaluation['average']:.3f}  {most} {evaluation[most]:.3f}"
