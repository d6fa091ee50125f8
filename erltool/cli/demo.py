"""`erltool demo`."""

from erltool.cli.arguments import at_least, place
from erltool.cli.progress import follow

ITERATIONS = 60


def run(parser, words) -> int:
    parser.add_argument("--out", type=place, default="erltool-demo", help="folder to write (erltool-demo)")
    parser.add_argument("--iterations", type=at_least(1), default=ITERATIONS, help=f"of each run ({ITERATIONS})")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of both runs (0)")
    args = parser.parse_args(words)
    from erltool.report import demo
    from erltool.runs.folder import read_run

    configs = demo.demo_configs(args.iterations, args.seed)
    for name, config in configs.items():
        folder = args.out / name
        there = (folder / "config.json").is_file()
        if status := follow(config, folder, there, f"{demo.LABELS[name]:10}"):
            return status
    runs = {name: read_run(args.out / name) for name in configs}
    print("\n" + demo.summary_table(runs).to_string() + "\n")
    for name, run in runs.items():
        law = demo.law_of(run)
        if isinstance(law, str):
            print(f"{demo.LABELS[name]}: {law}")
    print(f"written: {demo.write_report(runs, args.out)}, {args.out / 'figure.png'} and the runs beside them")
    return 0
