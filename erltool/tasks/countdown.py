"""Countdown: problems, a split that no seed leaks across, and a verifier that is safe on hostile text.

Combine the given numbers, each once, with + - * / to make the target. A response may be a
search trace, attempts separated by commas, each optionally followed by "=value":

    prompt    "3 5 7=22:"
    response  "3+5*7=38,3*5+7=22"

Only the last attempt is judged, and only its expression: the claimed value is not trusted. Nothing is ever
evaluated as code; the parser below knows integers, + - * / and parentheses, and its work is bounded.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from erltool.errors import ErltoolError

MAX_CHARS = 256
MAX_DEPTH = 16
MAX_MAGNITUDE = 10**9
HELD_OUT_PARTS = 10  # one problem in ten is held out

_TOKEN = re.compile(r"[0-9]{1,10}|[-+*/()]")
_CLAIM = re.compile(r"=-?[0-9]{1,10}\Z")


@dataclass(frozen=True)
class Countdown:
    """One prompt and what its verifier needs."""

    prompt: str
    numbers: tuple[int, ...]
    target: int


def countdown_reward(problem: Countdown, response: str) -> float:
    """Reward of a response in {0.0, 1.0}: does its last attempt use each number once and hit the target?"""
    if len(response) > MAX_CHARS:
        return 0.0
    attempt = _CLAIM.sub("", response.rsplit(",", 1)[-1].strip())
    try:
        value, numbers = parse_expression(attempt)
    except ErltoolError:
        return 0.0
    return float(value == problem.target and sorted(numbers) == sorted(problem.numbers))


def parse_expression(text: str) -> tuple[Fraction, list[int]]:
    """Exact value of an arithmetic expression, and the integers it used, in order.

    Grammar: expr = term (+|- term)*; term = atom (*|/ atom)*; atom = integer | ( expr ). No unary sign.
    Raises ErltoolError on anything else, on division by zero, and beyond MAX_CHARS characters, MAX_DEPTH
    parentheses or MAX_MAGNITUDE in any numerator or denominator.
    """
    if len(text) > MAX_CHARS:
        raise ErltoolError(f"expression of {len(text)} characters: at most {MAX_CHARS}")
    tokens = _TOKEN.findall(text)
    if sum(map(len, tokens)) != len(text):
        raise ErltoolError("expression has a character other than digits, + - * / and parentheses")
    numbers: list[int] = []
    value, end = _sum(tokens, 0, 0, numbers)
    if end != len(tokens):
        raise ErltoolError(f"expression does not end after token {end}")
    return value, numbers


def _sum(tokens, at, depth, numbers):
    value, at = _product(tokens, at, depth, numbers)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _product(tokens, at + 1, depth, numbers)
        value = _bounded(value + right if tokens[at] == "+" else value - right)
        at = after
    return value, at


def _product(tokens, at, depth, numbers):
    value, at = _atom(tokens, at, depth, numbers)
    while at < len(tokens) and tokens[at] in "*/":
        right, after = _atom(tokens, at + 1, depth, numbers)
        if tokens[at] == "/" and right == 0:
            raise ErltoolError("expression divides by zero")
        value = _bounded(value * right if tokens[at] == "*" else value / right)
        at = after
    return value, at


def _atom(tokens, at, depth, numbers):
    if at >= len(tokens):
        raise ErltoolError("expression ends where a number is due")
    if tokens[at] == "(":
        if depth >= MAX_DEPTH:
            raise ErltoolError(f"expression nests deeper than {MAX_DEPTH}")
        value, at = _sum(tokens, at + 1, depth + 1, numbers)
        if at >= len(tokens) or tokens[at] != ")":
            raise ErltoolError("expression has an unclosed parenthesis")
        return value, at + 1
    if not tokens[at].isdigit():
        raise ErltoolError(f"expression has {tokens[at]!r} where a number is due")
    numbers.append(int(tokens[at]))
    return _bounded(Fraction(numbers[-1])), at + 1


def _bounded(value: Fraction) -> Fraction:
    if abs(value.numerator) > MAX_MAGNITUDE or value.denominator > MAX_MAGNITUDE:
        raise ErltoolError(f"expression leaves the range of {MAX_MAGNITUDE}")
    return value


# --- Countdown's problems -------------------------------------------------------------------------

FORMS = ("{a}{p}{b}{q}{c}", "({a}{p}{b}){q}{c}", "{a}{p}({b}{q}{c})")


def integer_expressions(numbers: tuple[int, ...]) -> dict[str, int]:
    """Every expression of three numbers in FORMS whose value is an integer, with that value.

    Parentheses that change nothing are left out, so that each expression is written in one way.
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
    """The problem of making `target` from `numbers`, in the order given."""
    return Countdown(f"{' '.join(map(str, numbers))}={target}:", tuple(numbers), target)


def is_held_out(numbers: Sequence[int], target: int) -> bool:
    """Whether a problem is held out: a stable hash of the sorted numbers and the target.

    Orders of the same numbers share a side, so no permutation of a training problem is ever held out.
    Python's own `hash` differs between processes and is not used.
    """
    return in_held_out(f"countdown:{sorted(numbers)}:{target}")


def in_held_out(text: str) -> bool:
    """Whether a text is held out: by a stable hash, the same in every process and for every seed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT_PARTS == 0


def countdown_problems(highest: int = 9, max_target: int = 99) -> tuple[list[Countdown], list[Countdown]]:
    """All problems over three numbers from 1 to `highest`, in every order, and every target from 0 to
    `max_target` that they reach: those to train on, and those held out."""
    train: list[Countdown] = []
    held_out: list[Countdown] = []
    for numbers in itertools.combinations_with_replacement(range(1, highest + 1), 3):
        reached = set(integer_expressions(numbers).values())
        for target in sorted(t for t in reached if 0 <= t <= max_target):
            side = held_out if is_held_out(numbers, target) else train
            orders = sorted(set(itertools.permutations(numbers)))
            side.extend(countdown_problem(order, target) for order in orders)
    return train, held_out
