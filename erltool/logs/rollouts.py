"""Other trainers' rollouts, one row a response: TRL, verl, prime-rl, and plain JSONL, JSON and Parquet.

    TRL         completions/completions_00010.parquet          log_completions=True
    verl        10.jsonl in trainer.rollout_data_dir           input, output, score, step
    prime-rl    token_exports/step_10/rank_0.jsonl             trainer.enable_token_export; tokens without text
    plain       prompt, response, reward, and what else there is under the names in ROLES

The columns of the table, in the order of COLUMNS:

    step        int     the trainer's step
    group       int     responses to one prompt, counted from 0 within the step; rows of a group are adjacent
    prompt      text    as the trainer wrote it; "" where it wrote tokens only
    response    text    likewise
    reward      float   in the trainer's unit; NaN for prime-rl, which does not write it
    advantage   float or list of floats, unitless
    messages    list    the prompt as a chat, where it is one
    prompt_ids, token_ids    lists of ints
    log_probs, old_log_probs lists of floats, nats, a number each token: under the trainer's policy, and at sampling
    entropy     list of floats, nats, of each token's distribution
    mask        list of bools: which tokens of token_ids the policy sampled, in a response with tool outputs

Files are untrusted text: nothing of them is evaluated.
"""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from erltool.errors import ErltoolError
from erltool.files import reading
from erltool.logs.text import compressed, encoding_of, lines_of
from erltool.tables import Table
from erltool.text import listed, shown

MOST = 20_000  # responses that are kept; a screenful is looked at
JSON_LIMIT = 256 << 20  # bytes of a JSON document, because it is parsed whole
ROUNDING = 0.01  # nats above 0 to which rounding may take a log-prob, and below 0 an entropy
MOST_ENTROPY = 14.0  # nats; the uniform distribution over a million tokens has 13.8
COLUMNS = ("step", "group", "prompt", "response", "reward", "advantage", "messages", "prompt_ids", "token_ids",
           "log_probs", "old_log_probs", "entropy", "mask")  # fmt: skip
ROLES = {
    "prompt": ("prompt", "input", "question", "query", "problem", "instruction"),
    "response": ("response", "completion", "output", "generation", "generated_text", "model_output"),
    "reward": ("reward", "score", "rewards", "return"),
    "group": ("group", "group_id", "prompt_id", "problem_id", "question_id"),
    "step": ("step", "global_step", "iteration"),
    "advantage": ("advantage", "advantages"),
    "prompt_ids": ("prompt_ids", "prompt_token_ids"),
    "token_ids": ("token_ids", "response_ids", "completion_ids", "response_token_ids", "output_ids"),
    "log_probs": ("log_probs", "logprobs", "response_log_probs", "logps", "token_log_probs"),
    "old_log_probs": ("old_log_probs", "old_logprobs", "rollout_log_probs", "sampling_logprobs", "inference_logprobs"),
    "entropy": ("entropy", "entropies", "token_entropy"),
    "mask": ("mask", "response_mask"),
}
OF_TOKENS = ("token_ids", "log_probs", "old_log_probs", "entropy", "mask")
Row = Mapping[str, object]


@dataclass(frozen=True)
class RolloutFile:
    """The responses in a file or a folder."""

    kind: str
    """"TRL completions", "verl rollouts", "prime-rl token export" or "rollouts"."""
    table: pd.DataFrame
    """One row a response, columns as above; those that the file does not have are missing."""
    took: Mapping[str, str]
    """The file's column of each of ours."""
    notes: tuple[str, ...]
    """What a reader must know."""


