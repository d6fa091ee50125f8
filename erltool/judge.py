"""Is a response's answer right? Asked in a process of its own, because the responses are hostile.

A response can be made to keep a symbolic parser busy for ever, or to fill memory. So the parsing happens in a
child process with a bound on memory, each answer has a bound of time, and a child that breaks one is killed and
replaced; its answer counts as wrong. Plain numbers, which most answers are, never get that far.
"""

import functools
import importlib
import json
import re
import select
import subprocess
import sys
from fractions import Fraction

from erltool.errors import ErltoolError

SECONDS = 5.0  # for one answer
MAX_CHARS = 100_000  # of a response that are looked at, from its end
MAX_ANSWER = 1_000  # characters of an answer
MEMORY = 4 * 2**30  # bytes of address space of the child

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_PLAIN = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?(?:/\d{1,30})?")


def extract_answer(response: str) -> str | None:
    """The answer that a response gives: its last \\boxed{...}, else what follows its last "Answer:" on that line,
    else its last number; None where there is none of them."""
    answer, said = explicit_answer(response)
    if said:
        return answer
    numbers = _NUMBER.findall(response[-MAX_CHARS:])
    return numbers[-1][:MAX_ANSWER] if numbers else None


def explicit_answer(response: str) -> tuple[str | None, bool]:
    """The answer in the last \\boxed{...} or behind the last "Answer:", and whether there is one of these."""
    response = response[-MAX_CHARS:]
    at = max(response.rfind("\\boxed{"), response.rfind("\\fbox{"))
    if at >= 0:
        start = response.index("{", at) + 1
        depth = 1
        for i, c in enumerate(response[start : start + MAX_ANSWER], start):
            depth += (c == "{") - (c == "}")
            if not depth:
                return response[start:i].strip() or None, True
        return None, True
    lowered = response.lower()
    if (at := lowered.rfind("answer:")) >= 0:
        line = response[at + len("answer:") :].strip().split("\n", 1)[0].strip(" *$.")
        return line[:MAX_ANSWER] or None, True
    return None, False


def same_number(answer: str, truth: str) -> bool | None:
    """Whether two plain numbers are equal; None where either is not a plain number."""
    a, b = (x.replace(",", "").replace("$", "").strip() for x in (answer, truth))
    if not (_PLAIN.fullmatch(a) and _PLAIN.fullmatch(b)):
        return None
    try:
        return _fraction(a) == _fraction(b)
    except ZeroDivisionError:
        return False


def _fraction(text: str) -> Fraction:
    top, _, bottom = text.partition("/")
    return Fraction(top) / Fraction(bottom or 1)


class Judge:
    """Checks answers, one at a time; the child process starts when it is first needed and lives on.

    `library` is "math_verify" or "reasoning_gym". Raises ErltoolError where it is not installed, and for nothing
    that a response says.
    """

    def __init__(self, library: str = "math_verify", seconds: float = SECONDS):
        self.library, self.seconds = library, seconds
        self.child: subprocess.Popen | None = None

    def math(self, truth: str, response: str) -> float:
        """1.0 if the response's answer equals `truth` (math-verify: numbers, LaTeX, sets, intervals), else 0.0."""
        answer = extract_answer(response)
        if answer is None:
            return 0.0
        if (same := same_number(answer, truth)) is not None:
            return float(same)
        return self.ask({"truth": truth, "answer": answer})

    def gym(self, dataset: str, entry: dict, response: str) -> float:
        """Score in [0, 1] that reasoning-gym's dataset gives the response's answer.

        Without \\boxed{} or "Answer:", that is the last number where a number is asked for, else the last line.
        """
        answer, said = explicit_answer(response)
        truth = str(entry["answer"])
        if not said:
            lines = response[-MAX_CHARS:].strip().splitlines() or [""]
            answer = extract_answer(response) if _PLAIN.fullmatch(truth) else lines[-1].strip()[:MAX_ANSWER]
        if not answer:
            return 0.0
        return 1.0 if answer == truth else self.ask({"dataset": dataset, "entry": entry, "answer": answer})

    def ask(self, question: dict) -> float:
        if self.child is None or self.child.poll() is not None:
            self._start()
        try:
            self.child.stdin.write(json.dumps(question).encode() + b"\n")
            self.child.stdin.flush()
            reply = self._line()
        except OSError:
            reply = None
        if reply is None:  # too slow, too large, or dead
            self._kill()
            return 0.0
        return float(reply["score"])

    def _start(self):
        try:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "erltool.judge", self.library],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as e:
            raise ErltoolError(f"judge: cannot start {sys.executable} ({e.strerror or e})") from e
        ready = self._line(60)  # imports
        if ready is None or "missing" in ready:
            self._kill()
            package = self.library.replace("_", "-")
            raise ErltoolError(f"checking answers needs the package {package}; pip install {package}")

    def _line(self, seconds: float | None = None) -> dict | None:
        if not select.select([self.child.stdout], [], [], seconds or self.seconds)[0]:
            return None
        line = self.child.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def _kill(self):
        self.child.kill()
        self.child.wait()
        self.child = None

    def __del__(self):
        if self.child is not None:
            self.child.kill()


def _serve() -> None:
    """The child: one JSON question a line, one JSON answer a line."""
    import os
    import resource

    # Whatever a library prints must not be taken for an answer.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    library = sys.argv[1]
    try:
        importlib.import_module(library)
    except ImportError as e:
        print(json.dumps({"missing": e.name}), file=out, flush=True)
        return
    print(json.dumps({"ready": True}), file=out, flush=True)
    score_of = {"math_verify": _math_score, "reasoning_gym": _gym_score}[library]
    for line in sys.stdin:
        question = json.loads(line)
        try:
            score = score_of(question)
        except Exception:  # a parser's errors on hostile text are its own; whatever they are, the answer is wrong
            score = 0.0
        print(json.dumps({"score": float(score)}), file=out, flush=True)


def _math_score(question: dict) -> float:
    from math_verify import parse, verify

    # No time limit inside: its signals are for the main thread of a Unix process only, and ours holds for all.
    truth = parse(f"\\boxed{{{question['truth']}}}", parsing_timeout=None)
    answer = parse(f"\\boxed{{{question['answer']}}}", parsing_timeout=None)
    return float(verify(truth, answer, timeout_seconds=None))


@functools.cache
def _scorer(dataset: str):
    import reasoning_gym

    return reasoning_gym.create_dataset(dataset, size=1, seed=0)


def _gym_score(question: dict) -> float:
    score = _scorer(question["dataset"]).score_answer(question["answer"], question["entry"])
    return min(1.0, max(0.0, score))


if __name__ == "__main__":
    _serve()
