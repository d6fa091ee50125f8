"""Seconds that importing erltool and asking for its help take.

Each figure is the median wall-clock time of 10 runs of a fresh process, the commands taking turns. The import is
`python -c "import erltool"` less `python -c pass`; the help is `erltool --help` as a user waits for it. Bytecode
is cached before the first timed run.

    python tests/benchmarks/startup.py
"""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 10
IMPORT_LIMIT, HELP_LIMIT = 0.15, 0.4  # seconds


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


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


if __name__ == "__main__":
    main()
