"""Rows of other tools' logs, a dict a row: console output, JSON and JSONL.

A value is a number, or a text that formats.py may read as one. SOURCE names the section of the log, maybe a run.
"""

import bisect
import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from erltool.errors import ErltoolError
from erltool.logs.text import ESCAPES, Counts, encoding_of, first_lines, lines_of
from erltool.text import shown

STEP = "step"
COUNTED = "step (counted)"
SOURCE = "(source)"
JSON_LIMIT = 256 << 20  # bytes of a JSON document, because it is parsed whole
DEEPEST = 4  # levels of nested metrics
TEXT_WIDTH = 200  # characters; longer text is neither a number nor a run's name
WRAPPERS = ("data", "metrics", "logs", "log", "scalars", "values")  # names that say nothing of the metric

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+|nan|inf(?:inity)?)"
VERL = re.compile(r"(?<![\w/])step:(\d+) - (\S.*)")
VERL_FIELD = re.compile(rf"^(\S.*?):\s*(?:np\.\w+\()?({NUMBER})\)?\s*$", re.I)
OPENRLHF = re.compile(r"[Gg]lobal[ _]step (\d+)(?:: |, eval_metrics: )(\{.*)")
OPENRLHF_ITEM = re.compile(rf"'([^']+)': (?:np\.\w+\()?({NUMBER})", re.I)
PRINTED = re.compile(r"\{('[^{}]*)\}")
PRINTED_ITEM = re.compile(r"'([^'{}]+)': (?:np\.\w+\()?['\"]?([^,'\"()]{1,40})")
SKYRL = re.compile(r"Step (\d+): ?$")
SKYRL_ITEM = re.compile(rf"[{{ ]'([^'{{}}]{{1,400}})': '?({NUMBER})'?[,}}]$", re.I)
DATASET = re.compile(r"(eval[_/])(.+)_runtime")
TRAINER_KEYS = {"loss", "epoch", "reward", "train_loss", "eval_loss", "eval_reward"}

Row = dict[str, float | str]


def kind_of_line(line: str) -> str | None:
    """The kind of console that prints this line, or None."""
    line = ESCAPES.sub("", line)
    if VERL.search(line):
        return "verl console"
    if OPENRLHF.search(line):
        return "OpenRLHF console"
    if SKYRL.search(line.rstrip()) and "|" in line:  # as loguru prints it, since others have steps, too
        return "SkyRL console"
    return "TRL console" if any(True for _ in _printed(line)) else None


def is_printed_dict(line: str) -> bool:
    """Whether a line is a row of metrics printed as a Python dict, which is not JSON."""
    return line.lstrip().startswith("{'") and kind_of_line(line) == "TRL console"


def verl_rows(lines: Iterable[str], skipped: Counts) -> Iterator[Row]:
    for line in lines:
        if match := VERL.search(ESCAPES.sub("", line)):
            fields = [VERL_FIELD.match(field) for field in match[2].split(" - ")]
            skipped["unreadable fields"] += fields.count(None)
            yield {STEP: float(match[1]), **{f[1].strip(): float(f[2]) for f in fields if f}}


def openrlhf_rows(lines: Iterable[str], skipped: Counts) -> Iterator[Row]:
    for line in lines:
        if match := OPENRLHF.search(ESCAPES.sub("", line)):
            yield {STEP: float(match[1]), **{k: float(v) for k, v in OPENRLHF_ITEM.findall(match[2])}}


class SkyRLRows:
    """Rows that SkyRL prints as a step's line and a dict below it, a metric a line. Keeps a row that is not whole."""

    def __init__(self) -> None:
        self._row: Row = {}

    def __call__(self, lines: Iterable[str], skipped: Counts) -> Iterator[Row]:
        for line in lines:
            line = ESCAPES.sub("", line).rstrip()
            if match := SKYRL.search(line):
                self._row = {STEP: float(match[1])}
            elif self._row and (item := SKYRL_ITEM.search(line)):
                self._row[item[1]] = float(item[2])
                if line.endswith("}"):
                    row, self._row = self._row, {}
                    yield row


class PrintedRows:
    """Rows of metrics printed in lines of text, each with a step.

    If rows have no step, training rows are counted from 1 and an evaluation belongs to the row before it. The clock
    (tokens seen, else the epoch) falls back where a run was resumed or another began. The count then goes on from
    there. The count is kept between calls.
    """

    def __init__(self) -> None:
        self._clocks: list[float] = []
        self._counter = ""

    def __call__(self, lines: Iterable[str], skipped: Counts) -> Iterator[Row]:
        for line in lines:
            for row in map(of_dataset, _printed(ESCAPES.sub("", line))):
                if "train_runtime" in row:  # the summary at the end of a run
                    continue
                if not any(re.search(r"(^|/|_)steps?($|/)", name) for name in row):
                    if not any(name.startswith("eval_") for name in row):
                        self._counter = self._counter or ("num_tokens" if "num_tokens" in row else "epoch")
                        _count_on(self._clocks, str(row.get(self._counter, "")))
                    row[COUNTED] = float(len(self._clocks))
                yield row


def _printed(line: str) -> Iterator[Row]:
    """The dicts of a trainer's metrics in a line."""
    for match in PRINTED.finditer(line):
        row = dict(PRINTED_ITEM.findall(match[1]))
        if len(row) > 1 and TRAINER_KEYS & set(row):
            yield row


def _count_on(clocks: list[float], clock: str) -> None:
    """Appends a row's clock. Where it falls back, clocks as far or further are removed first."""
    latest = before = clocks[-1] if clocks else 0.0
    with contextlib.suppress(ValueError):
        latest = float(clock)
    if not math.isfinite(latest):
        latest = before
    if clocks and clocks[-1] > latest:
        del clocks[bisect.bisect_left(clocks, latest) :]
    clocks.append(latest)


