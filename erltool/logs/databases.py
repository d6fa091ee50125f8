"""Rows of the SQLite databases of Trackio (a file a project, in its cache folder) and MLflow (mlflow.db).

A database is opened to be read only, and nothing is made beside it. Rows come in the order in which they were written,
each with its rowid, behind which reading can go on.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erltool.errors import ErltoolError
from erltool.logs.rows import STEP, Row, flat
from erltool.logs.text import LINE_LIMIT, Counts
from erltool.text import shown

MAGIC = b"SQLite format 3\0"
BUSY = 5.0  # seconds to wait for a writer
INFINITE = 1.7e308  # MLflow writes an infinite value as the largest number


@dataclass(frozen=True)
class Stored:
    """A run in a database."""

    file: Path
    run: str
    """Trackio's run_id, or run_name in databases of its first versions; MLflow's run_uuid."""
    column: str
    """The column of `metrics` that holds it."""
    rows: int
    last: str = ""
    """When its last row was written, in ISO format; "" where that is not known."""


@contextlib.contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads. Raises ErltoolError for a damaged database or one that is locked for long."""
    wal = file.with_name(file.name + "-wal")
    # Without a write-ahead log nothing else is read, and so no file is made beside the database.
    how = "mode=ro" if wal.is_file() and wal.stat().st_size else "immutable=1"
    name = file.absolute().as_uri()
    try:
        with contextlib.closing(sqlite3.connect(f"{name}?{how}", uri=True, timeout=BUSY)) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LINE_LIMIT)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA query_only = ON")
            yield connection
    except sqlite3.Error as e:
        raise ErltoolError(f"{shown(file)}: not readable as SQLite ({shown(e, 120)}); restore it, or try again") from e


def is_database(file: Path) -> bool:
    with contextlib.suppress(OSError), open(file, "rb") as f:
        return f.read(len(MAGIC)) == MAGIC
    return False


def database_kind(file: Path) -> str | None:
    """ "Trackio" or "MLflow" by the tables of a database, or None."""
    with opened(file) as connection:
        columns = _columns(connection)
    if {"run_name", "step", "metrics"} <= columns:
        return "Trackio"
    return "MLflow" if {"key", "value", "run_uuid", "step", "is_nan"} <= columns else None


def _columns(connection: sqlite3.Connection) -> set[str]:
    """The columns of the table `metrics`; of a view none, since a view can compute for ever."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'metrics'").fetchone():
        return set()
    return {row[1] for row in connection.execute("PRAGMA table_info(metrics)")}


def databases(path: Path, kind: str) -> list[Path]:
    """The databases of a kind: `path` itself, or those in a folder."""
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.db"))[:1000]
    return [f for f in found if f.is_file() and is_database(f) and database_kind(f) == kind]


def trackio_runs(path: Path) -> dict[str, Stored]:
    """The runs of a project's database, or of the cache's folder, by name; with the project's where there are several,
    and with the id where names are equal."""
    found: list[tuple[str, Stored]] = []
    files = databases(path, "Trackio")
    for file in files:
        with opened(file) as connection:
            column = "run_id" if "run_id" in _columns(connection) else "run_name"
            for run, name, rows, last in connection.execute(
                f"SELECT {column}, run_name, COUNT(*), MAX(timestamp) FROM metrics GROUP BY {column} ORDER BY MIN(id)"
            ):
                project = f"{file.stem}/" if len(files) > 1 else ""
                found.append((f"{project}{name}"[:200], Stored(file, str(run), column, int(rows), str(last or ""))))
    return _named(found)


def trackio_rows(stored: Stored, after: int, skipped: Counts) -> Iterator[tuple[int, Row]]:
    """Rows of a run behind a rowid, each with its own."""
    with opened(stored.file) as connection:
        for rowid, step, text in connection.execute(
            f"SELECT id, step, metrics FROM metrics WHERE {stored.column} = ? AND id > ? ORDER BY id",
            (stored.run, after),
        ):
            try:
                metrics = json.loads(text)
            except (ValueError, TypeError, RecursionError):
                metrics = None
            if isinstance(metrics, dict):
                yield rowid, flat({STEP: step} | metrics)
            else:
                skipped["unreadable rows"] += 1


def mlflow_stored(path: Path) -> dict[str, Stored]:
    """The runs in MLflow's database by name; with the experiment's where several have runs, and with the id where names
    are equal. Deleted runs are left out."""
    found: list[tuple[str, str, Stored]] = []
    for file in databases(path, "MLflow"):
        with opened(file) as connection:
            for run, name, experiment, rows, last in connection.execute(
                "SELECT r.run_uuid, r.name, e.name, COUNT(*), datetime(MAX(m.timestamp) / 1000, 'unixepoch')"
                " FROM runs r JOIN metrics m ON m.run_uuid = r.run_uuid"
                " LEFT JOIN experiments e ON e.experiment_id = r.experiment_id"
                " WHERE r.lifecycle_stage = 'active' GROUP BY r.run_uuid ORDER BY r.start_time"
            ):
                stored = Stored(file, str(run), "run_uuid", int(rows), str(last or ""))
                found.append((str(experiment or ""), str(name or run), stored))
    several = len({experiment for experiment, *_ in found}) > 1
    return _named([(f"{e}/{name}"[:200] if several else name[:200], stored) for e, name, stored in found])


def mlflow_entries(stored: Stored, after: int) -> Iterator[tuple[int, tuple[float, str, float]]]:
    """Step, metric and value of a run behind a rowid, each with its own."""
    with opened(stored.file) as connection:
        for rowid, step, name, value, missing in connection.execute(
            "SELECT rowid, step, key, value, is_nan FROM metrics WHERE run_uuid = ? AND rowid > ? ORDER BY rowid",
            (stored.run, after),
        ):
            known = not missing and isinstance(value, int | float) and abs(value) < INFINITE
            yield rowid, (float(step), str(name), float(value) if known else float("nan"))


def _named(found: list[tuple[str, Stored]]) -> dict[str, Stored]:
    names = [name for name, _ in found]
    return {name if names.count(name) == 1 else f"{name} {stored.run[:8]}": stored for name, stored in found}
