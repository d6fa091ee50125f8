"""Every data set of reasoning-gym: which answer its scorer gets, and which of its full scores are refused."""

import functools
import json
from collections import Counter
from decimal import Decimal

import pytest

from erltool import ErltoolError, load_task
from erltool.tasks import gym
from erltool.tasks.judge import Judge

reasoning_gym = pytest.importorskip("reasoning_gym")
from reasoning_gym.factory import DATASETS  # noqa: E402

SLOW = {"knight_swap"}  # a second an entry
NAMES = sorted(DATASETS.keys() - {"composite"})  # a mixture of other data sets
NO_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
RUBBISH = ("None", "", " ", "null", "nan", "inf", "rubbish", "{}", "[]", "\x00", "nan+nanj", "a" * 300,
           "__import__('os')", r"\boxed{None}", r"\boxed{}", "Answer: None", "<answer>None</answer>")  # fmt: skip


@functools.cache
def made(name):
    """A data set and a few of its entries."""
    dataset = reasoning_gym.create_dataset(name, size=1 if name in SLOW else 2, seed=5)
    return dataset, list(dataset)


@pytest.fixture(scope="module")
def judge():
    return Judge("reasoning_gym", batch_seconds=20)


@pytest.mark.parametrize("name", NAMES)
def test_rubbish_is_never_right_and_the_stored_answer_scores_what_the_library_gives_it(judge, name):
    dataset, entries = made(name)
    for entry in entries:
        stored = entry["answer"]
        said = [stored, f"I think.\n\nAnswer: {stored}", f"<answer>{stored}</answer>"] if stored else []
        scores = judge.gyms(name, [entry] * len(RUBBISH + (*said,)), [*RUBBISH, *said])
        assert max(scores[: len(RUBBISH)]) < 1
        assert scores[len(RUBBISH) :] == [dataset.score_answer(stored, entry)] * len(said)


@pytest.mark.parametrize("name", NAMES)
def test_a_worked_answer_is_right_or_there_is_none(name):
    dataset, entries = made(name)
    shown = [gym.worked_answer(name, entry, dataset.score_answer) for entry in entries]
    assert "None" not in shown
    assert all(not text or dataset.score_answer(text, entry) == 1 for text, entry in zip(shown, entries, strict=True))
    assert all(shown) or name in NO_ANSWER
    assert {entry["answer"] is None for entry in entries} == {name in NO_ANSWER}


@pytest.mark.parametrize("name", sorted(NO_ANSWER))
def test_a_set_without_answers_shows_one_of_its_own_or_refuses_shots(name):
    task = load_task(f"reasoning-gym:{name},size=30")
    assert all(task.reward(p, "None") < 1 for p in task.train[:2])
    if name in gym.WORKED:
        (prompt, shown), (other, _) = task.examples(2)
        assert prompt != other and "None" not in shown
        problem = next(p for p in task.train if p.prompt == prompt)
        assert task.rewards([problem, problem], [shown, f"It is\n\n{shown}"]) == [1, 1]
    else:
        with pytest.raises(ErltoolError, match="no right response to show; use shots=0"):
            task.examples(2)


@pytest.mark.parametrize(
    ("name", "stored", "wrong", "right"),
    [
        ("game_of_life_halting", "True", ["False", "yes", "0", "nothing halts"], ["True", "true", "Answer: True."]),
        ("complex_arithmetic", None, ["nan", "nan+nani", "0"], []),
        ("coin_flip", None, ["0", "0.", "1"], []),
        ("gsm_symbolic", None, ["-{}", "not {}", "Answer: {}0"], ["It is {}.", "<answer>{}</answer>", "{}.0"]),
        ("puzzle24", None, ["12 + 12*1*1", "6*4*1*1", "6+6+6+6"], []),
        ("chain_sum", None, ["−{}", "{}1"], ["It is {}", r"\boxed{{{}}}", "Answer: {}.", "**Answer:** {}"]),
    ],
)
def test_a_full_score_is_not_believed_where_the_answer_is_plainly_wrong(judge, name, stored, wrong, right):
    found = list(reasoning_gym.create_dataset(name, size=12, seed=3))
    entry = next(e for e in found if e["answer"] not in ("0", "1", "-1") and stored in (None, e["answer"]))
    scores = judge.gyms(name, [entry] * len(wrong + right), [r.format(entry["answer"]) for r in wrong + right])
    assert max(scores[: len(wrong)]) < 1
    assert scores[len(wrong) :] == [1] * len(right)


