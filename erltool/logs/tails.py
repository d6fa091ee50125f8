"""What a log gained since the last look: text files by lines, databases by rowid, files of records by offset.

A tail's `read` gives the new rows. Before them comes RENEWED where the rows before no longer count, because the log was
written anew. A log that was rotated goes on: the rest of the old file comes first, and then the new file.
"""

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from erltool.logs import databases, formats, records
from erltool.logs import folders as logfolders
from erltool.logs.rows import PARSERS, SOURCE, STEP, Parser, Row
from erltool.logs.tables import NO_METRIC, STEP_WORD, separator_of
from erltool.logs.text import LINE_LIMIT, Counts, is_wide

THOUSAND = re.compile(r"[-+]?[1-9]\d{0,2}\.\d{3}")
RENEWED: Row = {}  # compared by identity
PIECE = 1 << 20  # bytes read at once
HEAD = 4096  # bytes by which a file that was written anew is told from another one


class Tail(Protocol):
    """A log that grows."""

    def read(self) -> Iterator[Row]:
        """The rows since the last call. Raises ErltoolError where the log cannot be read now."""


def tail_of(path: Path, kind: str, run: str | None, keep: Callable[[str], bool] | None) -> Tail:
    """The tail of a log, of one of its runs. Raises ErltoolError, naming the runs, where none is chosen."""
    if kind == "erltool run":
        return Lines(path / "metrics.jsonl", PARSERS["JSONL"])
    if kind in PARSERS or kind in ("CSV", "W&B CSV", "SwanLab CSV"):
        with open(path, "rb") as f:
            wide = is_wide(f.read(1 << 16))
        return Whole(path, kind) if wide else Lines(path, PARSERS.get(kind, CsvRows))
    if kind not in formats.STORES:
        return Whole(path, kind)
    runs = formats.runs_of_store(path, kind, Counts())
    name = logfolders.chosen(runs, run, path)
    of = runs[name]
    if isinstance(of, databases.Stored):
        return Database(of, kind)
    if kind == "MLflow":
        return MLflowFolder(of if isinstance(of, Path) else path)
    files = of if isinstance(of, list) else [path]
    return Events(files, path.is_file()) if kind == "TensorBoard" else Records(path, kind, name, files, keep)


class CsvRows:
    """Rows of a CSV. A further line of names is a header, too, as where a run was started again. A text in quotes may
    go over several lines."""

    def __init__(self) -> None:
        self._header: list[str] = []
        self._open = ""  # the begin of a row whose quotes are not closed yet
        self._separator = ","

    def __call__(self, lines, skipped: Counts) -> Iterator[Row]:
        for line in filter(str.strip, lines):
            line, self._open = self._open + line, ""
            if line.count('"') % 2 and len(line) < PIECE:
                self._open = line + "\n"
                continue
            if re.fullmatch(r'"?sep=(.)"?\s*', line):
                continue
            if not self._header:
                self._separator = separator_of([line])[0]
            cells = next(csv.reader([line], delimiter=self._separator, skipinitialspace=True), [])
            if not self._header or (STEP_WORD.search(line) and not re.search(r"(?<![a-z@_/])\d", line, re.I)):
                again = [cells[:i].count(cell) for i, cell in enumerate(cells)]
                self._header = [f"{c}.{n}" if n else c for c, n in zip(cells, again, strict=True)]  # as pandas does
            elif len(cells) == len(self._header):
                pairs = zip(self._header, map(_cell, cells), strict=True)
                yield {name: cell for name, cell in pairs if cell != "" and not name.endswith(NO_METRIC)}
            else:
                skipped["unreadable lines"] += 1


def _cell(text: str) -> float | str:
    """A number, or a text that may be another one beside decimal commas, as 1.234, or none, as 1_000."""
    try:
        return text if "_" in text or THOUSAND.fullmatch(text) else float(text)
    except ValueError:
        return text


