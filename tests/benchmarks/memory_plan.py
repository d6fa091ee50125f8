"""Predicted against measured peak memory: `erltool plan` beside the peak RSS of real training on this CPU.

Each row is a process of its own that trains for one or two iterations and reports its peak. A plan is of responses at
their longest, so the policy is kept from stopping early: its end is another token, which it hardly ever samples.

    python tests/benchmarks/memory_plan.py
"""

import dataclasses
import json
import resource
import subprocess
import sys

COUNTDOWN = dict(policy="countdown", task="countdown", max_response_tokens=12, steps=8, eval_every=0)
ROWS = {
    "countdown, LoRA": COUNTDOWN,
    "countdown, LoRA, 2048 responses": COUNTDOWN | dict(prompts_per_iteration=256),
    "countdown, all weights": COUNTDOWN | dict(prompts_per_iteration=256, lora_rank=0),
    "SmolLM2, NF4": dict(base="nf4", max_response_tokens=12),
    "SmolLM2, NF4, 64 tokens": dict(base="nf4", max_response_tokens=64),
    "SmolLM2, bf16, micro-batch 8": dict(max_response_tokens=64, micro_batch=8),
    "SmolLM2, NF4, checkpointing": dict(base="nf4", max_response_tokens=64, gradient_checkpointing=True),
    "SmolLM2, fp32": dict(dtype="fp32", max_response_tokens=32),
    "SmolLM2, NF4, fp32": dict(base="nf4", dtype="fp32", max_response_tokens=32),
    # No constant of the plan was chosen with these two in sight.
    "countdown, rank 4, 48 tokens": COUNTDOWN | dict(lora_rank=4, max_response_tokens=48),
    "SmolLM2, NF4, rank 64, 40 tokens": dict(
        base="nf4", lora_rank=64, max_response_tokens=40, prompts_per_iteration=8, shots=2
    ),
}
SMOLLM2 = dict(
    policy="smollm2-135m", task="addition", template="none", steps=2, updates_per_iteration=2, eval_every=0,
    prompts_per_iteration=16,
)  # fmt: skip


def measure(row: dict) -> None:
    from erltool import EntropyBonus, TrainConfig, train
    from erltool.training import loop as training
    from erltool.training.memory import plan_memory

    load = training.configured_policy

    def that_never_stops(*arguments):
        policy = load(*arguments)
        policy.tokenizer.eos_token = policy.tokenizer.convert_ids_to_tokens(len(policy.tokenizer) - 1)
        return policy

    training.configured_policy = that_never_stops
    # A bonus of nothing reaches every token, so that every row has a gradient whatever its group's rewards.
    config = TrainConfig(device="cpu", record_every=0, control=EntropyBonus(0.0), **row)
    prompt = response = 0
    for step in train(config):
        prompt = max(prompt, *map(len, step.rollouts.prompt_ids))
        response = max(response, int(step.rollouts.response_mask.sum(-1).max()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    plan = plan_memory(dataclasses.replace(config, max_response_tokens=response), prompt, "cpu")
    print(json.dumps({"measured": peak, "planned": plan.peak, "prompt": prompt, "response": response}))


def main() -> None:
    print(f"{'':34}{'prompt':>7}{'response':>9}{'measured':>10}{'planned':>10}{'ratio':>7}")
    for name, row in ROWS.items():
        row = row if "policy" in row else SMOLLM2 | row
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, json.dumps(row)], capture_output=True, text=True
        )
        if done.returncode:
            print(name, done.stderr.strip().splitlines()[-1])
            continue
        r = json.loads(done.stdout.splitlines()[-1])
        sizes = f"{r['measured'] / 2**20:7.0f} MiB{r['planned'] / 2**20:6.0f} MiB"
        print(f"{name:34}{r['prompt']:7}{r['response']:9}{sizes}{r['planned'] / r['measured']:7.2f}", flush=True)


if __name__ == "__main__":
    measure(json.loads(sys.argv[1])) if len(sys.argv) > 1 else main()
