"""Peak memory of an update's forward and backward pass by response length: SmolLM2-135M, LoRA, bf16.

One response of 256 to 2048 tokens behind a short prompt, in a process of its own each; what is reported is the
growth of the peak RSS over the loaded policy. All logits of the response in fp32 alone (length x 49,152 x 4 bytes)
are beside it: the naive way holds at least four of those. With gradient checkpointing what is left to grow is one
layer's activations; without it, all layers'.

    python tests/benchmarks/update_memory.py
"""

import json
import resource
import subprocess
import sys

LENGTHS = (256, 512, 1024, 2048)


def measure(length: int, checkpointing: bool) -> None:
    import torch

    from erltool import load_policy, response_log_probs
    from erltool.policies.rollouts import Rollouts

    policy = load_policy("smollm2-135m", device="cpu", gradient_checkpointing=checkpointing)
    prompt = policy.tokenizer("What is 1+1?")["input_ids"]

    def update(n: int) -> None:
        ids = torch.randint(100, 49_000, (1, n), generator=torch.Generator().manual_seed(0))
        mask, lp = torch.ones_like(ids, dtype=torch.bool), torch.zeros(ids.shape)
        rollouts = Rollouts(["p"], ["r"], [prompt], ids, mask, lp, torch.ones(1, dtype=torch.bool))
        log_probs, entropy = response_log_probs(policy, rollouts)
        (log_probs.sum() + 0.01 * entropy.sum()).backward()

    update(8)  # what libraries allocate once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    update(length)
    print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def main() -> None:
    print(
        f"{'length':>7}{'logits':>12}{'peak, checkpointing':>22}{'per token':>12}{'peak, without':>16}{'per token':>12}"
    )
    for length in LENGTHS:
        row = f"{length:7}{length * 49152 * 4 / 2**20:8.0f} MiB"
        for checkpointing, width in ((1, 18), (0, 12)):
            command = [sys.executable, "-W", "ignore", __file__, str(length), str(checkpointing)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak = json.loads(done.stdout.splitlines()[-1])
            row += f"{peak:{width}.0f} MiB{1024 * peak / length:8.0f} KiB"
        print(row, flush=True)


if __name__ == "__main__":
    measure(int(sys.argv[1]), sys.argv[2] == "1") if len(sys.argv) > 1 else main()
