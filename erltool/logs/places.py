"""The runs in a place: a log, a database, a tracker's cache, or a folder of any of them."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from erltool.errors import ErltoolError
from erltool.logs.databases import Stored
from erltool.logs.folders import NotChosen, trainer_state
from erltool.logs.formats import STORES, detect, runs_of_store
from erltool.logs.read import read_part
from erltool.runs.folder import holds_run
from erltool.text import shown

DEEPEST = 4  # folders below the place
MOST = 2_000  # logs; of a place with more the rest is not listed
SUFFIXES = {".jsonl", ".json", ".log", ".csv", ".tsv", ".txt", ".out", ".parquet", ".db", ".md", ".html", ".ipynb"}
WHOLE = ("erltool run", "W&B run", "SwanLab run", "MLflow")  # whose folders hold nothing else
NO_LOGS = {
    "config.json",
    "trainer_state.json",
    "requirements.txt",
    "tokenizer.json",
    "package.json",
    "README.md",
    "tokens.parquet",
}  # of `erltool inspect --out`


@dataclass(frozen=True)
class Found:
    """A run that is there."""

    path: Path
    run: str
    """Its name, where the log has several or names it; else ""."""
    kind: str
    """One of formats.KINDS."""
    rows: int = 0  # one a step
    last_step: float | None = None
    written: datetime | None = None
    """When its last row was written (UTC), or its file was changed."""
    entropy: str = ""
    """The column; "" where there is none."""
    reward: str = ""
    """The column of the training reward, else of the performance; "" where there is none."""
    problem: str = ""
    """Why it could not be read; "" where it was."""


def runs_in(place: str | Path) -> Iterator[Found]:
    """The runs in a place, one after another, in the order of their names.

    What holds no entropy and no step is left out of a folder; of a `place` that is one log the problem is said. Raises
    ErltoolError for a place that is not there, or a file that is no log.
    """
    place = Path(place)
    if not place.exists():
        raise ErltoolError(f"{shown(place)}: no such file or folder")
    if place.is_file():
        yield from _runs_of(place, detect(place))
        return
    for number, (path, kind) in enumerate(_logs(place, 0)):
        if number == MOST:
            return
        for found in _runs_of(path, kind):
            if not found.problem:
                yield found


def _logs(folder: Path, depth: int) -> Iterator[tuple[Path, str]]:
    """The logs in a folder and below it, with their kinds."""
    kind = None
    with contextlib.suppress(ErltoolError, OSError):
        if kind := _own_kind(folder):
            yield folder, kind
    if kind in WHOLE:
        return
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return
    for path in inside:
        if path.is_dir():
            if depth < DEEPEST and not path.is_symlink() and not path.name.startswith((".", "checkpoint-")):
                yield from _logs(path, depth + 1)
        elif path.suffix.lower() in SUFFIXES and path.name not in NO_LOGS and path.is_file():
            with contextlib.suppress(ErltoolError, OSError):
                yield path, detect(path)


def _own_kind(folder: Path) -> str | None:
    """The kind of a folder that is one log by itself, and not only because something below it is."""
    if holds_run(folder):
        return "erltool run"
    if any(folder.glob("*.wandb")) or any(folder.glob("*.swanlab")):
        return detect(folder)
    if trainer_state(folder):
        return "TRL trainer_state"
    if any(folder.glob("*tfevents*")):
        return "TensorBoard"
    return "MLflow" if (folder / "metrics").is_dir() and detect(folder) == "MLflow" else None


def _runs_of(path: Path, kind: str) -> Iterator[Found]:
    stored: dict[str, object] = {}
    if kind in STORES:
        try:
            stored = runs_of_store(path, kind, Counter())
        except ErltoolError as e:
            yield Found(path, "", kind, problem=str(e))
            return
    if len(stored) < 2:
        yield from _found(path, kind, None, next(iter(stored.values()), None), again=True)
        return
    for name, of in stored.items():
        yield from _found(path, kind, name, of, again=True)


def _found(path: Path, kind: str, name: str | None, stored: object, again: bool) -> Iterator[Found]:
    try:
        log = read_part(path, kind=kind, run=name)
    except NotChosen as e:
        for inner in e.names if again else ():
            yield from _found(path, kind, inner, stored, again=False)
        return
    except (ErltoolError, OSError) as e:
        yield Found(path, name or "", kind, problem=shown(e, 200))
        return
    steps = log.metrics[log.columns["step"]]
    reward = log.columns.get("reward", log.columns.get("performance", ""))
    yield Found(
        path, log.run or name or "", kind, len(steps), float(steps.max()), _written(path, stored),
        log.columns["entropy"], reward,
    )  # fmt: skip


def _written(path: Path, stored: object) -> datetime | None:
    """When the last row was written, as far as a database or the files' dates tell."""
    if isinstance(stored, Stored) and stored.last:
        with contextlib.suppress(ValueError):
            when = datetime.fromisoformat(stored.last)
            return when if when.tzinfo else when.replace(tzinfo=UTC)
    files = stored if isinstance(stored, list) else [stored if isinstance(stored, Path) else path]
    every = [g for f in files for g in ([f] if f.is_file() else f.rglob("*")) if g.is_file()]
    with contextlib.suppress(OSError, ValueError):
        return datetime.fromtimestamp(max(os.stat(f).st_mtime for f in every), UTC)
    return None
