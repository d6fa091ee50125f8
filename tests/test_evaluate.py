import itertools
import json

import numpy as np
import pytest
from scipy import stats

from erltool import ErltoolError, load_policy, load_task
from erltool.tasks.task import dataset_folder
from erltool.training.evaluate import (
    BENCHMARKS,
    Evaluation,
    evaluate,
    evaluation_report,
    load_benchmark,
    mean_interval,
    paper_table,
    pass_at_k,
)


@pytest.mark.parametrize(("n", "k"), [(5, 1), (5, 3), (5, 5), (8, 4)])
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_one(n, k):
    for right in range(n + 1):
        draws = list(itertools.combinations([True] * right + [False] * (n - right), k))
        expected = sum(map(any, draws)) / len(draws)
        assert pass_at_k(np.array([right]), n, k)[0] == pytest.approx(expected)


def test_average_pass_and_their_intervals():
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 1, 100)
    one = Evaluation("x", (rng.random((100, 16)) < p[:, None]).astype(float), 1.0)
    assert one.pass_at(1) == pytest.approx(one.average)
    assert one.pass_at(1) < one.pass_at(4) < one.pass_at(16)
    low, high = one.interval()
    spread = one.rewards.mean(1).std(ddof=1) / 10
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1) and low < one.average < high
    assert one.interval(8)[0] < one.pass_at(8) < one.interval(8)[1]
    assert Evaluation("x", np.ones((1, 4)), 1.0).interval() == (0.0, 1.0)
    for k in (0, 17):
        with pytest.raises(ErltoolError, match="needs k from 1 to the 16"):
            one.pass_at(k)


def test_interval_covers():
    """95 % of the intervals hold the truth, over evaluations of 80 problems from one population."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        p = rng.beta(1, 1, 80)
        low, high = Evaluation("x", (rng.random((80, 4)) < p[:, None]).astype(float), 1.0).interval()
        held += low < 0.5 < high
    assert 180 <= held <= 199


@pytest.mark.parametrize("right", [0, 1])
def test_all_wrong_of_30_problems_is_not_surely_wrong(right):
    far = 1 - 0.025 ** (1 / 30)  # 0.116 is the largest probability at which 30 misses are not rarer than 2.5 %
    expected = (0, far) if right == 0 else (1 - far, 1)
    for samples in (1, 8, 32):
        one = Evaluation("x", np.full((30, samples), float(right)), 1.0)
        assert one.interval() == one.interval(samples) == pytest.approx(expected) and one.average == right
        assert one.interval_method() == "Clopper-Pearson"


@pytest.mark.parametrize("p", [0, 0.01, 0.05, 0.5, 0.95, 1])
def test_interval_of_30_problems_right_or_wrong_holds_the_truth_as_often_as_it_says(p):
    chances = stats.binom.pmf(np.arange(31), 30, p)
    inside = [low <= p <= high for low, high in (mean_interval(np.arange(30) < right) for right in range(31))]
    assert 0.95 <= chances @ inside <= 1 + 1e-12


@pytest.mark.parametrize("p", [0, 0.01, 0.05, 0.5, 0.95, 1])
@pytest.mark.parametrize("k", [None, 4])
def test_interval_of_30_problems_of_8_responses_holds_the_truth(p, k):
    """A problem's chance is drawn from Beta(p, 1 - p), and is p itself where that is 0 or 1."""
    rng, held = np.random.default_rng(2), 0
    for _ in range(100):
        each = rng.beta(p, 1 - p, 30) if 0 < p < 1 else np.full(30, p)
        low, high = Evaluation("x", (rng.random((30, 8)) < each[:, None]).astype(float), 1.0).interval(k)
        truth = p if k is None else 1 - np.prod([(1 - p + i) / (1 + i) for i in range(k)])
        held += low <= truth <= high and high - low > 0.05
    assert held >= 93


def test_gaffkes_interval_meets_that_of_right_and_wrong():
    values = np.r_[np.zeros(20), np.ones(10)]
    nearly = np.r_[1e-9, values[1:]]
    assert mean_interval(nearly) == pytest.approx(mean_interval(values), abs=0.005)
    assert mean_interval(values) == pytest.approx(stats.binomtest(10, 30).proportion_ci(0.95))
    low, high = mean_interval(np.full(30, 1 / 32))  # all equal, and yet another problem may be easy
    assert 0.02 < low < 1 / 32 and 0.1 < high < 0.2
    assert mean_interval(np.array([0.5])) == (0, 1)


def test_greedy_is_the_same_for_any_seed_and_sampling_is_not(tiny_policy):
    policy, task = load_policy(str(tiny_policy), lora_rank=4), load_task("countdown")
    seen = []

    class Echo:
        name, held_out = "echo", task.held_out

        def reward(self, problem, response):
            seen.append(response)
            return 0.5

    outs = []
    for temperature, seed in ((0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)):
        seen.clear()
        done = []
        e = evaluate(policy, Echo(), task.held_out[:3], 2, max_response_tokens=6, temperature=temperature, seed=seed,
                     batch=2, progress=done.append)  # fmt: skip
        assert e.rewards.shape == (3, 2) and e.average == 0.5 and sum(done) == 6
        outs.append(list(seen))
    assert outs[0] == outs[1] and outs[0][0] == outs[0][1] and outs[2] != outs[3]
    with pytest.raises(ErltoolError, match="no problems"):
        evaluate(policy, Echo(), [], 2, max_response_tokens=6)


def test_the_paper_table_is_the_issues():
    table = paper_table()
    averages = {key[:2]: value for key, value in table.items() if key[2] == "Avg."}
    assert sorted(averages.values()) == sorted([38.6, 38.8, 40.4, 40.6, 45.8, 47.2, 50.3, 52.2])
    assert {b.column for b in BENCHMARKS.values()} == {key[2] for key in table} - {"Avg."}


def test_report_has_the_paper_beside_a_benchmark():
    rng = np.random.default_rng(0)
    results = [Evaluation(name, rng.integers(0, 2, (30, 32)).astype(float), 0.6) for name in BENCHMARKS]
    text = evaluation_report(results)
    assert "7B KL-Cov" in text and "AIME24" in text and "pass@8" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "Intervals (Clopper-Pearson, Gaffke) hold for other problems of the same kind." in text.splitlines()
    row = json.loads(evaluation_report(results, as_json=True))[0]
    assert row["interval method"] == "Gaffke" and row["pass@32 interval method"] == "Clopper-Pearson"
    assert row["average"] == results[0].average and row["pass@32"] == 1.0


def test_benchmarks_are_read_from_files_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dataset_folder().mkdir(parents=True)
    rows = [{"question": "q1", "final_answer": ["$4$"]}, {"question": "q2", "final_answer": ["7"]}]
    (dataset_folder() / "olympiadbench-train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_benchmark("olympiadbench")
    assert [p.answer for p in task.held_out] == ["4", "7"] and task.reward(task.held_out[0], r"\boxed{4}") == 1
    with pytest.raises(ErltoolError, match="'aime99' is not known"):
        load_benchmark("aime99")
