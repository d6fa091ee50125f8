"""An iteration of the chain world, 512 responses and 4 updates on one thread, and what three ways of doing it spare.

    python tests/benchmarks/chain_iteration.py

As it is done, against sampling and scoring each response by itself, though many are equal; against rows that hold one
prompt's responses only; and against rows of up to 512 tokens, as for wide models, instead of as many as the model is
wide. In processor seconds. Wanted: 0.25 s.
"""

import contextlib
import math
import time
from collections.abc import Callable
from unittest import mock

import torch

import erltool
from erltool.policies import rollouts, sampling
from erltool.training.update import Updater

ROUNDS = 3  # the ways take turns, and the least time of each counts
WARM, TIMED = 45, 12  # iterations; before, responses are so short that both ways pack the same rows
RATES = {"sharpening": 3e-4, "discovery": 1e-4, "trap": 3e-4}


def seconds(regime: str) -> float:
    """Processor seconds of an iteration without evaluation, once responses have grown."""
    config = erltool.TrainConfig(
        task=f"chain:{regime}", policy=regime, lora_rank=0, learning_rate=RATES[regime], steps=4 * (WARM + TIMED),
        max_response_tokens=28, eval_every=0, record_every=0, device="cpu",
    )  # fmt: skip
    return timed(config, WARM, time.process_time)[0]


def timed(config: erltool.TrainConfig, warm: int, clock: Callable[[], float]) -> tuple[float, list[float]]:
    """Seconds of an iteration after `warm` of them, and the mean length of the responses of each update."""
    updates = config.updates_per_iteration
    steps = erltool.train(config)
    for _ in range(updates * warm):
        next(steps)
    start = clock()
    lengths = [step.metrics["response_length"] for step in steps]
    return (clock() - start) * updates / len(lengths), lengths


@contextlib.contextmanager
def singly():
    """Each response is sampled and scored by itself."""
    with mock.patch.object(sampling, "SHARING", ()), mock.patch.object(Updater, "of_distinct", by_itself):
        yield


def by_itself(updater: Updater, part: rollouts.Rollouts):
    return rollouts.response_statistics(updater.policy, part)


def one_prompt_a_row():
    return mock.patch.object(rollouts, "_filled", lambda sizes: [[part] for part in range(len(sizes))])


def long_rows():
    pack = rollouts.pack
    return mock.patch.object(rollouts, "pack", lambda part, shared, hidden: pack(part, shared))


WAYS = {
    "as it is done": contextlib.nullcontext,
    "each response by itself": singly,
    "rows of one prompt": one_prompt_a_row,
    "rows of at most 512 tokens": long_rows,
}


def main() -> None:
    torch.set_num_threads(1)
    for regime in RATES:
        least = dict.fromkeys(WAYS, math.inf)
        for _ in range(ROUNDS):
            for name, way in WAYS.items():
                with way():
                    least[name] = min(least[name], seconds(regime))
        done = least["as it is done"]
        print(f"{regime}: {done:.2f} s")
        for name in list(WAYS)[1:]:
            print(f"  {name}: {least[name] / done:.2f} times the time", flush=True)


if __name__ == "__main__":
    main()
