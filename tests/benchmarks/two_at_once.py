"""What two runs at once on two cores do, against one: python tests/benchmarks/two_at_once.py

Each process has one thread, as the processes of `erltool experiment` have. Wanted: 1.8 times the iterations of one.
"""

import os
import subprocess
import sys
import time

SECONDS = 20


def iterations_per_second() -> float:
    """Of `discovery` without control, after the first ten iterations."""
    import erltool

    config = erltool.TrainConfig(
        task="chain:discovery", policy="discovery", lora_rank=0, learning_rate=1e-4, steps=4000,
        max_response_tokens=28, eval_every=0, record_every=0, device="cpu",
    )  # fmt: skip
    steps = erltool.train(config)
    for _ in range(40):
        next(steps)
    begin, made = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        next(steps)
        made += 1
    steps.close()
    return made / config.updates_per_iteration / (time.perf_counter() - begin)


def together(processes: int) -> float:
    """Iterations a second of so many processes, added up."""
    command, environment = [sys.executable, __file__, "alone"], os.environ | {"OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(processes)]
    return sum(float(process.communicate()[0]) for process in started)


if __name__ == "__main__":
    if "alone" in sys.argv:
        print(iterations_per_second())
    else:
        one, two = together(1), together(2)
        print(f"one: {one:.2f} iterations/s, two: {two:.2f}, {two / one:.2f} times as many")
