"""Tables in other tools' logs, in chunks: CSV and TSV, Parquet, Markdown, HTML, Jupyter notebooks.

Cells are numbers, or texts that formats.py may read as numbers.
"""

import csv
import html
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import pandas as pd

from erltool.errors import ErltoolError
from erltool.logs.rows import SOURCE, PrintedRows, document_of
from erltool.logs.text import Counts, encoding_of, first_lines, lines_of
from erltool.text import shown

CHUNK_ROWS = 5_000
MAX_COLUMNS = 10_000
HTML_LIMIT = 64 << 20  # characters, because a page is read whole
STEP_WORD = re.compile(r"(?<![a-z])(steps?|iter(ation)?s?|updates?)(?![a-z])", re.I)

Chunks = Generator[pd.DataFrame, None, None]
Cells = list[list[str]]  # by rows
Keep = Callable[[str], bool] | None  # whether to keep a column, by its name; None for all


def csv_chunks(path: Path, skipped: Counts, keep: Keep) -> Chunks:
    encoding = encoding_of(path, skipped)
    separator, above = separator_of(first_lines(path, 2))
    # Beside decimal commas pandas would misread 1.234, so there all cells come as texts.
    kind = str if _has_commas(path, separator) else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", pd.errors.ParserWarning)
        try:
            with pd.read_csv(
                path, sep=separator, encoding=encoding, encoding_errors="replace", chunksize=CHUNK_ROWS, dtype=kind,
                keep_default_na=False, na_values=[""], on_bad_lines="warn", skiprows=above, skipinitialspace=True,
            ) as chunks:  # fmt: skip
                for chunk in chunks:
                    if not isinstance(chunk.index, pd.RangeIndex):  # pandas took the first column for an index
                        raise ErltoolError(f"{shown(path)}: its rows have more fields than its header; mend the header")
                    # usecols would make pandas cut a row with too many fields instead of skipping it.
                    yield chunk[[c for c in chunk if not c.endswith(NO_METRIC) and (keep is None or keep(c))]]
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as e:
            skipped[f"the rest of the file ({shown(str(e).rpartition('C error: ')[2])})"] += 1
        skipped["unreadable lines"] += sum(str(w.message).count("Skipping line") for w in caught)


NO_METRIC = ("__MIN", "__MAX", "_timestamp")  # W&B's bounds; times in SwanLab's and other exports


def separator_of(head: list[str]) -> tuple[str, int]:
    """A CSV's separator by its first lines, and the number of lines above its header, such as Excel's sep=;"""
    if head and (match := re.fullmatch(r'"?sep=(.)"?\s*', head[0])):
        return match[1], 1
    return max("\t;,", key=head[0].count) if head else ",", 0


def is_csv(first: str, second: str) -> bool:
    """Whether a header with steps or entropy and a row have equally many fields, more than one."""
    header, row = csv.reader([first, second], delimiter=separator_of([first])[0])
    return len(header) == len(row) > 1 and bool(re.search(r"step|entropy", first, re.I))


def csv_kind(header: str) -> str:
    """The kind of a CSV by its header: CSV, or a tool's export."""
    if " - " in header:
        return "W&B CSV"
    names = {name.strip('" \n') for name in header.split(separator_of([header])[0])}
    values = {n.removesuffix("_step") for n in names if n.endswith("_step")} - {""}  # W&B has _step and _timestamp
    timed = any(f"{value}_timestamp" in names for value in values)
    return "SwanLab CSV" if timed else "CSV"


def _has_commas(path: Path, separator: str) -> bool:
    """Whether numbers in the first lines of a CSV have commas, as 0,8484 or "1,234"."""
    pattern = r'"[^",\n]*[0-9],[0-9][^"\n]*"' if separator == "," else r"[0-9],[0-9]"
    return bool(re.search(pattern, "".join(first_lines(path, 200))))


def parquet_chunks(path: Path, skipped: Counts, keep: Keep) -> Chunks:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            flat = [field.name for field in file.schema_arrow if not pyarrow.types.is_nested(field.type)]
            names = [n for n in flat if keep is None or keep(n)]
            for batch in file.iter_batches(CHUNK_ROWS, columns=names):
                yield batch.to_pandas(ignore_metadata=True)
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as e:
        reason = shown(str(e).splitlines()[0])
        raise ErltoolError(f"{shown(path)}: not readable as Parquet ({reason}); restore it") from e


RULE = re.compile(r"\s*[|+]?(\s*:?-+:?\s*[|+])+(\s*:?-+:?\s*)?")
CELL_END = re.compile(r"(?<!\\)\|")


