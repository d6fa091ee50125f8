"""`erltool experiment`."""

import contextlib

from erltool.cli import terminal
from erltool.cli.arguments import place
from erltool.cli.flags import add_trust
from erltool.cli.progress import interruptible, over_grid
from erltool.text import visible


def run(parser, words) -> int:
    parser.add_argument("grid", metavar="GRID", help="a .toml file, or the name of a shipped grid")
    parser.add_argument("--out", type=place, required=True, help="folder for the runs, which get a folder each")
    parser.add_argument(
        "--record", type=place, metavar="FOLDER", help="also store all finished runs in this folder, compactly"
    )
    parser.add_argument("--metrics", default="", metavar="NAMES", help="only these there, as in reward,eval_accuracy")
    parser.add_argument("--list", action="store_true", help="list the runs and whether they are finished, and stop")
    add_trust(parser)
    args = parser.parsed(words)
    from erltool.runs.folder import METRICS, read_run, record_runs
    from erltool.training.experiments import is_over, line_of, load_grid, recorded_runs, run_grid

    grid, metrics = load_grid(args.grid, args.trust_remote_code), args.metrics.split(",") if args.metrics else ()
    if unknown := set(metrics) - set(METRICS):
        parser.error(f"--metrics: {min(unknown)!r} is not a metric; erltool/README.md has their names")
    recorded = recorded_runs(grid, args.record)
    runs = {name: recorded[name] for name in grid.configs if name in recorded}

    def made_elsewhere() -> dict:  # by an earlier process, or by one that works on the grid at the same time
        return {n: read_run(args.out / n) for n in grid.configs if n not in runs and is_over(args.out / n)}

    runs |= made_elsewhere()
    print(terminal.filled(f"{grid.name}: {len(grid.configs)} runs, {len(runs)} finished. {grid.question}", 0))
    print("\n".join(line_of(name, run) for name, run in runs.items()))
    if args.list:
        print("\n".join(f"{name}: not finished" for name in grid.configs if name not in runs))
        return 0
    with interruptible() as interrupted, contextlib.closing(run_grid(grid, args.out, runs)) as progress:
        for name, bar, m in over_grid(progress):
            if m.over:
                bar.close()
                runs[name] = m.over
                print(line_of(name, m.over), flush=True)
            if interrupted:
                break
    runs |= made_elsewhere()
    if args.record and runs:
        runs = {name: runs[name] for name in grid.configs if name in runs}  # in the grid's order
        record_runs(runs | {n: r for n, r in recorded.items() if n not in runs}, args.record, metrics)
        print(visible(f"written: {args.record}, {len(recorded | runs)} runs"))
    if interrupted:
        return terminal.fail(f"stopped; continue with: erltool experiment {args.grid} --out {args.out}", 130)
    return 0
