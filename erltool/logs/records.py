"""Rows of W&B's .wandb files and SwanLab's .swanlab files, as the tools write them offline.

Both are logs of records framed as LevelDB frames its log: blocks of 32 KiB, in each chunks of a checksum, a length, a
type and a payload. A record is one chunk or several. W&B's records, and SwanLab's from version 2, are protobuf, of
which only scalars and names are read; SwanLab's of version 1 are JSON. A file that is still written ends in the middle
of a record, so every record comes with the offset behind it, where reading can go on.
"""

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from erltool.errors import ErltoolError
from erltool.logs.rows import SOURCE, Row, flat, joined
from erltool.logs.text import Counts
from erltool.text import shown

BLOCK, HEADER = 32 << 10, 7  # bytes
RECORD_LIMIT = 64 << 20  # bytes; no row of metrics is longer
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
SEEDS = {kind: zlib.crc32(bytes([kind])) for kind in (WHOLE, FIRST, MIDDLE, LAST)}
HEADS = {b":W&B": (0xBEE1, (0,)), b":SWL": (0xE1D6, (1, 2))}  # magic number and known versions
NAMES = {b":W&B": "W&B run", b":SWL": "SwanLab run"}
HEAD_RECORDS = 50  # among which a run's name stands

Entry = tuple[int, str, float | str]  # step, metric, value


def kind_of_head(head: bytes) -> str | None:
    """The kind of a file of records by its first bytes, or None."""
    return NAMES.get(head[:4])


def version_of(file: Path) -> int:
    """The version of a file of records. Raises ErltoolError for another file, or a version that is not known."""
    with open(file, "rb") as f:
        head = f.read(HEADER)
    magic, versions = HEADS.get(head[:4], (None, ()))
    if len(head) < HEADER or struct.unpack("<H", head[4:6])[0] != magic:
        raise ErltoolError(f"{shown(file)}: does not begin like a .wandb or .swanlab file; restore it")
    if head[6] not in versions:
        raise ErltoolError(
            f"{shown(file)}: of version {head[6]}, and this erltool reads {' and '.join(map(str, versions))}; "
            "export the run as CSV"
        )
    return head[6]


def framed(file: Path, at: int, skipped: Counts) -> Iterator[tuple[int, bytes]]:
    """The records from offset `at` on, each with the offset behind it, up to one that is not whole yet.

    Damaged blocks are skipped and counted.
    """
    at = max(at, HEADER)
    with open(file, "rb") as f:
        size = f.seek(0, 2)
        parts: list[bytes] = []
        begun = False
        while size - at >= HEADER:
            left = BLOCK - at % BLOCK
            if left < HEADER:
                at += left
                continue
            f.seek(at)
            check, length, kind = struct.unpack("<IHB", f.read(HEADER))
            if length > left - HEADER or kind not in SEEDS:
                skipped["damaged blocks of records"] += 1
                at, begun = at + left, False
                continue
            payload = f.read(length)
            if len(payload) < length:
                return
            at += HEADER + length
            if zlib.crc32(payload, SEEDS[kind]) != check or (kind in (MIDDLE, LAST) and not begun):
                skipped["damaged records"] += 1
                begun = False
                continue
            if kind in (WHOLE, FIRST):
                parts = []
            begun = kind in (FIRST, MIDDLE)
            parts.append(payload)
            if sum(map(len, parts)) > RECORD_LIMIT:
                skipped[f"records over {RECORD_LIMIT >> 20} MiB"] += 1
                begun = False
            elif not begun:
                yield at, b"".join(parts)


# --- protobuf --------------------------------------------------------------------------------------


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message's fields: whole numbers, or bytes. Raises ValueError for what is no message."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > end:
            raise ValueError("a field beyond the message's end")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")