def read_rollouts(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    step: int | None = None,
    group_size: int | None = None,
) -> RolloutFile:
    """The rollouts in a file, or of one step in a trainer's folder, the last if `step` is None.

    `columns` names the file's column of a role of ROLES. Groups are those of a column for them, else every
    `group_size` adjacent rows, else rows of a step with the same prompt. Raises ErltoolError in one line for a missing,
    empty or unreadable file, for no prompts, responses or rewards, for numbers that are not finite or impossible, and
    for lists of a response that differ in length.
    """
    path, columns = Path(path), dict(columns or {})
    if unknown := [role for role in columns if role not in ROLES]:
        raise ErltoolError(f"rollouts: no role {shown(unknown[0])}; the roles are {', '.join(ROLES)}")
    if not path.exists():
        raise ErltoolError(f"{shown(path)}: no such file or folder; give a trainer's rollouts")
    notes: list[str] = []
    with reading(path):
        files = _files_of(path, step) if path.is_dir() else [path]
        every = itertools.chain.from_iterable(_rows(f, notes) for f in files)
        first = next(every, None)
        found = itertools.chain(() if first is None else [first], every)
        rows = list(itertools.islice((row for row in found if _is_of(row, step, columns)), MOST + 1))
    where = shown(path)
    if len(rows) > MOST:
        rows.pop()
        notes.append(f"only the first {MOST:,} responses are read")
    if first is None:
        raise ErltoolError(f"{where}: holds no responses; has the trainer written them yet?")
    if not rows:
        raise ErltoolError(f"{where}: no responses of step {step}; leave --step out to see which there are")
    kind = _kind(rows[0])
    sample: dict[str, object] = {}  # a value of each column, of the first row that has one
    for row in rows:
        sample |= {name: value for name, value in row.items() if sample.get(name) is None}
    took = _columns_of(sample, kind, columns, where)
    made = [_prime(row, i, where) if kind == "prime-rl token export" else _made(row, took, i, where, notes)
            for i, row in enumerate(rows)]  # fmt: skip
    _check(made, where)
    if "," in took.get("reward", ""):
        notes.append(f"the reward is the sum of {took['reward']}: their weights are not in the file")
    ordered = _grouped(made, group_size, "group" in took, where)
    sizes = Counter((row["step"], row["group"]) for row in ordered).values()
    if "group" not in took and min(sizes) < max(sizes):
        notes.append(f"prompts have {min(sizes)} to {max(sizes)} responses: a prompt that a step holds twice is one "
                     "group here, unless --group names their column")  # fmt: skip
    present = [c for c in COLUMNS if any(row.get(c) is not None for row in ordered) or c == "reward"]
    table = Table({c: pd.Series([row.get(c) for row in ordered], dtype=_dtype(c)) for c in present})
    return RolloutFile(kind, table, took, tuple(dict.fromkeys(notes)))


def _dtype(column: str) -> type | str:
    return {"step": "int64", "group": "int64", "reward": "float64"}.get(column, object)


# --- files ------------------------------------------------------------------------------------------


def _files_of(folder: Path, step: int | None) -> list[Path]:
    """The files of a step in a trainer's folder."""
    steps: dict[int, list[Path]] = {}
    for pattern, number in (("completions_*.parquet", r"completions_(\d+)\.parquet"), ("*.jsonl", r"(\d+)\.jsonl"),
                            ("step_*/rank_*.jsonl", r"step_(\d+)/rank_\d+\.jsonl")):  # fmt: skip
        for file in (*folder.glob(pattern), *folder.glob(f"completions/{pattern}"),
                     *folder.glob(f"token_exports/{pattern}")):  # fmt: skip
            if match := re.search(number + "$", file.as_posix()):
                steps.setdefault(int(match[1]), []).append(file)
    if not steps:
        raise ErltoolError(
            f"{shown(folder)}: no completions_*.parquet (TRL), STEP.jsonl (verl) or step_*/rank_*.jsonl (prime-rl)"
        )
    chosen = max(steps) if step is None else step
    if chosen not in steps:
        raise ErltoolError(f"{shown(folder)}: no step {step}; there are {min(steps)} to {max(steps)}, {len(steps)}")
    return sorted(steps[chosen])


def _rows(file: Path, notes: list[str]) -> Iterator[Row]:
    with open(file, "rb") as f:
        head = f.read(4096)
    if how := compressed(head):
        raise ErltoolError(f"{shown(file)}: compressed ({how}); unpack it")
    begin = head.decode(encoding_of(file, Counter()), "ignore").lstrip()[:1]
    if head.startswith(b"PAR1"):
        yield from _parquet(file)
    elif begin == "[":
        yield from _json(file)
    elif begin == "{":
        yield from _json_lines(file, notes)
    elif begin:
        raise ErltoolError(f"{shown(file)}: neither Parquet nor JSON; give rollouts in one of them")


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(1000):
                yield from batch.to_pylist()
    except (ValueError, pyarrow.ArrowException) as e:
        raise ErltoolError(
            f"{shown(file)}: not readable as Parquet ({shown(str(e).splitlines()[0])}); restore it"
        ) from e


def _json(file: Path) -> Iterator[Row]:
    if file.stat().st_size > JSON_LIMIT:
        raise ErltoolError(f"{shown(file)}: over {JSON_LIMIT >> 20} MiB of JSON; write a response a line (JSONL)")
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as e:
        raise ErltoolError(f"{shown(file)}: no JSON ({shown(e, 100)}); mend it") from e
    yield from (row for row in document if isinstance(row, dict))


def _json_lines(file: Path, notes: list[str]) -> Iterator[Row]:
    good, broken = 0, 0
    with lines_of(file, Counter()) as lines:
        for line in filter(str.strip, lines):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                good += 1
                yield row
            else:
                broken += 1  # such as the last line of a file that is being written
    if broken and not good:
        raise ErltoolError(f"{shown(file)}: no line is a JSON object; write a response a line, or a list of them")
    if broken:
        notes.append(f"{broken} lines of {shown(file.name)} are no JSON objects and left out")


