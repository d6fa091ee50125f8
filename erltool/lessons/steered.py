"""Runs that participants steered by hand, side by side: who got how far, with how much entropy left, by which schedule.

A participant hands in the folder of the run, or what `monitor.result.row` says as a dictionary or as JSON. A row is the
participant's own word; its configuration repeats the run, bit for bit on the same machine.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erltool.controls.controllers import Steered
from erltool.errors import ErltoolError
from erltool.files import reading
from erltool.runs.compare import control_text
from erltool.runs.folder import Run, holds_run, read_run
from erltool.tables import Table
from erltool.text import shown
from erltool.training.config import TrainConfig
from erltool.training.steering import Score, score_of

LONGEST = 100_000  # characters of a row that somebody hands in
BEYOND = 1e9  # no number of a score is as large


@dataclass(frozen=True)
class SteeredRuns:
    """What `steered_runs` has collected."""

    table: Table
    """One row a participant, the highest greedy accuracy first: `greedy_accuracy`, `sampled_accuracy` (in [0, 1],
    held-out), `entropy_left` (nats/token), `changes`, `steps`, `seed`, `control`, `schedule`."""
    configs: dict[str, TrainConfig]
    """The configuration that trains a participant's run again."""

    def _repr_html_(self) -> str | None:
        return self.table.round(3)._repr_html_()

    def __repr__(self) -> str:
        return repr(self.table[["greedy_accuracy", "entropy_left", "changes"]].round(3))


def steered_runs(results: Mapping[str, Run | Mapping | str | Path] | str | Path) -> SteeredRuns:
    """Participants' steered runs in a table, and the configurations that repeat them.

    `results` are by participant: a `Run`, its folder, a row, or a row as JSON. A folder instead has a run's folder for
    each participant, or a file NAME.json with a row. Raises ErltoolError, which names the participant, for anything
    else, and for a row that is no result.
    """
    members = results if isinstance(results, Mapping) else _in_folder(Path(results))
    rows, configs = {}, {}
    for name, result in members.items():
        try:
            score, configs[str(name)] = _result(result)
        except (ErltoolError, ValueError, TypeError, RecursionError) as e:
            raise ErltoolError(f"participant {shown(name, 60)}: {shown(e, 300)}") from e
        rows[str(name)] = dataclasses.asdict(score) | _about(configs[str(name)])
    table = Table(rows).T.infer_objects()
    return SteeredRuns(table.sort_values("greedy_accuracy", ascending=False, kind="stable"), configs)


def _in_folder(folder: Path) -> dict[str, Path]:
    with reading(folder):
        places = sorted(folder.iterdir()) if folder.is_dir() else []
    members = {p.stem if p.suffix == ".json" else p.name: p for p in places if p.suffix == ".json" or holds_run(p)}
    if not members:
        raise ErltoolError(f"{folder}: holds no steered runs; give folders of runs, or NAME.json files with rows")
    return members


def _result(result: Run | Mapping | str | Path) -> tuple[Score, TrainConfig]:
    """Score and configuration of what was handed in. Raises ErltoolError, or ValueError where it is not JSON."""
    if isinstance(result, str) and result.lstrip().startswith("{"):
        return _of_row(_loaded(result))
    if isinstance(result, str | Path):
        with reading(Path(result)):
            if Path(result).is_file():
                return _of_row(_loaded(Path(result).read_text(encoding="utf-8")))
        result = read_run(result)
    if isinstance(result, Run):
        config = TrainConfig.from_dict(result.config)
        return score_of(result.metrics, result.config), config
    return _of_row(result)


def _loaded(text: str) -> dict:
    if len(text) > LONGEST:
        raise ErltoolError(f"a row of {len(text)} characters; it must have at most {LONGEST}")
    return json.loads(text)


def _of_row(row: Mapping) -> tuple[Score, TrainConfig]:
    if not isinstance(row, Mapping) or "config" not in row:
        raise ErltoolError("give a run, its folder, or monitor.result.row as it is or as JSON")
    config = TrainConfig.from_dict(row["config"])
    greedy, sampled, left, steps = (
        _number(row, name) for name in ("greedy_accuracy", "sampled_accuracy", "entropy_left", "steps")
    )
    return Score(greedy, sampled, left, _changes(config), int(steps)), config


def _number(row: Mapping, name: str) -> float:
    value: Any = math.nan if name != "steps" and row.get(name) is None else row.get(name)
    if type(value) not in (int, float) or abs(value) > BEYOND:
        raise ErltoolError(f"its row has {name}={shown(value, 40)}, which is no such number; hand in the row again")
    return float(value)


def _changes(config: TrainConfig) -> int:
    return len(config.controller.changes) if isinstance(config.controller, Steered) else 0


def _about(config: TrainConfig) -> dict:
    fields = config.to_dict()
    schedule = config.controller.schedule if isinstance(config.controller, Steered) else ""
    return {"seed": config.seed, "control": control_text(fields["control"]), "schedule": schedule}
