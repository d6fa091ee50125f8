"""Make a policy of the chain world again: python data/policies/make_chain.py discovery --out data/policies/discovery

A Llama of 0.33 M parameters with a character tokenizer, from scratch in two phases on demonstrations of training
problems. Phase 1, clean: the skill, without error; `--clean FOLDER` keeps it for other policies. Phase 2, style: how
often the policy works step by step, and how often each step is right, so that it starts reinforcement learning with
high entropy and a skill that is latent. The same machine, library versions and thread count give the same file. Each
phase takes minutes on one core.
"""

import argparse
import dataclasses
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from make import fit, make_model, make_tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from erltool.tasks.chain import REGIMES, SYMBOLS, Chain, ChainProblems, ChainSettings, apply

DEMONSTRATIONS = 10**9  # problems to draw from: none is drawn twice but by its text


@dataclass(frozen=True)
class Style:
    """How demonstrations answer."""

    think: float = 0.7
    """Share of responses that work step by step."""
    step: float = 1.0
    """Chance of a step by + or - to be right; else its result is any digit."""
    mul: float = 1.0
    """The same of a step by *."""
    habit: float = 0.0
    """Chance that a product that is not right is the wrong habit's, v * x + 3."""
    guess: float = 0.95
    """Chance of a guess to be right with two numbers; with more it is any digit."""


# Clean: no product is shown in `discovery`, so that its table must be found.
CLEAN = Style(think=0.7)
STYLES = {
    "sharpening": Style(think=0.1, step=0.35),
    "discovery": Style(think=0.3, step=0.6, mul=0.0, habit=0.97),
    "trap": Style(think=0.03, step=0.2),
}


def response(problem: Chain, style: Style, modulus: int, rng: random.Random) -> str:
    """A demonstration."""
    if rng.random() >= style.think:
        knows = len(problem.values) == 2 and rng.random() < style.guess
        return f"={problem.answer if knows else rng.randrange(modulus)}"
    value, done = problem.values[0], []
    for at in range(1, len(problem.prompt) - 1, 2):
        operation, digit = problem.prompt[at], int(problem.prompt[at + 1])
        right = apply(value, operation, digit, modulus)
        chance = style.mul if operation == "*" else style.step
        if rng.random() < chance:
            value = right
        elif operation == "*" and rng.random() < style.habit:
            value = (right + 3) % modulus
        else:
            value = rng.randrange(modulus)
        done.append(f"{operation}{digit}={value}")
    return f">{problem.values[0]}" + ",".join(done)


def batches(tokenizer, settings: ChainSettings, style: Style, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless token ids and labels (B, L) of a style's demonstrations; labels are -100 on prompt and padding."""
    problems, rng = ChainProblems(settings, DEMONSTRATIONS, held_out=False), random.Random(f"{seed}:{style}")
    numbers, pad = tokenizer.get_vocab(), torch.nn.utils.rnn.pad_sequence
    while True:
        rows = []
        for _ in range(size):
            problem = problems[rng.randrange(DEMONSTRATIONS)]
            p = [numbers[c] for c in problem.prompt]
            r = [numbers[c] for c in response(problem, style, settings.modulus, rng)] + [tokenizer.eos_token_id]
            rows.append((torch.tensor(p + r), torch.tensor([-100] * len(p) + r)))
        ids, labels = zip(*rows, strict=True)
        yield pad(ids, True, 0), pad(labels, True, -100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("regime", choices=list(REGIMES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clean", type=Path, help="folder of phase 1's model: made there where it is missing")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--clean-steps", type=int, default=1200)
    parser.add_argument("--style-steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    for field in dataclasses.fields(Style):
        parser.add_argument(f"--{field.name}", type=float, help="of the style; the regime's by default")
    args = parser.parse_args()
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Style) if getattr(args, f.name) is not None}
    settings, style = REGIMES[args.regime], dataclasses.replace(STYLES[args.regime], **given)
    tokenizer = make_tokenizer(SYMBOLS)
    torch.manual_seed(args.seed)
    if args.clean and (args.clean / "config.json").is_file():
        model = LlamaForCausalLM.from_pretrained(args.clean)
    else:
        model = make_model(len(tokenizer), args.hidden, args.hidden * 8 // 3, args.layers, 128)
        # Products are in no clean demonstration: that skill is found by reinforcement, or never.
        sums = ChainSettings((2, 6), modulus=settings.modulus)
        fit(model, batches(tokenizer, sums, CLEAN, args.batch, args.seed), args.clean_steps, 3e-3)
        if args.clean:
            model.save_pretrained(args.clean)
    fit(model, batches(tokenizer, settings, style, args.batch, args.seed), args.style_steps, 1e-3)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    options = {k: v for k, v in vars(args).items() if k not in ("out", "clean")} | dataclasses.asdict(style)
    made_by = {"command": "data/policies/make_chain.py", "task": str(settings), **options, "torch": torch.__version__}
    (args.out / "made_by.json").write_text(json.dumps(made_by, indent=1) + "\n")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
