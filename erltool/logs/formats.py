"""The format of another tool's log file, and its content as a table of numbers.

verl (console, JSONL), TRL (trainer_state.json, console, notebooks), OpenRLHF and SkyRL (console), W&B and SwanLab
(exports, and the files they write offline), Trackio (database), MLflow (database, folder), TensorBoard (folders), and
any tool's CSV, TSV, Parquet, Markdown, HTML, JSON and JSONL. A file is untrusted text: nothing of it is evaluated, and
text for a terminal goes through `shown`. Files are read as streams, in chunks.
"""

import contextlib
import csv
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.logs import databases
from erltool.logs import folders as logfolders
from erltool.logs import records as logrecords
from erltool.logs import rows as logrows
from erltool.logs import tables as logtables
from erltool.logs.numbers import NUMBER_WIDTH, decimal_signs, number
from erltool.logs.rows import SOURCE, STEP, Row, document_of, document_rows, first_row, has_step
from erltool.logs.tables import CHUNK_ROWS, MAX_COLUMNS, STEP_WORD, Chunks, Keep, csv_kind, has_markdown_table, is_csv
from erltool.logs.text import CONTROLS, Counts, compressed, first_lines, is_wide, lines_of
from erltool.text import shown

LARGE = 64 << 20  # bytes; of a larger file only columns with a role are kept
MAX_ROWS = 1_000_000

JSON_KINDS = ("verl JSONL", "TRL trainer_state", "W&B history", "JSONL", "JSON")
ROWS = {kind: logrows.json_rows if kind in JSON_KINDS else logrows.rows_of_text
        for kind in ("verl console", "verl JSONL", "OpenRLHF console", "TRL trainer_state", "TRL console",
                     "SkyRL console", "W&B history", "JSONL", "JSON")}  # fmt: skip
STORES = ("TensorBoard", "MLflow", "Trackio", "W&B run", "SwanLab run")  # which hold one run or several
TABLES = {
    "W&B CSV": logtables.csv_chunks, "SwanLab CSV": logtables.csv_chunks, "CSV": logtables.csv_chunks,
    "Parquet": logtables.parquet_chunks, "Markdown table": logtables.markdown_chunks,
    "HTML table": logtables.html_chunks, "notebook": logtables.notebook_chunks,
}  # fmt: skip
KINDS = (*ROWS, *STORES, *TABLES, "erltool run")


@dataclass(frozen=True)
class Table:
    """The content of a log."""

    numbers: pd.DataFrame  # (rows, columns) float64 in the file's order; NaN where no finite number is
    texts: pd.DataFrame
    """The columns without a number, of the same rows. SOURCE is the section of the log that a row comes from."""
    percents: Mapping[str, int]  # columns with percent signs: how many of their numbers lack one
    unclear: frozenset[str]  # columns with an unclear decimal sign
    skipped: Counts
    run: str = ""  # the chosen run of a folder
    notes: tuple[str, ...] = ()

    def rows(self, at) -> "Table":
        """The rows at these positions, and the columns with a number there."""
        numbers, texts = (table.iloc[at].reset_index(drop=True) for table in (self.numbers, self.texts))
        return replace(self, numbers=numbers.dropna(axis=1, how="all"), texts=texts)


def detect(path: Path) -> str:
    """The kind of a log file or folder, one of KINDS. Raises ErltoolError for an empty or binary file, or no log."""
    if path.is_dir():
        return _detect_folder(path)
    with open(path, "rb") as f:
        head = f.read(1 << 16)
    if how := compressed(head):
        raise ErltoolError(f"{shown(path)}: compressed ({how}); unpack it, or export a spreadsheet as CSV")
    lines = first_lines(path)
    if not head.strip() or not lines:
        raise ErltoolError(f"{shown(path)}: empty; is the run still starting?")
    if "tfevents" in path.name:
        return "TensorBoard"
    if head.startswith(b"PAR1"):
        return "Parquet"
    if kind := logrecords.kind_of_head(head):
        return kind
    if head.startswith(databases.MAGIC):
        if kind := databases.database_kind(path):
            return kind
        raise ErltoolError(f"{shown(path)}: an SQLite database, but neither Trackio's nor MLflow's; give one of theirs")
    if not is_wide(head) and sum(map(head.count, CONTROLS)) > len(head) / 30:
        raise ErltoolError(f"{shown(path)}: a binary file and no log; give one of: {', '.join(KINDS)}")
    if logrows.is_printed_dict(lines[0]):
        return "TRL console"
    if (lines[0].lstrip()[:1] in ("{", "[") or has_step(first_row(lines))) and (kind := _detect_json(path)):
        return kind
    if lines[0].lstrip().startswith("<"):
        return "HTML table"
    table = csv_kind(lines[0])
    if path.suffix.lower() in (".csv", ".tsv"):
        return table
    if kind := _detect_lines(path):
        return kind
    with contextlib.suppress(csv.Error, ValueError):  # a single line, or a field beyond csv's limit
        if is_csv(*(*lines, "")[:2]):
            return table
    raise ErltoolError(f"{shown(path)}: not a known log, without metrics; give one of: {', '.join(KINDS)}")


