"""`erltool train`."""

import contextlib

from erltool.cli.advise import paragraph
from erltool.cli.arguments import place
from erltool.cli.flags import add_config_flags, config_of_flags
from erltool.cli.progress import follow
from erltool.cli.report import leave_report
from erltool.errors import ErltoolError


def run(parser, words) -> int:
    from erltool.runs.folder import read_run

    parser.add_argument("--out", type=place, required=True, help="folder for the run")
    parser.add_argument("--resume", action="store_true", help="continue the run from its last checkpoint")
    add_config_flags(parser)
    args = vars(parser.parsed(words))
    out, resume = args.pop("out"), args.pop("resume")
    if resume:
        from erltool.training.start import config_of

        before = config_of(read_run(out), args.get("trust_remote_code", False)).to_dict()
        args = before | args
    status = follow(config_of_flags(args), out, resume, "train")
    if status == 0:
        with contextlib.suppress(ErltoolError):  # too short a run to say anything about
            print(paragraph(read_run(out)))
        leave_report(out)
    return status
