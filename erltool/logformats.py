"""Other tools' log files as tables of numbers: which format a file has, and its rows.

verl (console, JSONL), TRL (trainer_state.json), OpenRLHF (console), W&B (CSV and history exports), TensorBoard's
event files, CSV, TSV, Parquet, JSON and JSONL. A file is untrusted text: nothing of it is evaluated, and text for a
terminal goes through `shown`. It is read as a stream, in chunks; of a large one only the columns asked for are kept.
"""

import contextlib
import csv
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.text import shown

LARGE = 64 << 20  # bytes; of a larger file only the columns that have a role are kept
CHUNK_ROWS = 5_000
MAX_ROWS = 1_000_000
MAX_COLUMNS = 10_000
LINE_LIMIT = 16 << 20  # characters; a longer line comes in pieces
JSON_LIMIT = 256 << 20  # bytes of a JSON document, which is parsed whole
STEP = "step"
CONTROLS = [bytes([c]) for c in range(32) if c not in b"\b\t\n\v\f\r\x1b"]  # a tenth of binary data, hardly any of text

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+|nan|inf(?:inity)?)"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
VERL = re.compile(r"(?<![\w/])step:(\d+) - (\S.*)")
VERL_FIELD = re.compile(rf"^(\S.*?):\s*(?:np\.\w+\()?({NUMBER})\)?\s*$", re.I)
OPENRLHF = re.compile(r"[Gg]lobal[ _]step (\d+)(?:: |, eval_metrics: )(\{.*)")
OPENRLHF_ITEM = re.compile(rf"'([^']+)': (?:np\.\w+\()?({NUMBER})", re.I)

Rows = Iterator[dict[str, float]]
Counts = Counter
"""What was skipped, by reason."""


def detect(path: Path) -> str:
    """The kind of a log file or folder, one of KINDS. Raises ErltoolError for what is empty, binary or not a log."""
    if path.is_dir():
        return _detect_folder(path)
    with open(path, "rb") as f:
        head = f.read(1 << 16)
    lines = _head(path)
    if not head.strip() or not lines:
        raise ErltoolError(f"{shown(path)}: empty; is the run still starting?")
    if "tfevents" in path.name:
        return "TensorBoard"
    if head.startswith(b"PAR1"):
        return "Parquet"
    if not _is_wide(head) and sum(map(head.count, CONTROLS)) > len(head) / 30:
        raise ErltoolError(f"{shown(path)}: a binary file and no log; give one of: {', '.join(KINDS)}")
    if (lines[0].lstrip()[:1] in ("{", "[") or _has_step(_json_row(lines))) and (kind := _detect_json(path)):
        return kind
    first, second = (*lines, "")[:2]
    table = "W&B CSV" if " - " in first else "CSV"
    if path.suffix.lower() in (".csv", ".tsv"):
        return table
    with _lines(path, Counter()) as lines:
        for line in lines:
            if kind := _detect_line(line):
                return kind
    with contextlib.suppress(csv.Error, ValueError):  # a single line, or a field beyond csv's limit
        if _is_csv(first, second):
            return table
    raise ErltoolError(
        f"{shown(path)}: not a log that is known: no metrics found in it; give one of: {', '.join(KINDS)}"
    )


