"""An iteration of the chain world, 512 responses and 4 updates on one thread, and what two ways of doing it spare.

    python tests/benchmarks/chain_iteration.py

As it is done, against sampling and scoring each response by itself, though many are equal; and against rows of up to
512 tokens, as for wide models, instead of as many as the model is wide. Wanted: 0.25 s.
"""

import time
from collections.abc import Callable

import torch

import erltool
from erltool.policies import rollouts, sampling
from erltool.training.update import Updater

WARM, TIMED = 45, 12  # iterations; before, responses are so short that both ways pack the same rows
RATES = {"sharpening": 3e-4, "discovery": 1e-4, "trap": 3e-4}


def seconds(regime: str) -> float:
    """Seconds of an iteration without evaluation, once responses have grown."""
    config = erltool.TrainConfig(
        task=f"chain:{regime}", policy=regime, lora_rank=0, learning_rate=RATES[regime], steps=4 * (WARM + TIMED),
        max_response_tokens=28, eval_every=0, record_every=0, device="cpu",
    )  # fmt: skip
    taken, lengths = timed(config, WARM, time.perf_counter)
    print(f"  {regime:11} {taken:.2f} s, {sum(lengths) / len(lengths):.1f} tokens a response")
    return taken


def timed(config: erltool.TrainConfig, warm: int, clock: Callable[[], float]) -> tuple[float, list[float]]:
    """Seconds of an iteration after `warm` of them, and the mean length of the responses of each update."""
    updates = config.updates_per_iteration
    steps = erltool.train(config)
    for _ in range(updates * warm):
        next(steps)
    start = clock()
    lengths = [step.metrics["response_length"] for step in steps]
    return (clock() - start) * updates / len(lengths), lengths


def main() -> None:
    torch.set_num_threads(1)
    pack, of_distinct, sharing = rollouts.pack, Updater.of_distinct, sampling.SHARING
    print("as it is done")
    done = {regime: seconds(regime) for regime in RATES}
    print("each response by itself")
    sampling.SHARING = ()
    Updater.of_distinct = lambda updater, part: rollouts.response_statistics(updater.policy, part)
    for regime in RATES:
        print(f"  {regime}: {seconds(regime) / done[regime]:.2f} times the time")
    sampling.SHARING, Updater.of_distinct = sharing, of_distinct
    print("rows of at most 512 tokens")
    rollouts.pack = lambda part, shared, hidden: pack(part, shared)
    for regime in RATES:
        print(f"  {regime}: {seconds(regime) / done[regime]:.2f} times the time")


if __name__ == "__main__":
    main()
