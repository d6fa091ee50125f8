"""reasoning-gym's scorers, made safe: what they would evaluate, and what they call right and is not.

Several of its scorers hand a response to Python's `eval`, or to sympy's `parse_expr`, which is one. Here they get a
parser that knows numbers, lists and arithmetic. And a full score counts only where nothing plain speaks against it.
"""

import ast
import json
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from erltool.tasks.answers import MAX_ANSWER, explicit_answer, extract_answer, last_lines, tidy
from erltool.tasks.equality import number

# Where its data sets store no answer, the entry's metadata may have one that is right.
WORKED = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
TRUSTED = {"reasoning_gym.arithmetic.bitwise_arithmetic"}  # evaluates its own problem, not the answer
CALLS = frozenset("exp log ln sqrt sin cos tan sec csc cot asin acos atan sinh cosh tanh pi Abs Integral".split())
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:/[0-9]+)?")
_FORMULA = re.compile(r"(?:[A-Za-z0-9\s+*/^(),-]|\.(?=[0-9])|(?<=[0-9])\.(?![A-Za-z_]))*")


def answer_to(stored: str | None, response: str) -> str | None:
    """The answer that a response gives to a problem with this stored answer; None for none.

    It is the stored one, letter by letter, where it is the same number, or differs only in what surrounds it.
    """
    lines, limit = (stored or "").count("\n") + 1, max(10 * MAX_ANSWER, 2 * len(stored or ""))
    answer, said = explicit_answer(response, lines, limit)
    is_number = stored and _NUMBER.fullmatch(stored)
    if not said:
        answer = extract_answer(response) if is_number else last_lines(response, lines, limit)
    if not answer or not stored:
        return answer or None
    if not is_number:
        return stored if tidy(answer) == tidy(stored) else answer
    given = number(answer)
    return stored if given and given.unit != "%" and given.value == number(stored).value else answer


def plain_score(name: str, entry: dict, answer: str) -> float | None:
    """The score of a data set that compares texts, as the library does it; None for one with a scorer of its own."""
    try:
        from reasoning_gym.dataset import ProceduralDataset
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return None
    if name not in DATASETS or DATASETS[name][0].score_answer is not ProceduralDataset.score_answer:
        return None
    return ProceduralDataset.score_answer(None, answer, entry)


_made: dict[tuple[str, str], Any] = {}


def scorer(questions: list) -> Callable[..., float]:
    """The function that scores these questions, (data set, options, entry, answer) each; makes the data sets."""
    for name, options, *_ in questions:
        dataset(name, options)
    _disarm()
    return score


def dataset(name: str, options: dict):
    """The data set with these options, which its scorer may read."""
    import reasoning_gym

    key = name, repr(sorted(options.items()))
    if key not in _made:
        _made[key] = reasoning_gym.create_dataset(name, **{"seed": 0} | options | {"size": 1})
    return _made[key]


def score(name: str, options: dict, entry: dict, answer: str) -> float:
    """Score in [0, 1] of an answer by the data set's own scorer, and 0 where a full one is plainly not deserved."""
    found = dataset(name, options).score_answer(answer, entry)
    return 0.0 if found >= 1 and plainly_wrong(name, entry, answer) else found


def plainly_wrong(name: str, entry: dict, answer: str) -> bool:
    """Whether an answer is wrong whatever version 0.1.25's scorer says: it takes nan for every complex number, 0 for
    every chance that begins with it, -747 for 747, any text for True, and for 24 any four numbers that make it."""
    stored = entry["answer"]
    if name == "puzzle24":
        return sorted(map(int, re.findall(r"[0-9]+", answer))) != sorted(entry["metadata"]["numbers"])
    if stored is None or answer == stored:
        return False
    if stored in ("True", "False"):
        return answer.strip().casefold() != stored.casefold()
    if re.search(r"\bnan", answer, re.IGNORECASE) and "nan" not in stored.casefold():
        return True
    given, true = number(answer), number(stored)
    return bool(true) and (not given or abs(given.value - true.value) > abs(true.value) / 100 + Fraction(1, 1000))


def worked_answer(name: str, entry: dict, score_of: Callable[[str, dict], float]) -> str:
    """A right answer to show: the one that is stored, or the metadata's where the scorer finds that right; else ""."""
    if entry["answer"] is not None:
        return str(entry["answer"])
    found = entry["metadata"].get(WORKED.get(name))
    text = found if isinstance(found, str) else json.dumps(found) if found else ""
    return text if text and score_of(text, entry) == 1 else ""


# --- what a scorer may evaluate -------------------------------------------------------------------


def _disarm() -> None:
    """Takes `eval` and sympy's parser from the scorers of this process."""
    import sympy
    from sympy.parsing import sympy_parser

    for name, module in list(sys.modules.items()):
        if name.startswith("reasoning_gym.") and name not in TRUSTED:
            module.eval = ast.literal_eval
            if getattr(module, "parse_expr", None) is sympy_parser.parse_expr:
                module.parse_expr = formula
    sympy.parse_expr = formula


def formula(text: str, local_dict: dict | None = None):
    """What sympy's parser makes of a formula of numbers, variables of one letter, operators and CALLS.

    Raises ValueError for all else: that parser evaluates what it reads, with Python's own functions in reach.
    """
    from sympy.parsing.sympy_parser import parse_expr

    names = {name for name in re.findall(r"[^\W\d]\w*", text) if len(name) > 1}
    if not _FORMULA.fullmatch(text) or not names <= CALLS | set(local_dict or ()):
        raise ValueError("no formula")
    return parse_expr(text, local_dict=local_dict)