def markdown_chunks(path: Path, skipped: Counts, keep: Keep) -> Chunks:
    """The tables of a Markdown file that have a column of steps."""
    with lines_of(path, skipped) as lines:
        yield from _frames(_numbered(_markdown_tables(lines)), path, keep)


def has_markdown_table(header: str, rule: str) -> bool:
    """Whether two lines begin a table that has a column of steps."""
    return "|" in header and bool(STEP_WORD.search(header)) and bool(RULE.fullmatch(rule.rstrip()[:4000]))


def _markdown_tables(lines: Iterator[str]) -> Iterator[Cells]:
    table: Cells = []
    before = ""
    for line in lines:
        if table and "|" in line:
            table.append(_cells(line))
        elif table:
            yield table
            table = []
        elif has_markdown_table(before, line):
            table = [_cells(before)]
        before = line
    if table:
        yield table


def _cells(line: str) -> list[str]:
    inside = line.strip().removeprefix("|")
    cells = CELL_END.split(inside)
    return [cell.replace("\\|", "|").strip(" *`\t") for cell in (cells if cells[-1].strip() else cells[:-1])]


# Not html.parser, whose time is quadratic in the length of a hostile file ("<a " for 300 KB: over ten minutes).
TAG = re.compile(r"<(/?)(table|tr|th|td)(?:\s[^<>]*)?>", re.I)
ANY_TAG = re.compile(r"<[^<>]*>")


def html_chunks(path: Path, skipped: Counts, keep: Keep) -> Chunks:
    """The tables of a page that have a column of steps."""
    with lines_of(path, skipped) as lines:
        text = ""
        for line in lines:
            text += line
            if len(text) > HTML_LIMIT:
                raise ErltoolError(f"{shown(path)}: over {HTML_LIMIT >> 20} MiB of HTML; save its table alone, or CSV")
    yield from _frames(_numbered(html_tables(text)), path, keep)


def html_tables(text: str) -> Iterator[Cells]:
    rows: Cells = []
    at = None  # where the open cell's text begins
    for tag in TAG.finditer(text):
        name, closing = tag[2].lower(), bool(tag[1])
        if at is not None and rows:
            rows[-1].append(html.unescape(ANY_TAG.sub(" ", text[at : tag.start()])).strip())
        at = tag.end() if name in ("td", "th") and not closing else None
        if name == "table":
            if any(rows):
                yield [row for row in rows if row]
            rows = []
        elif name == "tr" and not closing:
            rows.append([])
    if any(rows):
        yield [row for row in rows if row]


def notebook_chunks(path: Path, skipped: Counts, keep: Keep) -> Chunks:
    """A trainer's tables in the outputs of a Jupyter notebook, or else the rows that it printed."""
    cells = document_of(path).get("cells", [])
    outputs = [(f"cell {i}", output) for i, cell in enumerate(cells, 1) if isinstance(cell, dict)
               for output in cell.get("outputs", ()) if isinstance(output, dict)]  # fmt: skip
    tables = [(name, table) for name, output in outputs
              for table in html_tables(_text(output.get("data"), "text/html"))]  # fmt: skip
    yield from _frames(tables, path, keep)
    for name, output in outputs:
        rows = list(PrintedRows()(_text(output, "text").splitlines(), skipped))
        if rows and not any(_has_steps(table) for _, table in tables):
            yield pd.DataFrame(rows).assign(**{SOURCE: name})


def _text(output, name: str) -> str:
    """A text of a notebook's output, which is a string or a list of lines."""
    text = output.get(name, "") if isinstance(output, dict) else ""
    return "".join(map(str, text)) if isinstance(text, list) else str(text)


def _numbered(tables: Iterable[Cells]) -> Iterator[tuple[str, Cells]]:
    return ((f"table {i}", table) for i, table in enumerate(tables, 1))


def _has_steps(table: Cells) -> bool:
    return len(table) > 1 and any(map(STEP_WORD.search, table[0]))


def _frames(tables: Iterable[tuple[str, Cells]], path: Path, keep: Keep) -> Chunks:
    """The tables that have a column of steps, without cells beyond the header."""
    for name, table in tables:
        if not _has_steps(table):
            continue
        header = table[0]
        if len(header) > MAX_COLUMNS:
            raise ErltoolError(f"{shown(path)}: over {MAX_COLUMNS:,} columns in {name}; no log has")
        again = [header[:i].count(c) for i, c in enumerate(header)]
        names = [f"{c} {n + 1}" if n else c for c, n in zip(header, again, strict=True)]
        rows = [dict(zip(names, row, strict=False)) for row in table[1:]]
        frame = pd.DataFrame(rows, columns=names)
        yield frame[[c for c in names if keep is None or keep(c)]].assign(**{SOURCE: name})
