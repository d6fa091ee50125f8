import subprocess
import sys
from fractions import Fraction

import pytest

from erltool import ErltoolError, load_task
from erltool.tasks.countdown import (
    countdown_problem,
    countdown_reward,
    integer_expressions,
    is_held_out,
    parse_expression,
)

PROBLEM = countdown_problem((3, 5, 7), 22)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("3*5+7", 1), ("3*5+7=22", 1), ("7+(5*3)", 1), ("3+5*7=38,3*5+7=22", 1), ("3*5+7=99", 1), (" 3*5+7 ", 1),
        ("3*5+7=22,3+5+7=15", 0), ("3*5+7,", 0), ("3*5", 0), ("3*5+7+0", 0), ("3*3+5+7", 0), ("22", 0), ("", 0),
        ("3*5+7==22", 0), ("3**5+7", 0), ("3*5+7;", 0), ("3 * 5 + 7", 0), ("+3*5+7", 0), ("-3", 0), ("(3*5+7", 0),
        ("3*5+7)", 0), ("3//5", 0), ("3/(5-5)", 0), ("__import__('os').system('true')", 0), ("3*5+7\x00", 0),
        ("3*5+٧", 0), ("９*5", 0), ("1e9", 0), ("0x16", 0), ("3*5+7 #", 0), ("=22", 0), ("\ud800", 0),
    ],
)  # fmt: skip
def test_reward_table(response, reward):
    assert countdown_reward(PROBLEM, response) == reward


@pytest.mark.parametrize(
    "hostile",
    ["(" * 10**6, "9" * 10**6, "9*" * 120 + "9", "(" * 100 + "1" + ")" * 100, "1/" * 127 + "3", "-" * 250, ",=" * 120],
)
def test_hostile_responses_are_wrong_quickly(hostile):
    assert countdown_reward(PROBLEM, hostile) == 0


def test_parser_is_exact_and_knows_precedence():
    assert parse_expression("7-3/5*2-1")[0] == Fraction(24, 5)
    assert parse_expression("8-(4-(2-1))") == (Fraction(5), [8, 4, 2, 1])


@pytest.mark.parametrize(
    ("text", "words"),
    [("1+", "ends"), ("1/0", "zero"), ("1 2", "character"), ("12)", "does not end"), ("9999999999", "value beyond")],
)
def test_parser_says_what_is_wrong(text, words):
    with pytest.raises(ErltoolError, match=words):
        parse_expression(text)


def test_train_and_held_out_share_no_problem_in_any_order():
    task = load_task("countdown")
    train, held_out = ({(tuple(sorted(p.numbers)), p.target) for p in side} for side in (task.train, task.held_out))
    assert not train & held_out
    assert 0.08 < len(held_out) / (len(train) + len(held_out)) < 0.12
    assert len({p.prompt for p in task.train}) == len(task.train)


def test_every_problem_can_be_solved():
    task = load_task("countdown")
    for problem in [*task.train[::500], *task.held_out[::100]]:
        expressions = integer_expressions(tuple(sorted(problem.numbers)))
        right = [text for text, value in expressions.items() if value == problem.target]
        assert right and all(task.reward(problem, text) == 1 for text in right)


def test_the_split_is_the_same_in_every_process():
    code = (
        "from erltool.tasks.countdown import is_held_out; "
        "print(sum(is_held_out((a, b, 7), 20) << (a * 9 + b) for a in range(9) for b in range(9)))"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": s}).stdout
        for s in ("1", "2")
    }
    here = sum(is_held_out((a, b, 7), 20) << (a * 9 + b) for a in range(9) for b in range(9))
    assert found == {f"{here}\n"}


def test_unknown_task_is_named():
    with pytest.raises(ErltoolError, match="'sudoku' is not known"):
        load_task("sudoku")
