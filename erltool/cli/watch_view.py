"""What `erltool watch` shows: a view that is drawn again on a terminal, and a line a step elsewhere."""

import contextlib
import math
import sys
import textwrap
from collections.abc import Callable, Iterator

import numpy as np

from erltool.cli import terminal
from erltool.text import shown, visible

BARS = " ▁▂▃▄▅▆▇█"
ASCII_BARS = " .:-=+*#@"
NUMBERS = 27  # columns before a curve
NAMES = {"entropy": "entropy", "reward": "reward", "performance": "performance", "response_length": "length",
         "grad_norm": "grad norm"}  # fmt: skip


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
            print(_one_line(snapshot), flush=True)


def _one_line(snapshot) -> str:
    of = f" of {snapshot.total}" if snapshot.total else ""
    parts = [f"{NAMES[role]} {snapshot.last(role):.4g}" for role in ("entropy", "reward", "performance")
             if role in snapshot.series and (role != "performance" or _is_apart(snapshot))]  # fmt: skip
    if snapshot.forecast is not None:
        low, high = snapshot.forecast.at(0.0)
        parts.append(f"ceiling {snapshot.forecast.law.ceiling:.3g} ({low:.3g} to {high:.3g})")
    if math.isfinite(snapshot.seconds_left):
        parts.append(f"{terminal.clock(snapshot.seconds_left)} left")
    return f"step {snapshot.step}{of}: {', '.join(parts)}"


def lines_of(snapshot, width: int, plain: bool) -> list[str]:
    """The view of a snapshot as lines of at most `width` columns; in ASCII if `plain`."""
    if not snapshot.columns:
        return [_cut(f"watch {snapshot.name}", width), *_wrapped("waits", snapshot.waits or "for the first row", width)]
    of = f" of {snapshot.total}" if snapshot.total else ""
    head = f"step {snapshot.step}{of}"
    if math.isfinite(snapshot.rate):
        head += f", {60 * snapshot.rate:.3g} a minute"
    if math.isfinite(snapshot.seconds_left) and not snapshot.done:
        head += f", {terminal.clock(snapshot.seconds_left)} left"
    if snapshot.done:
        head += ", done"
    lines = [_cut(f"{shown(snapshot.name, 30)} ({snapshot.kind}): {head}", width)]
    for role in NAMES:
        if role in snapshot.series and (role != "performance" or _is_apart(snapshot)):
            lines.append(_curve_line(snapshot, role, width, plain))
    lines += _law_lines(snapshot, width)
    for alarm in snapshot.alarms[-4:]:
        lines += _wrapped("alarm", str(alarm), width)
    if not snapshot.alarms:
        lines.append("alarms      none")
    if snapshot.waits:
        lines += _wrapped("waits", snapshot.waits, width)
    return [*lines, _cut(_columns(snapshot), width)]


def _is_apart(snapshot) -> bool:
    """Whether the performance is not the reward itself."""
    return snapshot.columns.get("performance") != snapshot.columns.get("reward")


def _columns(snapshot) -> str:
    taken = [f"{role} {shown(name, 30)}" for role, name in snapshot.columns.items() if role in (*NAMES, "step")][:4]
    return f"columns     {', '.join(taken)}"


def _curve_line(snapshot, role: str, width: int, plain: bool) -> str:
    """Name, last value, and a curve of the role's values over the run so far."""
    values = snapshot.series[role]
    unit = " nats" if role == "entropy" else " %" if role == "performance" and "points" in snapshot.unit else ""
    text = f"{NAMES[role]:11} {snapshot.last(role):.4g}{unit}"
    return f"{text:{NUMBERS}} {curve(snapshot.series['step'], values, width - NUMBERS - 1, plain)}"


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


def _law_lines(snapshot, width: int) -> list[str]:
    f = snapshot.forecast
    if f is None:
        return _wrapped("law", f"none yet: {snapshot.no_law}" if snapshot.no_law else "none yet", width)
    law = f.law
    (low,), (high,) = f.interval
    sign = "+" if law.b >= 0 else "-"
    fit = f"R = {-law.a:.3g} exp(H) {sign} {abs(law.b):.3g}, R2 {law.r_squared:.2f}, {len(law.entropy)} points"
    ceiling_low, ceiling_high = f.at(0.0)
    ahead = (
        f"ceiling {law.ceiling:.3g} ({ceiling_low:.3g} to {ceiling_high:.3g} at {f.level:.0%}); last "
        f"{f.performance[-1]:.3g}, by the law {f.predicted[-1]:.3g} ({low:.3g} to {high:.3g})"
    )
    return _wrapped("law", fit, width) + _wrapped("forecast", ahead, width)


def _wrapped(name: str, text: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(visible(text), max(20, width - 12), break_on_hyphens=False) or [""]
    return [f"{name if i == 0 else '':11} {line}" for i, line in enumerate(wrapped)]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "~"
