"""Accuracy on held-out problems and the paper's seven benchmarks: avg@n, unbiased pass@k, and their intervals.

The paper's protocol (Cui et al. 2025, Sec 4.1): AIME 2024, AIME 2025 and AMC 2023 at temperature 0.6, 32 responses
a problem, their mean accuracy (avg@32); MATH-500, OMNI-MATH, OlympiadBench and Minerva greedily, one response.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from scipy.special import gammaln

from erltool.errors import ErltoolError
from erltool.policies.policy import Policy
from erltool.policies.sampling import Sampler, sample_groups
from erltool.resources import shipped
from erltool.tasks.task import Problem, Task, hub_dataset, load_task, problems_of, rewards_of, task_of_answers

DRAWS = 10_000  # random weights of the problems for an interval


class Benchmark(NamedTuple):
    """A data set on the hub, and how the paper evaluates on it."""

    column: str  # of the paper's Table 2
    hub_id: str
    subset: str | None
    split: str
    temperature: float
    samples: int


BENCHMARKS = {
    "aime24": Benchmark("AIME24", "HuggingFaceH4/aime_2024", None, "train", 0.6, 32),
    "aime25": Benchmark("AIME25", "math-ai/aime25", None, "test", 0.6, 32),
    "amc23": Benchmark("AMC", "math-ai/amc23", None, "test", 0.6, 32),
    "math-500": Benchmark("MATH-500", "HuggingFaceH4/MATH-500", None, "test", 0.0, 1),
    "omni-math": Benchmark("OMNI-MATH", "KbsdJames/Omni-MATH", None, "test", 0.0, 1),
    "olympiadbench": Benchmark("OlympiadBench", "Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train", 0.0, 1),
    "minerva": Benchmark("Minerva", "math-ai/minervamath", None, "test", 0.0, 1),
}


@dataclass(frozen=True)
class Evaluation:
    """Rewards of n responses to each of P problems."""

    name: str
    rewards: np.ndarray
    """(P, n), in [0, 1]"""
    temperature: float

    @property
    def average(self) -> float:
        """avg@n: mean reward, in [0, 1]."""
        return float(self.rewards.mean())

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k in [0, 1]: the probability that one of k responses is right.

        Mean over problems of 1 - C(n - c, k) / C(n, k), with c of n right (Chen et al. 2021, arXiv 2107.03374,
        Eq 1). A response with reward 1 is right. Raises ErltoolError for k outside 1 ... n.
        """
        return float(self._pass_at(k).mean())

    def interval(self, k: int | None = None, level: float = 0.95) -> tuple[float, float]:
        """`mean_interval` of the problems' values, for `average` or `pass_at(k)`; one problem gives (0, 1). It holds
        for other problems of the same kind, not for other responses: the n responses to a problem are one value."""
        return mean_interval(self._values(k), level)

    def interval_method(self, k: int | None = None) -> str:
        """ "Clopper-Pearson" where each problem is wholly right or wholly wrong, else "Gaffke"."""
        return "Clopper-Pearson" if _right_or_wrong(self._values(k)) else "Gaffke"

    def _values(self, k: int | None) -> np.ndarray:
        return self.rewards.mean(1) if k is None else self._pass_at(k)

    def _pass_at(self, k: int) -> np.ndarray:
        n = self.rewards.shape[1]
        if not 1 <= k <= n:
            raise ErltoolError(f"pass@{k} of {self.name}: needs k from 1 to the {n} responses that were sampled")
        return pass_at_k((self.rewards == 1).sum(1), n, k)


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """(low, high) for the mean of the distribution of independent `values` in [0, 1], at a level in (0, 1).

    Only 0s and 1s give Clopper and Pearson's interval, whose coverage is at least the level. Other values give Gaffke's
    bounds (2005; Learned-Miller and Thomas 2019, arXiv 1905.06208): quantiles of the mean under random weights, with an
    additional value of 0 for the low bound and of 1 for the high one. Equal values too have an interval of some width.
    tests/test_evaluate.py measures the coverage. Fewer than 2 values give (0, 1).
    """
    if len(values) < 2:
        return 0.0, 1.0
    if _right_or_wrong(values):
        bounds = stats.binomtest(round(values.sum()), len(values)).proportion_ci(level)
        return float(bounds.low), float(bounds.high)
    # Weights are uniform over the simplex; equal values share one gamma draw.
    each, count = np.unique(values, return_counts=True)
    rng = np.random.default_rng(0)
    weights, one_more = rng.standard_gamma(count, (DRAWS, len(each))), rng.standard_gamma(1.0, DRAWS)
    sums, total = weights @ each, weights.sum(1) + one_more
    low, high = np.quantile(sums / total, (1 - level) / 2), np.quantile((sums + one_more) / total, (1 + level) / 2)
    return float(low), float(high)


def _right_or_wrong(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0, 1)).all())


def pass_at_k(right: np.ndarray, n: int, k: int) -> np.ndarray:
    """1 - C(n - c, k) / C(n, k) for each c in `right`: (P,), in [0, 1]; 1 where fewer than k are wrong."""
    wrong = n - np.asarray(right)
    possible = wrong >= k
    wrong = np.where(possible, wrong, k)
    ratio = np.exp(gammaln(wrong + 1) - gammaln(wrong - k + 1) - gammaln(n + 1) + gammaln(n - k + 1))
    return np.where(possible, 1 - ratio, 1.0)


