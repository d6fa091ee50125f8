"""The chain task: problems, verifier, descriptions of responses, and what a run records of them."""

import json
import random

import numpy as np
import pytest
import torch

import erltool
from erltool import ErltoolError
from erltool.resources import shipped
from erltool.tasks.chain import (
    REGIMES,
    SYMBOLS,
    Chain,
    ChainProblems,
    ChainSettings,
    Description,
    apply,
    chain_problem,
    chain_reward,
    describe_chain,
    parse_settings,
)
from erltool.tasks.countdown import in_held_out
from erltool.tasks.task import load_task
from erltool.training.step import Described

PROBLEM = Chain("3+5-2*7:", (3, 8, 6, 2))


# --- problems --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chain", *(f"chain:{name}" for name in REGIMES), "chain:numbers=4,modulus=7,ops=*"])
def test_problems_are_what_the_settings_say_and_their_values_are_right(name):
    task, settings = load_task(name), parse_settings(name)
    counts, seen = set(), set()
    for problem in [*(task.train[i] for i in range(400)), *task.held_out[:400]]:
        text = problem.prompt.removesuffix(":")
        assert set(problem.prompt) <= set(SYMBOLS)
        digits, operations = [int(c) for c in text[::2]], text[1::2]
        value = digits[0]
        for operation, digit in zip(operations, digits[1:], strict=True):
            value = eval(f"({value}{operation}{digit}) % {settings.modulus}")  # the digits are the problem's
        assert str(value) == problem.answer and max(digits) < settings.modulus
        counts.add(len(digits))
        seen |= set(operations)
    assert counts == set(range(settings.numbers[0], settings.numbers[1] + 1)) and seen == set(settings.ops)


def test_a_split_is_by_text_and_the_same_in_every_world_and_process():
    for name in REGIMES:
        task = load_task(f"chain:{name}")
        assert not any(in_held_out(task.train[i].prompt) for i in range(300))
        assert all(in_held_out(p.prompt) for p in task.held_out[:300])
    # The index alone decides, by a generator and a hash that are the same in all versions of Python.
    assert [p.prompt for p in load_task("chain").held_out[:3]] == ["6-4-7-1+9:", "4+9+6+8+1:", "0-4:"]
    assert [load_task("chain").train[i].prompt for i in range(3)] == ["6-6:", "0+9+4:", "8-4:"]


def test_held_out_problems_are_like_those_trained_on():
    """Both sides have the same distribution, so that held-out accuracy and training reward can be compared."""
    task = load_task("chain:sharpening")
    lengths = [[len(p.prompt) // 2 for p in side] for side in (task.held_out, (task.train[i] for i in range(2000)))]
    shares = np.array([[row.count(n) / len(row) for n in range(2, 7)] for row in lengths])
    assert np.abs(shares[0] - shares[1]).max() < 0.05 and abs(shares[0][0] - 0.52) < 0.05


def test_prompts_run_out_of_no_run():
    """In a run of 500 iterations of 64 prompts, nearly all prompts of four numbers and more are new."""
    task, rng = load_task("chain:discovery"), random.Random(0)
    prompts = [task.train[rng.randrange(len(task.train))].prompt for _ in range(4000)]
    long = [p for p in prompts if len(p) >= 8]
    assert len(set(long)) > 0.98 * len(long)


def test_problems_are_a_sequence():
    problems = ChainProblems(ChainSettings(), 10, held_out=False)
    assert problems[-1] == problems[9] and problems[2:4] == [problems[2], problems[3]] and len(list(problems)) == 10
    for at in (10, -11):
        with pytest.raises(IndexError):
            problems[at]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chain:numbers=1-3", "numbers=1-3: must be from 2 to 12, the lower first"),
        ("chain:numbers=5-2", "numbers=5-2"),
        ("chain:two=1.5", "two=1.5: must be a fraction"),
        ("chain:two=nan", "two=nan: must be a fraction"),
        ("chain:ops=/", "ops='/': must be some of"),
        ("chain:ops=", "ops=''"),
        ("chain:ops=++", "ops='++'"),
        ("chain:modulus=11", "modulus=11: must be from 2 to 10"),
        ("chain:numbers=a", "'numbers=a' is not a setting"),
        ("chain:colour=3", "'colour=3' is not a setting"),
        ("chain:numbers=2,modulus=2,ops=*", "2 numbers give too few texts"),
        ("chain:trapp", "'trapp' is not a setting; write chain:sharpening"),
    ],
)
def test_settings_that_cannot_be_are_one_line(name, said):
    with pytest.raises(ErltoolError) as e:
        load_task(name)
    assert said in str(e.value) and "\n" not in str(e.value)