def _detect_folder(path: Path) -> str:
    if (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
        return "erltool run"
    if (path / "trainer_state.json").is_file():
        return "TRL trainer_state"
    if any(path.rglob("*tfevents*")):
        return "TensorBoard"
    raise ErltoolError(f"{shown(path)}: holds no erltool run, no trainer_state.json and no TensorBoard event files")


def _detect_line(line: str) -> str | None:
    line = ESCAPES.sub("", line)
    if VERL.search(line):
        return "verl console"
    return "OpenRLHF console" if OPENRLHF.search(line) else None


def _detect_json(path: Path) -> str | None:
    """The kind of a file that begins like JSON; None where it is no JSON after all, as a console's printed config."""
    try:
        document = _document(path)
    except ErltoolError:
        if path.suffix.lower() in (".json", ".jsonl"):
            raise
        return None
    if document is None:
        row = _json_row(_head(path))
        return "verl JSONL" if set(row) == {STEP, "data"} else "W&B history" if "_step" in row else "JSONL"
    if isinstance(document, dict) and "log_history" in document:
        return "TRL trainer_state"
    rows = _document_rows(document)
    return "W&B history" if rows and "_step" in rows[0] else "JSON"


def _json_row(lines: list[str]) -> dict | None:
    """The first of the lines that is a row of JSONL, and neither a whole document nor columns."""
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and "log_history" not in row:
                if not all(isinstance(v, dict | list) for v in row.values()):
                    return row
    return None


def _has_step(row: dict | None) -> bool:
    """Whether a row of JSONL counts steps: what else stands in a file need not be JSON."""
    return row is not None and any(re.search(r"step$", name, re.I) for name in row)


def _is_wide(head: bytes) -> bool:
    """Whether text is UTF-16, by its mark or by half of its bytes being 0."""
    return head[:2] in (b"\xff\xfe", b"\xfe\xff") or (
        len(head) > 8 and head[1:2000:2].count(0) > len(head[:2000]) * 0.4
    )


def _is_csv(first: str, second: str) -> bool:
    """Whether a header that speaks of steps or entropy and a row have as many fields, more than one."""
    header, row = csv.reader([first, second], delimiter=_separator(first))
    return len(header) == len(row) > 1 and bool(re.search(r"step|entropy", first, re.I))


def _separator(header: str) -> str:
    return max("\t;,", key=header.count)


def _encoding(path: Path, skipped: Counts) -> str:
    """utf-8, or what else a file's first MiB is, which is then said in `skipped`."""
    with open(path, "rb") as f:
        head = f.read(1 << 20)
    if _is_wide(head):
        marked = head[:2] in (b"\xff\xfe", b"\xfe\xff")
        encoding = "utf-16" if marked else "utf-16-le"
    else:
        try:
            head.decode("utf-8-sig")
            return "utf-8-sig"
        except UnicodeDecodeError as e:
            if e.end >= len(head) - 3:  # a character cut by the end of the MiB, or of the file
                return "utf-8-sig"
        encoding = "latin-1"
    skipped[f"decoded as {encoding}, it is not UTF-8"] = 1
    return encoding


@contextlib.contextmanager
def _lines(path: Path, skipped: Counts):
    with open(path, encoding=_encoding(path, skipped), errors="replace") as f:
        yield iter(lambda: f.readline(LINE_LIMIT), "")


def _head(path: Path) -> list[str]:
    """The first lines that are not blank, at most 5."""
    with _lines(path, Counter()) as lines:
        return list(itertools.islice(filter(str.strip, lines), 5))


# --- rows ----------------------------------------------------------------------------------------


def _verl_console(path: Path, skipped: Counts) -> Rows:
    with _lines(path, skipped) as lines:
        for line in lines:
            if not (found := VERL.search(ESCAPES.sub("", line))):
                continue
            fields = [VERL_FIELD.match(field) for field in found[2].split(" - ")]
            skipped["unreadable fields"] += fields.count(None)
            yield {STEP: float(found[1])} | {f[1].strip(): float(f[2]) for f in fields if f}


def _openrlhf_console(path: Path, skipped: Counts) -> Rows:
    with _lines(path, skipped) as lines:
        for line in lines:
            if found := OPENRLHF.search(ESCAPES.sub("", line)):
                yield {STEP: float(found[1])} | {k: float(v) for k, v in OPENRLHF_ITEM.findall(found[2])}


def _json(path: Path, skipped: Counts) -> Rows:
    """Rows of JSONL as a stream, or those of a document, which is read whole."""
    if (document := _document(path)) is not None:
        yield from map(_numbers, _document_rows(document))
        return
    with _lines(path, skipped) as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield _numbers(row)
            else:
                skipped["unreadable lines"] += bool(line.strip())


def _document(path: Path):
    """What a JSON file holds; None where it is JSONL, a row a line. Raises ErltoolError where it is neither."""
    head = _head(path)
    if _json_row(head[:1]):
        return None
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise ValueError(f"over {JSON_LIMIT >> 20} MiB; write it as JSONL, a row a line")
        with open(path, encoding=_encoding(path, Counter()), errors="replace") as f:
            return json.load(f)
    except (ValueError, RecursionError) as e:
        if _has_step(_json_row(head)):  # JSONL whose first line is torn
            return None
        reason = shown(str(e).splitlines()[0])
        raise ErltoolError(f"{shown(path)}: damaged JSON ({reason}); restore it, or give JSONL or CSV") from e


def _document_rows(document) -> list[dict]:
    """Rows of a JSON document: a list of them, TRL's "log_history", or columns as DataFrame.to_json writes them."""
    if isinstance(document, dict) and isinstance(document.get("log_history"), list):
        document = document["log_history"]
    if isinstance(document, dict):  # scalars beside the columns say of no row
        columns = {k: v for k, v in document.items() if isinstance(v, dict | list)}
        columns = {k: v if isinstance(v, dict) else dict(enumerate(v)) for k, v in columns.items()}
        rows: dict = {}
        for name, values in columns.items():
            for at, value in values.items():
                rows.setdefault(at, {})[name] = value
        return list(rows.values())
    return [row for row in document if isinstance(row, dict)] if isinstance(document, list) else []


def _numbers(row: dict) -> dict[str, float]:
    """The numbers of a row; those of a nested "data", which is verl's, beside the others."""
    nested = row.get("data")
    numbers = {}
    for name, value in (row | (nested if isinstance(nested, dict) else {})).items():
        if isinstance(value, int | float | str) and not isinstance(value, bool) and len(str(value)) < 40:
            with contextlib.suppress(ValueError):
                numbers[name] = float(value)
    return numbers


def _tensorboard(path: Path, skipped: Counts) -> Rows:
    """A row a step, or several where its scalars stand apart. A torn or damaged file is read as far as it goes."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError as e:
        raise ErltoolError(f"{shown(path)}: reading event files needs tensorboard; pip install tensorboard") from e
    row: dict[str, float] = {}
    for file in _event_files(path):
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
                for tag, number in scalars.items():
                    if number is not None and (row.get(STEP) != event.step or tag in row):
                        if row:
                            yield row
                        row = {STEP: float(event.step)}
                    if number is not None:
                        row[tag] = number
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


def _event_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(f for f in path.rglob("*tfevents*") if f.is_file())
    folders = sorted({f.parent for f in files})
    if path not in folders and len(folders) > 1:
        names = ", ".join(shown(f.relative_to(path)) for f in folders[:8])
        raise ErltoolError(f"{shown(path)}: event files of {len(folders)} runs; give the folder of one: {names}")
    return [f for f in files if f.parent == (path if path in folders else folders[0])]


# --- tables --------------------------------------------------------------------------------------


def _csv(path: Path, skipped: Counts, keep: Callable[[str], bool] | None) -> Iterator[pd.DataFrame]:
    encoding = _encoding(path, skipped)
    with _lines(path, Counter()) as lines:
        separator = _separator(next(filter(str.strip, lines), ""))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", pd.errors.ParserWarning)
        try:
            with pd.read_csv(
                path, sep=separator, encoding=encoding, encoding_errors="replace", chunksize=CHUNK_ROWS,
                keep_default_na=False, na_values=[""], on_bad_lines="warn",
            ) as chunks:  # fmt: skip
                for chunk in chunks:
                    if not isinstance(chunk.index, pd.RangeIndex):  # pandas takes the first column for names of rows
                        raise ErltoolError(f"{shown(path)}: its rows have more fields than its header; mend the header")
                    # Not by usecols, which makes pandas cut a row with too many fields instead of skipping it.
                    yield chunk[[c for c in chunk if not c.endswith(("__MIN", "__MAX")) and (keep is None or keep(c))]]
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as e:
            skipped[f"the rest of the file ({shown(str(e).rpartition('C error: ')[2])})"] += 1
        skipped["unreadable lines"] += sum(str(w.message).count("Skipping line") for w in said)


def _parquet(path: Path, skipped: Counts, keep: Callable[[str], bool] | None) -> Iterator[pd.DataFrame]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = [n for n in file.schema_arrow.names if keep is None or keep(n)]
            for batch in file.iter_batches(CHUNK_ROWS, columns=names):
                yield batch.to_pandas(ignore_metadata=True)
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as e:
        raise ErltoolError(
            f"{shown(path)}: not readable as Parquet ({shown(str(e).splitlines()[0])}); restore it"
        ) from e


ROWS = {
    "verl console": _verl_console, "verl JSONL": _json, "OpenRLHF console": _openrlhf_console,
    "TRL trainer_state": _json, "W&B history": _json, "TensorBoard": _tensorboard, "JSONL": _json, "JSON": _json,
}  # fmt: skip
TABLES = {"W&B CSV": _csv, "CSV": _csv, "Parquet": _parquet}
KINDS = (*ROWS, *TABLES, "erltool run")


def read_table(path: Path, kind: str, keep: Callable[[str], bool]) -> tuple[pd.DataFrame, Counts]:
    """The numbers of a log, (rows, columns) float64 in the file's order, and what was skipped by reason.

    A value that is missing or not a finite number is NaN; the latter are counted. Columns without a number are left
    out. Of a file larger than LARGE only the columns are kept for which `keep(name)`, and rows up to MAX_ROWS.
    Raises ErltoolError for a file that cannot be read as this kind.
    """
    skipped: Counts = Counter()
    if kind == "TRL trainer_state" and path.is_dir():
        path = path / "trainer_state.json"
    left_out: set[str] = set()

    def kept(name: str) -> bool:
        if not keep(name):
            left_out.add(name)
        return name not in left_out

    large = path.is_file() and path.stat().st_size > LARGE
    keep_only = kept if large else None
    chunks = (
        TABLES[kind](path, skipped, keep_only)
        if kind in TABLES
        else _chunks(path, ROWS[kind](path, skipped), keep_only)
    )
    parts, count, bad = [], 0, Counter()
    with contextlib.closing(chunks):
        for chunk in chunks:
            part = _finite(chunk, bad)
            parts.append(part[: MAX_ROWS - count])
            count += len(part)
            if count > MAX_ROWS:
                skipped[f"the rest of the file, after {MAX_ROWS:,} rows"] = 1
                break
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    table = table.dropna(axis=1, how="all")
    skipped["values that are not finite numbers"] = sum(bad[name] for name in table)
    skipped["columns without a role, of a large file"] = len(left_out)
    return table, Counter({reason: n for reason, n in skipped.items() if n})


def _chunks(path: Path, rows: Rows, keep: Callable[[str], bool] | None) -> Iterator[pd.DataFrame]:
    names: set[str] = set()
    while part := list(itertools.islice(rows, CHUNK_ROWS)):
        names.update(*part)
        if len(names) > MAX_COLUMNS:
            raise ErltoolError(
                f"{shown(path)}: over {MAX_COLUMNS:,} different metrics, as {shown(min(names))}; no log has"
            )
        yield pd.DataFrame([row if keep is None else {k: v for k, v in row.items() if keep(k)} for row in part])


def _finite(chunk: pd.DataFrame, bad: Counter) -> pd.DataFrame:
    """Numbers of a chunk, NaN where there is none; counts in `bad` by column what stood there instead."""
    numbers = {}
    for name in chunk:
        values = pd.to_numeric(chunk[name], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        numbers[str(name)] = np.where(np.isfinite(values), values, np.nan)
        bad[str(name)] += int((~np.isfinite(values) & chunk[name].notna().to_numpy()).sum())
    return pd.DataFrame(numbers)