class Lines:
    """A text file, line by line; a last line without its end waits for it."""

    def __init__(self, path: Path, parser: Callable[[], Parser]):
        self._path, self._make, self._parse = path, parser, parser()
        self._file: BinaryIO | None = None
        self._at, self._head, self._rest = 0, b"", b""
        self.skipped: Counts = Counts()

    def read(self) -> Iterator[Row]:
        if self._file is None:
            try:
                self._file = open(self._path, "rb")
            except FileNotFoundError:
                return  # not there yet, or being rotated
        yield from self._grown()
        try:
            now, mine = os.stat(self._path), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return
        another = (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev)
        if another or now.st_size < self._at:
            yield from self._anew()

    def _anew(self) -> Iterator[Row]:
        """The rows of the file that is at the path now."""
        assert self._file is not None
        self._file.close()
        self._file = open(self._path, "rb")
        same = bool(self._head) and self._file.read(len(self._head)) == self._head
        self._at, self._head, self._rest = 0, b"", b""
        if same:
            self._parse = self._make()
            yield RENEWED
        yield from self._grown()

    def _grown(self) -> Iterator[Row]:
        assert self._file is not None
        while True:
            self._file.seek(self._at)
            piece = self._file.read(PIECE)
            if not piece:
                return
            if self._at < HEAD:
                self._head = (self._head + piece)[:HEAD]
            self._at += len(piece)
            whole, end, rest = (self._rest + piece).rpartition(b"\n")
            self._rest = rest[-LINE_LIMIT:]
            if end:
                lines = whole.decode("utf-8-sig", "replace").split("\n")
                yield from self._parse(lines, self.skipped)


class Whole:
    """A file that is read whole when it has changed, such as a JSON document."""

    def __init__(self, path: Path, kind: str):
        self._path, self._kind = path, kind
        self._seen: tuple | None = None

    def read(self) -> Iterator[Row]:
        file = self._path
        if self._kind == "TRL trainer_state" and file.is_dir():
            file = logfolders.trainer_state(file) or file
        mark = (file, *_mark(file))
        if mark == self._seen:
            return
        _, chunks = formats.chunks_of(file, self._kind, None, Counts(), None)
        rows = [{k: v for k, v in row.items() if v == v and v is not None}
                for chunk in chunks for row in chunk.to_dict("records")]  # fmt: skip
        self._seen = mark
        yield RENEWED
        yield from rows


def _mark(*files: Path) -> tuple:
    """What changes when files are written."""
    marks = []
    for file in files:
        try:
            now = os.stat(file)
            marks.append((now.st_ino, now.st_size, now.st_mtime_ns))
        except FileNotFoundError:
            marks.append((0, 0, 0))
    return tuple(marks)


class Joiner:
    """Rows of single metrics, as `joined` makes them. The last row is kept back until a look finds nothing written."""

    def __init__(self) -> None:
        self._row: Row = {}

    def rows(self, entries: Iterable[tuple[float, str, float | str]], source: Row | None = None) -> Iterator[Row]:
        for step, name, value in entries:
            if self._row and (self._row[STEP] != step or name in self._row):
                yield self._row
                self._row = {}
            self._row = self._row or {STEP: float(step), **(source or {})}
            self._row[name] = value

    def last(self) -> Iterator[Row]:
        """The row that was kept back, where nothing was written since the last look."""
        if self._row:
            row, self._row = self._row, {}
            yield row


class Database:
    """A run in Trackio's or MLflow's database."""

    def __init__(self, stored: databases.Stored, kind: str):
        self._stored, self._kind = stored, kind
        self._wal = stored.file.with_name(stored.file.name + "-wal")
        self._after = 0
        self._seen: tuple | None = None
        self._joiner = Joiner()
        self.skipped: Counts = Counts()

    def read(self) -> Iterator[Row]:
        mark = _mark(self._stored.file, self._wal)
        if mark == self._seen:
            yield from self._joiner.last()
            return
        if self._seen and mark[0][0] != self._seen[0][0]:  # another file took its place
            self._after = 0
            yield RENEWED
        if self._kind == "Trackio":
            for after, row in databases.trackio_rows(self._stored, self._after, self.skipped):
                self._after = after
                yield row
        else:
            yield from self._joiner.rows(self._entries())
        self._seen = mark

    def _entries(self) -> Iterator[tuple[float, str, float]]:
        for after, entry in databases.mlflow_entries(self._stored, self._after):
            self._after = after
            yield entry


