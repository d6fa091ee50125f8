"""An iteration of the chain world, 512 responses and 4 updates, on one thread: with rows as long as the model is wide, and
with rows of 512 tokens as for wide models. Run: python tests/benchmarks/chain_iteration.py (2 minutes)
"""

import time

import torch

import erltool
from erltool import rollouts

WARM, TIMED = 10, 15  # iterations
SHORTER = "rows of at most the model's width"


def seconds(regime: str, rate: float) -> float:
    """Seconds an iteration without evaluation, while responses grow."""
    config = erltool.TrainConfig(
        task=f"chain:{regime}", policy=regime, lora_rank=0, learning_rate=rate, steps=4 * (WARM + TIMED),
        max_response_tokens=28, eval_every=0, record_every=0, device="cpu",
    )  # fmt: skip
    steps = erltool.train(config)
    for _ in range(4 * WARM):
        next(steps)
    start = time.perf_counter()
    lengths = [step.metrics["response_length"] for step in steps]
    print(
        f"  {regime:11} {(time.perf_counter() - start) / TIMED:.2f} s, {sum(lengths) / len(lengths):.1f} tokens a response"
    )
    return (time.perf_counter() - start) / TIMED


if __name__ == "__main__":
    torch.set_num_threads(1)
    pack, times = rollouts.pack, {}
    for name, chosen in (
        (SHORTER, pack),
        ("rows of at most 512 tokens", lambda part, shared, hidden: pack(part, shared)),
    ):
        rollouts.pack = chosen
        print(name)
        times[name] = {r: seconds(r, rate) for r, rate in (("sharpening", 3e-4), ("discovery", 1e-4), ("trap", 3e-4))}
    for regime, shorter in times[SHORTER].items():
        print(
            f"{regime:11} {times['rows of at most 512 tokens'][regime] / shorter:.2f} times as fast with shorter rows"
        )
