"""`erltool demo`."""

from erltool.cli.arguments import at_least, place
from erltool.cli.progress import follow


def run(parser, words) -> int:
    parser.add_argument(
        "--out", type=place, default="erltool-demo", help="folder for the report and the runs (erltool-demo)"
    )
    parser.add_argument("--iterations", type=at_least(1), default=60, help="iterations of each run (60)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of both runs (0)")
    args = parser.parsed(words)
    from erltool.report import demo
    from erltool.runs.folder import read_run

    configs = demo.demo_configs(args.iterations, args.seed)
    for name, config in configs.items():
        folder = args.out / name
        resume = (folder / "config.json").is_file()
        if status := follow(config, folder, resume, f"{demo.LABELS[name]:10}"):
            return status
    runs = {name: read_run(args.out / name) for name in configs}
    print("\n" + demo.summary_table(runs).to_string() + "\n")
    for name, run in runs.items():
        law = demo.law_of(run)
        if isinstance(law, str):
            print(f"{demo.LABELS[name]}: {law}")
    print(f"written: {demo.write_report(runs, args.out)}, {args.out / 'figure.png'} and the runs' folders beside them")
    return 0
