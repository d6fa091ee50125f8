"""What reading the common beginning of prompts once spares: an iteration of 64 responses and 2 updates on one thread.

    python tests/benchmarks/common_beginning.py

A chat template or worked examples stand before every prompt. The first policy is SmolLM2 on 4 bits, whose template has
a system prompt; the second is narrow, so that its rows are short and sharing spares the least. In processor seconds, at
a learning rate so low that rounding does not make one way's responses longer or more diverse than the other's.
"""

import time

import torch
from chain_iteration import timed

import erltool
from erltool.policies import rollouts

WARM, TIMED = 1, 4  # iterations
CASES = {
    "smollm2-135m on 4 bits, 2 examples": {
        "task": "addition:50",
        "policy": "smollm2-135m",
        "base": "nf4",
        "shots": 2,
        "max_response_tokens": 12,
    },
    **{
        f"discovery, {shots} examples": {
            "task": "chain:discovery",
            "policy": "discovery",
            "shots": shots,
            "max_response_tokens": 28,
            "lora_rank": 0,
        }
        for shots in (1, 2, 4)
    },
}


def seconds(case: dict) -> tuple[float, float]:
    """Of an iteration, and the mean tokens of a response."""
    config = erltool.TrainConfig(
        prompts_per_iteration=8, group_size=8, updates_per_iteration=2, steps=2 * (WARM + TIMED), eval_every=0,
        record_every=0, device="cpu", learning_rate=1e-4, **case,
    )  # fmt: skip
    taken, lengths = timed(config, WARM, time.process_time)
    return taken, sum(lengths) / len(lengths)


def main() -> None:
    torch.set_num_threads(1)
    shared_from = rollouts.SHARED_FROM
    for name, case in CASES.items():
        done, tokens = seconds(case)
        rollouts.SHARED_FROM = 10**9
        whole, tokens_whole = seconds(case)
        print(f"{name}: {done:.2f} s; each prompt read whole: {whole / done:.2f} times the time "
              f"({tokens:.1f} and {tokens_whole:.1f} tokens a response)")  # fmt: skip
        rollouts.SHARED_FROM = shared_from


if __name__ == "__main__":
    main()
