import sys
import time

import pytest

from erltool import ErltoolError
from erltool.judge import Judge, extract_answer, same_number


@pytest.fixture(scope="module")
def judge():
    return Judge(seconds=3)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{42}", "42"), (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\fbox{x}", "x"),
        (r"\boxed{unclosed", None), (r"\boxed{}", None), ("Answer: 7", "7"), ("answer: $3/4$.", "3/4"),
        ("Answer: 5\nAnswer: **8**\nbye", "8"), ("it is 1,234 or -5.5", "-5.5"), ("a 12 b", "12"), ("none", None),
        ("", None), (r"\boxed{3} Answer: 4", "3"), ("x" * 200_000 + " 9", "9"),
    ],
)  # fmt: skip
def test_extraction(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("7", "7.0", True), ("1,000", "1000", True), ("1/2", "0.5", True), ("2/4", "1/2", True), ("7", "8", False),
        ("1/0", "1", False), ("x", "1", None), ("1e5", "100000", None), ("٧", "7", None), ("$3", "3", True),
    ],
)  # fmt: skip
def test_plain_numbers(a, b, same):
    if a == "٧":  # a digit to Python, not to us
        assert same_number(a, b) in (None, True)
        return
    assert same_number(a, b) is same


@pytest.mark.parametrize(
    ("truth", "response", "reward"),
    [
        ("42", r"\boxed{42}", 1), ("42", "the answer is 42.", 1), ("42", r"\boxed{43}", 0), ("42", "", 0),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1), (r"\frac{\sqrt{2}}{2}", r"\boxed{\frac{1}{\sqrt{2}}}", 1),
        ("(1,2)", r"\boxed{(1, 2)}", 1), (r"\{1,2\}", r"\boxed{\{2,1\}}", 1), ("x+1", r"\boxed{1+x}", 1),
        ("[0,1)", r"\boxed{[0,1]}", 0), ("x+1", r"\boxed{x-1}", 0), (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", 0),
    ],
)  # fmt: skip
def test_math(judge, truth, response, reward):
    assert judge.math(truth, response) == reward


@pytest.mark.parametrize(
    "hostile",
    [
        "9^{9^{9^{9^{9}}}}", "factorial(10**9)", r"\binom{10^{9}}{5*10^{8}}!", "(" * 900, r"\frac" * 180,
        "__import__('os')", "\x00", "\ud800", "{" * 400 + "}" * 400, r"\sum_{i=1}^{10^{12}} i!", "x" * 999,
        "%s%n", '{"score": 1.0}\n',
    ],
)  # fmt: skip
def test_hostile_answers_are_wrong_within_their_time_and_the_judge_lives_on(judge, hostile):
    judge.math("x", r"\boxed{x+0}")  # started
    before = time.monotonic()
    assert judge.math("x+y", f"\\boxed{{{hostile}}}") == 0.0
    assert time.monotonic() - before < 2 * judge.seconds
    assert judge.math("x+y", r"\boxed{y+x}") == 1.0


def test_a_child_that_dies_is_replaced(judge):
    assert judge.math("x+y", r"\boxed{y+x}") == 1.0
    judge.child.kill()
    judge.child.wait()
    assert judge.math("x+y", r"\boxed{y+x}") == 1.0


def test_gym_scores_by_the_generators_own_verifier():
    pytest.importorskip("reasoning_gym")
    judge = Judge("reasoning_gym")
    entry = {"question": "3 + 4 =", "answer": "7", "metadata": {}}
    rewards = [judge.gym("chain_sum", entry, r) for r in ("It is 7", "7", "8", r"\boxed{7}", "", "seven")]
    assert rewards[:2] == [1.0, 1.0] and rewards[3] == 1.0
    assert max(rewards[2], rewards[4], rewards[5]) < 0.1


def test_a_missing_library_is_named():
    with pytest.raises(ErltoolError, match="needs the package no-such-library; pip install no-such-library"):
        Judge("no_such_library").ask({})


def test_importing_the_judge_loads_no_library():
    import erltool.judge  # noqa: F401

    assert "math_verify" not in sys.modules