def _text(value: int | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _inner(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _whole(value: int | bytes) -> int:
    """A signed number of 64 bits."""
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def _double(value: int | bytes) -> float:
    if not isinstance(value, bytes) or len(value) != 8:
        raise ValueError("no double")
    return struct.unpack("<d", value)[0]


# --- W&B -------------------------------------------------------------------------------------------

HISTORY, RUN = 2, 17  # fields of a record


def wandb_rows(file: Path, at: int, skipped: Counts, keep: Callable[[str], bool] | None) -> Iterator[tuple[int, Row]]:
    """Rows of a .wandb file from offset `at` on, each with the offset behind it."""
    version_of(file)
    for behind, record in framed(file, at, skipped):
        try:
            rows = [_history(_inner(value), keep) for number, value in fields(record) if number == HISTORY]
        except (ValueError, RecursionError):
            skipped["unreadable records"] += 1
            continue
        yield from ((behind, row) for row in rows)


def _history(history: bytes, keep: Callable[[str], bool] | None) -> Row:
    row: dict = {}
    for number, value in fields(history):
        if number == 1:
            name, read = _item(_inner(value), keep)
            if name:
                row[name] = read
        elif number == 2:
            row.setdefault("_step", next((_whole(v) for n, v in fields(_inner(value)) if n == 1), 0))
    return flat(row)


def _item(item: bytes, keep: Callable[[str], bool] | None) -> tuple[str, object]:
    """A metric's name and value; "" for the name of a metric that is not kept, or without a value."""
    path: list[str] = []
    kind, raw = 0, None
    for number, value in fields(item):
        if number in (1, 2):
            path.append(_text(value))
        elif number in (4, 5, 6, 7, 8, 16):
            kind, raw = number, value
    name = "/".join(part for part in path if part)
    if raw is None or (keep and not keep(name) and name != "_step" and kind not in (8, 16)):
        return "", None
    if kind == 5:
        whole = raw if isinstance(raw, int) else 0
        return name, (whole >> 1) ^ -(whole & 1)  # zigzag
    if kind == 6:
        return name, _double(raw)
    return name, None if kind == 4 else _text(raw) if kind == 7 else json.loads(_text(raw))


def _wandb_name(file: Path) -> tuple[str, str]:
    """A run's name and id."""
    for record in _first_records(file):
        for number, value in fields(record):
            if number == RUN:
                run = {n: _text(v) for n, v in fields(_inner(value)) if n in (1, 8)}
                return run.get(8, ""), run.get(1, "")
    return "", file.stem.removeprefix("run-")


# --- SwanLab ---------------------------------------------------------------------------------------

START, SCALAR = 10, 13  # fields of a record


def swanlab_entries(file: Path, at: int, skipped: Counts) -> Iterator[tuple[int, Entry]]:
    """Scalars of a .swanlab file from offset `at` on, each with the offset behind it."""
    read = _scalar_of_json if version_of(file) == 1 else _scalar
    for behind, record in framed(file, at, skipped):
        try:
            entry = read(record)
        except (ValueError, LookupError, TypeError, RecursionError):
            skipped["unreadable records"] += 1
            continue
        if entry:
            yield behind, entry


def _scalar(record: bytes) -> Entry | None:
    message = next((_inner(value) for number, value in fields(record) if number == SCALAR), None)
    if message is None:
        return None
    key, step, number = "", 0, math.nan
    for field, value in fields(message):
        if field == 1:
            key = _text(value)
        elif field == 2:
            step = _whole(value)
        elif field == 5:
            number = next((_double(v) for n, v in fields(_inner(value)) if n == 1), 0.0)  # protobuf leaves out a 0
    return step, key, number


def _scalar_of_json(record: bytes) -> Entry | None:
    document = json.loads(record)
    if document["model_type"] != "Scalar":
        return None
    data = document["data"]
    value = data["metric"]["data"]  # "NaN" and "INF" are texts
    return int(data["step"]), str(data["key"]), value if isinstance(value, str) else float(value)


def swanlab_rows(entries: Iterator[tuple[int, Entry]], source: Row) -> Iterator[Row]:
    """Rows of what was logged at one step."""
    return joined((entry for _, entry in entries), source)


def _swanlab_name(file: Path) -> tuple[str, str]:
    for record in _first_records(file):
        if version_of(file) == 1:
            document = json.loads(record)
            if document["model_type"] == "Experiment":
                return str(document["data"].get("name") or ""), str(document["data"].get("id") or "")
            continue
        for number, value in fields(record):
            if number == START:
                run = {n: _text(v) for n, v in fields(_inner(value)) if n in (4, 10)}
                return run.get(4, ""), run.get(10, "")
    return "", file.parent.name


# --- folders ---------------------------------------------------------------------------------------

FILES = {"W&B run": ("*.wandb", _wandb_name), "SwanLab run": ("*.swanlab", _swanlab_name)}


def record_files(path: Path, kind: str) -> list[Path]:
    """The files of a kind: `path` itself, or those of a run's folder, or of a folder of runs."""
    if path.is_file():
        return [path]
    pattern = FILES[kind][0]
    for depth in (pattern, f"*/{pattern}"):
        # wandb/latest-run is a link to another run's folder.
        if found := sorted(f for f in path.glob(depth) if f.is_file() and not f.parent.is_symlink()):
            return found
    return []


def record_runs(path: Path, kind: str) -> dict[str, list[Path]]:
    """The files of each run, by name, or by name and id where names are missing or equal. A resumed run has several."""
    runs: dict[tuple[str, str], list[Path]] = {}
    for file in record_files(path, kind):
        try:
            name = FILES[kind][1](file)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            name = "", file.parent.name
        runs.setdefault(name, []).append(file)
    names = [name for name, _ in runs]
    return {name[:200] if name and names.count(name) == 1 else f"{name} {of}".strip()[:200]: files
            for (name, of), files in runs.items()}  # fmt: skip


def record_rows(
    files: list[Path], kind: str, skipped: Counts, keep: Callable[[str], bool] | None = None
) -> Iterator[Row]:
    """Rows of a run's files. Each of several files is a source."""
    for file in files:
        source: Row = {SOURCE: file.parent.name} if len(files) > 1 else {}
        if kind == "W&B run":
            yield from (row | source for _, row in wandb_rows(file, 0, skipped, keep))
        else:
            yield from swanlab_rows(swanlab_entries(file, 0, skipped), source)


def _first_records(file: Path) -> Iterator[bytes]:
    version_of(file)
    for index, (_, record) in enumerate(framed(file, 0, Counts())):
        if index == HEAD_RECORDS:
            return
        yield record