def test_worked_examples_are_right():
    task = load_task("chain:discovery")
    for problem in task.held_out[:200]:
        assert chain_reward(problem, problem.response) == 1
        said = describe_chain(problem.prompt, problem.response)
        assert said.copied and said.right_steps == said.steps == len(problem.values) - 1 and not said.first_wrong
    assert len(task.examples(2)) == 2


# --- verifier --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("=2", 1),
        (">3+5=8,-2=6,*7=2", 1),
        (">3+5=8,-2=1,*7=2", 1),  # a wrong step, then the right digit
        (">9*9=2", 1),  # only the last digit and the form count
        ("=3", 0),
        (">3+5=8,-2=6,*7=4", 0),
        ("2", 0),
        ("", 0),
        ("=2=2", 0),
        ("=22", 0),
        (">3+5=8,-2=6,*7=", 0),
        (">3+5=8,-2=6,", 0),
        (">3+5=8,3-2=2", 0),
        ("=2\n", 0),
        ("\n=2", 0),
        ("=\u0662", 0),  # the digit two of another script
        (">+5=2", 0),
        ("__import__('os').system('x')=2", 0),
        ("=2" * 100_000, 0),
        (">3+5=8" + ",-2=6" * 100_000, 0),
    ],
)
def test_rewards(response, reward):
    assert chain_reward(PROBLEM, response) == reward


# --- what a response did ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("=2", Description("guess", forks=(0, 1))),
        (">3+5=8,-2=6,*7=2", Description("steps", 3, 3, 0, 1, 1, True, (0, 5, 10, 15))),
        (">3+5=8,-2=1,*7=2", Description("steps", 3, 1, 2, 1, 0, True, (0, 5, 10, 15))),  # 1*7 is 7
        (">3+5=7,-2=5,*7=5", Description("steps", 3, 2, 1, 1, 1, True, (0, 5, 10, 15))),
        (">3+5=8,-2=6", Description("steps", 2, 2, 0, 0, 0, False, (0, 5, 10))),
        ("nonsense", Description("neither", forks=(0,))),
        ("", Description("neither")),
    ],
)
def test_descriptions(response, said):
    assert describe_chain(PROBLEM.prompt, response) == said


def test_forks_are_tokens_whatever_the_tokenizer():
    """If tokens hold several characters, a fork is the token that holds the character."""

    class Part:
        prompts, responses = ["3+5:", "3+5:"], [">3+5=8", "=8"]
        response_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()

    described = Described.of(Part, describe_chain, [">3", "+5=", "8", "", "=8", ""])
    assert described.forks.tolist() == [[True, False, True, False], [True, False, False, False]]


