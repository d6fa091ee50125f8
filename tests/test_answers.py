"""Which text of a response is its answer, and what it equals: the table of answer_cases.py and its functions."""

import random
import time

import pytest
from answer_cases import CASES

from erltool.tasks.answers import explicit_answer, extract_answer, last_lines, plain, tidy
from erltool.tasks.equality import for_library, known_unit, number, plainly_same, same_number
from erltool.tasks.judge import Judge

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def verdicts():
    """Every case in one batch and in another order: a reward depends on the response alone."""
    order = random.Random(0).sample(range(len(CASES)), len(CASES))
    judge = Judge(batch_seconds=60)
    rewards = judge.maths([CASES[i][0] for i in order], [CASES[i][1] for i in order])
    assert judge.not_judged == 0
    return dict(zip(order, rewards, strict=True))


@pytest.mark.parametrize(
    ("case", "truth", "response", "verdict"),
    [(i, *case) for i, case in enumerate(CASES)],
    ids=[ascii(f"{truth[:20]}-{response[:40]}-{verdict}-{i}") for i, (truth, response, verdict) in enumerate(CASES)],
)
def test_the_verdict_is_what_a_careful_person_says(verdicts, case, truth, response, verdict):
    assert verdicts[case] == verdict


def test_the_table_is_large_and_says_nothing_twice():
    assert len(CASES) >= 150 and {verdict for *_, verdict in CASES} == {0, 1}
    assert len({(truth, response) for truth, response, _ in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{42}", "42"), (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\fbox{x}", "x"),
        (r"\boxed{unclosed", None), (r"\boxed{}", None), ("Answer: 7", "7"), ("answer: $3/4$.", "3/4"),
        ("Answer: 5\nAnswer: **8**\nbye", "8"), ("it is 1,234 or -5.5", "1,234 or -5.5"), ("a 12 b", "12"),
        ("none", None), ("", None), (r"\boxed{3} Answer: 4", "3"), ("x" * 200_000 + " 9", "9"),
        (r"\boxed{1}, $\boxed{2}$", "1,2"),
        (r"\boxed{\{1\}}", r"\{1\}"), ("<answer>a</answer> <answer>b</answer>", "b"), ("<answer>a", None),
        (r"\boxed{1} <answer>2</answer>", "2"), (r"<answer>2</answer> \boxed{1}", "1"), ("5</think>6", "6"),
        ("The answer is 4. So 2+2=4, not 5.", "4"), ("whether the answer is right. It is 6", "6"),
        ("#### 8\n9", "8"), ("Answer: 8\n9", "8"), ("Answer:\n8\n9", "8\n9"), ("Answer: \\[\nx\n\\]\n3", "x"),
         ("In 3 days, then 42 of them", "42"), ("1+1=2", "2"), ("-3", "-3"),
    ],
)  # fmt: skip
def test_extraction(response, answer):
    assert extract_answer(response) == answer


def test_an_answer_of_several_lines_is_taken_as_it_is_written():
    assert explicit_answer("Answer:\n1 2\n3 4\nDone", lines=2) == ("1 2\n3 4", True)
    assert explicit_answer("Answer: _ Q\nQ _", lines=2) == ("_ Q\nQ _", True)
    assert explicit_answer('Answer: {"a":\n 1}\nDone') == ('{"a":\n 1}', True)
    assert explicit_answer(r"\boxed{" + "x" * 3000 + "}", limit=3000) == ("x" * 3000, True)
    assert explicit_answer(r"\boxed{" + "x" * 3001 + "}", limit=3000) == (None, True)
    assert explicit_answer("no mark") == (None, False)
    assert last_lines("a\n1 2\n3 4\n", 2) == "1 2\n3 4"
    assert last_lines("a\n```\n1 2\n3 4\n```", 2) == "1 2\n3 4"
    assert last_lines('so\n\n{"a":\n1}', 1) == '{"a":\n1}'
    assert last_lines("", 1) == ""


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("7", "7.0", True), ("1,000", "1000", True), ("1/2", "0.5", True), ("2/4", "1/2", True), ("7", "8", False),
        ("1/0", "1", False), ("x", "1", None), ("1e5", "100000", True), ("٧", "7", None), ("$3", "3", True),
        ("1,2", "12", None), ("0.333333", "1/3", True), ("0.33333", "1/3", False), ("0.5000001", "1/2", False),
        ("0.0000001", "1/3000000", False), ("50%", "0.5", True), ("50%", "50", True), ("0.5", "50%", True),
        ("x=5", "5", True), ("x=5", "y=5", None), ("5 m", "5 cm", False), ("5 m", "5", True), ("5", "5m", None),
        ("1e999", "1e998", False), ("9" * 900, "9" * 900, True), ("1.5e-3", "0.0015", True), ("2 3/2", "3.5", None),
    ],
)  # fmt: skip
def test_plain_numbers(a, b, same):
    assert same_number(a, b) is same


