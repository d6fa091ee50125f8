"""`erltool report`, and the report that a finished run leaves in its folder."""

from pathlib import Path

from erltool.cli import terminal
from erltool.cli.arguments import page
from erltool.cli.flags import add_log_flags, log_of_flags
from erltool.errors import ErltoolError
from erltool.text import shown, visible

NAME = "report.html"


def run(parser, words) -> int:
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="RUN_OR_LOG", help="a run's folder, one of runs, or another tool's log"
    )
    parser.add_argument("--out", type=page, default=NAME, metavar="FILE", help=f"file to write ({NAME})")
    add_log_flags(parser)
    args = parser.parsed(words)
    from erltool.report.page import write_page

    sources: dict = {}
    for path in args.sources:
        opened = _opened(path, args)
        for name, source in opened.items():
            longer = str(path) if len(opened) == 1 else str(path / name)
            sources[longer if name in sources else name] = source
    title = _name(args.sources[0]) if len(args.sources) == 1 and len(sources) > 1 else ""
    write_page(sources, args.out, title=title, window=args.window)
    print(visible(f"written: {args.out}, {args.out.stat().st_size / 1e6:.2f} MB; open it in a browser"))
    return 0


def _opened(path: Path, args) -> dict:
    """The run, the runs or the log of a path, by name."""
    from erltool.runs.folder import claims_run, holds_record, read_run, read_runs

    if claims_run(path):
        return {_name(path): read_run(path)}
    if path.is_dir() and (holds_record(path) or any(claims_run(p.parent) for p in path.glob("*/config.json"))):
        return read_runs(path)
    log = log_of_flags(path, args, {})
    for reason, count in log.skipped.items():
        terminal.complain(f"{path}: {count} {reason}")
    return {_name(path): log}


def _name(path: Path) -> str:
    return path.resolve().name or str(path)


def write(source: Path, file: Path, **choices) -> None:
    """Writes the report of a run's folder or of a log, as it is now. `choices` are `read_log`'s, for a log."""
    from erltool.logs.read import read_log
    from erltool.report.page import write_page
    from erltool.runs.folder import claims_run, read_run

    opened = read_run(source) if claims_run(source) else read_log(source, **choices)
    write_page({_name(source): opened}, file)


def leave_report(folder: Path) -> None:
    """Writes a finished run's report to its folder and says so, or says why not: the run itself is not at stake."""
    try:
        write(folder, folder / NAME)
        print(f"written: {NAME} in the run's folder; open it in a browser")
    except Exception as e:
        why = shown(e if isinstance(e, ErltoolError) else f"{type(e).__name__}: {e}", 300)
        terminal.complain(f"no report was written: {why}; try erltool report {folder}")
