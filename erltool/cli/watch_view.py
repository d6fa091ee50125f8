"""What `erltool watch` shows: a view that is drawn again on a terminal, and a line a step elsewhere."""

import contextlib
import math
import sys
import textwrap
from collections.abc import Callable, Iterator

import numpy as np

from erltool.logs.said import NAMES, columns_text, last_text, law_texts, one_line, roles_of, steps_text
from erltool.text import shown, visible

BARS = " ▁▂▃▄▅▆▇█"
ASCII_BARS = " .:-=+*#@"
NUMBERS = 27  # columns before a curve


@contextlib.contextmanager
def view_of() -> Iterator[Callable]:
    """A function that shows a snapshot: drawn over the one before on a terminal, printed as a line elsewhere."""
    if not (sys.stdout and sys.stdout.isatty()):
        yield Printed()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=sys.__stdout__, highlight=False)
    plain = not takes_bars(sys.__stdout__)
    with Live(console=console, auto_refresh=False, transient=False, vertical_overflow="crop") as live:

        def show(snapshot) -> None:
            text = Text(no_wrap=True, overflow="crop")
            for line in lines_of(snapshot, min(console.width - 1, 120), plain):
                text.append(line + "\n", style=_style(line))  # a Text takes no markup
            live.update(text, refresh=True)

        yield show


def takes_bars(stream) -> bool:
    """Whether a stream's encoding has the characters of curves."""
    try:
        BARS.encode(getattr(stream, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _style(line: str) -> str:
    if line.startswith("alarm"):
        return "bold red"
    return "dim" if line.startswith(("columns", "waits")) else ""


class Printed:
    """A line for each look with a new step, and one for each alarm."""

    def __init__(self) -> None:
        self._step, self._told = -1, ""
        self._alarms = 0

    def __call__(self, snapshot) -> None:
        if snapshot.waits and snapshot.waits != self._told:
            print(f"waits: {snapshot.waits}", flush=True)
        self._told = snapshot.waits
        if snapshot.columns and self._step == -1:
            print(_columns(snapshot), flush=True)
        for alarm in snapshot.alarms[self._alarms :]:
            print(f"alarm: {alarm}", flush=True)
        self._alarms = len(snapshot.alarms)
        if snapshot.columns and snapshot.step != self._step:
            self._step = snapshot.step
            print(one_line(snapshot), flush=True)


def lines_of(snapshot, width: int, plain: bool) -> list[str]:
    """The view of a snapshot as lines of at most `width` columns; in ASCII if `plain`."""
    if not snapshot.columns:
        return [_cut(f"watch {snapshot.name}", width), *_wrapped("waits", snapshot.waits or "for the first row", width)]
    lines = [_cut(f"{shown(snapshot.name, 30)} ({snapshot.kind}): {steps_text(snapshot)}", width)]
    lines += [_curve_line(snapshot, role, width, plain) for role in roles_of(snapshot)]
    for name, text in law_texts(snapshot).items():
        lines += _wrapped(name, text, width)
    for alarm in snapshot.alarms[-4:]:
        lines += _wrapped("alarm", str(alarm), width)
    if not snapshot.alarms:
        lines.append("alarms      none")
    if snapshot.waits:
        lines += _wrapped("waits", snapshot.waits, width)
    return [*lines, _cut(_columns(snapshot), width)]


def _columns(snapshot) -> str:
    return f"columns     {columns_text(snapshot)}"


def _curve_line(snapshot, role: str, width: int, plain: bool) -> str:
    """Name, last value, and a curve of the role's values over the run so far."""
    text = f"{NAMES[role]:11} {last_text(snapshot, role)}"
    return f"{text:{NUMBERS}} {curve(snapshot.series['step'], snapshot.series[role], width - NUMBERS - 1, plain)}"


def curve(step: np.ndarray, values: np.ndarray, width: int, plain: bool = False) -> str:
    """Values over steps in one line of `width` characters: the mean of each stretch, from the least to the greatest."""
    seen = np.isfinite(values)
    step, values = step[seen], values[seen]
    if not len(values) or width < 1:
        return ""
    width = min(width, len(values))
    span = max(step[-1] - step[0], 1e-12)
    at = np.minimum(((step - step[0]) / span * width).astype(int), width - 1)
    counts = np.bincount(at, minlength=width)
    means = np.divide(np.bincount(at, values, width), counts, where=counts > 0, out=np.full(width, np.nan))
    low, high = np.nanmin(means), np.nanmax(means)
    bars = ASCII_BARS if plain else BARS
    levels = np.where(high > low, (means - low) / max(high - low, 1e-300), 0.5)
    return "".join(" " if math.isnan(v) else bars[1 + round(v * (len(bars) - 2))] for v in levels)


def _wrapped(name: str, text: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(visible(text), max(20, width - 12), break_on_hyphens=False) or [""]
    return [f"{name if i == 0 else '':11} {line}" for i, line in enumerate(wrapped)]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "~"