# --- rows -------------------------------------------------------------------------------------------


def _kind(row: Row) -> str:
    names = set(row)
    if {"token_ids", "loss_mask", "trainer_logprobs"} <= names:
        return "prime-rl token export"
    if {"step", "prompt", "completion", "advantage"} <= names:
        return "TRL completions"
    return "verl rollouts" if {"input", "output", "score"} <= names else "rollouts"


def _columns_of(row: Row, kind: str, asked: dict[str, str], where: str) -> dict[str, str]:
    """The file's column of each role. Raises ErltoolError where a needed one is missing."""
    if missing := [name for name in asked.values() if name not in row]:
        raise ErltoolError(f"{where}: no column {shown(missing[0])}; there are {listed(list(row))}")
    if kind == "prime-rl token export":
        return {"token_ids": "token_ids", "mask": "loss_mask", "log_probs": "trainer_logprobs", "entropy": "entropy",
                "old_log_probs": "inference_logprobs", "advantage": "advantages", "step": "step"}  # fmt: skip
    took = {role: next((n for n in names if row.get(n) is not None), "") for role, names in ROLES.items()}
    took = {role: name for role, name in (took | asked).items() if name}
    if kind == "TRL completions" and "reward" not in asked:
        numbers = [n for n, value in row.items() if n not in ("step", "advantage") and (
            type(value) in (int, float) or value is None)]  # fmt: skip
        took["reward"] = ", ".join(str(n) for n in numbers)
    for role, others in (("response", ("token_ids",)), ("prompt", ("prompt_ids",)), ("reward", ("advantage",))):
        if not took.get(role) and not any(other in took for other in others):
            raise ErltoolError(
                f"{where}: no column of {role}s; name it with --{role} COLUMN, there are {listed(list(row))}"
            )
    return took


def _made(row: Row, took: Mapping[str, str], index: int, where: str, notes: list[str]) -> dict:
    """A row in our columns."""
    at = f"{where}: response {index}"
    made: dict = {role: row.get(name) for role, name in took.items() if role not in ("reward", "prompt", "response")}
    for role, other in (("prompt", "prompt_ids"), ("response", "token_ids"), ("group", ""), ("step", "")):
        if role in took and row.get(took[role]) is None and made.get(other) is None:
            raise ErltoolError(f"{at}: has no {shown(took[role])}, as others have; mend or drop it")
    for role in ("log_probs", "old_log_probs", "entropy"):
        if made.get(role) is not None and not isinstance(made[role], list):
            made[role] = None
            notes.append(f"{shown(took[role])} is left out: it is no list with a number each token")
    prompt = row.get(took.get("prompt", ""))
    made |= {"prompt": _text_of(prompt, "prompt", took, at), "messages": prompt if _is_chat(prompt) else None}
    made["response"] = _text_of(row.get(took.get("response", "")), "response", took, at)
    made["step"] = _step(made.get("step"), at)
    if names := took.get("reward"):
        parts = [_number(row.get(n)) for n in (names.split(", ") if names not in row else [names])]
        known = [part for part in parts if not math.isnan(part)]
        made["reward"] = sum(known) if known else math.nan
        if not math.isfinite(made["reward"]):
            raise ErltoolError(f"{at}: its reward, {shown(names)}, is no finite number; score it")
    if made.get("advantage") is not None and not isinstance(made["advantage"], list):
        made["advantage"] = _number(made["advantage"])
        if not math.isfinite(made["advantage"]):
            raise ErltoolError(f"{at}: its advantage, {shown(took['advantage'])}, is no finite number; mend or drop it")
    return made


def _step(value: object, at: str) -> int:
    """A step, 0 where there is none."""
    step = _number(value, 0)
    if step % 1 != 0:  # NaN and infinity, too
        raise ErltoolError(f"{at}: its step, {shown(value)}, is no whole number; mend or drop it")
    return int(step)


def _prime(row: Row, index: int, where: str) -> dict:
    """A row of prime-rl: the whole sequence, of which loss_mask marks the sampled tokens."""
    names = {"log_probs": "trainer_logprobs", "old_log_probs": "inference_logprobs", "entropy": "entropy",
             "advantage": "advantages", "token_ids": "token_ids", "mask": "loss_mask"}  # fmt: skip
    lists = {ours: row.get(theirs) for ours, theirs in names.items()}
    sizes = {len(v) if isinstance(v, list) else -1 for v in lists.values()}
    mask = lists["mask"]
    if len(sizes) > 1 or not isinstance(mask, list) or True not in mask:
        raise ErltoolError(
            f"{where}: response {index}: its lists differ in length, or no token is marked; export again"
        )
    begin, end = mask.index(True), len(mask) - mask[::-1].index(True)
    cut = {name: value[begin:end] for name, value in lists.items() if isinstance(value, list)}
    prompt_ids = lists["token_ids"][:begin] if isinstance(lists["token_ids"], list) else []
    if all(cut["mask"]):
        del cut["mask"]
    text = {"prompt": "", "response": "", "reward": math.nan, "prompt_ids": prompt_ids}
    return {"step": _step(row.get("step"), f"{where}: response {index}"), **text, **cut}


