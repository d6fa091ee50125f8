"""Folders of logs: TensorBoard's event files and MLflow's metrics, of one run or of several, as rows."""

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from erltool.errors import ErltoolError
from erltool.logs.rows import SOURCE, STEP, Row
from erltool.logs.text import Counts, lines_of
from erltool.text import listed, shown

MLFLOW_LINE = re.compile(r"(\d{9,}) (\S+)(?: (\d+))?\s*")

# --- event files ---------------------------------------------------------------------------------


def event_runs(path: Path, skipped: Counts) -> dict[str, list[Path]]:
    """The event files of a folder, or one file, by the folder they lie in. A folder inside another run's is left out:
    there trainers keep hyperparameters."""
    if path.is_file():
        return {"": [path]}
    files = sorted(f for f in path.rglob("*tfevents*") if f.is_file())
    folders = {f.parent for f in files}
    outer = sorted(f for f in folders if not folders & set(f.parents))
    skipped["event files in folders inside the run's own"] += sum(f.parent not in outer for f in files)
    return {folder.relative_to(path).as_posix(): [f for f in files if f.parent == folder] for folder in outer}


def event_rows(files: list[Path], prefix: str, skipped: Counts) -> Iterator[Row]:
    """A row a step, or several where its scalars stand apart. A torn or damaged file is read as far as it goes.

    Of several files each is a source; its name follows on `prefix`.
    """
    try:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError as e:
        where = shown(files[0].parent)
        raise ErltoolError(f"{where}: reading event files needs tensorboard; pip install tensorboard") from e
    for file in files:
        source = {SOURCE: prefix + file.name.removeprefix("events.out.tfevents.")} if len(files) > 1 else {}
        row: Row = {}
        size, read = file.stat().st_size, 0
        with contextlib.suppress(MemoryError, OverflowError):  # a length that no file has
            for record in RawEventFileLoader(str(file)).Load():
                read += len(record) + 16
                try:
                    event = Event.FromString(record)
                    scalars = {value.tag: _scalar(value) for value in event.summary.value}
                except Exception:  # protobuf's errors are its own, by version
                    skipped["unreadable records"] += 1
                    continue
                for tag, value in scalars.items():
                    if value is not None and (row.get(STEP) != event.step or tag in row):
                        if row:
                            yield row
                        row = {STEP: float(event.step)} | source
                    if value is not None:
                        row[tag] = value
        skipped["bytes at the end of a torn event file"] += size - read
        if row:
            yield row


def _scalar(value) -> float | None:
    """The number of a summary's value, in either of its forms; None where it is a text, an image and so on."""
    from tensorboard.util.tensor_util import make_ndarray

    if value.HasField("simple_value"):
        return value.simple_value
    if not value.HasField("tensor"):
        return None
    array = make_ndarray(value.tensor)
    return float(array) if array.ndim == 0 and array.dtype.kind in "fiu" else None


# --- MLflow --------------------------------------------------------------------------------------


def mlflow_runs(path: Path) -> dict[str, Path]:
    """The folders of metrics of MLflow's runs by the runs' names, or their ids where names are missing or the same.

    `path` is such a folder, a run's, an experiment's or that of all experiments.
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


def mlflow_rows(folder: Path, skipped: Counts) -> Iterator[Row]:
    """A row for what was logged together: MLflow keeps a file a metric, lines of time, value and step."""
    logged = []
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        name = file.relative_to(folder).as_posix()
        with lines_of(file, skipped) as lines:
            for line in lines:
                if (found := MLFLOW_LINE.fullmatch(line)) and found[3]:
                    logged.append((int(found[1]), float(found[3]), name, found[2]))
                else:
                    skipped["unreadable lines"] += bool(line.strip())
    row: Row = {}
    for _, step, name, value in sorted(logged, key=lambda one: one[0]):
        if row.get(STEP) != step or name in row:
            if row:
                yield row
            row = {STEP: step}
        row[name] = value
    if row:
        yield row


# --- several runs --------------------------------------------------------------------------------


def chosen(found: Collection[str], run: str | None, path: Path) -> str:
    """The name of the run asked for among those found, or of the only one, which may hold the one that is asked for.

    Raises ErltoolError that names them where none is asked for, or the one that is asked for is not there.
    """
    if not found:
        raise ErltoolError(f"{shown(path)}: holds no run of this kind; is it the right folder?")
    if run in found or len(found) == 1:
        return run if run in found else next(iter(found))
    outer = [name for name in found if run is not None and run.startswith(f"{name}/")]
    if not outer:
        raise not_chosen(found, run, path)
    return outer[0]


def not_chosen(found: Collection[str], run: str | None, path: Path) -> ErltoolError:
    names = listed(found, 8)
    if run is None:
        return ErltoolError(f"{shown(path)}: holds {len(found)} runs; choose one with --run NAME or run=NAME: {names}")
    return ErltoolError(f"{shown(path)}: no run {shown(run)!r}; its runs are {names}")
