"""Experiments: a declared grid of runs, made one after another, resumable at any point.

A grid is a TOML file (data/experiments/ holds the shipped ones):

    question = "does Clip-Cov hold more entropy than chance?"
    [train]                                # fields of TrainConfig that all runs share
    steps = 800
    [vary]                                 # every combination of these; a table gives its values names
    control = { none = "none", kl-cov = "kl-cov:fraction=0.1,coef=2" }
    seed = [0, 1, 2]
    [evaluate]                             # of each run's last policy, on held-out problems
    problems = 496
    samples = 8

A run that is done is skipped, one that was cut is resumed from its last checkpoint. Several processes may work on
one grid, in a terminal each: a run is locked while it is worked on, and the lock ends with its process.
"""

import contextlib
import itertools
import json
import re
import time
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from erltool.catalog import parse_control
from erltool.config import TrainConfig
from erltool.errors import Diverged, ErltoolError
from erltool.evaluate import Evaluation, evaluate
from erltool.resources import shipped
from erltool.runs import EVALUATION, Run, read_run, read_runs, write_whole, writing
from erltool.tasks import load_task
from erltool.training import eval_problems, policy_for_evaluation, train

try:
    import fcntl
except ImportError:  # elsewhere than on POSIX nothing is locked: work on a grid with one process there
    fcntl = None


@dataclass(frozen=True)
class Grid:
    """A declared experiment: named configurations, and how each run's last policy is evaluated."""

    name: str
    question: str
    configs: dict[str, TrainConfig]
    """Name of each run, as in "headline-kl-cov-seed0", and its configuration."""
    problems: int = 496
    """Held-out problems of the last evaluation, spread evenly over the task's own order."""
    samples: int = 8
    """Responses to each of them."""


