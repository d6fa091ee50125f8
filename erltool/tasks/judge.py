"""Is a response's answer right? Asked of processes of its own (jury.py), because the responses are hostile.

A response can be made to keep a symbolic parser busy for ever, or to fill memory. So each answer has a bound of
processor time and of memory, and a batch of them one of time; what breaks its bound is wrong. Plain answers, which
most are (equality.py), never get that far.
"""

import contextlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Sequence

from erltool.errors import ErltoolError
from erltool.tasks import gym
from erltool.tasks.answers import MAX_ANSWER, extract_answer, tidy
from erltool.tasks.equality import for_library, plainly_same
from erltool.tasks.jury import PATIENCE

SECONDS = 1.0  # of processor time, for one answer
BATCH_SECONDS = 4.0, 0.006  # of processor time a core for a batch, and more for each answer of it
START_SECONDS = 120.0  # for a library's imports
WORKERS = 4  # at most, one a core


class Judge:
    """Checks answers; its processes start when they are first needed, live on, and end with this one.

    `library` is "math_verify" or "reasoning_gym"; an answer gets `seconds` of processor time, a batch `batch_seconds`
    (BATCH_SECONDS by its size). Raises ErltoolError where the library is not installed, and for nothing that a
    response says. May be used from several threads, which take turns, and after a fork.
    """

    def __init__(self, library: str = "math_verify", seconds: float = SECONDS, batch_seconds: float | None = None):
        self.library, self.seconds, self.batch_seconds = library, seconds, batch_seconds
        self.not_judged = 0
        """Answers so far that counted as wrong because their batch's time was over."""
        self._unread: set[str] = set()
        self._forget()

    def math(self, truth: str, response: str) -> float:
        """1.0 if the response's answer equals `truth` (math-verify: numbers, LaTeX, sets, intervals), else 0.0."""
        return self.maths([truth], [response])[0]

    def maths(self, truths: Sequence[str], responses: Sequence[str]) -> list[float]:
        """`math` of many at once."""
        rewards, questions = [], []
        for truth, response in zip(truths, responses, strict=True):
            answer = extract_answer(response) or _all_of(response, truth)
            same, wanted = plainly_same(truth, answer) if answer else False, ""
            if same is None and not (wanted := for_library(truth)):
                self._say_unread(truth)
            rewards.append(same if same is not None or wanted else False)
            questions.append((wanted, for_library(answer)) if wanted else None)
        return self._filled(rewards, questions)

    def gym(self, dataset: str, entry: dict, response: str, options: dict | None = None) -> float:
        """Score in [0, 1] that reasoning-gym's data set, made with `options`, gives the response's answer.

        Without a mark of an answer, that is the last number where one is asked for, else the last line, or as many
        lines as the stored answer has.
        """
        return self.gyms(dataset, [entry], [response], options)[0]

    def gyms(
        self, dataset: str, entries: Sequence[dict], responses: Sequence[str], options: dict | None = None
    ) -> list[float]:
        """`gym` of many at once."""
        rewards, questions = [], []
        for entry, response in zip(entries, responses, strict=True):
            answer = gym.answer_to(entry["answer"], response)
            rewards.append(gym.plain_score(dataset, entry, answer) if answer else 0.0)
            questions.append(None if rewards[-1] is not None else (dataset, options or {}, entry, answer))
        return self._filled(rewards, questions)

    def _filled(self, rewards: list, questions: list) -> list[float]:
        """The rewards, with what they lack asked for; the same question once."""
        asked: dict[bytes, list[int]] = {}
        for i, question in enumerate(questions):
            if question is not None:
                asked.setdefault(pickle.dumps(question), []).append(i)
        scores = self.ask([questions[at[0]] for at in asked.values()]) if asked else []
        for score, at in zip(scores, asked.values(), strict=True):
            for i in at:
                rewards[i] = score
        return [float(reward) for reward in rewards]

    def ask(self, questions: Sequence[tuple]) -> list[float]:
        """Scores of jury.py's questions: (truth, answer), or (data set, options, entry, answer).

        An answer that was not judged in the batch's time counts as 0 and into `not_judged`, with a warning; a true
        answer that the library cannot read has one too.
        """
        fixed, each = BATCH_SECONDS
        budget = fixed + each * len(questions) if self.batch_seconds is None else self.batch_seconds
        if os.getpid() != self._owner:
            self._forget()  # after a fork: the processes are the other's
        with self._turn:
            reply = self._reply(questions, budget) or self._reply(questions, budget) or {}
        scores, unread = reply.get("scores", [None] * len(questions)), reply.get("unread", [])
        if late := scores.count(None):
            self.not_judged += late
            of = f"{late} of {len(questions)} answers were not judged in {budget:.0f} s and count as wrong"
            warnings.warn(f"{of}; {self.not_judged} so far", stacklevel=2)
        for i in unread:
            self._say_unread(questions[i][0])
        return [score or 0.0 for score in scores]

    def _say_unread(self, truth: str) -> None:
        if truth not in self._unread:
            self._unread.add(truth)
            text = f"true answer {truth[:60]!a}: not readable as mathematics, only the same text is right"
            warnings.warn(text, stacklevel=2)

    # --- the process ------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._owner, self._turn, self._process = os.getpid(), threading.Lock(), None

    def _reply(self, questions: Sequence[tuple], budget: float) -> dict | None:
        """The jury's reply; None if it died."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            batch = pickle.dumps((list(questions), self.seconds, budget, min(WORKERS, _cores())))
            self._process.stdin.write(batch)
            self._process.stdin.flush()
            reply = self._line(PATIENCE * budget + START_SECONDS)  # data sets may have to be made first
        except OSError:
            reply = None
        except BaseException:  # interrupted: its reply must not be taken for the next one's
            self._stop()
            raise
        if reply is None:
            self._stop()
        return reply

    def _start(self) -> None:
        self._stop()
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "erltool.tasks.jury", self.library, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which then ends it with its workers
                env=os.environ | one_thread | path,
            )
        except OSError as e:
            raise ErltoolError(f"judge: cannot start {sys.executable} ({e.strerror or e})") from e
        self._process = process
        self._ending = weakref.finalize(self, _end, process, os.getpid())
        ready = self._line(START_SECONDS)
        if ready is None or "missing" in ready:
            self._stop()
            package = self.library.replace("_", "-")
            if ready is None:
                raise ErltoolError(f"judge: {package} did not load; try python -c 'import {self.library}'")
            raise ErltoolError(f"checking answers needs the package {package}; pip install {package}")

    def _line(self, seconds: float) -> dict | None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def _stop(self) -> None:
        if self._process is not None:
            self._ending()
            self._process = None


def _all_of(response: str, truth: str) -> str | None:
    """A response without a mark or a number that is the true answer and nothing else."""
    is_short = len(response) <= MAX_ANSWER and not any(c.isdigit() for c in response)
    return response if is_short and tidy(response).casefold() == tidy(truth).casefold() else None


def _end(process: subprocess.Popen, owner: int) -> None:
    """Ends the jury and its workers, and leaves neither a zombie nor a pipe."""
    if os.getpid() == owner:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
