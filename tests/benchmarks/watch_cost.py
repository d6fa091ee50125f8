"""What `erltool watch` costs while a log grows by a row a second: python tests/benchmarks/watch_cost.py

Wanted: at most 1 % of a core, and a row shown within 2 s. The first ten rows do not count.
"""

import json
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, FIRST = 60, 10


def row(step: int) -> str:
    entropy = 0.5 * 0.95**step + 0.01
    metrics = {"actor/entropy": entropy, "critic/rewards/mean": 0.9 - 0.5 * entropy, "val-core/task/acc/mean@8": 0.4}
    return json.dumps({"step": step, "data": metrics}) + "\n"


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "verl.jsonl")
        log.write_text(row(0))
        ours, theirs = pty.openpty()
        words = [sys.executable, "-m", "erltool", "watch", str(log)]
        watch = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "80"})
        shown, written, text, used = {}, {}, "", None
        for step in range(1, ROWS + 1):
            with log.open("a") as file:
                file.write(row(step))
            written[step] = time.perf_counter()
            if step == FIRST:
                used, began = processor_seconds(watch.pid), time.perf_counter()
            while (left := written[step] + 1 - time.perf_counter()) > 0:
                if select.select([ours], [], [], left)[0]:
                    text = text[-4000:] + os.read(ours, 65536).decode(errors="replace")
                    for found in re.findall(r"step (\d+)", text):
                        shown.setdefault(int(found), time.perf_counter())
        share = (processor_seconds(watch.pid) - used) / (time.perf_counter() - began)
        watch.terminate()
        watch.wait()
    waits = sorted(min(t for s, t in shown.items() if s >= step) - written[step] for step in range(FIRST, ROWS - 2))
    print(f"{share:.2%} of a core; a row is shown after {waits[len(waits) // 2]:.2f} s, at most {waits[-1]:.2f} s")


if __name__ == "__main__":
    main()
