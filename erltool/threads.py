"""Threads that share the cores with other programs: how long they wait for a core, and what makes it worse.

OpenMP's threads spin while they wait for work, libgomp's for 300,000 turns. Alone that is right: waking a thread takes
longer than a small product. Beside other programs spinning threads keep the cores from the very threads that are waited
for, there and here, and a product can take sixty times as long (tests/benchmarks/threads.py). So they spin as long as
they are alone, and sleep while they are not. Their number is left alone: results depend on it in their last bits.
"""

import os
import threading
import time

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user says how threads wait, and is obeyed."""
TASKS = "/proc/self/task"
SPAN, SOON = 20, 2  # seconds that waiting is measured over: before it is said, and before something is done about it
CROWDED = 0.25  # share of the time, far above that of a run that is alone


def seconds_run_and_waited() -> tuple[float, float]:
    """Seconds, over this process's threads, on a core, and ready for one that others had; zeros where not Linux."""
    run = waited = 0
    for task in os.listdir(TASKS) if os.path.isdir(TASKS) else ():
        try:
            with open(f"{TASKS}/{task}/schedstat", encoding="ascii") as f:
                on_core, in_queue, _ = map(int, f.read().split())
        except (OSError, ValueError):  # it has ended, or this kernel does not count
            continue
        run, waited = run + on_core, waited + in_queue
    return run / 1e9, waited / 1e9


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crowding:
    """The share of the time in which this process's threads were ready and had no core, over the last SPAN seconds."""

    def __init__(self, span: float = SPAN):
        self.share = 0.0
        self._span, self._began, self._before = span, time.monotonic(), seconds_run_and_waited()

    def look(self) -> float:
        """The share where it is CROWDED, else 0, as before the first span is over; `share` has it in any case."""
        if time.monotonic() - self._began >= self._span:
            now = seconds_run_and_waited()
            run, waited = (max(0.0, b - a) for a, b in zip(self._before, now, strict=True))
            self.share = waited / (run + waited) if run + waited > 0.1 * self._span else 0.0
            self._began, self._before = time.monotonic(), now
        return self.share if self.share > CROWDED else 0.0


class Courtesy:
    """Lets this process's threads sleep while they wait for work, as long as others keep them from the cores.

    For the loop of a run: `look` between iterations, `close` at its end. libgomp spins for 100 turns, not 300,000, in a
    process that has more threads of OpenMP's than cores, which a second team makes it, even one that only sleeps. No
    result depends on it.
    """

    def __init__(self):
        self._crowding, self._end = Crowding(SOON), None
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
    """What a user should know, and can do, where threads wait for a core for this share of the time."""
    return (
        f"threads waited for a core {share:.0%} of the time: other programs use the cores; run one at a time, or "
        "share them out with OMP_NUM_THREADS"
    )
