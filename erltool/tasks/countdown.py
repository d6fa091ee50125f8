"""Countdown: problems, a train and held-out split that no seed changes, and a verifier that is safe on hostile text.

Combine the numbers, each once, with + - * / to make the target. A response holds attempts, separated by commas, each
optionally followed by "=value":

    prompt    "3 5 7=22:"
    response  "3+5*7=38,3*5+7=22"

Only the expression of the last attempt counts; the value that it claims does not. No text is evaluated as code: the
parser below knows integers, + - * / and parentheses, and its work is bounded.
"""

import hashlib
import itertools
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from erltool.errors import ErltoolError

MAX_CHARS = 256
MAX_DEPTH = 16
MAX_MAGNITUDE = 10**9
HELD_OUT_PARTS = 10  # one problem in ten is held out

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_TOKEN = re.compile(r"[0-9]{1,10}|[-+*/()]")
_CLAIM = re.compile(r"=-?[0-9]{1,10}\Z")


@dataclass(frozen=True)
class Countdown:
    """One prompt, its numbers and its target."""

    prompt: str
    numbers: tuple[int, ...]
    target: int


def countdown_reward(problem: Countdown, response: str) -> float:
    """1.0 if the last attempt uses each number once and makes the target, else 0.0."""
    if len(response) > MAX_CHARS:
        return 0.0
    attempt = _CLAIM.sub("", response.rsplit(",", 1)[-1].strip())
    try:
        value, numbers = parse_expression(attempt)
    except ErltoolError:
        return 0.0
    return float(value == problem.target and sorted(numbers) == sorted(problem.numbers))


def parse_expression(text: str) -> tuple[Fraction, list[int]]:
    """Exact value of an arithmetic expression, and its integers in order.

    Grammar: expr = term (+|- term)*; term = atom (*|/ atom)*; atom = integer | ( expr ). No unary sign.
    Raises ErltoolError for any other text, for division by zero, and for more than MAX_CHARS characters, MAX_DEPTH
    nested parentheses, or MAX_MAGNITUDE in a numerator or denominator.
    """
    if len(text) > MAX_CHARS:
        raise ErltoolError(f"expression of {len(text)} characters: at most {MAX_CHARS}")
    tokens = _TOKEN.findall(text)
    if sum(map(len, tokens)) != len(text):
        raise ErltoolError("expression has a character other than digits, + - * / and parentheses")
    numbers: list[int] = []
    value, end = _binary(tokens, 0, 0, numbers, "+-")
    if end != len(tokens):
        raise ErltoolError(f"expression does not end after token {end}")
    return value, numbers


def _binary(tokens: list[str], at: int, depth: int, numbers: list[int], operators: str) -> tuple[Fraction, int]:
    """The value of a sum ("+-") or a product ("*/") that begins at a token, and where it ends."""

    def operand(at: int) -> tuple[Fraction, int]:
        in_sum = operators == "+-"
        return _binary(tokens, at, depth, numbers, "*/") if in_sum else _atom(tokens, at, depth, numbers)

    value, at = operand(at)
    while at < len(tokens) and tokens[at] in operators:
        right, after = operand(at + 1)
        if tokens[at] == "/" and right == 0:
            raise ErltoolError("expression divides by zero")
        value, at = _bounded(OPERATIONS[tokens[at]](value, right)), after
    return value, at


def _atom(tokens: list[str], at: int, depth: int, numbers: list[int]) -> tuple[Fraction, int]:
    if at >= len(tokens):
        raise ErltoolError("expression ends where a number is due")
    if tokens[at] == "(":
        if depth >= MAX_DEPTH:
            raise ErltoolError(f"expression nests deeper than {MAX_DEPTH}")
        value, at = _binary(tokens, at + 1, depth + 1, numbers, "+-")
        if at >= len(tokens) or tokens[at] != ")":
            raise ErltoolError("expression has an unclosed parenthesis")
        return value, at + 1
    if not tokens[at].isdigit():
        raise ErltoolError(f"expression has {tokens[at]!r} where a number is due")
    numbers.append(int(tokens[at]))
    return _bounded(Fraction(numbers[-1])), at + 1


def _bounded(value: Fraction) -> Fraction:
    if abs(value.numerator) > MAX_MAGNITUDE or value.denominator > MAX_MAGNITUDE:
        raise ErltoolError(f"expression has a value beyond {MAX_MAGNITUDE}")
    return value


# --- Countdown's problems -------------------------------------------------------------------------

FORMS = ("{a}{p}{b}{q}{c}", "({a}{p}{b}){q}{c}", "{a}{p}({b}{q}{c})")


def integer_expressions(numbers: tuple[int, ...]) -> dict[str, int]:
    """Every expression of three numbers in FORMS with an integer value, and that value.

    Expressions with needless parentheses are left out, so that each has one spelling.
    """
    values = {}
    for a, b, c in set(itertools.permutations(numbers)):
        for p, q in itertools.product("+-*/", repeat=2):
            for form in FORMS:
                text = form.format(a=a, b=b, c=c, p=p, q=q)
                if "(" in text and not _parentheses_matter(form, p, q):
                    continue
                try:
                    value, _ = parse_expression(text)
                except ErltoolError:
                    continue
                if value.denominator == 1:
                    values[text] = int(value)
    return values


def _parentheses_matter(form: str, p: str, q: str) -> bool:
    if form.startswith("("):  # (a p b) q c
        return p in "+-" and q in "*/"
    return p == "/" or (p in "-*" and q in "+-")  # a p (b q c)


def countdown_problem(numbers: tuple[int, ...], target: int) -> Countdown:
    """The problem of making `target` from `numbers`; the prompt keeps their order."""
    return Countdown(f"{' '.join(map(str, numbers))}={target}:", tuple(numbers), target)


def is_held_out(numbers: Sequence[int], target: int) -> bool:
    """Whether a problem is held out, by its target and sorted numbers: all orders of the numbers are on one side."""
    return in_held_out(f"countdown:{sorted(numbers)}:{target}")


def in_held_out(text: str) -> bool:
    """Whether a text is held out: by a hash that, unlike Python's own, is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT_PARTS == 0


def countdown_problems(highest: int = 9, max_target: int = 99) -> tuple[list[Countdown], list[Countdown]]:
    """Training and held-out problems: three numbers from 1 to `highest` in every order, and every target from 0 to
    `max_target` that they can make."""
    train: list[Countdown] = []
    held_out: list[Countdown] = []
    for numbers in itertools.combinations_with_replacement(range(1, highest + 1), 3):
        reached = set(integer_expressions(numbers).values())
        for target in sorted(t for t in reached if 0 <= t <= max_target):
            side = held_out if is_held_out(numbers, target) else train
            orders = sorted(set(itertools.permutations(numbers)))
            side.extend(countdown_problem(order, target) for order in orders)
    return train, held_out
