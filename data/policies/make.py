"""Make the policy `countdown` again: python data/policies/make.py --out data/policies/countdown

A Llama of about 0.8 M parameters with a character tokenizer, trained from scratch on noisy demonstrations of training
problems, so that reinforcement learning starts with high entropy and some skill. The same machine, library versions and
number of threads give the same file.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from erltool.tasks.countdown import countdown_problems, integer_expressions

RIGHT = 0.3  # probability that an attempt is drawn from the right ones, else from all
GO_ON = 0.6  # probability of another attempt after a wrong one
MAX_ATTEMPTS = 4
SYMBOLS = "0123456789+-*/()=,: "


def make_tokenizer(symbols: str) -> PreTrainedTokenizerFast:
    """A token for each character; an unknown character becomes padding, which no prompt contains."""
    vocabulary = {s: i for i, s in enumerate(["<pad>", "<eos>", *symbols])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def make_model(vocabulary: int, hidden: int, intermediate: int, layers: int, positions: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


class Demonstrations:
    """Noisy search traces: attempts with their true values, until one is right or the trace is given up."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.problems = countdown_problems()[0]
        numbers = itertools.combinations_with_replacement(range(1, 10), 3)
        self.expressions = {n: list(integer_expressions(n).items()) for n in numbers}

    def example(self) -> tuple[str, str]:
        problem = self.rng.choice(self.problems)
        choices = self.expressions[tuple(sorted(problem.numbers))]
        right = [c for c in choices if c[1] == problem.target]
        trace = []
        for _ in range(MAX_ATTEMPTS):
            pool = right if self.rng.random() < RIGHT else choices
            text, value = self.rng.choice(pool)
            trace.append(f"{text}={value}")
            if value == problem.target or self.rng.random() > GO_ON:
                break
        return problem.prompt, ",".join(trace)

    def batches(self, tokenizer, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Endless batches of token ids and labels (B, L), right-padded; labels are -100 on prompt and padding.

        Four batches are drawn at a time and sorted by length, which leaves little padding.
        """
        pad = torch.nn.utils.rnn.pad_sequence
        while True:
            rows = sorted((self.encoded(tokenizer) for _ in range(4 * size)), key=lambda r: len(r[0]))
            for at in self.rng.sample(range(0, 4 * size, size), 4):
                ids, labels = zip(*rows[at : at + size], strict=True)
                yield pad(ids, True, 0), pad(labels, True, -100)

    def encoded(self, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
        prompt, response = self.example()
        p = tokenizer(prompt)["input_ids"]
        r = tokenizer(response)["input_ids"] + [tokenizer.eos_token_id]
        return torch.tensor(p + r), torch.tensor([-100] * len(p) + r)


def fit(model: LlamaForCausalLM, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int, lr: float) -> None:
    """Minimises the next-token loss of batches (ids, labels) with Adam; the learning rate rises, then falls."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, max(0.02, (steps - s) / (steps - warmup)))
    )
    start = time.time()
    for step, (ids, labels) in zip(range(1, steps + 1), batches, strict=False):
        loss = model(ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f} nats/token, {time.time() - start:.0f} s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, made_by: dict) -> None:
    """Writes the policy and made_by.json, which says how to make it again."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    settings = out / "tokenizer_config.json"  # transformers before 5 knows the class by its older name only
    settings.write_text(settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    (out / "made_by.json").write_text(json.dumps(made_by | {"torch": torch.__version__}, indent=1) + "\n")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    for name, default in {"steps": 3000, "batch": 256, "lr": 2e-3, "seed": 0, "hidden": 128, "layers": 4}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer, demonstrations = make_tokenizer(SYMBOLS), Demonstrations(args.seed)
    model = make_model(len(tokenizer), args.hidden, args.hidden * 11 // 4, args.layers, 256)
    fit(model, demonstrations.batches(tokenizer, args.batch), args.steps, args.lr)
    options = {k: v for k, v in vars(args).items() if k != "out"}
    save(model, tokenizer, args.out, {"command": "data/policies/make.py", **options})


if __name__ == "__main__":
    main()
