"""How much of loading a policy is the probe that compares it with its model: CPU seconds, as shares in one run.

    python tests/benchmarks/probe_time.py [rounds]

Wanted: at most 1 s on the policy `countdown`, at most 10 % of a load on others.
"""

import statistics
import sys
import time

import torch

import erltool.policies.load
from erltool import ErltoolError, load_policy


def measured(**options) -> tuple[float, float]:
    """Seconds of a load, and of the probe in it."""
    inside, probe = [], erltool.policies.load.choose_path

    def timed(policy):
        begun = time.process_time()
        path = probe(policy)
        inside.append(time.process_time() - begun)
        return path

    erltool.policies.load.choose_path = timed
    begun = time.process_time()
    try:
        load_policy(**options)
    finally:
        erltool.policies.load.choose_path = probe
    return time.process_time() - begun, inside[0]


def main(rounds: int = 5) -> None:
    torch.set_num_threads(1)
    for source, options in (
        ("countdown", {}),
        ("smollm2-135m", {"dtype": "bf16"}),
        ("smollm2-135m", {"dtype": "bf16", "base": "nf4"}),
        ("smollm2-135m", {"dtype": "fp32"}),
    ):
        try:
            measured(source=source, **options)  # imports, and a GGUF file that is converted once
        except ErltoolError as e:
            print(e)
            continue
        pairs = [measured(source=source, **options) for _ in range(rounds)]
        load, probe = (statistics.median(x) for x in zip(*pairs, strict=True))
        words = " ".join(options.values())
        print(f"{source:13} {words:9} load {load:5.2f} s, of which probe {probe:.3f} s: {probe / load:.0%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