def jsonl_rows(lines: Iterable[str], skipped: Counts) -> Iterator[Row]:
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield flat(row)
        else:
            skipped["unreadable lines"] += bool(line.strip())


Parser = Callable[[Iterable[str], Counts], Iterator[Row]]  # of lines; it keeps between calls what it needs
PARSERS: dict[str, Callable[[], Parser]] = {
    "verl console": lambda: verl_rows, "OpenRLHF console": lambda: openrlhf_rows, "TRL console": PrintedRows,
    "SkyRL console": SkyRLRows, "verl JSONL": lambda: jsonl_rows, "JSONL": lambda: jsonl_rows,
    "W&B history": lambda: jsonl_rows,
}  # fmt: skip


def rows_of_text(path: Path, kind: str, skipped: Counts) -> Iterator[Row]:
    """Rows of a text file of one of the kinds of PARSERS, as a stream."""
    with lines_of(path, skipped) as lines:
        yield from PARSERS[kind]()(lines, skipped)


def json_rows(path: Path, kind: str, skipped: Counts) -> Iterator[Row]:
    """Rows of JSONL as a stream, or of a JSON document."""
    if (document := document_of(path)) is not None:
        return map(flat, document_rows(document))
    return rows_of_text(path, "JSONL", skipped)


def document_of(path: Path):
    """The content of a JSON file, or None for JSONL. Raises ErltoolError for a damaged file."""
    head = first_lines(path)
    if first_row(head[:1]):
        return None
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise ValueError(f"over {JSON_LIMIT >> 20} MiB; write it as JSONL, a row a line")
        with open(path, encoding=encoding_of(path, Counter()), errors="replace") as f:
            return json.load(f)
    except (ValueError, RecursionError) as e:
        if has_step(first_row(head)) or _are_rows(head[:2]):  # JSONL with a torn first line or nested rows
            return None
        reason = shown(str(e).splitlines()[0])
        raise ErltoolError(f"{shown(path)}: damaged JSON ({reason}); restore it, or give JSONL or CSV") from e


def document_rows(document) -> list[dict]:
    """Rows of a JSON document: a list, TRL's "log_history", lists by names of runs, or pandas' columns."""
    if isinstance(document, dict) and isinstance(document.get("log_history"), list):
        document = document["log_history"]
    elif isinstance(document, dict) and not has_step(document):
        inner = (document[name] for name in WRAPPERS if isinstance(document.get(name), dict | list))
        document = next(inner, document)
    if not isinstance(document, dict):
        return [row for row in document if isinstance(row, dict)] if isinstance(document, list) else []
    lists = {k: v for k, v in document.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    if lists:
        named = [(name, row) for name, rows in lists.items() for row in rows if isinstance(row, dict)]
        return [row | ({SOURCE: name} if len(lists) > 1 else {}) for name, row in named]
    # Scalars beside the columns belong to no row.
    columns = {k: v if isinstance(v, dict) else dict(enumerate(v)) for k, v in document.items()
               if isinstance(v, dict | list)}  # fmt: skip
    rows: dict = {}
    for name, values in columns.items():
        for at, value in values.items():
            rows.setdefault(at, {})[name] = value
    return list(rows.values())


def first_row(lines: list[str]) -> dict | None:
    """The first line that is a row of JSONL, and neither a document nor columns."""
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and "log_history" not in row:
                if not all(isinstance(v, dict | list) for v in row.values()):
                    return row
    return None


def has_step(row: dict | None) -> bool:
    return row is not None and any(re.search(r"steps?($|/)", name, re.I) for name in row)


def _are_rows(lines: list[str]) -> bool:
    try:
        return len(lines) > 1 and all(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False


def flat(row: dict) -> Row:
    """The numbers and short texts of a row, nested ones under path-like names. The outer one of two names wins."""
    flat_row: Row = {}
    todo = [("", row, 0)]
    while todo:
        prefix, values, depth = todo.pop(0)
        for name, value in values.items():
            if isinstance(value, dict):  # W&B's own media and tables have a _type
                if depth < DEEPEST and "_type" not in value and name != "_wandb":
                    todo.append((prefix if name in WRAPPERS else f"{prefix}{name}/", value, depth + 1))
            elif isinstance(value, str) and len(value) <= TEXT_WIDTH:
                flat_row.setdefault(prefix + name, value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                with contextlib.suppress(OverflowError):
                    flat_row.setdefault(prefix + name, float(value))
    return of_dataset(flat_row)


def of_dataset(row: Row) -> Row:
    """A row of metrics; of an evaluation on one of several datasets with the dataset's name in each.

    TRL writes eval_NAME_runtime there, but eval_reward for every dataset.
    """
    marks = [m for name in row if name.endswith("_runtime") and (m := DATASET.fullmatch(name))]
    if len(marks) != 1:
        return row
    begin, dataset = marks[0].groups()
    alone = {name for name in row if name.startswith(begin) and not name.startswith(f"{begin}{dataset}_")}
    return {f"{begin}{dataset}/{name[5:]}" if name in alone else name: value for name, value in row.items()}


def joined(entries: Iterable[tuple[float, str, float | str]], source: Row | None = None) -> Iterator[Row]:
    """Rows of (step, metric, value) in order: neighbours with one step and different metrics make a row."""
    row: Row = {}
    for step, metric, value in entries:
        if row and (row[STEP] != step or metric in row):
            yield row
            row = {}
        row = row or {STEP: float(step), **(source or {})}
        row[metric] = value
    if row:
        yield row
