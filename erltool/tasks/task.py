"""A task is a set of prompts and a verifier that is safe on hostile text.

    countdown:HIGHEST,MAX_TARGET  make a target up to MAX_TARGET (99) from three numbers from 1 to HIGHEST (9)
    chain:numbers=2-6,ops=+-*     arithmetic from left to right modulo 10; chain:sharpening, chain:discovery and
                                  chain:trap have the settings of the shipped policies of these names
    addition:HIGHEST              "What is 7+15?", both numbers from 1 to HIGHEST (20)
    reasoning-gym:NAME,k=v,...    a generator of reasoning-gym and its options
    dapo-math, gsm8k, math        from the hub, or from a file placed where the error message says
    FILE.jsonl, FILE.parquet      columns prompt (or question, problem) and answer (or solution, ground_truth)

judge.py compares answers. A response's answer is its last \\boxed{...} or <answer>...</answer>, else what follows its
last "Answer:", "####" or "The answer is", else its last number.
"""

import ast
import functools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erltool.errors import ErltoolError
from erltool.resources import cache_folder, hub_reachable
from erltool.tasks import chain
from erltool.tasks.answers import extract_answer
from erltool.tasks.countdown import HELD_OUT_PARTS, countdown_problems, countdown_reward, in_held_out
from erltool.tasks.equality import for_library
from erltool.tasks.gym import PAYS_ANYTHING, worked_answer
from erltool.tasks.judge import Judge

GYM_PROBLEMS = 4000  # generated for a reasoning-gym task; repeated ones are dropped

# name: (id on the hub, configuration, split to train on, split held out)
HUB = {
    "dapo-math": ("BytedTsinghua-SIA/DAPO-Math-17k", None, "train", None),
    "gsm8k": ("openai/gsm8k", "main", "train", "test"),
    "math": ("EleutherAI/hendrycks_math", "algebra", "train", "test"),
}


@dataclass(frozen=True)
class Problem:
    """One prompt and its answer."""

    prompt: str
    answer: str
    response: str = ""
    """A right response for worked examples; "" where the source has none."""
    entry: dict = field(default_factory=dict, hash=False)
    """reasoning-gym's entry, for its scorer; empty in other tasks."""


@dataclass(frozen=True)
class BatchVerifier:
    """A verifier that judges a batch of responses in one call of `many`."""

    many: Callable[[Sequence[Any], Sequence[str]], list[float]]

    def __call__(self, problem: Any, response: str) -> float:
        return self.many([problem], [response])[0]


