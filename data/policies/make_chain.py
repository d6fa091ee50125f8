"""Make a policy of the chain task again: python data/policies/make_chain.py discovery --out data/policies/discovery

A Llama of 0.33 M parameters with a character tokenizer, trained from scratch on demonstrations of training problems.
Phase 1 teaches the skill without errors; `--clean FOLDER` keeps that model for other policies. Phase 2 teaches a style:
how often the policy works step by step, and how often a step is right. So reinforcement learning starts with high
entropy and a hidden skill. A phase takes minutes on one core. The same machine, library versions and number of threads
give the same file.
"""

import argparse
import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from make import fit, make_model, make_tokenizer, save
from torch import Tensor
from transformers import LlamaForCausalLM

from erltool.tasks.chain import REGIMES, SYMBOLS, Chain, ChainProblems, ChainSettings, apply

DEMONSTRATIONS = 10**9  # problems to draw from, so many that hardly any index comes twice


@dataclass(frozen=True)
class Style:
    """How the demonstrations answer."""

    think: float = 0.7  # fraction of responses that work step by step
    step: float = 1.0  # probability that a step with + or - is right; else its result is a random digit
    mul: float = 1.0  # probability that a step with * is right
    habit: float = 0.0  # probability that a wrong product is v * x + 3, a habit; else it is a random digit
    guess: float = 0.95  # probability that a guess with two numbers is right; with more, it is a random digit


CLEAN = Style()
STYLES = {
    "sharpening": Style(think=0.1, step=0.35),
    "discovery": Style(think=0.3, step=0.6, mul=0.0, habit=0.97),
    "trap": Style(think=0.03, step=0.2),
}


def response(problem: Chain, style: Style, modulus: int, rng: random.Random) -> str:
    """A demonstration for a problem."""
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
    """Endless batches of token ids and labels (B, L) in a style; labels are -100 on prompt and padding."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("regime", choices=list(REGIMES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clean", type=Path, help="folder of phase 1's model; made if it is missing")
    sizes = {"hidden": 96, "layers": 3, "clean-steps": 1200, "style-steps": 250, "batch": 128, "seed": 0}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for field in dataclasses.fields(Style):
        parser.add_argument(f"--{field.name}", type=float, help="field of the style; default: the regime's")
    args = parser.parse_args()
    changes = {f.name: getattr(args, f.name) for f in dataclasses.fields(Style) if getattr(args, f.name) is not None}
    settings, style = REGIMES[args.regime], dataclasses.replace(STYLES[args.regime], **changes)
    tokenizer = make_tokenizer(SYMBOLS)
    torch.manual_seed(args.seed)
    if args.clean and (args.clean / "config.json").is_file():
        model = LlamaForCausalLM.from_pretrained(args.clean)
    else:
        model = make_model(len(tokenizer), args.hidden, args.hidden * 8 // 3, args.layers, 128)
        # Phase 1 shows no products, so that only reinforcement learning can find them.
        sums = ChainSettings((2, 6), modulus=settings.modulus)
        fit(model, batches(tokenizer, sums, CLEAN, args.batch, args.seed), args.clean_steps, 3e-3)
        if args.clean:
            model.save_pretrained(args.clean)
    fit(model, batches(tokenizer, settings, style, args.batch, args.seed), args.style_steps, 1e-3)
    options = {k: v for k, v in vars(args).items() if k not in ("out", "clean")} | dataclasses.asdict(style)
    save(model, tokenizer, args.out, {"command": "data/policies/make_chain.py", "task": str(settings), **options})


if __name__ == "__main__":
    main()
