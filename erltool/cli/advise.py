"""`erltool advise`."""

import textwrap

from erltool.cli import terminal
from erltool.text import visible


def run(parser, words) -> int:
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--microscope", metavar="FILE", help="what `erltool microscope` wrote for this run; its last policy counts"
    )
    args = parser.parsed(words)
    from erltool.runs.folder import read_run
    from erltool.runs.microscope import read_microscope

    point = read_microscope(args.microscope)[-1] if args.microscope else None
    print(paragraph(read_run(args.run), point))
    return 0


def paragraph(run, point=None) -> str:
    """The advice in lines that fit a terminal."""
    from erltool.report.advice import advise

    return textwrap.fill(visible(advise(run, point)), terminal.WIDTH - 1)
