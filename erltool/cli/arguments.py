"""Values of the command line's flags, checked as they are read: before a policy is loaded or an hour has gone by."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

PICTURES = ("png", "pdf", "svg", "jpg", "jpeg", "webp", "tif", "tiff", "eps", "ps", "svgz")  # that matplotlib writes


def at_least(least: int) -> Callable[[str], int]:
    """A whole number from `least` on."""

    def parsed(text: str) -> int:
        return int(_within(text, int, lambda value: least <= value < 2**63, f"at least {least}"))

    parsed.__name__ = "int"  # argparse says it of what is no number at all
    return parsed


def above_zero(text: str) -> float:
    """A finite number above 0."""
    return _within(text, float, lambda value: 0 < value < math.inf, "above 0 and finite")


def not_negative(text: str) -> float:
    """A finite number from 0 on."""
    return _within(text, float, lambda value: 0 <= value < math.inf, "at least 0 and finite")


def cut(text: str) -> float:
    """A share of a run's points that is neither none nor all."""
    return _within(text, float, lambda value: 0 < value < 1, "between 0 and 1", "cut ")


above_zero.__name__ = not_negative.__name__ = cut.__name__ = "float"


def _within(text: str, kind: type, holds: Callable[[float], bool], what: str, name: str = ""):
    value = kind(text)
    if not holds(value):
        raise argparse.ArgumentTypeError(f"{name}{value} must be {what}")
    return value


def picture(text: str) -> Path:
    """A file for a figure: of a format that can be written, in a folder that is there."""
    file = Path(text)
    if file.suffix[1:].lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} must end in .{PICTURES[0]}, or in .{', .'.join(PICTURES[1:])}")
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; give a file in it")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: no such folder; make it first")
    return _writable(file, file.parent)


def place(text: str) -> Path:
    """A folder that is there and can be written to, or can be made."""
    folder = Path(text)
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: {str(there)!r} is a file; choose another place")
    return _writable(folder, there)


def _writable(path: Path, folder: Path) -> Path:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{str(path)!r}: cannot write in {str(folder)!r}; choose another place")
    return path