def _number(value: object, missing: float = math.nan) -> float:
    try:
        return missing if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "content" in m for m in value)


def _is_of(row: Row, step: int | None, columns: Mapping[str, str]) -> bool:
    """Whether a row is of the step; a row without one is of step 0."""
    if step is None:
        return True
    names = (columns["step"],) if "step" in columns else ROLES["step"]
    return _number(next((row[n] for n in names if row.get(n) is not None), None), 0) == step


def _text_of(value: object, role: str, took: Mapping[str, str], at: str) -> str:
    """The text of a column. Raises ErltoolError for a list of ids or of several texts, which is none."""
    members = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
    if not all(isinstance(m, dict) and ("content" in m or "text" in m) for m in members):
        raise ErltoolError(f"{at}: {shown(took[role])} is neither a text nor messages; name a column of text with "
                           f"--{role} COLUMN, one of a response's ids with --token-ids COLUMN")  # fmt: skip
    return _text(members or value)


def _text(value: object) -> str:
    """A text; of a chat, the contents of its messages."""
    if not isinstance(value, list):
        return "" if value is None else str(value)
    return "\n".join(_text(m.get("content", m.get("text"))) if isinstance(m, dict) else str(m) for m in value)


def _check(rows: list[dict], where: str) -> None:
    """Raises ErltoolError where a response's lists differ in length or hold no finite numbers."""
    for index, row in enumerate(rows):
        lists = {name: row[name] for name in (*OF_TOKENS, "advantage") if isinstance(row.get(name), list)}
        if len({len(values) for values in lists.values()}) > 1:
            lengths = ", ".join(f"{len(values)} {name}" for name, values in lists.items())
            raise ErltoolError(f"{where}: response {index}: has {lengths}; each token needs one of each")
        for name, values in lists.items():
            at = f"{where}: response {index}: {name}"
            if name == "mask" and not all(v in (0, 1) for v in values):
                raise ErltoolError(f"{at} holds what is neither true nor false; mend or drop it")
            if name != "mask" and not all(type(v) in (int, float) and math.isfinite(v) for v in values):
                raise ErltoolError(f"{at} holds what is no finite number; mend or drop it")
            if name.endswith("log_probs") and max(values, default=0) > ROUNDING:
                raise ErltoolError(f"{at} holds {max(values):g}, and no log-probability is above 0; are they minus the "
                                   "log-probs, or probabilities? convert them")  # fmt: skip
            if name == "entropy" and not -ROUNDING <= min(values, default=0) <= max(values, default=0) <= MOST_ENTROPY:
                raise ErltoolError(f"{at} goes from {min(values):g} to {max(values):g}, and none of a token's "
                                   "distribution is below 0 or above 14 nats; convert or drop it")  # fmt: skip
        for name in ("token_ids", "prompt_ids"):
            if any(type(i) is not int or i < 0 for i in row.get(name) or ()):
                raise ErltoolError(f"{where}: response {index}: {name} must hold ids, whole numbers from 0")
    if all(row.get("mask") is not None and not any(row["mask"]) for row in rows):
        raise ErltoolError(f"{where}: no token is marked as sampled; mend or drop the mask")
    if all(not row["response"] and not row.get("token_ids") for row in rows):
        raise ErltoolError(f"{where}: every response is empty; name the column with --response")


def _grouped(rows: list[dict], size: int | None, named: bool, where: str) -> list[dict]:
    """The rows with their group, sorted by step and group. Raises ErltoolError where `size` does not fit."""
    key: Callable[[int, dict], object] = lambda i, row: row["prompt"] or tuple(row.get("prompt_ids") or ())  # noqa: E731
    if named:
        key = lambda i, row: json.dumps(row.get("group"), default=str)  # noqa: E731
    elif size is not None:
        if len(rows) % size:
            raise ErltoolError(f"{where}: {len(rows)} responses do not make groups of {size}")
        for start in range(0, len(rows), size):
            if len({(row["step"], row["prompt"]) for row in rows[start : start + size]}) > 1:
                raise ErltoolError(f"{where}: responses {start} to {start + size - 1} are not to one prompt; "
                                   "leave --group-size out to group by prompt")  # fmt: skip
        key = lambda i, row: i // size  # noqa: E731
    numbers: dict[int, dict[object, int]] = {}
    for i, row in enumerate(rows):
        of_step = numbers.setdefault(row["step"], {})
        row["group"] = of_step.setdefault(key(i, row), len(of_step))
    return sorted(rows, key=lambda row: (row["step"], row["group"]))
