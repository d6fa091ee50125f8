"""How much memory logs of 200 MB take to read: python tests/benchmarks/large_logs.py

The text logs repeat the lines of one that the real tool wrote (tests/logs), with steps that count on. A process of its
own reads each log. The memory is the most that this process holds, less the most that it holds for a log of 100 kB.
Wanted: memory that follows the table that is read, which is given beside it, and not the log's text.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
SIZE = 200 * 10**6  # bytes
TEXTS = ("verl.jsonl", "verl_console.log", "skyrl_console.log")


def lines(name: str) -> Iterator[bytes]:
    """A log's lines again and again; every step is a new one."""
    text, step = (TESTS / "logs" / name).read_text().splitlines(keepends=True), 0
    while True:
        for line in text:
            new = re.sub(r"(step['\"]?: ?|Step )\d+", rf"\g<1>{step + 1}", line)
            step += new != line
            yield new.encode()


def table() -> Iterator[bytes]:
    names = [f"train/metric_{i}" for i in range(20)]
    yield ",".join(["step", "entropy", "reward", "eval_accuracy", *names]).encode() + b"\n"
    for step in itertools.count(1):
        yield ",".join([str(step), *(f"{1 / (step + i):.12f}" for i in range(23))]).encode() + b"\n"


def history() -> Iterator[bytes]:
    """Payloads of a W&B file: history (field 2) with items (1), each with a key (1) and its value as JSON (16)."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    def field(number: int, payload: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(payload)) + payload

    names = [b"entropy", b"reward", b"eval/accuracy", *(b"train/metric_%d" % i for i in range(20))]
    for step in itertools.count(1):
        values = [(b"_step", b"%d" % step), *((name, b"%.12f" % (1 / (step + i))) for i, name in enumerate(names))]
        yield field(2, b"".join(field(1, field(1, name) + field(16, value)) for name, value in values))


def of_size(pieces: Iterator[bytes], size: int) -> list[bytes]:
    taken = []
    while size > 0:
        taken.append(next(pieces))
        size -= len(taken[-1])
    return taken


def write(path: Path, size: int) -> Path:
    if path.suffix == ".wandb":
        sys.path.insert(0, str(TESTS))
        from test_stores import frames

        path.write_bytes(frames(*of_size(history(), size)))
    else:
        path.write_bytes(b"".join(of_size(table() if path.suffix == ".csv" else lines(path.name), size)))
    return path


def read(path: str) -> None:
    from erltool.logs.read import read_log

    began = time.process_time()
    log = read_log(path)
    # ru_maxrss would be that of the process that wrote the log, if it was larger: exec does not reset it.
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    size = int(log.metrics.memory_usage(deep=True).sum())
    print(json.dumps({"peak": peak, "rows": len(log.metrics), "table": size, "s": time.process_time() - began}))


def measured(path: Path) -> dict:
    out = subprocess.run([sys.executable, __file__, str(path)], stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    print(f"{'log of 200 MB':20} {'rows':>10} {'more memory':>12} {'its table':>12} {'processor time':>15}")
    for name in (*TEXTS, "log.csv", "run-1.wandb"):
        with tempfile.TemporaryDirectory() as folder:
            short = measured(write(Path(folder, name), 100_000))
            found = measured(write(Path(folder, name), SIZE))
        more = (found["peak"] - short["peak"]) / 1e6
        print(
            f"{name:20} {found['rows']:10,} {more:9.0f} MB {found['table'] / 1e6:9.0f} MB {found['s']:13.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    read(sys.argv[1]) if len(sys.argv) > 1 else main()
