"""Chain: arithmetic from left to right, modulo a number, answered at once or step by step.

    prompt    "3+5-2*7:"
    response  "=2"                    a guess
              ">3+5=8,-2=6,*7=2"      the same, step by step: 3+5 is 8, 8-2 is 6, 6*7 is 42, so 2

The reward is 1 if the response has one of these forms and its last digit is the answer. Steps are not rewarded, so a
guess can be right by luck, and wrong steps can end at the right digit. A prompt is generated from its index; a prompt
of more than three numbers rarely comes twice. A hash holds out one text in ten, the same for all settings. A response
can be described exactly: whether it works step by step, its first wrong step, and the characters at which it chooses.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from erltool.errors import ErltoolError
from erltool.tasks.countdown import OPERATIONS, in_held_out

SYMBOLS = "0123456789+-*=>,:"  # the characters of prompts and responses
TRAIN, HELD_OUT = 100_000, 2_000  # problems
TRIES = 10_000  # to draw a text of the wanted side; one in ten is held out
FORM = re.compile(r"=\d|>\d[-+*]\d=\d(?:,[-+*]\d=\d)*")
STEP = re.compile(r"(\d?)([-+*])(\d)=(\d)")


@dataclass(frozen=True)
class ChainSettings:
    """The numbers, operations and modulus of the problems. Raises ErltoolError for an impossible value."""

    numbers: tuple[int, int] = (2, 6)
    """Fewest and most numbers of a prompt; every count is equally likely."""
    two: float = 0.0
    """Fraction of prompts with exactly two numbers, whatever `numbers` says; a policy can memorise those."""
    ops: str = "+-"
    """Operations; all are equally likely."""
    modulus: int = 10

    def __post_init__(self):
        low, high = self.numbers
        known = self.ops and len(set(self.ops)) == len(self.ops) and set(self.ops) <= set("+-*")
        for holds, remedy in (
            (2 <= low <= high <= 12, f"numbers={low}-{high}: must be from 2 to 12, the lower first"),
            (0 <= self.two <= 1, f"two={self.two:g}: must be a fraction in [0, 1]"),
            (known, f"ops={self.ops!r}: must be some of + - *, each once"),
            (2 <= self.modulus <= 10, f"modulus={self.modulus}: must be from 2 to 10, for results of one digit"),
        ):
            if not holds:
                raise ErltoolError(f"task chain: {remedy}")

    def __str__(self) -> str:
        """The task's name."""
        low, high = self.numbers
        return f"chain:numbers={low}-{high},two={self.two:g},ops={self.ops},modulus={self.modulus}"


# The settings that the shipped policies of these names were made for.
REGIMES = {
    "sharpening": ChainSettings((2, 6), two=0.4),
    "discovery": ChainSettings((2, 5), ops="+-*"),
    "trap": ChainSettings((2, 6), two=0.4),
}


def parse_settings(name: str) -> ChainSettings:
    """Settings of "chain", "chain:discovery" or "chain:numbers=2-5,ops=+-*". Raises ErltoolError with an example."""
    rest = name.partition(":")[2]
    if rest in REGIMES:
        return REGIMES[rest]
    parsers: dict[str, Callable] = {"numbers": _range, "two": float, "ops": str, "modulus": int}
    options = {}
    for option in filter(None, rest.split(",")):
        key, _, value = option.partition("=")
        try:
            options[key] = parsers[key](value)
        except (KeyError, ValueError) as e:
            raise ErltoolError(
                f"task {name}: {option!r} is not a setting; write chain:{', chain:'.join(REGIMES)}, or "
                f"chain:numbers=2-5,ops=+-* with any of {', '.join(parsers)}"
            ) from e
    return ChainSettings(**options)


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


# --- problems ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """One prompt and its running values."""

    prompt: str
    values: tuple[int, ...]
    """The value after the first number, the second, and so on; the last one is the answer."""

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def response(self) -> str:
        """A right response, step by step."""
        first, *rest = re.findall(r"[-+*]?\d", self.prompt)
        return f">{first}" + ",".join(f"{step}={v}" for step, v in zip(rest, self.values[1:], strict=True))


class ChainProblems(Sequence):
    """The problems of one side of the split. Each is generated from its index when it is read; no seed changes it.

    Texts may repeat, so both sides have the same mix of lengths. Raises ErltoolError if one side has no text of the
    length asked for.
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
        # The count is drawn once, before the side is known, so that both sides have the same mix of lengths.
        count = 2 if rng.random() < settings.two else rng.randint(*settings.numbers)
        for _ in range(TRIES):
            problem = chain_problem(rng, count, settings)
            if in_held_out(problem.prompt) == self.held_out:
                return problem
        raise ErltoolError(f"task {settings}: {count} numbers give too few texts for both sides; use a larger modulus")


def chain_problem(rng: random.Random, count: int, settings: ChainSettings) -> Chain:
    """A random problem of `count` numbers, on either side of the split."""
    digits = [rng.randrange(settings.modulus) for _ in range(count)]
    text, values = str(digits[0]), [digits[0]]
    for digit in digits[1:]:
        operation = rng.choice(settings.ops)
        text += f"{operation}{digit}"
        values.append(apply(values[-1], operation, digit, settings.modulus))
    return Chain(f"{text}:", tuple(values))


def apply(value: int, operation: str, digit: int, modulus: int = 10) -> int:
    """value + digit, value - digit or value * digit, modulo `modulus`."""
    return OPERATIONS[operation](value, digit) % modulus


def chain_reward(problem: Chain, response: str) -> float:
    """1.0 for a response of one of the two forms whose last digit is the answer, else 0.0."""
    return float(FORM.fullmatch(response) is not None and response[-1] == problem.answer)


# --- what a response did ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """A response taken apart."""

    strategy: str
    """"guess", "steps", or "neither" for any other form."""
    steps: int = 0
    """Number of its steps."""
    right_steps: int = 0
    """Number of steps whose result follows from the value before."""
    first_wrong: int = 0
    """Number of the first step whose result does not follow, from 1; 0 for none."""
    products: int = 0
    """Number of steps that multiply."""
    right_products: int = 0
    copied: bool = False
    """Whether the steps use the prompt's numbers and operations, all of them in order."""
    forks: tuple[int, ...] = ()
    """Positions of the characters that choose: the strategy, and each result."""


def describe_chain(prompt: str, response: str, modulus: int = 10) -> Description:
    """Takes a response to a prompt apart. No text makes it raise."""
    if not FORM.fullmatch(response):
        return Description("neither", forks=(0,) if response else ())
    if response.startswith("="):
        return Description("guess", forks=(0, 1))
    value, right, products, right_products, wrong, copy, forks = 0, 0, 0, 0, 0, "", [0]
    for number, step in enumerate(STEP.finditer(response), 1):
        first, operation, digit, result = step.groups()
        follows = apply(int(first or value), operation, int(digit), modulus) == int(result)
        right += follows
        products += operation == "*"
        right_products += follows and operation == "*"
        wrong = wrong or (0 if follows else number)
        copy += f"{first}{operation}{digit}"
        forks.append(step.end() - 1)
        value = int(result)
    steps = len(forks) - 1
    return Description("steps", steps, right, wrong, products, right_products, f"{copy}:" == prompt, tuple(forks))
