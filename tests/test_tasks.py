import json
import math
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest

from erltool import ErltoolError, load_task, train
from erltool.policies.load import load_policy
from erltool.tasks.task import BatchVerifier, Problem, Task, dataset_folder, in_held_out, problems_of, read_rows
from erltool.training.evaluate import evaluate


def dapo_row(index, number):
    """A row with the columns of BytedTsinghua-SIA/DAPO-Math-17k."""
    return {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": f"Solve the following math problem step by step.\n\nWhat is {number}?"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": str(number), "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"id-{index}"},
    }


@pytest.fixture
def datasets_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dataset_folder().mkdir(parents=True)
    return dataset_folder()


def write(file, rows):
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


def test_dapo_drops_the_rows_that_the_hub_repeats(datasets_here):
    write(datasets_here / "dapo-math-train.parquet", [dapo_row(i % 60, i % 60) for i in range(300)])
    task = load_task("dapo-math")
    assert len(task.train) + len(task.held_out) == 60
    problem = task.train[0]
    assert problem.prompt.startswith("Solve the following") and problem.prompt.endswith(f"What is {problem.answer}?")
    assert task.reward(problem, f"Answer: {problem.answer}") == 1 and task.reward(problem, "Answer: -3") == 0


def test_gsm8k_and_math_columns(datasets_here):
    rows = [{"question": f"How many is {i}?", "answer": f"Count to {i}.\n#### 1,{i:03d}"} for i in range(3)]
    for split in ("train", "test"):
        write(datasets_here / f"gsm8k-{split}.jsonl", rows)
        write(datasets_here / f"math-{split}.jsonl", [
            {"problem": f"p{i}", "level": "1", "type": "Algebra", "solution": rf"Thus $\boxed{{\frac{{{i}}}{{2}}}}$."}
            for i in range(3)
        ])  # fmt: skip
    gsm8k, math = load_task("gsm8k"), load_task("math")
    assert [p.answer for p in gsm8k.train] == ["1,000", "1,001", "1,002"] and len(gsm8k.held_out) == 3
    assert gsm8k.reward(gsm8k.train[1], "The answer is 1001") == 1
    assert gsm8k.examples(1)[0] == ("How many is 0?", "Count to 0.\n#### 1,000")
    assert [p.answer for p in math.train] == [r"\frac{0}{2}", r"\frac{1}{2}", r"\frac{2}{2}"]
    assert math.reward(math.train[1], r"\boxed{0.5}") == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_any_file_with_a_prompt_and_an_answer(tmp_path, suffix):
    rows = [{"prompt": f"What is {i}?", "answer": i} for i in range(200)]
    task = load_task(write(tmp_path / f"mine{suffix}", rows))
    assert len(task.train) + len(task.held_out) == 200 and 8 <= len(task.held_out) <= 35
    assert not {p.prompt for p in task.train} & {p.prompt for p in task.held_out}
    assert all(in_held_out(p.prompt) for p in task.held_out)
    assert all(task.reward(p, f"that makes {p.answer}") == 1 for p in task.train[:5])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "x", "answer": 1}], "row 0 has no prompt; it needs one of the columns prompt, question, problem"),
        ([{"prompt": "x"}], "row 0 has no readable answer"),
        ([{"prompt": "x", "answer": 1}, {"prompt": "", "answer": 2}], "row 1 has no prompt"),
        ([{"problem": "x", "solution": "no box here"}], "no readable answer"),
        ([{"prompt": [{"role": "system", "content": "s"}], "answer": 1}], "row 0 has no prompt"),
        ([{"prompt": "x", "answer": 1}, {"prompt": "y", "answer": math.nan}], "row 1 has no readable answer"),
        ([{"prompt": "x", "answer": "None"}], "row 0 has no readable answer"),
        ([{"prompt": "x", "answer": "nan"}], "row 0 has no readable answer"),
        ([{"prompt": "x", "answer": []}], "row 0 has no readable answer"),
        ([{"prompt": "x", "answer": {"a": 1}}], "row 0 has no readable answer"),
        ([{"prompt": "x", "answer": r"so \boxed{}"}], "row 0 has no readable answer"),
        ([], "data set is empty"),
    ],
)
def test_bad_rows_are_named(rows, words):
    with pytest.raises(ErltoolError, match=words):
        problems_of("mine", rows)


def test_a_boxed_answer_is_read_in_any_column():
    assert problems_of("mine", [{"prompt": "x", "answer": r"Two and two, so $\boxed{4}$."}])[0].answer == "4"


def test_true_answers_that_are_no_mathematics_are_said_at_load(tmp_path):
    rows = [{"prompt": f"p{i}", "answer": str(i)} for i in range(60)]
    rows[7]["answer"] = "First we count the apples, and then we add the others"
    rows[8]["answer"] = r"\frac{1}{2"
    with pytest.warns(UserWarning, match="2 true answers are not readable as mathematics, e.g. 'First we") as said:
        task = load_task(write(tmp_path / "mine.jsonl", rows))
    assert len(said) == 1
    prose, broken = (next(p for p in (*task.train, *task.held_out) if p.prompt == f"p{i}") for i in (7, 8))
    assert task.rewards([prose, broken], [f"Answer: {prose.answer}", f"Answer: {broken.answer}"]) == [1, 1]
    with pytest.warns(UserWarning, match="only the same text will be right"):
        assert task.reward(prose, "Answer: x") == 0


