"""`erltool demo`: makes the shipped grid `demo`, in one process per core, and draws it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from erltool import threads
from erltool.cli import terminal
from erltool.cli.arguments import place
from erltool.cli.progress import interruptible, over_grid


def run(parser, words) -> int:
    parser.add_argument(
        "--out", type=place, default="erltool-demo", help="folder for the report and the runs (erltool-demo)"
    )
    args = parser.parsed(words)
    import torch

    from erltool.report import demo
    from erltool.runs.folder import read_run
    from erltool.training.experiments import is_over, line_of, load_grid, run_grid

    grid = load_grid(demo.GRID)
    to_make = [name for name in grid.configs if not is_over(args.out / name)]
    processes = min(threads.cores(), len(to_make))
    print(terminal.filled(f"{grid.question} {len(to_make)} short runs, {processes} at a time.", 0), flush=True)
    torch.set_num_threads(1)  # as in the other processes, and in the recorded runs
    with interruptible() as interrupted, _others(demo.GRID, args.out, processes - 1) as others:
        with contextlib.closing(run_grid(grid, args.out)) as progress:
            for name, bar, m in over_grid(progress):
                if m.over:
                    bar.close()
                    to_make.remove(name)
                    print(line_of(name, m.over), flush=True)
                if interrupted:
                    break
        while any(other.poll() is None for other in others) and not interrupted:
            time.sleep(0.05)
    missing = [name for name in grid.configs if not is_over(args.out / name)]
    if missing:
        return terminal.fail(f"{len(missing)} runs are not finished; continue with: erltool demo --out {args.out}", 130)
    runs = {name: read_run(args.out / name) for name in grid.configs}
    print("\n".join(line_of(name, runs[name]) for name in to_make))  # those of the other processes
    table, said = demo.summary_table(runs), demo.verdict(runs)
    print(f"\n{table.to_string()}\n\n{terminal.filled(said, 0)}")
    page = demo.write_report(runs, demo.caption(table, said), args.out)
    print(f"written: {page}, {args.out / 'figure.png'} and the runs' folders beside them")
    return 0


@contextlib.contextmanager
def _others(grid: str, out: Path, number: int) -> Iterator[list[subprocess.Popen]]:
    """Further processes that work on the grid. They end with the block: at the end of an iteration, or after ten
    seconds. A terminal's Ctrl-C does not reach them by itself: as their second one it would stop them at once."""
    command = [sys.executable, "-m", "erltool", "experiment", grid, "--out", str(out)]
    environment, nowhere = os.environ | {"OMP_NUM_THREADS": "1"}, subprocess.DEVNULL
    processes = [
        subprocess.Popen(command, env=environment, stdout=nowhere, stderr=nowhere, process_group=0)
        for _ in range(number)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
