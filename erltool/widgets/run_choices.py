"""What RunForm offers: each policy, task and control in a sentence, and whole configurations to start from."""

from erltool.controls.catalog import CONTROLS
from erltool.resources import POLICIES

OURS = {
    "sharpening": "the skill is there, under noise; 0.33 M parameters",
    "discovery": "multiplication was learned wrong and has to be found; 0.33 M parameters",
    "trap": "working step by step is rare, and bad at first; 0.33 M parameters",
    "countdown": "makes a number from three others; 0.81 M parameters",
}
POLICY = OURS | {
    "smollm2-135m": "a small language model, 135 M parameters; an iteration takes a minute on a CPU",
    "Qwen/Qwen2.5-0.5B": "a language model from the hub, 0.5 B parameters; a GPU is better",
    "Qwen/Qwen2.5-1.5B": "1.5 B parameters; wants a GPU",
    "Qwen/Qwen2.5-3B": "3 B parameters; wants a GPU",
    "Qwen/Qwen2.5-7B": "7 B parameters, the paper's smaller size; wants a GPU of 24 GB or more",
}
TASK = {
    "chain:sharpening": "sums and differences modulo 10, for the policy sharpening",
    "chain:discovery": "with products too, for the policy discovery",
    "chain:trap": "sums and differences, for the policy trap",
    "countdown": "make a target from three numbers, for the policy countdown",
    "addition:20": "two numbers up to 20, asked in words, for a language model",
    "gsm8k": "school problems in words, from the hub",
    "math": "competition problems, from the hub",
    "dapo-math": "17,000 problems with whole numbers as answers, from the hub",
}


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split()).rstrip(".")


CONTROL = {
    "none": "GRPO as it is: entropy may fall",
    "clip-cov:chain": "Clip-Cov with values for the shipped policies",
    "kl-cov:chain": "KL-Cov with values for the shipped policies",
    "clip-cov:paper-7b": "Clip-Cov with the paper's values for 7 B parameters",
    "kl-cov:paper-7b": "KL-Cov with the paper's values for 7 B parameters",
} | {name: _first_sentence(control.__doc__) for name, control in CONTROLS.items() if name != "none"}
CHOICES = {"policy": POLICY, "task": TASK, "control": CONTROL}
"""A sentence of each entry of the three menus; a field also takes other text."""
assert set(OURS) == set(POLICIES)

_SMALL = {
    "base": "none", "lora_rank": "0", "prompts_per_iteration": "64", "group_size": "8", "max_response_tokens": "28",
    "micro_batch": "0", "gradient_checkpointing": "no", "device": "cpu",
}  # fmt: skip
_LARGE = {"base": "nf4", "lora_rank": "16", "group_size": "8", "gradient_checkpointing": "yes", "device": "cuda"}
STARTS: dict[str, dict[str, str]] = {
    "watch entropy collapse: minutes on a laptop": _SMALL | {
        "policy": "sharpening", "task": "chain:sharpening", "control": "none", "steps": "240",
        "learning_rate": "0.0003",
    },
    "the same with Clip-Cov": _SMALL | {
        "policy": "sharpening", "task": "chain:sharpening", "control": "clip-cov:chain", "steps": "240",
        "learning_rate": "0.0003",
    },
    "find what was learned wrong, with Clip-Cov: an hour on a laptop": _SMALL | {
        "policy": "discovery", "task": "chain:discovery", "control": "clip-cov:chain", "steps": "2000",
        "learning_rate": "0.0001",
    },
    "a small language model on a CPU, with LoRA": _LARGE | {
        "policy": "smollm2-135m", "task": "addition:20", "control": "kl-cov:chain", "steps": "40",
        "learning_rate": "0.0003", "prompts_per_iteration": "8", "max_response_tokens": "12", "micro_batch": "0",
        "gradient_checkpointing": "no", "device": "cpu",
    },
    "Qwen2.5-7B on one GPU, with the paper's KL-Cov": _LARGE | {
        "policy": "Qwen/Qwen2.5-7B", "task": "math", "control": "kl-cov:paper-7b", "steps": "400",
        "learning_rate": "1e-05", "prompts_per_iteration": "16", "max_response_tokens": "1024", "micro_batch": "8",
    },
}  # fmt: skip
"""Whole configurations by what they are for: the text of fields of the form."""