def evaluate(
    policy: Policy,
    task: Task,
    problems: Sequence,
    samples: int,
    *,
    max_response_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch: int = 0,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
    sample: Sampler = sample_groups,
) -> Evaluation:
    """Rewards of `samples` responses, by `sample`, to each problem; greedy at temperature 0.

    A seed gives every policy the same random numbers, so that evaluations differ less by chance. `progress` is called
    with the number of responses judged since its last call. Raises ErltoolError for no problems.
    """
    if not problems:
        raise ErltoolError(f"evaluation of {task.name}: no problems; give at least one")
    generator = torch.Generator(policy.device).manual_seed(seed)
    # Blocks are whole batches, so that reporting progress does not change the samples.
    size = max(1, batch // samples) if batch else len(problems)
    rewards = []
    for start in range(0, len(problems), size):
        block = problems[start : start + size]
        rollouts = sample(
            policy, [p.prompt for p in block], samples, max_response_tokens=max_response_tokens,
            temperature=temperature, top_p=top_p, generator=generator,
        )  # fmt: skip
        repeated = [problem for problem in block for _ in range(samples)]
        rewards += rewards_of(task, repeated, rollouts.responses)
        progress(len(rollouts))
    return Evaluation(task.name, np.array(rewards).reshape(len(problems), samples), temperature)


def load_benchmark(name: str) -> Task:
    """A benchmark's problems, all held out. Raises ErltoolError for an unknown benchmark, or one out of reach."""
    if name not in BENCHMARKS:
        raise ErltoolError(f"benchmark {name!r} is not known: use one of {', '.join(BENCHMARKS)}")
    b = BENCHMARKS[name]
    problems: list[Problem] = problems_of(name, hub_dataset(name, b.hub_id, b.subset, b.split))
    return task_of_answers(name, (), problems)


def evaluation_task(name: str) -> tuple[Task, float, int]:
    """A benchmark or a task by name, with the temperature and the number of responses of its evaluation."""
    if name in BENCHMARKS:
        return load_benchmark(name), BENCHMARKS[name].temperature, BENCHMARKS[name].samples
    return load_task(name), 1.0, 8


def paper_table() -> dict[tuple[str, str, str], float]:
    """The paper's Table 2: accuracy in percentage points by (model, method, benchmark), "Avg." among the last."""
    with open(shipped("data/paper/table2.csv"), encoding="utf-8") as f:
        rows = csv.DictReader(f)
        return {(r["model"], r["method"], r["benchmark"]): float(r["accuracy_percent"]) for r in rows}


def evaluation_report(results: Sequence[Evaluation], as_json: bool = False) -> str:
    """A table of avg@n and pass@k in percent with 95 % intervals, followed by the paper's Table 2; or JSON."""
    rows = [_report_row(result) for result in results]
    if as_json:
        return json.dumps(rows, indent=1)
    lines = [f"{'':20}{'problems':>9}{'responses':>10}{'':10}{'%':>7}{'95 % interval':>16}"]
    for row in rows:
        numbers = {f"avg@{row['samples']}": (row["average"], row["interval"])}
        numbers |= {k: (row[k], row[f"{k} interval"]) for k in row if f"{k} interval" in row}
        name = row["name"] if len(row["name"]) <= 20 else row["name"][:17] + "..."
        head = f"{name:20}{row['problems']:>9}{row['samples']:>10}"
        for metric, (value, (low, high)) in numbers.items():
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
            lines.append(f"{head:39}{metric:>10}{100 * value:>7.1f}{interval:>16}")
            head = ""
    methods = {v for row in rows for name, v in row.items() if name.endswith("interval method")}
    lines.append(f"Intervals ({', '.join(sorted(methods))}) hold for other problems of the same kind.")
    if known := [r.name for r in results if r.name in BENCHMARKS]:
        lines += ["", *_paper_lines(known)]
    return "\n".join(lines)


def _report_row(result: Evaluation) -> dict:
    count, n = result.rewards.shape
    row = {"name": result.name, "problems": count, "samples": n, "temperature": result.temperature,
           "average": result.average, "interval": result.interval(),
           "interval method": result.interval_method()}  # fmt: skip
    for k in [k for k in (1, 8, 32) if 1 < k <= n] or ([n] if n > 1 else []):
        row |= {f"pass@{k}": result.pass_at(k), f"pass@{k} interval": result.interval(k),
                f"pass@{k} interval method": result.interval_method(k)}  # fmt: skip
    return row


def _paper_lines(names: Sequence[str]) -> list[str]:
    table = paper_table()
    columns = [BENCHMARKS[n].column for n in names] + ["Avg."]
    lines = ["The paper's Table 2: Qwen2.5 after training, %; Avg. is over all seven."]
    lines.append(f"{'':16}" + "".join(f"{c[:7]:>8}" for c in columns))
    for model, method in dict.fromkeys(key[:2] for key in table):
        name = f"{model.removeprefix('Qwen2.5-')} {method}"
        lines.append(f"{name:16}" + "".join(f"{table[model, method, c]:>8.1f}" for c in columns))
    return lines


def eval_problems(task: Task, count: int) -> list[Problem]:
    """The same held-out problems for every run, spread evenly over the task's own order."""
    indices = np.linspace(0, len(task.held_out) - 1, min(count, len(task.held_out))).round().astype(int)
    return [task.held_out[i] for i in indices]
