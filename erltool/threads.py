"""How long this process's threads wait for a core beside other programs, and a way to shorten the wait.

OpenMP's threads spin while they wait for work (libgomp: 300,000 turns), because waking a thread takes longer than a
small matrix product. Beside other programs, spinning threads take the cores from the threads that have work, and a
product can take sixty times as long (tests/benchmarks/threads.py). So threads spin while the run is alone on the cores
and sleep while it is not. Their number never changes, because the last bits of results depend on it.
"""

import os
import threading
import time

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables of OpenMP. Where a user has set one, nothing is changed."""
TASKS = "/proc/self/task"
SPAN, SOON = 20, 2  # seconds over which waiting is measured before a warning, and before threads sleep
CROWDED = 0.25  # fraction of the time spent waiting, far above that of a run that is alone


def seconds_run_and_waited() -> tuple[float, float]:
    """Seconds that this process's threads spent on a core, and waiting for one; (0, 0) except on Linux."""
    run = waited = 0
    for task in os.listdir(TASKS) if os.path.isdir(TASKS) else ():
        try:
            with open(f"{TASKS}/{task}/schedstat", encoding="ascii") as f:
                on_core, in_queue, _ = map(int, f.read().split())
        except (OSError, ValueError):  # the thread has ended, or the kernel does not count
            continue
        run, waited = run + on_core, waited + in_queue
    return run / 1e9, waited / 1e9


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crowding:
    """The fraction of the last SPAN seconds in which this process's threads waited for a core."""

    def __init__(self, span: float = SPAN):
        self.share = 0.0
        self._span, self._began, self._before = span, time.monotonic(), seconds_run_and_waited()

    def look(self) -> float:
        """The fraction where it is above CROWDED, else 0 (also before the first span is over)."""
        if time.monotonic() - self._began >= self._span:
            now = seconds_run_and_waited()
            run, waited = (max(0.0, b - a) for a, b in zip(self._before, now, strict=True))
            self.share = waited / (run + waited) if run + waited > 0.1 * self._span else 0.0
            self._began, self._before = time.monotonic(), now
        return self.share if self.share > CROWDED else 0.0


class Courtesy:
    """Lets this process's threads sleep while they wait for work, as long as other programs crowd the cores.

    The loop of a run calls `look` between iterations and `close` at its end. libgomp spins for only 100 turns in a
    process with more OpenMP threads than cores, which a second, sleeping team makes it. No result depends on it.
    """

    def __init__(self):
        self._crowding = Crowding(SOON)
        self._end: threading.Event | None = None
        self._may = not any(name in os.environ for name in CHOICES)

    def look(self) -> None:
        crowded = self._may and self._crowding.look() > 0
        if crowded and self._end is None:
            self._end = threading.Event()
            threading.Thread(target=_keep_a_team, args=(self._end,), name="Courtesy", daemon=True).start()
        elif not crowded:
            self.close()

    def close(self) -> None:
        if self._end is not None:
            self._end.set()
            self._end = None


def _keep_a_team(end: threading.Event) -> None:
    import torch

    if torch.get_num_threads() > 1:
        torch.ones(1 << 20, device="cpu").exp_()  # large enough for all threads
        end.wait()


def crowded_text(share: float) -> str:
    """The warning for threads that waited for a core for this fraction of the time."""
    return (
        f"threads waited for a core {share:.0%} of the time: other programs use the cores; run one at a time, or "
        "share them out with OMP_NUM_THREADS"
    )
