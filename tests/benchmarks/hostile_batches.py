"""How long a batch of answers takes of which some are made to keep a parser busy for ever.

    python tests/benchmarks/hostile_batches.py [--answers 512] [--repeats 3] [--one-by-one 3]

For 0, 10 and 50 % of hostile answers among plain numbers and among formulas (no two the same, so that each is judged):
seconds of the batch (the median), of the processors while it ran, right answers found right, and answers not judged.
Then the way without a pool or a budget: `--one-by-one` of the hostile answers asked one after another, 5 seconds each,
and what the batch of 10 % would take at that rate, as a multiple of the pool's.
"""

import argparse
import random
import resource
import statistics
import time
import warnings

from erltool.tasks.judge import WORKERS, Judge

HOSTILE = (
    "9^{9^{9^{9^{%d}}}}",
    r"\binom{10^{9}}{5*10^{8}}!+%d",
    "(" * 900 + "%d",
    r"\sum_{i=1}^{10^{12}} i!+%d",
    r"\prod_{i=1}^{10^{9}} (x+%d)",
)


def batch(count: int, share: float, formulas: bool) -> tuple[list[str], list[str], list[bool]]:
    """True answers, responses, and which of these are hostile, the same at every call."""
    draw = random.Random(0)
    hostile = [i in set(draw.sample(range(count), round(share * count))) for i in range(count)]
    truths = [rf"\frac{{x+{i}}}{{{2 + i % 8}}}" if formulas else str(7 * i) for i in range(count)]
    right = [rf"\frac{{1}}{{{2 + i % 8}}}(x+{i})" if formulas else str(7 * i) for i in range(count)]
    answers = [HOSTILE[i % len(HOSTILE)] % i if hostile[i] else right[i] for i in range(count)]
    return truths, [rf"So it is \boxed{{{answer}}}." for answer in answers], hostile


def measured(judge: Judge, truths: list[str], responses: list[str], hostile: list[bool], repeats: int) -> dict:
    seconds, not_judged = [], judge.not_judged
    for _ in range(repeats):
        before = time.perf_counter()
        rewards = judge.maths(truths, responses)
        seconds.append(time.perf_counter() - before)
    assert not any(reward for reward, is_hostile in zip(rewards, hostile, strict=True) if is_hostile)
    late = (judge.not_judged - not_judged) / repeats
    return {"seconds": statistics.median(seconds), "right": sum(rewards), "of": hostile.count(False), "late": late}


def processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one-by-one", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{given.answers} answers, {WORKERS} workers at most, median of {given.repeats}")
    print(f"{'hostile':>8}{'others':>10}{'seconds':>9}{'processor':>11}{'right':>12}{'not judged':>12}")
    for share in (0.0, 0.1, 0.5):
        for formulas in (False, True):
            judge, before = Judge(), processor()
            judge.math("x+y", r"\boxed{y+x}")  # started
            row = measured(judge, *batch(given.answers, share, formulas), given.repeats)
            del judge  # its processor time is known when it has ended
            used = (processor() - before) / given.repeats
            right = f"{row['right']:.0f} of {row['of']}"
            others = "formulas" if formulas else "numbers"
            print(f"{share:>8.0%}{others:>10}{row['seconds']:>9.2f}{used:>11.2f}{right:>12}{row['late']:>12.1f}")
            if (share, formulas) == (0.1, False):
                pool = row["seconds"]
    truths, responses, hostile = batch(given.answers, 0.1, False)
    slow = [i for i, is_hostile in enumerate(hostile) if is_hostile]
    judge = Judge(seconds=5.0, batch_seconds=5.0)
    before = time.perf_counter()
    for i in slow[: given.one_by_one]:
        judge.math(truths[i], responses[i])
    each = (time.perf_counter() - before) / given.one_by_one
    whole = each * len(slow)
    print(f"one after another, 5 s each: {each:.2f} s a hostile answer, {whole:.0f} s for the {len(slow)} of 10 %,")
    print(f"{whole / pool:.0f} times the pool's {pool:.1f} s")


if __name__ == "__main__":
    main()
