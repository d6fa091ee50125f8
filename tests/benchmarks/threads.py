"""What it costs a process that is alone to wait without spinning, and what it gains beside others.

OpenMP's threads spin while they wait for work (libgomp: 300,000 turns). Each line is a piece of work, alone, beside a
process that keeps one core busy, and two of its kind at once, each in a session of its own as in two terminals. `spin`
is one process's rate as libgomp has it; then over that, with the rounds that count: `courtesy`, as erltool.threads has
it while others want the cores; `sleep`, OMP_WAIT_POLICY=passive; `one`, a single thread, whose results differ in their
last bits. Medians over the rounds, in which the ways take turns. Alone a round waits up to PATIENCE seconds for other
programs to leave the machine, and does not count if its threads waited more than 5 % of the time for a core.

    python tests/benchmarks/threads.py [rounds] [seconds]
"""

import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import erltool
from erltool.threads import CHOICES, _keep_a_team, seconds_run_and_waited

WORK = ("product 64 x 96 x 96", "product 256 x 96 x 384", "product 512 x 512 x 512", "training")
WAYS = {
    "spin": {"GOMP_SPINCOUNT": "300000"},
    "courtesy": {},
    "sleep": {"OMP_WAIT_POLICY": "passive"},
    "one": {"OMP_NUM_THREADS": "1"},
}
QUIET, PATIENCE = 0.05, 60


class Worker:
    """A process that does a piece of work for some seconds whenever it is told to."""

    def __init__(self, work: str, way: str):
        own = {k: v for k, v in os.environ.items() if k not in (*CHOICES, "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, __file__, "--worker", work, way]
        self._process = subprocess.Popen(
            command, stdin=-1, stdout=-1, text=True, env=own | WAYS[way], start_new_session=True
        )
        self.tell(0.1)  # loads, and warms up
        self.found()

    def tell(self, seconds: float) -> None:
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def found(self) -> tuple[float, float]:
        """Rate, and the share of the time in which its threads waited for a core."""
        rate, waited = map(float, self._process.stdout.readline().split())
        return rate, waited

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def work_of(name: str):
    """A function that does some of it, and how much that is: GFLOP, or optimiser steps."""
    import torch

    if name == "busy":
        return lambda: sum(range(100_000)), 1
    if name == "training":
        steps = erltool.train(
            erltool.TrainConfig(policy="countdown", task="countdown", steps=1_000_000, eval_every=0, record_every=0)
        )
        return lambda: [next(steps) for _ in range(4)], 4
    m, k, n = (int(word) for word in name.split()[1::2])
    a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    return lambda: [torch.mm(a, b, out=out) for _ in range(20)], 20 * 2 * m * k * n / 1e9


def worker(name: str, way: str) -> None:
    if way == "courtesy":
        threading.Thread(target=_keep_a_team, args=(threading.Event(),), daemon=True).start()
    do, amount = work_of(name)
    for line in sys.stdin:
        do()
        before, began, count = seconds_run_and_waited(), time.perf_counter(), 0
        while time.perf_counter() - began < float(line):
            do()
            count += 1
        rate = count * amount / (time.perf_counter() - began)
        run, waited = (b - a for a, b in zip(before, seconds_run_and_waited(), strict=True))
        print(rate, waited / max(run + waited, 1e-9), flush=True)


def busy_share(seconds: float = 0.3) -> float:
    """Of all cores."""
    times = []
    for pause in (seconds, 0):
        times.append([int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]])
        time.sleep(pause)
    spent = [b - a for a, b in zip(*times, strict=True)]
    return 1 - (spent[3] + spent[4]) / sum(spent)


def rate(workers: list[Worker], seconds: float) -> float | None:
    """The first worker's, all at work; None where it is alone and other programs did not leave it the cores."""
    alone, until = len(workers) == 1, time.monotonic() + PATIENCE
    while alone and busy_share() > QUIET:
        if time.monotonic() > until:
            return None
    for w in workers:
        w.tell(seconds)
    found, waited = [w.found() for w in workers][0]
    return None if alone and waited > QUIET else found


def main(rounds: int, seconds: float) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {rounds} rounds of {seconds} s")
    print(f"{'work':24}{'where':19}" + "".join(f"{way:>14}" for way in WAYS))
    busy = Worker("busy", "sleep")
    for name in WORK:
        pairs = {way: [Worker(name, way), Worker(name, way)] for way in WAYS}
        for where in ("alone", "beside a busy one", "two of it"):
            beside = {way: {"alone": [], "beside a busy one": [busy]}.get(where, [w[1]]) for way, w in pairs.items()}
            found = {way: [] for way in WAYS}
            for _, (way, w) in itertools.product(range(rounds), pairs.items()):
                found[way].append(rate([w[0], *beside[way]], seconds))
            print(f"{name:24}{where:19}{line_of(found)}", flush=True)
        for w in itertools.chain(*pairs.values()):
            w.end()
    busy.end()
    print(f"load {os.getloadavg()[0]:.1f} after")


def line_of(found: dict[str, list[float | None]]) -> str:
    """Spinning's rate, and the other ways' over it, with the number of rounds that count."""
    kept = {way: [x for x in rates if x is not None] for way, rates in found.items()}
    if not all(kept.values()):
        return f"{'not quiet':>14}"
    spin, *others = (statistics.median(rates) for rates in kept.values())
    counts = [f"({len(rates)})" for rates in kept.values()]
    cells = [f"{value:.2f} {count}" for value, count in zip([spin, *(x / spin for x in others)], counts, strict=True)]
    return "".join(f"{cell:>14}" for cell in cells)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        given = [kind(word) for kind, word in zip((int, float), sys.argv[1:], strict=False)]
        main(*given, *(5, 3.0)[len(given) :])
