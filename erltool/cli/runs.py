"""`erltool runs`."""

import json
import shlex
from pathlib import Path

from erltool.cli import terminal
from erltool.text import shown, visible


def run(parser, words) -> int:
    parser.add_argument("place", type=Path, metavar="PLACE", help="a log, a database, a tracker's cache, or a folder")
    parser.add_argument("--json", action="store_true", help="print the runs as JSON")
    args = parser.parsed(words)
    from erltool.logs.places import runs_in

    shown_any = False
    if args.json:
        print(json.dumps([_document(found) for found in runs_in(args.place)], indent=1))
        return 0
    for found in runs_in(args.place):
        print("\n".join(_lines(found, args.place)), flush=True)
        shown_any = True
    if not shown_any:
        return terminal.fail(f"{args.place}: holds no run that erltool reads; erltool import LOG says why of a log")
    return 0


def _lines(found, place: Path) -> list[str]:
    """A run in two lines of at most 80 columns: its name, size and time; its format and columns, or what is wrong."""
    where = found.path.relative_to(place) if found.path != place and found.path.is_relative_to(place) else found.path
    name = shown(f"{where}" + (f"  --run {shlex.quote(found.run)}" if found.run else ""), 46)
    if found.problem:
        return [name, f"  {found.kind}: {shown(found.problem, 60)}"]
    when = f"{found.written.astimezone():%Y-%m-%d %H:%M}" if found.written else ""
    # The kind can be long; the columns share what is left of the line.
    columns = f"{shown(found.entropy, 22)}, {shown(found.reward, 22) or 'no reward'}"
    return [
        f"{name:46} {found.rows:7} rows to step {found.last_step:g}",
        f"  {when:17}{found.kind}: {columns}".rstrip(),
    ]


def _document(found) -> dict:
    return {
        "path": str(found.path), "run": visible(found.run), "format": found.kind, "rows": found.rows,
        "last_step": found.last_step, "written": found.written.isoformat() if found.written else None,
        "entropy": found.entropy, "reward": found.reward, "problem": found.problem,
    }  # fmt: skip