def test_what_a_problem_asks_for_is_no_answer_to_it(judge):
    """Copied from the problem: the integral to solve, the fraction to reduce, the division to do."""
    for name in ("simple_integration", "intermediate_integration"):
        entries = list(reasoning_gym.create_dataset(name, size=8, seed=3))
        copied = [f"Integral({e['metadata']['integrand']}, {e['metadata']['variable']})" for e in entries]
        for entry, answer in zip(entries, copied, strict=True):
            assert judge.gym(name, entry, answer) < 1 or entry["answer"] == answer
            assert judge.gym(name, entry, entry["answer"]) == 1
    for entry in reasoning_gym.create_dataset("fraction_simplification", size=8, seed=3, styles=("plain",)):
        metadata = entry["metadata"]
        copied = f"{metadata['numerator']}/{metadata['denominator']}"
        assert judge.gym("fraction_simplification", entry, copied) < 1, entry
        assert judge.gym("fraction_simplification", entry, entry["answer"]) == 1
    assert gym.answer_to("23", "69 / 3") == "69 / 3" and gym.answer_to("3/4", r"\boxed{\frac{6}{8}}") != "3/4"
    assert gym.answer_to("3/4", r"\boxed{\frac{3}{4}}") == "3/4" and gym.answer_to("23", "23.0") == "23"


def test_a_set_that_pays_anything_is_warned_of():
    with pytest.warns(UserWarning, match="propositional_logic,size=20: .* gets 0.86 on average"):
        load_task("reasoning-gym:propositional_logic,size=20")


def test_the_options_of_a_task_reach_its_scorer():
    """The scorer of decimal_arithmetic allows one unit in the last of its own decimal places."""
    for places, near in ((2, 1), (6, 0)):
        name = f"reasoning-gym:decimal_arithmetic,min_num_decimal_places=2,max_num_decimal_places={places},size=20"
        task = load_task(name)
        problem = next(p for p in task.train if abs(Decimal(p.answer)) > 1)
        assert task.reward(problem, f"{Decimal(problem.answer) + Decimal('0.005')}") == near


def test_an_answer_of_several_lines_is_read_without_a_mark(judge):
    dataset, (entry, _) = made("mini_sudoku")
    grid = entry["answer"]
    responses = [
        grid,
        f"Here it is.\n\n{grid}",
        f"So:\n```\n{grid}\n```",
        f"Answer:\n{grid}\nDone.",
        grid.partition("\n")[2],
    ]
    assert judge.gyms("mini_sudoku", [entry] * 5, responses)[:4] == [1] * 4
    coloring = made("graph_color")[1][0]
    shown = json.dumps(coloring["metadata"]["possible_answer"], indent=1)
    assert judge.gyms("graph_color", [coloring] * 2, [f"So:\n\n{shown}", f"Answer: {shown}"]) == [1, 1]


@pytest.mark.parametrize("name", ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown",
                                  "puzzle24", "simple_integration", "polynomial_multiplication"])  # fmt: skip
def test_no_scorer_evaluates_a_response(judge, name, tmp_path):
    entry, file = made(name)[1][0], tmp_path / "evaluated"
    codes = [f"open({str(file)!r}, 'w')", f"[open({str(file)!r}, 'w') for i in '1']",
             "open(" + "+".join(f"chr({ord(c)})" for c in str(file)) + ",chr(119))"]  # fmt: skip
    assert max(judge.gyms(name, [entry] * 6, [f"Answer: {c}" for c in codes] + codes)) < 1
    assert not file.exists()


def test_formulas_are_read_and_calls_are_not():
    assert gym.formula("2*(3+x)**2/4 - 1.5*sin(0)") == gym.formula("(x + 3)**2/2")
    assert gym.formula("y + C", {"C": gym.formula("z")}) == gym.formula("y + z")
    for bad in ("x.y", "open(1)", "a if b else c", "__x__", "exec(x)", "'a'", "[1]", "x;y", "lambda: 1", "1 .real"):
        with pytest.raises(ValueError, match="no formula"):
            gym.formula(bad)


def test_sets_that_compare_texts_are_scored_as_the_library_does_without_a_process():
    judge = Judge("reasoning_gym")
    plain = Counter(
        gym.plain_score(n, made(n)[1][0], "x y") is not None for n in ("gcd", "maze", "syllogism", "chain_sum")
    )
    assert plain == {True: 3, False: 1}
    entry = made("gcd")[1][0]
    assert judge.gym("gcd", entry, f"It is {entry['answer']}") == 1 and judge._process is None
