"""`erltool microscope`."""

from erltool.cli import terminal
from erltool.cli.arguments import at_least, fraction, table
from erltool.cli.flags import add_trust


def run(parser, words) -> int:
    parser.add_argument("run", metavar="RUN", help="folder of a run, which is made again up to the last policy")
    parser.add_argument(
        "--at", type=fraction, nargs="+", default=[0.0, 0.25, 0.5, 0.75], metavar="SHARE",
        help="policies, by the fraction of the run's entropy that they have spent (0 0.25 0.5 0.75)",
    )  # fmt: skip
    parser.add_argument("--batches", type=at_least(5), default=50, help="updates to examine at each policy (50)")
    parser.add_argument("--share", type=fraction, default=0.2, help="share of the dose in the printed tables (0.2)")
    parser.add_argument(
        "--control", action="append", metavar="CONTROL",
        help="examine this control instead of criteria, asked in an iteration's last update; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seed", type=at_least(0), default=0, help="decides prompts and responses (0)")
    parser.add_argument("--out", type=table, metavar="FILE", help="also write all measurements to this Parquet file")
    add_trust(parser)
    args = parser.parsed(words)
    from erltool.controls.catalog import parse_control
    from erltool.runs.folder import read_run
    from erltool.runs.microscope import summary, write_microscope
    from erltool.training.microscope import examine_run

    source, points = read_run(args.run), []
    bars: list = []

    def advance(done: int) -> None:
        if not bars:
            bars.append(terminal.progress(args.batches, source.name, "batch"))
        bars[0].update(done)

    controls = {text: parse_control(text) for text in args.control} if args.control else None
    settings = {"batches": args.batches, "seed": args.seed, "progress": advance}
    for point in examine_run(source, args.at, controls, trust_remote_code=args.trust_remote_code, **settings):
        bars.pop().close()
        points.append(point)
        print(summary(point, args.share), end="\n\n", flush=True)
        if args.out:
            write_microscope(points, args.out)
    return 0