def _detect_folder(path: Path) -> str:
    if (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
        return "erltool run"
    if logfolders.trainer_state(path):
        return "TRL trainer_state"
    for kind in logrecords.FILES:
        if logrecords.record_files(path, kind):
            return kind
    if databases.databases(path, "Trackio"):
        return "Trackio"
    if any(path.rglob("*tfevents*")):
        return "TensorBoard"
    if logfolders.mlflow_runs(path) or databases.databases(path, "MLflow"):
        return "MLflow"
    raise ErltoolError(
        f"{shown(path)}: holds no erltool run, trainer_state.json, TensorBoard event files or runs of Trackio, MLflow, "
        "W&B or SwanLab; erltool runs FOLDER looks further down"
    )


def _detect_lines(path: Path) -> str | None:
    before = ""
    with lines_of(path, Counter()) as lines:
        for line in lines:
            if kind := logrows.kind_of_line(line):
                return kind
            if has_markdown_table(before, line):
                return "Markdown table"
            before = line
    return None


def _detect_json(path: Path) -> str | None:
    """The kind of a file that begins like JSON; None where it is something else, such as a console's printed config."""
    try:
        document = document_of(path)
    except ErltoolError:
        if path.suffix.lower() in (".json", ".jsonl"):
            raise
        return None
    if document is None:
        row = first_row(first_lines(path)) or {}
        return "verl JSONL" if set(row) == {STEP, "data"} else "W&B history" if "_step" in row else "JSONL"
    if isinstance(document, dict) and "log_history" in document:
        return "TRL trainer_state"
    if isinstance(document, dict) and "nbformat" in document:
        return "notebook"
    rows = document_rows(document)
    return "W&B history" if rows and "_step" in rows[0] else "JSON"


def read_table(path: Path, kind: str, keep: Callable[[str], bool], run: str | None = None) -> Table:
    """The numbers and texts of a log, and counts of what was skipped. `run` chooses from a folder of several.

    Numbers that are not finite are NaN and counted. Rows are kept up to MAX_ROWS. Of a file larger than LARGE, only
    columns with `keep(name)` are. Raises ErltoolError for a file of another kind, or a folder without `run`.
    """
    skipped: Counts = Counter()
    left_out: set[str] = set()

    @functools.lru_cache(MAX_COLUMNS)  # it is asked for every value
    def kept(name: str) -> bool:
        if name != SOURCE and not keep(name):
            left_out.add(name)
        return name not in left_out

    large = size_of(path) > LARGE
    kept_chunks, count = [], 0
    folder, chunks = chunks_of(path, kind, run, skipped, kept if large else None)
    with contextlib.closing(chunks):
        for chunk in chunks:
            kept_chunks.append(compact(chunk)[: MAX_ROWS - count])
            count += len(chunk)
            if count > MAX_ROWS:
                skipped[f"the rest of the file, after {MAX_ROWS:,} rows"] = 1
                break
    whole = pd.concat(kept_chunks, ignore_index=True) if kept_chunks else pd.DataFrame()
    skipped["columns without a role, of a large file"] = len(left_out)
    return replace(table_of(whole, skipped), run=folder)


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = [path] if path.is_file() else (f for f in path.rglob("*") if f.is_file())
    return sum(f.stat().st_size for f in files)


def runs_of_store(path: Path, kind: str, skipped: Counts) -> dict[str, object]:
    """The runs of one of STORES by name, each in a form that `store_rows` reads."""
    if kind == "TensorBoard":
        return dict(logfolders.event_runs(path, skipped))
    if kind == "MLflow":
        return dict(logfolders.mlflow_runs(path) if path.is_dir() else {}) or dict(databases.mlflow_stored(path))
    if kind == "Trackio":
        return dict(databases.trackio_runs(path))
    return dict(logrecords.record_runs(path, kind))


def store_rows(run, kind: str, prefix: str, skipped: Counts, keep: Keep) -> Iterator[Row]:
    """Rows of a run of `runs_of_store`. Each of a run's several files is a source, in TensorBoard under `prefix`."""
    if kind == "TensorBoard":
        return logfolders.event_rows(run, prefix, skipped)
    if kind == "Trackio":
        return (row for _, row in databases.trackio_rows(run, 0, skipped))
    if kind == "MLflow" and isinstance(run, databases.Stored):
        return logrows.joined(entry for _, entry in databases.mlflow_entries(run, 0))
    return (
        logfolders.mlflow_rows(run, skipped, keep)
        if kind == "MLflow"
        else logrecords.record_rows(run, kind, skipped, keep)
    )


def chunks_of(path: Path, kind: str, run: str | None, skipped: Counts, keep: Keep) -> tuple[str, Chunks]:
    """The chosen run of a folder, and its chunks."""
    if kind in TABLES:
        return "", TABLES[kind](path, skipped, keep)
    name = ""
    if kind in STORES:
        runs = runs_of_store(path, kind, skipped)
        name = logfolders.chosen(runs, run, path)
        rows = store_rows(runs[name], kind, f"{name}/" if len(runs) > 1 else "", skipped, keep)
    else:
        file = logfolders.trainer_state(path) if kind == "TRL trainer_state" and path.is_dir() else path
        rows = ROWS[kind](file or path, kind, skipped)
    return name, _framed(path, rows, keep)


def _framed(path: Path, rows: Iterator[Row], keep: Keep) -> Chunks:
    names: set[str] = set()
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        names.update(*chunk)
        if len(names) > MAX_COLUMNS:
            raise ErltoolError(f"{shown(path)}: over {MAX_COLUMNS:,} metrics, such as {shown(min(names))}; no log has")
        yield pd.DataFrame([row if keep is None else {k: v for k, v in row.items() if keep(k)} for row in chunk])


def compact(chunk: pd.DataFrame) -> pd.DataFrame:
    """A chunk with floats in columns of numbers, so that the longest logs fit into memory."""
    columns = {}
    for name, values in chunk.items():
        plain = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        columns[str(name)] = values.to_numpy(float, na_value=np.nan) if plain else values.astype(object)
    return pd.DataFrame(columns, index=chunk.index)


def table_of(whole: pd.DataFrame, skipped: Counts) -> Table:
    """A log's content from its rows, whose cells are floats, or texts that may be numbers."""
    plain = {name: values for name, values in whole.items() if values.dtype == float}
    tokens = {name: {v for v in values.unique() if isinstance(v, str) and len(v) <= NUMBER_WIDTH}
              for name, values in whole.items() if name not in plain}  # fmt: skip
    floats = [v for name, values in whole.items() if name not in plain for v in values.unique() if isinstance(v, float)]
    fractions = (pd.Series([*floats], dtype=float), *plain.values())
    signs = decimal_signs(tokens, any((values[np.isfinite(values)] % 1 != 0).any() for values in fractions))
    numbers, percents, bad = {}, {}, 0
    for name, values in whole.items():
        read = values if name in plain else _read(name, values, signs[name] or ".")
        finite = read.where(np.isfinite(read))
        if finite.isna().all():
            continue
        numbers[name] = finite
        bad += int((finite.isna() & values.notna()).sum())
        if any("%" in token for token in tokens.get(name, ())):
            marked = values.map(lambda v: isinstance(v, str) and v.rstrip().endswith("%"))
            percents[name] = int((finite.notna() & ~marked).sum())
    texts = whole[[name for name in whole if name not in numbers]]
    skipped["values that are not finite numbers"] += bad
    unclear = frozenset(name for name in numbers if not signs.get(name, "."))
    notes = ("numbers: read with decimal commas",) if "," in map(signs.get, numbers) else ()
    counts = Counter({reason: n for reason, n in skipped.items() if n})
    return Table(pd.DataFrame(numbers, index=whole.index), texts, percents, unclear, counts, notes=notes)


def _read(name: str, values: pd.Series, sign: str) -> pd.Series:
    """A column of texts and numbers as floats, NaN where no number is."""
    counts_steps = bool(STEP_WORD.search(name.replace("_", " ")))
    codes, different = pd.factorize(values)
    read = np.full(len(different) + 1, np.nan)  # the last one is for missing values, code -1
    for i, value in enumerate(different):
        if isinstance(value, str):
            value = number(value, sign, counts_steps) if len(value) <= NUMBER_WIDTH else None
        elif isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number | Decimal):
            value = None
        read[i] = np.nan if value is None else value
    return pd.Series(read[codes], index=values.index)
