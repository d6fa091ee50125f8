"""Text of other tools' logs, decoded and read line by line."""

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LINE_LIMIT = 16 << 20  # characters; longer lines come in pieces
CONTROLS = [bytes([c]) for c in range(32) if c not in b"\b\t\n\v\f\r\x1b"]  # a tenth of binary data, rare in text
MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz"}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

Counts = Counter
"""What was skipped, by reason."""


def compressed(head: bytes) -> str:
    """The compression of a file by its first bytes, or ""."""
    return next((name for mark, name in COMPRESSED.items() if head.startswith(mark)), "")


def is_wide(head: bytes) -> bool:
    """Whether text is UTF-16, by its mark or its many zero bytes."""
    return head[:2] in MARKS or (len(head) > 8 and head[1:2000:2].count(0) > len(head[:2000]) * 0.4)


def encoding_of(path: Path, skipped: Counts) -> str:
    """The encoding of a file by its first MiB. `skipped` notes any but UTF-8."""
    with open(path, "rb") as f:
        head = f.read(1 << 20)
    if is_wide(head):
        encoding = "utf-16" if head[:2] in MARKS else "utf-16-le"
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
def lines_of(path: Path, skipped: Counts) -> Iterator[Iterator[str]]:
    """The lines of a text file, as a stream."""
    with open(path, encoding=encoding_of(path, skipped), errors="replace") as f:
        yield iter(lambda: f.readline(LINE_LIMIT), "")


def first_lines(path: Path, count: int = 5) -> list[str]:
    """The first lines that are not blank."""
    with lines_of(path, Counter()) as lines:
        return list(itertools.islice(filter(str.strip, lines), count))


def pieces(file: Path, at: int, size: int) -> list[bytes]:
    """The whole lines among `size` bytes from offset `at`; a longer line, or one that ends with the file, as it is."""
    with open(file, "rb") as f:
        f.seek(at)
        lines = f.read(size).splitlines(keepends=True)
    if len(lines) > 1 and not lines[-1].endswith(b"\n"):
        lines.pop()
    return lines