class MLflowFolder:
    """The files of MLflow's metrics, of one run."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._at: dict[Path, int] = {}
        self._joiner = Joiner()

    def read(self) -> Iterator[Row]:
        logged = []
        for file in sorted(f for f in self._folder.rglob("*") if f.is_file()):
            at = self._at.get(file, 0)
            if file.stat().st_size <= at:
                continue
            name = file.relative_to(self._folder).as_posix()
            for line, behind in logfolders.mlflow_whole_lines(file, at):
                self._at[file] = behind
                if (match := logfolders.MLFLOW_LINE.fullmatch(line)) and match[3]:
                    logged.append((int(match[1]), float(match[3]), name, match[2]))
        logged.sort(key=lambda entry: entry[:2])
        yield from self._joiner.rows((step, name, value) for _, step, name, value in logged)
        if not logged:
            yield from self._joiner.last()


class Records:
    """A run's .wandb or .swanlab files; a resumed run gets another one."""

    def __init__(self, path: Path, kind: str, name: str, files: list[Path], keep: Callable[[str], bool] | None):
        self._path, self._kind, self._name, self._keep = path, kind, name, keep
        self._at = dict.fromkeys(files, 0)
        self._known = set(records.record_files(path, kind))
        self._seen: tuple | None = None
        self._joiner = Joiner()
        self.skipped: Counts = Counts()

    def read(self) -> Iterator[Row]:
        if (now := set(records.record_files(self._path, self._kind))) != self._known:
            self._known = now
            for file in records.record_runs(self._path, self._kind).get(self._name, []):
                self._at.setdefault(file, 0)
        mark = _mark(*self._at)
        if mark == self._seen:
            yield from self._joiner.last()
            return
        self._seen = mark
        for file in list(self._at):
            source: Row = {SOURCE: file.parent.name} if len(self._at) > 1 else {}
            yield from (row | source for row in self._rows(file))

    def _rows(self, file: Path) -> Iterator[Row]:
        if self._kind == "SwanLab run":
            yield from self._joiner.rows(self._entries(file))
            return
        for at, row in records.wandb_rows(file, self._at[file], self.skipped, self._keep):
            self._at[file] = at
            yield row

    def _entries(self, file: Path) -> Iterator[records.Entry]:
        for at, entry in records.swanlab_entries(file, self._at[file], self.skipped):
            self._at[file] = at
            yield entry


class Events:
    """A run's event files of TensorBoard; a resumed run gets another one."""

    def __init__(self, files: list[Path], alone: bool):
        self._folder, self._alone = files[0].parent, files if alone else None
        self._loaders: dict[Path, object] = {}
        self._sizes: dict[Path, int] = {}
        self._joiner = Joiner()
        self.skipped: Counts = Counts()

    def read(self) -> Iterator[Row]:
        files = self._alone or sorted(self._folder.glob("*tfevents*"))
        grown = False
        for file in files:
            if file.stat().st_size == self._sizes.get(file, 0):
                continue
            grown = True
            self._sizes[file] = file.stat().st_size
            if file not in self._loaders:
                self._loaders[file] = logfolders.event_loader(file)
            source: Row = {SOURCE: file.name.removeprefix("events.out.tfevents.")} if len(files) > 1 else {}
            scalars = logfolders.event_scalars(self._loaders[file], self.skipped)
            yield from self._joiner.rows(scalars, source)
        if not grown:
            yield from self._joiner.last()
