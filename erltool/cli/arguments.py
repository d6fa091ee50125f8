"""Parsers of flag values. They refuse a bad value at once, before a policy is loaded or trained."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

PICTURES = "png pdf svg jpg jpeg webp tif tiff eps ps svgz".split()  # formats that matplotlib writes


def _numbers(kind: type, holds: Callable[[float], bool], bounds: str, name: str = "") -> Callable[[str], float]:
    """A parser, for argparse, of numbers within bounds."""

    def parsed(text: str) -> float:
        value = kind(text)
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{name}{value} must be {bounds}")
        return value

    parsed.__name__ = kind.__name__  # argparse prints it for a text that is not a number
    return parsed


def at_least(least: int) -> Callable[[str], float]:
    """A parser of whole numbers of at least `least`."""
    return _numbers(int, lambda value: least <= value < 2**63, f"at least {least}")


above_zero = _numbers(float, lambda value: 0 < value < math.inf, "above 0 and finite")
not_negative = _numbers(float, lambda value: 0 <= value < math.inf, "at least 0 and finite")
fraction = _numbers(float, lambda value: 0 <= value < 1, "in [0, 1)")
cut = _numbers(float, lambda value: 0 < value < 1, "between 0 and 1", "cut ")


def picture(text: str) -> Path:
    """A file for a figure: in a format that matplotlib writes, and in a folder that exists."""
    return _file(text, PICTURES)


def page(text: str) -> Path:
    """A file for a page, in a folder that exists."""
    return _file(text, ["html", "htm"])


def table(text: str) -> Path:
    """A Parquet file, in a folder that exists."""
    return _file(text, ["parquet", "pq"])


def _file(text: str, endings: list[str]) -> Path:
    file = Path(text)
    if file.suffix[1:].lower() not in endings:
        raise argparse.ArgumentTypeError(f"{text!r} must end in .{endings[0]}, or in .{', .'.join(endings[1:])}")
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; give a file in it")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: no such folder; make it first")
    return _writable(file, file.parent)


def place(text: str) -> Path:
    """A folder to write to; it may not exist yet."""
    folder = Path(text)
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: {str(existing)!r} is a file; choose another place")
    return _writable(folder, existing)


def _writable(path: Path, folder: Path) -> Path:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{str(path)!r}: cannot write in {str(folder)!r}; choose another place")
    return path