@dataclass(frozen=True)
class Task:
    """Prompts and a verifier, any callable of (problem, response). `train` and `held_out` share no problem."""

    name: str
    train: Sequence[Any]
    held_out: Sequence[Any]
    verify: Callable[[Any, str], float]
    describe: Callable[[str, str], chain.Description] | None = None
    """Takes a response to a prompt apart, in tasks that can (chain.py)."""

    def examples(self, count: int) -> tuple[tuple[str, str], ...]:
        """(prompt, right response) of `count` training problems, evenly spaced. Raises ErltoolError if none has one."""
        solved = [p for p in self.train if getattr(p, "response", "") or getattr(p, "answer", "")] if count else []
        if count and not solved:
            raise ErltoolError(f"task {self.name}: its problems have no right response to show; use shots=0")
        chosen = [solved[i * len(solved) // count] for i in range(count)]
        return tuple((p.prompt, p.response or p.answer) for p in chosen)

    def reward(self, problem: Any, response: str) -> float:
        """Reward of a response in [0, 1]. Never raises for a response's text, and never evaluates it."""
        return self.verify(problem, response)

    def rewards(self, problems: Sequence[Any], responses: Sequence[str]) -> list[float]:
        """Rewards of a batch, one response to each problem. A slow response does not hold up the others; one that is
        not judged in the batch's time gets 0, with a warning."""
        return rewards_of(self, problems, responses)


def rewards_of(task: Any, problems: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """`Task.rewards` for any object with a method `reward(problem, response)`."""
    verify = getattr(task, "verify", None)
    if isinstance(verify, BatchVerifier):
        return verify.many(problems, responses)
    return [float(task.reward(p, r)) for p, r in zip(problems, responses, strict=True)]


def load_task(name: str) -> Task:
    """The task of a name as in this module's docstring. Raises ErltoolError, with the remedy, for an unknown name, a
    missing package, and a data set that is empty, unreadable or out of reach."""
    generators: dict[str, Callable[[str], Task]] = {"countdown": _countdown, "chain": _chain, "addition": _addition}
    if make := generators.get(name.partition(":")[0]):
        return make(name)
    if name.startswith("reasoning-gym:"):
        return _gym(name)
    if name in HUB:
        hub_id, subset, *splits = HUB[name]
        train, held_out = (problems_of(name, hub_dataset(name, hub_id, subset, s)) if s else [] for s in splits)
    elif name.endswith((".jsonl", ".parquet")):
        train, held_out = problems_of(name, read_rows(Path(name))), []
    else:
        raise ErltoolError(
            f"task {name!r} is not known: use countdown, chain, addition, {', '.join(HUB)}, reasoning-gym:NAME, "
            "or a .jsonl or .parquet file with the columns prompt and answer"
        )
    if not held_out:
        train, held_out = split(train)
    if not train or not held_out:
        raise ErltoolError(
            f"task {name}: {len(train)} problems to train on and {len(held_out)} held out (1 in {HELD_OUT_PARTS}, "
            "chosen by their text); give more problems"
        )
    return task_of_answers(name, train, held_out)


def split(problems: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and problems held out, chosen by their text."""
    sides: tuple[list[Problem], list[Problem]] = [], []
    for problem in problems:
        sides[in_held_out(problem.prompt)].append(problem)
    return sides


def task_of_answers(name: str, train: Sequence[Problem], held_out: Sequence[Problem]) -> Task:
    """A task that compares a response's answer with the problem's; it has a judge of its own."""
    judge = Judge()
    verify = BatchVerifier(
        lambda problems, responses: judge.maths([p.answer for p in problems], responses, [p.prompt for p in problems])
    )
    return Task(name, train, held_out, verify)


# --- rows of a data set -> problems ---------------------------------------------------------------

PROMPT_COLUMNS = ("prompt", "question", "problem")
ANSWER_COLUMNS = ("answer", "ground_truth", "final_answer", "solution")
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}(?![A-Za-z}])")


def problems_of(name: str, rows: Iterable[dict]) -> list[Problem]:
    """Problems of a data set's rows, each prompt once.

    A prompt is a text, or a list of {role, content} whose last user message is taken. An answer is a text, a number,
    the first of a list, a DAPO `reward_model` {ground_truth}, GSM8K's text behind "####", or the last \\boxed{...} of a
    solution. Raises ErltoolError for no rows, and names the row that lacks a prompt or an answer.
    """
    problems: dict[str, Problem] = {}
    seen = set()
    for number, row in enumerate(rows):
        index = (row.get("extra_info") or {}).get("index") if isinstance(row.get("extra_info"), dict) else None
        if index is not None and index in seen:  # the hub's copy of DAPO-Math repeats every problem 100 times
            continue
        seen.add(index)
        prompt, answer = _prompt(name, number, row), _answer(name, number, row)
        problems.setdefault(prompt, Problem(prompt, answer, _worked(row)))
    if not problems:
        raise ErltoolError(f"task {name}: the data set is empty; give at least one row with a prompt and an answer")
    _warn_of_prose(name, problems.values())
    return list(problems.values())


def _prompt(name: str, number: int, row: dict) -> str:
    value = next((row[c] for c in PROMPT_COLUMNS if row.get(c) is not None), None)
    if value is not None and (isinstance(value, (list, tuple)) or hasattr(value, "tolist")):
        value = next((m["content"] for m in reversed(list(value)) if m.get("role") == "user"), None)
    if not isinstance(value, str) or not value.strip():
        raise ErltoolError(
            f"task {name}: row {number} has no prompt; it needs one of the columns {', '.join(PROMPT_COLUMNS)}; its "
            f"columns are {', '.join(row) or 'none'}"
        )
    return value


MISSING = {"", "None", "nan", "NaN", "null", "NULL", "<NA>", "NaT", "[]", "{}"}  # spellings of a missing value


def _answer(name: str, number: int, row: dict) -> str:
    model = row.get("reward_model")
    if isinstance(model, dict):
        value = model.get("ground_truth")
    else:
        column = next((c for c in ANSWER_COLUMNS if row.get(c) is not None), None)
        value = row.get(column)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, str) and "####" in value:
            value = value.rsplit("####", 1)[1]
        elif isinstance(value, str) and ("boxed" in value or column == "solution"):
            value = extract_answer(value) if "boxed" in value else None
    text = "" if value is None or isinstance(value, bool | dict) else str(value).strip().strip("$")
    if text in MISSING:
        raise ErltoolError(
            f"task {name}: row {number} has no readable answer; it needs one of the columns "
            f"{', '.join(ANSWER_COLUMNS)} (a solution with \\boxed{{}}), or reward_model with ground_truth"
        )
    return text


def _warn_of_prose(name: str, problems: Iterable[Problem]) -> None:
    """Warns of true answers that are sentences, or formulas with unmatched braces: only the same text equals those."""
    prose = [p.answer for p in problems if not for_library(p.answer) or len(_PROSE.findall(p.answer)) > 5]
    if prose:
        text = f"task {name}: {len(prose)} true answers are not readable as mathematics, e.g. {prose[0][:60]!a}"
        warnings.warn(f"{text}; only a response with the same text will be right", stacklevel=3)


def _worked(row: dict) -> str:
    """A row's worked response: its column response or solution, or the whole answer of GSM8K."""
    texts = (row.get(c) for c in ("response", "solution", "answer"))
    return next((t for t in texts if isinstance(t, str) and len(t.split()) > 1), "")


def read_rows(file: Path) -> list[dict]:
    """Rows of a JSONL or Parquet file. Raises ErltoolError, naming the file and the line, where it cannot be read."""
    if not file.is_file():
        raise ErltoolError(f"task {file}: no such file")
    if file.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(file).to_pylist()
        except (OSError, ValueError) as e:
            raise ErltoolError(f"task {file}: not readable as Parquet ({str(e).splitlines()[0]})") from e
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as e:
                raise ErltoolError(f"task {file}: line {number} is not JSON ({e})") from e
            if not isinstance(row, dict):
                raise ErltoolError(f"task {file}: line {number} is not a JSON object")
            rows.append(row)
    return rows


def dataset_folder() -> Path:
    """Where `hub_dataset` looks for files that replace data sets of the hub."""
    return cache_folder() / "datasets"


def hub_dataset(name: str, hub_id: str, subset: str | None, split: str) -> Iterable[dict]:
    """Rows of NAME-SPLIT.parquet or NAME-SPLIT.jsonl in `dataset_folder()`, else of the data set on the hub. Raises
    ErltoolError without the package datasets, and where the hub is out of reach."""
    stem = dataset_folder() / f"{name}-{split}"
    for file in (stem.with_name(stem.name + ".parquet"), stem.with_name(stem.name + ".jsonl")):
        if file.is_file():
            return read_rows(file)
    try:
        import datasets
        import huggingface_hub
    except ImportError as e:
        raise ErltoolError(f"task {name}: reading the hub needs the package datasets; pip install datasets") from e
    try:
        if not hub_reachable():  # a copy in the cache still serves
            huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        datasets.disable_progress_bars()
        return datasets.load_dataset(hub_id, subset, split=split)
    except Exception as e:  # the errors of `datasets` have no common base
        raise ErltoolError(
            f"task {name}: {hub_id} is out of reach ({type(e).__name__}); on a machine that reaches the hub, save its "
            f"split {split} with datasets' to_parquet, and place the file here as {stem}.parquet"
        ) from e


def _countdown(name: str) -> Task:
    bounds = re.fullmatch(r"countdown(?::([2-9]|1[0-9]|20),([1-9][0-9]{0,3}))?", name)
    if not bounds:
        raise ErltoolError(
            f"task {name}: write countdown, or countdown:HIGHEST,MAX_TARGET with HIGHEST from 2 to 20 and MAX_TARGET "
            "from 1 to 9999, as in countdown:6,30"
        )
    train, held_out = countdown_problems(*(int(b) for b in bounds.groups() if b))
    return Task(name, train, held_out, countdown_reward)


@functools.cache
def _chain(name: str) -> Task:
    settings = chain.parse_settings(name)
    describe = functools.partial(chain.describe_chain, modulus=settings.modulus)
    held_out = list(chain.ChainProblems(settings, chain.HELD_OUT, held_out=True))
    train = chain.ChainProblems(settings, chain.TRAIN, held_out=False)
    return Task(name, train, held_out, chain.chain_reward, describe)


def _addition(name: str) -> Task:
    highest = name.partition(":")[2] or "20"
    if not highest.isdecimal() or not 2 <= int(highest) <= 1000:
        raise ErltoolError(f"task {name}: write addition:HIGHEST with a number from 2 to 1000")
    numbers = range(1, int(highest) + 1)
    problems = [Problem(f"What is {a}+{b}?", f"{a + b}", f"{a}+{b}={a + b}") for a in numbers for b in numbers]
    return task_of_answers(name, *split(problems))


def _gym(name: str) -> Task:
    try:
        import reasoning_gym
    except ImportError as e:
        raise ErltoolError(f"task {name}: needs the package reasoning-gym; pip install reasoning-gym") from e
    dataset, options = _gym_options(name)
    if dataset in PAYS_ANYTHING:
        warnings.warn(f"task {name}: {PAYS_ANYTHING[dataset]}; a policy will learn that", stacklevel=2)
    try:
        generator = reasoning_gym.create_dataset(dataset, **{"seed": 0, "size": GYM_PROBLEMS} | options)
        entries = list(generator)
    except (ValueError, TypeError, AssertionError) as e:
        raise ErltoolError(f"task {name}: reasoning-gym refuses it: {str(e).splitlines()[0]}") from e
    # An empty stored answer, as for an equation without a solution, cannot be given by any response.
    unique = {e["question"]: e for e in entries if e["answer"] != ""}
    worked = {question: worked_answer(dataset, e, generator.score_answer) for question, e in unique.items()}
    problems = [Problem(question, worked[question], entry=e) for question, e in unique.items()]
    judge = Judge("reasoning_gym")
    verify = BatchVerifier(lambda batch, responses: judge.gyms(dataset, [p.entry for p in batch], responses, options))
    return Task(name, *split(problems), verify)


def _gym_options(name: str) -> tuple[str, dict]:
    dataset, *pairs = name.removeprefix("reasoning-gym:").split(",")
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"\w+", key.strip()):
            raise ErltoolError(f"task {name}: {pair!r} is not an option; write reasoning-gym:NAME,option=value")
        try:
            options[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            options[key.strip()] = value.strip()
    return dataset, options
