"""The command line's parser of flags, its two streams, and its display of progress.

Progress is a bar on a terminal and in a notebook, and a few plain lines in a file, a pipe or a log.
"""

import argparse
import contextlib
import difflib
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import NoReturn

from erltool.errors import ErltoolError
from erltool.text import PLAIN_ERRORS, clock, shown, visible

WIDTH = 80  # columns
LINE_EVERY = 30  # seconds between two lines of progress, at most
LINES = 10  # at least, evenly over the work
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # without a rate, the postfix fits
PIPE_CLOSED = 141  # the status of a program that SIGPIPE ended


class Parser(argparse.ArgumentParser):
    """An argparse parser with help of at most WIDTH columns, whose errors are an ErltoolError of one line."""

    def __init__(self, command: str, description: str):
        super().__init__(
            prog=f"erltool {command}", description=description, allow_abbrev=False, formatter_class=_HelpFormatter
        )

    def parsed(self, words: list[str]) -> argparse.Namespace:
        """The flags' values. Raises ErltoolError: for an unknown flag first, then for a missing one."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        for word in words[: words.index("--")] if "--" in words else words:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in flags:
                near = difflib.get_close_matches(flag, flags, 1)
                self.error(f"unrecognized arguments: {word}" + (f" (did you mean {near[0]}?)" if near else ""))
        return self.parse_args(words)

    def error(self, message: str) -> NoReturn:
        command = self.prog.split()[-1]
        raise ErltoolError(f"{command}: {message}; {self.prog} --help lists the flags")

    def format_help(self) -> str:
        needed = [a for a in self._actions if a.required]
        flags = [f"{a.option_strings[-1]} {_metavar(a)}" for a in needed if a.option_strings]
        self.usage = " ".join([self.prog, *(_metavar(a) for a in needed if not a.option_strings), *flags, "[flags]"])
        return super().format_help()


class _HelpFormatter(argparse.HelpFormatter):
    """At most WIDTH columns; a line is never broken inside `kl-cov` or `--learning-rate`."""

    def __init__(self, prog: str, **settings):
        super().__init__(prog, width=min(WIDTH, shutil.get_terminal_size().columns) - 2, **settings)

    def _split_lines(self, text, width):
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _metavar(action: argparse.Action) -> str:
    name = str(action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper()))
    return f"{name}..." if action.nargs == "+" else name


# --- the streams -----------------------------------------------------------------------------------


class Closed(Exception):
    """Raised where nobody reads what is printed any more, as after `| head -1`."""


class _Visible:
    """A text stream that makes control characters visible, except newlines and tabs."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(visible(text, keep="\n\t"))
        except BrokenPipeError as e:
            raise Closed from e
        return len(text)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextlib.contextmanager
def readable_output() -> Iterator[None]:
    """Makes everything that is printed within it readable: in ASCII where the stream takes nothing else, and without
    control characters. Progress bars draw on stderr as it is, so print words there with `complain`. Raises Closed where
    nobody reads, and OSError where the stream cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN_ERRORS)
    with contextlib.redirect_stdout(sys.stdout and _Visible(sys.stdout)):
        try:
            yield
        finally:
            _flush(sys.stdout)
            _flush(sys.stderr)


def _flush(stream) -> None:
    try:
        if stream:
            stream.flush()
    except OSError as e:
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())  # else Python would print an error when it flushes at exit
        if isinstance(e, BrokenPipeError):
            raise Closed from e
        raise


def filled(line: str, indent: int) -> str:
    """The line broken at the width of a terminal, with further lines indented; unbroken for a file or a pipe."""
    if not (sys.stdout and sys.stdout.isatty()):
        return line
    width = shutil.get_terminal_size().columns - 1
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)


def fail(message, status: int = 2) -> int:
    """Prints what went wrong; returns the exit status."""
    complain(message)
    return status


def complain(text) -> None:
    """Prints one line on standard error."""
    with contextlib.suppress(OSError):
        if sys.stderr:
            print("erltool: " + visible(" ".join(str(text).split("\n"))), file=sys.stderr)


# --- progress --------------------------------------------------------------------------------------


def progress(total: int, name: str, unit: str = "step"):
    """A tqdm bar on a terminal or in a notebook, `Lines` elsewhere. Close it at the end."""
    kernel = type(sys.stderr).__module__.startswith("ipykernel")
    tty = sys.stderr and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if kernel or tty:
        from tqdm import tqdm

        # With `nrows`, tqdm shows the bar on a terminal of unknown size, too, as in a container.
        width = min(WIDTH, shutil.get_terminal_size().columns) - 1
        return tqdm(total=total, desc=shown(name, 30), ncols=width, nrows=24, smoothing=0.1, bar_format=BAR)
    return Lines(total, shown(name, 30), unit)


class Lines:
    """Progress in lines of plain text: one for each tenth of the work, and one after LINE_EVERY seconds."""

    def __init__(self, total: int, name: str, unit: str = "step"):
        self.total, self.n, self._name, self._unit, self._postfix = total, 0, name, unit, ""
        self._first: tuple[int, float] | None = None  # where counting began, and when: a resumed run is not at 0
        self._said, self._said_at = 0, time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        self.n += count
        self._first = self._first or (self.n, time.monotonic())
        tenth = self.n * LINES // max(1, self.total) > self._said * LINES // max(1, self.total)
        if self.n > self._said and (tenth or time.monotonic() - self._said_at >= LINE_EVERY):
            self._say()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self._postfix = text

    def write(self, text: str, file=None) -> None:
        """Prints a line of text."""
        if out := file or sys.stderr:
            print(visible(text), file=out, flush=True)

    def close(self) -> None:
        if self.n > self._said:
            self._say()

    def _say(self) -> None:
        self._said, self._said_at = self.n, time.monotonic()
        first, began = self._first or (self.n, self._said_at)
        done, seconds = self.n - first, self._said_at - began
        left = f"; {clock(seconds / done * (self.total - self.n))} left" if done and self.n < self.total else ""
        self.write(f"{self._name}: {self._unit} {self.n} of {self.total}{self._postfix and ': '}{self._postfix}{left}")