def test_what_is_measured_of_descriptions(tiny_config, tmp_path):
    """A run records metrics of its responses' descriptions, and writes the descriptions beside its tokens."""
    config = tiny_config(task="chain:discovery", max_response_tokens=20, record_every=1, eval_temperature=0.0)
    for step in erltool.train(config, tmp_path / "run"):
        said = [describe_chain(p, r) for p, r in zip(step.rollouts.prompts, step.rollouts.responses, strict=True)]
        assert step.metrics["thinking_fraction"] == np.mean([d.strategy == "steps" for d in said])
        groups = step.rewards.view(-1, config.group_size)
        assert step.metrics["all_wrong_fraction"] == (groups.sum(1) == 0).double().mean()
        forks = step.described.forks
        entropy = step.tokens.token_entropy[forks & step.tokens.response_mask]
        if len(entropy):
            assert step.metrics["fork_entropy"] == pytest.approx(float(entropy.mean()), rel=1e-5)
    run = erltool.read_run(tmp_path / "run")
    assert {"thinking_fraction", "distinct_fraction", "fork_entropy"} <= set(run.metrics)
    tempered = run.metrics["eval_accuracy_tempered"].dropna()
    assert len(tempered) == len(run.evaluated()) and tempered.between(0, 1).all()
    assert {"strategy", "first_wrong", "fork"} <= set(run.tokens)
    of_forks = run.tokens[run.tokens["fork"] & (run.tokens["strategy"] == "guess")]
    assert set(of_forks["position"]) <= {0, 1}


def test_a_random_problem_is_of_either_side():
    rng = random.Random(0)
    sides = [in_held_out(chain_problem(rng, 4, ChainSettings()).prompt) for _ in range(2000)]
    assert 0.07 < np.mean(sides) < 0.13


def test_results_stay_within_the_modulus():
    assert [apply(3, o, 5, 7) for o in "+-*"] == [1, 5, 1]


# --- the shipped policies ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "thinking", "right_steps"),
    [
        ("sharpening", (0.05, 0.15), (0.25, 0.55)),
        ("discovery", (0.2, 0.4), (0.3, 0.6)),
        ("trap", (0.01, 0.06), (0.05, 0.4)),
    ],
)
def test_shipped_policies_begin_as_their_style_says(name, thinking, right_steps):
    task, policy = load_task(f"chain:{name}"), erltool.load_policy(name, lora_rank=0, device="cpu")
    problems = task.held_out[:300]
    generator = torch.Generator().manual_seed(0)
    rollouts = erltool.sample_groups(
        policy, [p.prompt for p in problems], 4, max_response_tokens=28, generator=generator
    )
    said = [describe_chain(p, r) for p, r in zip(rollouts.prompts, rollouts.responses, strict=True)]
    share = np.mean([d.strategy == "steps" for d in said])
    right = sum(d.right_steps for d in said) / sum(d.steps for d in said)
    assert thinking[0] < share < thinking[1] and right_steps[0] < right < right_steps[1]
    assert np.mean([d.strategy == "neither" for d in said]) < 0.02
    if name == "discovery":  # its products follow a wrong habit
        assert sum(d.right_products for d in said) / sum(d.products for d in said) < 0.1
    made = json.loads((shipped(f"data/policies/{name}") / "made_by.json").read_text())
    assert made["task"] == str(REGIMES[name])
    assert (shipped(f"data/policies/{name}") / "model.safetensors").stat().st_size < 1.5e6


def test_in_sharpening_working_step_by_step_takes_over():
    """On both seeds accuracy rises from about 0.5 to 0.85 and more, and entropy falls by more than 80 %."""
    for seed in (0, 1):
        config = erltool.TrainConfig(
            task="chain:sharpening", policy="sharpening", lora_rank=0, learning_rate=3e-4, steps=100, seed=seed,
            max_response_tokens=28, eval_every=0, record_every=0, device="cpu",
        )  # fmt: skip
        rows = [step.metrics for step in erltool.train(config)]
        first, last = rows[:8], rows[-8:]
        mean = {k: [np.mean([m[k] for m in part]) for part in (first, last)] for k in ("reward", "policy_entropy")}
        assert mean["reward"][0] < 0.65 and mean["reward"][1] > 0.85, mean
        assert mean["policy_entropy"][1] < 0.2 * mean["policy_entropy"][0], mean
        assert np.mean([m["thinking_fraction"] for m in last]) > 0.6
