"""`erltool watch`."""

import contextlib
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path

from erltool.cli import report, terminal
from erltool.cli.arguments import above_zero, at_least, page
from erltool.errors import ErltoolError
from erltool.text import shown, visible

LOOK_EVERY = 0.5  # seconds
DRAW_EVERY = 1.0  # seconds, at least
PAGE_EVERY = 60.0  # seconds between two reports, at least
NOTICES = 8  # commands that may run at a time


def run(parser, words) -> int:
    parser.add_argument("source", type=Path, metavar="RUN_OR_LOG", help="a run's folder, or another tool's log")
    for role in ("entropy", "performance", "step"):
        parser.add_argument(f"--{role}", metavar="COL", help=f"column of the {role}, if the guess is wrong")
    parser.add_argument("--unit", help="unit of performance: fraction, percentage-points or as-given")
    parser.add_argument("--run", metavar="NAME", help="name of the run, if the log holds several")
    parser.add_argument("--steps", type=at_least(1), help="steps that the run will have, if it does not say so")
    parser.add_argument(
        "--notify", metavar="CMD", help="run this command on a new alarm, with the alarm as last argument"
    )
    parser.add_argument(
        "--html", type=page, metavar="FILE", help="also write the report to this file, once a minute at most"
    )
    parser.add_argument("--once", action="store_true", help="look once; the exit status is 1 if there is an alarm")
    parser.add_argument("--every", type=above_zero, default=DRAW_EVERY, help="seconds between two views, at least (1)")
    args = parser.parsed(words)
    if args.once and args.notify:
        raise ErltoolError("watch: --once sees no alarm come, so give --notify without it, or use the exit status")
    from erltool.logs.follow import Follower
    from erltool.logs.live import Live

    columns = {role: value for role in ("entropy", "performance", "step") if (value := getattr(args, role))}
    unit = args.unit and args.unit.replace("-", " ")
    choices = {"columns": columns, "unit": unit, "run": args.run}
    live = Live(Follower(args.source, **choices), args.steps)
    return _once(live) if args.once else _follow(live, args, Page(args.source, args.html, choices))


def _once(live) -> int:
    from erltool.cli.watch_view import lines_of, takes_bars

    news = True
    while news:  # in the last look the last step counts for alarms, too
        news, snapshot = live.look()
        if snapshot.waits or not snapshot.columns:
            why = snapshot.waits or f"{shown(snapshot.name)}: no row yet"
            raise ErltoolError(f"{why}; without --once, watch waits for it")
    print("\n".join(lines_of(snapshot, terminal.WIDTH - 1, not takes_bars(sys.stdout))))
    return 1 if snapshot.alarms else 0


def _follow(live, args, page: "Page") -> int:
    """Looks again and again, until the run has all its steps or Ctrl-C."""
    from erltool.cli.watch_view import view_of

    notices = Notices(args.notify)
    with contextlib.suppress(KeyboardInterrupt), view_of() as show:
        drawn, pending = -math.inf, False
        while True:
            news, snapshot = live.look()
            for alarm in snapshot.new:
                notices.send(snapshot.name, alarm)
            pending |= news or drawn == -math.inf
            over = snapshot.done and not news
            if pending and (over or time.monotonic() - drawn >= args.every or snapshot.new):
                show(snapshot)
                page.refresh(over)
                drawn, pending = time.monotonic(), False
            if over:
                break
            time.sleep(LOOK_EVERY)
    return 0


class Page:
    """The report of the run in a file, of the columns that are watched, made anew once a minute at most, since it takes
    seconds."""

    def __init__(self, source: Path, file: Path | None, choices: dict):
        self._source, self._file, self._choices, self._written = source, file, choices, -math.inf

    def refresh(self, at_once: bool) -> None:
        if self._file is None or not (at_once or time.monotonic() - self._written >= PAGE_EVERY):
            return
        try:
            report.write(self._source, self._file, **self._choices)
        except ErltoolError as e:  # a log may be too short for it yet
            terminal.complain(f"--html: {e}")
        self._written = time.monotonic()


class Notices:
    """Runs the user's command for each alarm. The words of the command are split as a shell would, but no shell sees
    them or the alarm."""

    def __init__(self, command: str | None):
        try:
            self._words = shlex.split(command) if command else []
        except ValueError as e:
            raise ErltoolError(f"watch: --notify {visible(command)!r}: {e}; mend its quotes") from e
        if command is not None and not self._words:
            raise ErltoolError("watch: --notify is empty; give a command")
        self._running: list[subprocess.Popen] = []

    def send(self, name: str, alarm) -> None:
        if not self._words:
            return
        self._running = [p for p in self._running if p.poll() is None]
        if len(self._running) >= NOTICES:
            terminal.complain(f"--notify: {NOTICES} commands still run, so it was not run for {alarm}")
            return
        text = visible(f"{name}: {alarm}")
        try:
            # Its output would tear the view.
            self._running.append(
                subprocess.Popen(
                    [*self._words, text], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL if sys.stdout.isatty() else None, start_new_session=True,
                )
            )  # fmt: skip
        except OSError as e:
            terminal.complain(f"--notify {self._words[0]}: {e.strerror or e}")