def test_units_have_one_name():
    names = (
        "square meters",
        "m^2",
        "sq m",
        "meters per second",
        "m/s",
        "km/h",
        "dollars",
        "inches",
        "cubic cm",
        "apples",
    )
    assert [known_unit(name) for name in names] == ["m^2", "m^2", "m^2", "m/s", "m/s", "km/h", "$", "in", "cm^3", ""]
    assert known_unit("feet") == known_unit("foot") == "ft" and known_unit("cents") != known_unit("dollars")


def test_a_number_keeps_what_it_is_of():
    assert (number("x = $5").unit, number("x = $5").name, number("-2 1/2").value) == ("$", "x", -2.5)
    assert number("5t", strict=True) is None and number("5 m", strict=True) is None and number("5 m").unit == "m"


def test_what_the_library_reads_wrong_is_written_out():
    assert for_library("1 2") == "1,2" and for_library(r"1 \quad 2") == "1, 2"
    assert for_library("2 1/2 x") == r"2\frac{1}{2} x" and for_library("3.5e2x^2") == r"3.5e2x^2"
    assert for_library("1,234, 5") == "1234, 5" and for_library(r"\{1{,}234\}") == r"\{1234\}"
    assert for_library("2 sin(x)") == r"2 \sin (x)" and for_library(r"\log_2 8") == r"\log_2 8"
    assert for_library("x}{") == for_library("{x") == ""


ALPHABET = [*"0123456789.,/-+=^_(){}[]<>|$%&'!? \n\tabexyAEI°²½–−×·", "\\frac", "\\boxed{", "\\text{", "answer",
            "Answer:", "<answer>", "</answer>", "</think>", "The answer is ", "and", "or", "\\,", "\\%", "million",
            "cm", "\\\\",
            "\\overline{", "\x00", "\ud800", "٧", "####", "$$", "e5", "\\times", "\\begin{x}", "\\sqrt"]  # fmt: skip


def test_no_text_raises_and_none_takes_long():
    draw = random.Random(0)
    for _ in range(3000):
        truth, response = ("".join(draw.choices(ALPHABET, k=draw.randint(0, 25))) for _ in range(2))
        answer = extract_answer(response) or ""
        assert plainly_same(truth, answer) in (True, False, None)
        assert isinstance(for_library(answer), str) and tidy(plain(answer)) is not None
    for piece in ALPHABET + [
        "1,",
        "1 ",
        "1,000",
        " 1/",
        "answer is x ",
        "<answer>1</answer>",
        "\\boxed{1}",
        "or 1 ",
        "1e",
    ]:
        hostile = (piece * 100_000)[:100_000]
        before = time.process_time()
        plainly_same("42", extract_answer(hostile) or "")
        plainly_same(hostile[:1000], hostile[1:1000])
        for_library(hostile[:1000])
        explicit_answer(hostile, 9, 10_000)
        assert time.process_time() - before < 1, piece