def load_grid(source: str | Path) -> Grid:
    """The grid of a TOML file, or of that name among the shipped ones. Raises ErltoolError, naming what is wrong in
    it: no such file, not TOML, an unknown table or field, an impossible configuration, two runs of one name."""
    file = Path(source)
    if file.suffix != ".toml":
        file = shipped("data/experiments") / f"{source}.toml"
    try:
        text = file.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except FileNotFoundError as e:
        known = ", ".join(sorted(p.stem for p in shipped("data/experiments").glob("*.toml")))
        raise ErltoolError(f"experiment {source}: no such file; give a .toml file, or one of {known}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ErltoolError(f"experiment {file}: not TOML ({e})") from e
    unknown = set(document) - {"question", "train", "vary", "evaluate"}
    if unknown:
        raise ErltoolError(f"experiment {file}: unknown {', '.join(sorted(unknown))}; tables are train, vary, evaluate")
    vary = {name: _named(name, values, file) for name, values in document.get("vary", {}).items()}
    configs = {}
    for combination in itertools.product(*vary.values()):
        name = "-".join([file.stem, *(label for label, _ in combination)])
        if name in configs:
            raise ErltoolError(f"experiment {file}: two runs are named {name}; give the values of [vary] other names")
        fields = document.get("train", {}) | dict(zip(vary, (value for _, value in combination), strict=True))
        try:
            configs[name] = TrainConfig.from_dict(fields | {"control": parse_control(fields.get("control", "none"))})
        except ErltoolError as e:
            raise ErltoolError(f"experiment {file}: run {name}: {e}") from e
    try:
        return Grid(file.stem, document.get("question", ""), configs, **document.get("evaluate", {}))
    except TypeError as e:
        raise ErltoolError(f"experiment {file}: [evaluate] has problems and samples, nothing else") from e


def _named(field_name: str, values, file: Path) -> list[tuple[str, object]]:
    """Values of a varied field with their names; a plain list's are named by the field and the value: "seed0"."""
    if isinstance(values, list):
        named = [(f"{field_name}{value}", value) for value in values]
    elif isinstance(values, dict):
        named = list(values.items())
    else:
        raise ErltoolError(f"experiment {file}: vary.{field_name} must be a list or a table of values")
    if any(isinstance(value, dict) for _, value in named):
        raise ErltoolError(f"experiment {file}: vary.{field_name} has a name with a dot; put it in quotes")
    for label, _ in named:
        if not re.fullmatch(r"[\w.=+]+(-[\w.=+]+)*", label):
            raise ErltoolError(f"experiment {file}: {label!r} cannot name a folder; use letters, digits and - . _ =")
    return named


def recorded_runs(grid: Grid, folder: Path | None) -> dict[str, Run]:
    """All runs of a record (`record_runs`), none without one. Raises ErltoolError where a run of the grid is recorded
    with another configuration than the grid's."""
    runs = read_runs(folder) if folder is not None and (folder / "runs.json").is_file() else {}
    for name, config in grid.configs.items():
        if name in runs and runs[name].config != config.to_dict():
            raise ErltoolError(f"{folder}: {name} was made with another configuration; record to another folder")
    return runs


def run_grid(grid: Grid, out: Path, done: Collection[str] = ()) -> Iterator[tuple[str, "Progress"]]:
    """Makes the runs of a grid that are not in `done`, not over and not being worked on, in `out`/NAME each; yields how
    each goes.

    Yields (name, Progress) after each iteration and once more when the run is over. A run whose numbers are no longer
    finite is recorded as failed, and the others go on. Raises ErltoolError for what a user can mend, as a full disk.
    """
    for name, config in grid.configs.items():
        folder = out / name
        if name in done or is_over(folder):
            continue
        with locked(folder) as mine:
            if not mine or is_over(folder):
                continue
            started = time.monotonic()
            try:
                resume = (folder / "config.json").is_file()
                with contextlib.closing(train(config, folder, resume)) as steps:
                    for step in steps:
                        if step.metrics["step"] % config.updates_per_iteration == 0:
                            yield name, Progress(step.metrics["step"], config.steps, step.metrics)
                found = evaluate_run(folder, grid)
                _write(folder, {"seconds": round(time.monotonic() - started, 1)} | _document(found))
            except Diverged as e:
                _write(folder, {"failed": str(e)})
            yield name, Progress(config.steps, config.steps, over=read_run(folder))


@dataclass(frozen=True)
class Progress:
    """How far a run of a grid is."""

    step: int
    steps: int
    metrics: dict = field(default_factory=dict)
    over: Run | None = None
    """The run, once it is done or has failed."""


def evaluate_run(folder: Path, grid: Grid) -> Evaluation:
    """The last policy of a run on the grid's held-out problems: the same problems and random numbers for all."""
    policy, config = policy_for_evaluation(str(folder))
    task = load_task(config.task)
    return evaluate(
        policy,
        task,
        eval_problems(task, grid.problems),
        grid.samples,
        max_response_tokens=config.max_response_tokens,
        temperature=config.temperature,
    )


def _document(found: Evaluation) -> dict:
    pass_at = {f"pass@{k}": found.pass_at(k) for k in (1, 2, 4, 8, 16, 32) if k <= found.rewards.shape[1]}
    right = (found.rewards == 1).sum(1).tolist()
    return {
        "average": found.average,
        "samples": found.rewards.shape[1],
        "problems": len(right),
        "right": right,
    } | pass_at


def _write(folder: Path, document: dict) -> None:
    with writing(folder / EVALUATION):
        write_whole(folder / EVALUATION, (json.dumps(document) + "\n").encode())


def is_over(folder: Path) -> bool:
    """Whether a run of a grid is done, its last policy evaluated, or has failed."""
    return (folder / EVALUATION).is_file()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Whether this process alone works on the folder; held until the end, or until the process dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as f:
        try:
            if fcntl:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def line_of(name: str, run: Run, width: int = 79) -> str:
    """A finished run in one line: entropy from first to last iterations, held-out accuracy and pass@k."""
    found = run.evaluation
    if "failed" in found:
        return f"{name}: failed: {found['failed']}"[:width]
    edge = run.metrics["policy_entropy"]
    numbers = f"H {edge.head(20).mean():.3f} to {edge.tail(20).mean():.3f}"
    most = max((k for k in found if k.startswith("pass@")), key=lambda k: int(k[5:]))
    return f"{name:36} {numbers}  avg {found['average']:.3f}  {most} {found[most]:.3f}"