def counted(calls):
    """A task whose verifier records the size of each batch."""

    def many(problems, responses):
        calls.append(len(problems))
        return [float(len(r) % 2) for p, r in zip(problems, responses, strict=True)]

    problems = [Problem(f"{i}+1=", str(i + 1), "2") for i in range(8)]
    return Task("counted", problems, problems, BatchVerifier(many))


def test_a_batch_is_asked_at_once_and_a_verifier_of_ones_own_is_kept():
    calls = []
    task = counted(calls)
    assert task.rewards(task.train[:3], ["a", "bb", "ccc"]) == [1, 0, 1] and calls == [3]
    assert task.reward(task.train[0], "a") == 1 and calls == [3, 1]
    mine = replace(task, verify=lambda problem, response: response == problem.answer)
    assert mine.rewards(mine.train[:2], ["1", "3"]) == [1.0, 0.0] and calls == [3, 1]
    with pytest.raises(ValueError):
        mine.rewards(mine.train[:2], ["1"])


def test_training_and_evaluation_ask_for_a_batch(tiny_config, tiny_policy, monkeypatch):
    calls = []
    task = counted(calls)
    monkeypatch.setattr("erltool.training.loop.load_task", lambda name: task)
    steps = list(train(tiny_config(steps=2, eval_every=0)))
    assert calls == [16] and {int(r) for r in steps[0].rewards} <= {0, 1}
    found = evaluate(load_policy(str(tiny_policy), lora_rank=0), task, task.held_out[:3], 2, max_response_tokens=4)
    assert calls == [16, 6] and found.rewards.shape == (3, 2)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ErltoolError, match="no such file"):
        load_task(str(tmp_path / "no.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "answer": 1}\n{"prompt": \n')
    with pytest.raises(ErltoolError, match="bad.jsonl: line 2 is not JSON"):
        read_rows(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    with pytest.raises(ErltoolError, match="line 1 is not a JSON object"):
        read_rows(tmp_path / "bad.jsonl")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ErltoolError, match="bad.parquet: not readable as Parquet"):
        load_task(str(tmp_path / "bad.parquet"))
    with pytest.raises(ErltoolError, match="1 problems to train on and 0 held out|0 problems .* and 1 held out"):
        load_task(write(tmp_path / "one.jsonl", [{"prompt": "a", "answer": 1}]))


def test_out_of_reach_says_what_to_place_where(datasets_here, monkeypatch):
    monkeypatch.setattr("erltool.tasks.task.hub_reachable", lambda: False)
    with pytest.raises(
        ErltoolError, match="split train with datasets' to_parquet, and place the file here as .*gsm8k-train"
    ):
        load_task("gsm8k")


def test_a_missing_package_is_named(datasets_here, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ErltoolError, match="pip install datasets"):
        load_task("gsm8k")
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ErltoolError, match="pip install reasoning-gym"):
        load_task("reasoning-gym:chain_sum")


def test_reasoning_gym_by_name_with_options():
    name = "reasoning-gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1"
    task, again = load_task(name), load_task(name)
    assert [p.prompt for p in task.train] == [p.prompt for p in again.train]
    assert len({p.prompt for p in task.train}) == len(task.train) > 100
    problem = task.held_out[0]
    assert task.reward(problem, f"It is {problem.answer}") == 1
    for bad, words in (
        ("chain_sum,min_terms", "not an option"),
        ("no_such", "refuses it"),
        ("chain_sum,x=1", "refuses it"),
    ):
        with pytest.raises(ErltoolError, match=words):
            load_task(f"reasoning-gym:{bad}")


def test_countdown_of_other_bounds_shares_no_problem_across_the_split():
    small, whole = load_task("countdown:6,30"), load_task("countdown")
    assert all(max(p.numbers) <= 6 and p.target <= 30 for p in (*small.train, *small.held_out))
    assert set(small.train) < set(whole.train) and set(small.held_out) < set(whole.held_out)
    assert load_task("countdown:9,99").train == whole.train
    for bad in ("countdown:", "countdown:6", "countdown:1,30", "countdown:99,30", "countdown:6,x", "countdowns"):
        with pytest.raises(ErltoolError, match="countdown"):
            load_task(bad)


def test_addition_and_its_examples():
    task = load_task("addition:12")
    assert len(task.train) + len(task.held_out) == 144
    assert task.examples(2)[0] == ("What is 1+1?", "1+1=2")
    assert task.reward(task.train[0], "1+1=2") == 1 and task.reward(task.train[0], "1+1=3") == 0
    for bad in ("addition:x", "addition:1", "addition:9999"):
        with pytest.raises(ErltoolError, match="write addition:HIGHEST"):
            load_task(bad)
    with pytest.raises(ErltoolError, match="use shots=0"):
        load_task("countdown").examples(1)
