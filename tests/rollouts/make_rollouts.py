"""Makes the rollouts of this folder: `python tests/rollouts/make_rollouts.py`.

TRL's is written by TRL's own trainer. verl's and prime-rl's are written as their code does it (RayPPOTrainer's
`_write_generations` of verl 0.9.0, TokenExporter of prime-rl 0.8.1.dev67), from responses of the shipped policy.
"""

import json
import tempfile
from pathlib import Path

import torch

import erltool
from erltool.policies.rollouts import response_statistics
from erltool.resources import shipped

HERE = Path(__file__).parent
TASK, POLICY, GROUP = "chain:sharpening", "sharpening", 4


def trl(count: int = 4) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    task = erltool.load_task(TASK)
    problems = {p.prompt: p for p in task.train[:count]}

    def right(prompts, completions, **_):
        return [task.reward(problems[p], c) for p, c in zip(prompts, completions, strict=True)]

    def short(completions, **_):
        return [0.1 * (len(c) < 4) for c in completions]

    folder = str(shipped(f"data/policies/{POLICY}"))
    with tempfile.TemporaryDirectory() as out:
        args = GRPOConfig(
            out, per_device_train_batch_size=count * GROUP, num_generations=GROUP, max_completion_length=28,
            max_steps=2, logging_steps=1, log_completions=True, save_strategy="no", seed=0, use_cpu=True,
            report_to="none", gradient_checkpointing=False, shuffle_dataset=False,
        )  # fmt: skip
        GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(folder), [right, short], args=args,
            train_dataset=Dataset.from_dict({"prompt": list(problems)}),
            processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
        ).train()  # fmt: skip
        for file in sorted(Path(out, "completions").glob("*.parquet")):
            (HERE / "trl" / file.name).write_bytes(file.read_bytes())


def others(count: int = 4) -> None:
    task, policy = erltool.load_task(TASK), erltool.load_policy(POLICY, lora_rank=0)
    problems = task.train[:count]
    rollouts = erltool.sample_groups(
        policy, [p.prompt for p in problems], GROUP, max_response_tokens=28,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    rewards = task.rewards([p for p in problems for _ in range(GROUP)], rollouts.responses)
    with (HERE / "verl" / "1.jsonl").open("w") as f:
        for b, reward in enumerate(rewards):
            entry = {"input": rollouts.prompts[b], "output": rollouts.responses[b], "gts": problems[b // GROUP].answer,
                     "score": reward, "step": 1, "acc": bool(reward)}  # fmt: skip
            f.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")
    with torch.no_grad():
        found = response_statistics(policy, rollouts)
    advantages = torch.tensor(rewards).view(-1, GROUP)
    advantages = (advantages - advantages.mean(-1, keepdim=True)).flatten()
    folder = HERE / "prime-rl" / "token_exports" / "step_3"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rank_0.jsonl").open("w") as f:
        for b in range(len(rollouts)):
            f.write(json.dumps(_export(b, rollouts, found, advantages[b].item()), separators=(",", ":")) + "\n")


def _export(b: int, rollouts, found, advantage: float) -> dict:
    prompt = rollouts.prompt_ids[b]
    n = int(rollouts.response_mask[b].sum())
    length = len(prompt) + n

    def column(values, before):
        return [before] * len(prompt) + [round(float(v), 6) for v in values[b, :n]]

    old = column(rollouts.log_probs, 0.0)
    new = column(found.log_probs, -6.0)  # the trainer scores the prompt too
    ratio = [a - c for a, c in zip(new, old, strict=True)]
    return {
        "schema_version": 1, "step": 3, "rank": 0, "micro_step": 0, "micro_sequence_idx": b, "export_sequence_idx": b,
        "env_name": "chain", "token_ids": prompt + rollouts.token_ids[b, :n].tolist(),
        "position_ids": list(range(length)), "loss_mask": [False] * len(prompt) + [True] * n,
        "advantages": [advantage] * length, "inference_logprobs": old, "trainer_logprobs": new,
        "entropy": column(found.token_entropy, 1.0), "log_importance_ratio": [round(r, 6) for r in ratio],
        "rl_weights": [None] * length,
    }  # fmt: skip


if __name__ == "__main__":
    for name in ("trl", "verl"):
        (HERE / name).mkdir(exist_ok=True)
    others()
    trl()
