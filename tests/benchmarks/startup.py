"""Seconds that importing erltool, asking for its help, and opening the map of all recorded runs take.

Each figure is the median wall-clock time of 10 runs of a fresh process, the commands taking turns. The import is
`python -c "import erltool"` less `python -c pass`; the help is `erltool --help` as a user waits for it. Bytecode
is cached before the first timed run.

The map is `ControlExplorer()` on every recorded run of the three regimes, in seconds of the processor, so that a busy
machine changes little. Beside it, in the same process and turn, the end values of the same runs by a table each, as it
was made before: the ratio says what slices and arrays save.

    python tests/benchmarks/startup.py
"""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 10
IMPORT_LIMIT, HELP_LIMIT, MAP_LIMIT = 0.15, 0.4, 1.0  # seconds
MAP = """
import time
from erltool.resources import shipped
from erltool.runs.folder import read_table
from erltool.tasks.chain import REGIMES
from erltool.widgets import ControlExplorer

def tables():
    for regime in REGIMES:
        whole = read_table(shipped(f"data/runs/{regime}") / "metrics.parquet")
        for _, rows in whole.groupby("run"):
            rows = rows.drop(columns="run").dropna(axis=1, how="all").reset_index(drop=True)
            means = rows.groupby("iteration").mean(numeric_only=True)
            means.head(5).mean(), means.tail(5).mean()
            rows.dropna(subset=["eval_accuracy"]).set_index("step")["eval_accuracy"].max()

for act in (ControlExplorer, tables) * 2:  # the first turn also loads what both need
    began = time.process_time()
    act()
    print(time.process_time() - began)
"""


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def map_seconds() -> tuple[float, float]:
    """Of ControlExplorer() and of a table each, in the second turn of one process."""
    done = subprocess.run([sys.executable, "-c", MAP], check=True, stdout=subprocess.PIPE, text=True)
    _, _, explorer, tables = map(float, done.stdout.split())
    return explorer, tables


def main() -> None:
    program = Path(sys.executable).with_name("erltool")
    commands = {
        "pass": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import erltool"],
        "help": [str(program) if program.exists() else shutil.which("erltool"), "--help"],
    }
    for command in commands.values():
        seconds(command)
    rounds = [{name: seconds(command) for name, command in commands.items()} for _ in range(ROUNDS)]
    median = {name: statistics.median(r[name] for r in rounds) for name in commands}
    print(f"{'':34}{'seconds':>9}{'limit':>9}")
    print(f"{'python -c pass':34}{median['pass']:9.3f}")
    for name, value, limit in (
        ("import erltool, beyond that", median["import"] - median["pass"], IMPORT_LIMIT),
        ("erltool --help", median["help"], HELP_LIMIT),
    ):
        print(f"{name:34}{value:9.3f}{limit:9.2f}  {'ok' if value <= limit else 'TOO SLOW'}")
    explorer, tables = map_seconds()
    verdict = "ok" if explorer <= MAP_LIMIT else "TOO SLOW"
    print(f"{'ControlExplorer(), processor':34}{explorer:9.3f}{MAP_LIMIT:9.2f}  {verdict}")
    print(f"{'end values by a table each':34}{tables:9.3f}{'':9}  {tables / explorer:.1f} times as long")


if __name__ == "__main__":
    main()
