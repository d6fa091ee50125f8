"""`erltool import`."""

from pathlib import Path

from erltool.cli.arguments import place
from erltool.cli.flags import add_log_flags, log_of_flags
from erltool.text import visible


def run(parser, words) -> int:
    parser.add_argument("log", type=Path, metavar="LOG", help="file or folder: verl, TRL, OpenRLHF, W&B, CSV, ...")
    add_log_flags(parser)
    parser.add_argument("--out", type=place, metavar="FOLDER", help="write the log to it as a run")
    args = parser.parsed(words)
    from erltool.logs.read import log_report, write_run

    log = log_of_flags(args.log, args, {})
    print(log_report(log, args.window))
    if args.out:
        for role in write_run(log, args.out, args.window)["left_out"]:
            print(visible(f"not written: {role}, since values of {log.columns[role]} lie outside [0, 1]"))
        print(visible(f"written: {args.out}; fit the law to it with: erltool fit {args.out}"))
    return 0
