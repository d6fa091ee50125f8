"""Makes reasoning-gym's scorers safe, and corrects those that accept a wrong answer.

Several scorers hand a response to Python's `eval` or to sympy's `parse_expr`, which calls it. Here they get a parser
of numbers, lists and arithmetic instead. A full score is checked again by `plainly_wrong`.
"""

import ast
import json
import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from erltool.tasks.answers import MAX_ANSWER, explicit_answer, extract_answer, last_lines, tidy
from erltool.tasks.equality import is_worked_out, number

# For data sets that store no answer: the field of the metadata with a right one.
WORKED = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
# Data sets whose scorers pay an answer that needs no look at the problem, and what version 0.1.25 pays for it.
PAYS_ANYTHING = {"propositional_logic": "(P \u2228 Q), the same for every problem, gets 0.86 on average"}
TRUSTED = {"reasoning_gym.arithmetic.bitwise_arithmetic"}  # calls eval on its own problem, never on the answer
CALLS = frozenset("exp log ln sqrt sin cos tan sec csc cot asin acos atan sinh cosh tanh pi Abs Integral".split())
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:/[0-9]+)?")
_FORMULA = re.compile(r"(?:[A-Za-z0-9\s+*/^(),-]|\.(?=[0-9])|(?<=[0-9])\.(?![A-Za-z_]))*")


def answer_to(stored: str | None, response: str) -> str | None:
    """The answer in a response to a problem with this stored answer, or None.

    An answer that is the same number, worked out, or differs only in what surrounds it, comes back in the stored
    spelling.
    """
    lines, limit = (stored or "").count("\n") + 1, max(10 * MAX_ANSWER, 2 * len(stored or ""))
    answer, said = explicit_answer(response, lines, limit)
    true = number(stored) if stored and _NUMBER.fullmatch(stored) else None
    if not said:
        answer = extract_answer(response) if true else last_lines(response, lines, limit)
    if not answer or not stored:
        return answer or None
    if not true:
        return stored if tidy(answer) == tidy(stored) else answer
    given = number(answer)
    worked = is_worked_out(answer) and ("/" not in stored or math.gcd(*map(int, re.findall(r"[0-9]+", answer))) == 1)
    return stored if given and worked and given.unit != "%" and given.value == true.value else answer


def plain_score(name: str, entry: dict, answer: str) -> float | None:
    """The library's score where a data set compares texts; None for a data set with a scorer of its own."""
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
    """The function that scores questions (data set, options, entry, answer); it makes their data sets at once."""
    for name, options, *_ in questions:
        dataset(name, options)
    _disarm()
    return score


def dataset(name: str, options: dict):
    """The data set with these options, of one entry; its scorer may read the options."""
    import reasoning_gym

    key = name, repr(sorted(options.items()))
    if key not in _made:
        _made[key] = reasoning_gym.create_dataset(name, **{"seed": 0} | options | {"size": 1})
    return _made[key]


def score(name: str, options: dict, entry: dict, answer: str) -> float:
    """Score in [0, 1] that the data set's scorer gives an answer, or 0 for a full score of a wrong answer."""
    value = dataset(name, options).score_answer(answer, entry)
    return 0.0 if value >= 1 and plainly_wrong(name, entry, answer) else value


def plainly_wrong(name: str, entry: dict, answer: str) -> bool:
    """Whether an answer is wrong although version 0.1.25's scorer may accept it. Some scorer accepts nan as any complex
    number, 0 as any probability 0.xxx, -747 as 747, any text as True, for 24 numbers that the puzzle lacks, and the
    integral that a problem asks for as its own solution."""
    stored = entry["answer"]
    if name == "puzzle24":
        return sorted(map(int, re.findall(r"[0-9]+", answer))) != sorted(entry["metadata"]["numbers"])
    if stored is None or answer == stored:
        return False
    if "Integral" in answer:
        return True
    if stored in ("True", "False"):
        return answer.strip().casefold() != stored.casefold()
    if re.search(r"\bnan", answer, re.IGNORECASE) and "nan" not in stored.casefold():
        return True
    given, true = number(answer), number(stored)
    return true is not None and (not given or abs(given.value - true.value) > abs(true.value) / 100 + Fraction(1, 1000))


def worked_answer(name: str, entry: dict, score_of: Callable[[str, dict], float]) -> str:
    """A right answer to show: the stored one, or the metadata's if the scorer gives it 1; else ""."""
    if entry["answer"] is not None:
        return str(entry["answer"])
    example = entry["metadata"].get(WORKED.get(name))
    text = example if isinstance(example, str) else json.dumps(example) if example else ""
    return text if text and score_of(text, entry) == 1 else ""


# --- what a scorer may evaluate -------------------------------------------------------------------


def _disarm() -> None:
    """Replaces `eval` and sympy's parser for every scorer in this process."""
    import sympy
    from sympy.parsing import sympy_parser

    for name, module in list(sys.modules.items()):
        if name.startswith("reasoning_gym.") and name not in TRUSTED:
            names = vars(module)
            names["eval"] = ast.literal_eval
            if names.get("parse_expr") is sympy_parser.parse_expr:
                names["parse_expr"] = formula
    sympy.parse_expr = formula


def formula(text: str, local_dict: dict | None = None):
    """sympy's expression for a formula of numbers, one-letter variables, operators and CALLS.

    Raises ValueError for any other text, because sympy's parser would evaluate it with Python's functions in reach.
    """
    from sympy.parsing.sympy_parser import parse_expr

    names = {name for name in re.findall(r"[^\W\d]\w*", text) if len(name) > 1}
    if not _FORMULA.fullmatch(text) or not names <= CALLS | set(local_dict or ()):
        raise ValueError("no formula")
    return parse_expr(text, local_dict=local_dict)
