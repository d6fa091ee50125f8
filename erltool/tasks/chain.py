"""Chain: sums worked off from left to right, modulo a number, answered at once or step by step.

    prompt    "3+5-2*7:"
    response  "=2"                    a guess
              ">3+5=8,-2=6,*7=2"      the same, step by step: 3+5 is 8, 8-2 is 6, 6*7 is 42, so 2

A reward is 1 for a response of either form whose last digit is the answer; the steps before it are not judged. So a
guess can be right by luck, and steps can be wrong and end well. Prompts are made from their index and are as many as
one likes: those of more than three numbers are hardly seen twice. One text in ten is held out, by a hash, in every task
of this kind. What a response did is known: whether it worked step by step, which step was the first wrong one, at which
tokens it had a choice.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from erltool.errors import ErltoolError
from erltool.tasks.countdown import in_held_out

SYMBOLS = "0123456789+-*=>,:"  # the characters of prompts and responses
TRAIN, HELD_OUT = 100_000, 2_000  # problems
TRIES = 10_000  # one text in ten is held out
FORM = re.compile(r"=\d|>\d[-+*]\d=\d(?:,[-+*]\d=\d)*")
STEP = re.compile(r"(\d?)([-+*])(\d)=(\d)")


@dataclass(frozen=True)
class ChainSettings:
    """Which sums: how many numbers, which operations, modulo what. Raises ErltoolError."""

    numbers: tuple[int, int] = (2, 6)
    """Fewest and most numbers of a prompt, each count as likely."""
    two: float = 0.0
    """Share of prompts that have two numbers, whatever `numbers` says: these can be known by heart."""
    ops: str = "+-"
    """Operations, each as likely."""
    modulus: int = 10

    def __post_init__(self):
        low, high = self.numbers
        known = self.ops and len(set(self.ops)) == len(self.ops) and set(self.ops) <= set("+-*")
        for holds, what in (
            (2 <= low <= high <= 12, f"numbers={low}-{high}: from 2 to 12"),
            (0 <= self.two <= 1, f"two={self.two:g}: a share in [0, 1]"),
            (known, f"ops={self.ops!r}: some of + - *, each once"),
            (2 <= self.modulus <= 10, f"modulus={self.modulus}: from 2 to 10, so that a number is one character"),
        ):
            if not holds:
                raise ErltoolError(f"task chain: {what}")

    def __str__(self) -> str:
        """The task's name."""
        low, high = self.numbers
        return f"chain:numbers={low}-{high},two={self.two:g},ops={self.ops},modulus={self.modulus}"


# The worlds of the shipped policies of these names.
REGIMES = {
    "sharpening": ChainSettings((2, 6), two=0.4),
    "discovery": ChainSettings((2, 5), ops="+-*"),
    "trap": ChainSettings((2, 6), two=0.4),
}


def parse_settings(name: str) -> ChainSettings:
    """Settings of "chain", "chain:discovery" or "chain:numbers=2-5,ops=+-*". Raises ErltoolError with an example."""
    rest, options = name.partition(":")[2], {}
    if rest in REGIMES:
        return REGIMES[rest]
    known = {f.name: type(f.default) for f in fields(ChainSettings)}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            if known[key] is tuple:
                low, _, high = value.partition("-")
                options[key] = (int(low), int(high or low))
            else:
                options[key] = known[key](value)
        except (KeyError, ValueError) as e:
            raise ErltoolError(
                f"task {name}: {part!r} is no setting; write chain:{', chain:'.join(REGIMES)}, or "
                f"chain:numbers=2-5,ops=+-* with any of {', '.join(known)}"
            ) from e
    return ChainSettings(**options)


# --- problems ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """One prompt, and what its verifier needs."""

    prompt: str
    values: tuple[int, ...]
    """After the first number, the second, ...: the last is the answer."""

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def response(self) -> str:
        """A right response, step by step."""
        first, *rest = re.findall(r"[-+*]?\d", self.prompt)
        return f">{first}" + ",".join(f"{step}={v}" for step, v in zip(rest, self.values[1:], strict=True))


class ChainProblems(Sequence):
    """Problems on one side of the split, each made from its index as it is asked for; the same for everybody.

    Texts repeat as often as they are drawn, so both sides have as many of each length. Raises ErltoolError where one
    side has no text of a length.
    """

    def __init__(self, settings: ChainSettings, size: int, held_out: bool):
        self.settings, self.size, self.held_out = settings, size, held_out

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(self.size))]
        if not -self.size <= at < self.size:
            raise IndexError(at)
        rng, settings = random.Random(f"{self.settings}:{self.held_out}:{at % self.size}"), self.settings
        # The count is drawn once: a side may hold more of the short texts, and must not ask for more of them.
        count = 2 if rng.random() < settings.two else rng.randint(*settings.numbers)
        for _ in range(TRIES):
            problem = chain_problem(rng, count, settings)
            if in_held_out(problem.prompt) == self.held_out:
                return problem
        raise ErltoolError(f"task {settings}: too few texts of {count} numbers for both sides; use a larger modulus")


def chain_problem(rng: random.Random, count: int, settings: ChainSettings) -> Chain:
    """A random problem of `count` numbers, of either side."""
    digits = [rng.randrange(settings.modulus) for _ in range(count)]
    text, values = str(digits[0]), [digits[0]]
    for digit in digits[1:]:
        operation = rng.choice(settings.ops)
        text += f"{operation}{digit}"
        values.append(apply(values[-1], operation, digit, settings.modulus))
    return Chain(f"{text}:", tuple(values))


def apply(value: int, operation: str, digit: int, modulus: int = 10) -> int:
    """value + digit, value - digit or value * digit, modulo `modulus`."""
    result = value + digit if operation == "+" else value - digit if operation == "-" else value * digit
    return result % modulus


def chain_reward(problem: Chain, response: str) -> float:
    """Reward of a response in {0.0, 1.0}: is it of one of the two forms, and its last digit the answer?"""
    return float(FORM.fullmatch(response) is not None and response[-1] == problem.answer)


# --- what a response did ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """What is known of one response."""

    strategy: str
    """"guess", "steps", or "neither" where the form is neither."""
    steps: int = 0
    """Steps that it works off."""
    right_steps: int = 0
    """Of these, those whose result follows from the value before them."""
    first_wrong: int = 0
    """The first step whose result does not follow, from 1; 0 where there is none."""
    products: int = 0
    """Steps that multiply."""
    right_products: int = 0
    copied: bool = False
    """Whether its numbers and operations are the prompt's, all of them and in order."""
    forks: tuple[int, ...] = ()
    """Characters at which it had a choice: between the strategies, and every result."""


def describe_chain(prompt: str, response: str, modulus: int = 10) -> Description:
    """What a response did with a prompt. Never raises for what either says."""
    if not FORM.fullmatch(response):
        return Description("neither", forks=(0,) if response else ())
    if response.startswith("="):
        return Description("guess", forks=(0, 1))
    value, right, products, right_products, wrong, copy, forks = 0, 0, 0, 0, 0, "", [0]
    for number, found in enumerate(STEP.finditer(response), 1):
        first, operation, digit, result = found.groups()
        follows = apply(int(first or value), operation, int(digit), modulus) == int(result)
        right += follows
        products += operation == "*"
        right_products += follows and operation == "*"
        wrong = wrong or (0 if follows else number)
        copy += f"{first}{operation}{digit}"
        forks.append(found.end() - 1)
        value = int(result)
    steps = len(forks) - 1
    return Description("steps", steps, right, wrong, products, right_products, f"{copy}:" == prompt, tuple(forks))
