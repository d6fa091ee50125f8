"""Rows of folders of logs: TensorBoard's event files and MLflow's metrics, of one run or several; TRL's state."""

import contextlib
import heapq
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from erltool.errors import ErltoolError
from erltool.logs.rows import SOURCE, Row, joined
from erltool.logs.text import Counts, pieces
from erltool.text import listed, shown

MLFLOW_LINE = re.compile(r"(\d{9,}) (\S+)(?: (\d+))?\s*")
MLFLOW_PIECE = 1 << 16  # bytes


def event_runs(path: Path, skipped: Counts) -> dict[str, list[Path]]:
    """The event files of a folder, or one file, by their folder. Left out: folders in a run's own (hyperparameters)."""
    if path.is_file():
        return {"": [path]}
    files = sorted(f for f in path.rglob("*tfevents*") if f.is_file())
    folders = {f.parent for f in files}
    outer = sorted(f for f in folders if not folders & set(f.parents))
    skipped["event files in folders inside the run's own"] += sum(f.parent not in outer for f in files)
    return {folder.relative_to(path).as_posix(): [f for f in files if f.parent == folder] for folder in outer}


def event_rows(files: list[Path], prefix: str, skipped: Counts) -> Iterator[Row]:
    """Rows of event files, each read up to its first damage. Each of several files is a source under `prefix`."""
    for file in files:
        source: Row = {SOURCE: prefix + file.name.removeprefix("events.out.tfevents.")} if len(files) > 1 else {}
        scalars = event_scalars(event_loader(file), skipped, file.stat().st_size)
        yield from joined(scalars, source)


def event_loader(file: Path):
    """A loader of an event file's records, which goes on where it was with each call of its `Load`."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    except ImportError as e:
        where = shown(file.parent)
        raise ErltoolError(f"{where}: reading event files needs tensorboard; pip install tensorboard") from e
    return RawEventFileLoader(str(file))


def event_scalars(loader, skipped: Counts, size: int = 0) -> Iterator[tuple[float, str, float | str]]:
    """Step, tag and value of each scalar in the next records of an event file of this size, if all are read."""
    from tensorboard.compat.proto.event_pb2 import Event

    read = 0
    with contextlib.suppress(MemoryError, OverflowError):  # a length that no file has
        for record in loader.Load():
            read += len(record) + 16
            try:
                event = Event.FromString(record)
                scalars = {value.tag: _scalar(value) for value in event.summary.value}
            except Exception:  # the types of protobuf's errors depend on its version
                skipped["unreadable records"] += 1
                continue
            yield from ((event.step, tag, value) for tag, value in scalars.items() if value is not None)
    skipped["bytes at the end of a torn event file"] += max(0, size - read)


def _scalar(value) -> float | None:
    """The number in a summary's value, in either form; None for text, images and so on."""
    from tensorboard.util.tensor_util import make_ndarray

    if value.HasField("simple_value"):
        return value.simple_value
    if not value.HasField("tensor"):
        return None
    array = make_ndarray(value.tensor)
    return float(array) if array.ndim == 0 and array.dtype.kind in "fiu" else None


def mlflow_runs(path: Path) -> dict[str, Path]:
    """The folders of metrics of MLflow's runs, by name, or by id where names are missing or equal.

    `path` is such a folder, that of a run, of an experiment, or of all experiments.
    """
    if path.name == "metrics" and _has_metrics(path):
        return {path.parent.name: path}
    depths = ("metrics", "*/metrics", "*/*/metrics")
    folders = next((f for d in depths if (f := sorted(filter(_has_metrics, path.glob(d))))), [])
    names = [_mlflow_name(folder.parent) for folder in folders]
    return {name if names.count(name) == 1 else folder.parent.name: folder
            for name, folder in zip(names, folders, strict=True)}  # fmt: skip


def _has_metrics(folder: Path) -> bool:
    file = next((f for f in sorted(folder.rglob("*")) if f.is_file()), None)
    if file is None:
        return False
    with open(file, encoding="utf-8", errors="replace") as f:
        return bool(MLFLOW_LINE.fullmatch(f.readline(1000)))


def _mlflow_name(run: Path) -> str:
    with contextlib.suppress(OSError):
        if name := (run / "tags" / "mlflow.runName").read_text(encoding="utf-8", errors="replace").strip():
            return name[:200]
    return run.name


def mlflow_rows(folder: Path, skipped: Counts, keep: Callable[[str], bool] | None = None) -> Iterator[Row]:
    """Rows of what was logged together. MLflow keeps a file a metric, with lines of time, value and step."""
    metrics = {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file()}
    kept = [_mlflow_lines(file, name, skipped) for name, file in metrics.items() if keep is None or keep(name)]
    logged = heapq.merge(*kept, key=lambda entry: entry[:2])  # each file is in the order of time
    yield from joined((step, name, value) for _, step, name, value in logged)


def _mlflow_lines(file: Path, name: str, skipped: Counts) -> Iterator[tuple[int, float, str, str]]:
    """Time, step, metric and value of each line. The file is open only while a piece is read: there may be many."""
    for line, _ in mlflow_whole_lines(file, 0, torn=True):
        if (match := MLFLOW_LINE.fullmatch(line)) and match[3]:
            yield int(match[1]), float(match[3]), name, match[2]
        else:
            skipped["unreadable lines"] += bool(line.strip())


def mlflow_whole_lines(file: Path, at: int, torn: bool = False) -> Iterator[tuple[str, int]]:
    """The lines from an offset on, each with the offset behind it; a last line without its end if `torn`."""
    while lines := pieces(file, at, MLFLOW_PIECE):
        for line in lines:
            if not torn and not line.endswith(b"\n"):
                return
            at += len(line)
            yield line.decode("utf-8", "replace"), at


def trainer_state(folder: Path) -> Path | None:
    """The trainer_state.json of a folder, or that of the last checkpoint in it."""
    if (file := folder / "trainer_state.json").is_file():
        return file
    steps = {int(f.parent.name[11:]): f for f in folder.glob("checkpoint-*/trainer_state.json")
             if f.parent.name[11:].isdecimal()}  # fmt: skip
    return steps[max(steps)] if steps else None


def chosen(runs: Collection[str], run: str | None, path: Path) -> str:
    """The name of the requested run, of the run that holds it, or of the only one.

    Raises ErltoolError, naming the runs, where none was requested or the requested one is missing.
    """
    if not runs:
        raise ErltoolError(f"{shown(path)}: holds no run of this kind; is it the right folder?")
    if run is not None and run in runs:
        return run
    outer = [name for name in runs if len(runs) == 1 or (run is not None and run.startswith(f"{name}/"))]
    if not outer:
        raise not_chosen(runs, run, path)
    return outer[0]


class NotChosen(ErltoolError):
    """Several runs, of which none was requested, or one that is not there."""

    def __init__(self, message: str, names: tuple[str, ...]):
        super().__init__(message)
        self.names = names


def not_chosen(runs: Collection[str], run: str | None, path: Path, spans: Collection[str] | None = None) -> NotChosen:
    """The error that names the runs, or their `spans`."""
    named, names = listed(spans or runs, 8), tuple(runs)
    if run is None:
        text = f"{shown(path)}: holds {len(runs)} runs; choose one with --run NAME or run=NAME: {named}"
        return NotChosen(text, names)
    return NotChosen(f"{shown(path)}: no run {shown(run)!r}; its runs are {named}", names)
