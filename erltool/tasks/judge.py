"""Judges whether the answer in a response is right, in processes of its own (jury.py), because responses are hostile.

An answer can keep a symbolic parser busy for ever, or fill the memory. So each answer has a limit of processor time
and of memory, and each batch a limit of time; an answer beyond its limit is wrong. Most answers need no process:
equality.py decides them.

A kept pool such as pebble's was tried and is not simpler: its limits are of wall-clock time, its busy workers outlive
a trainer that is killed, and it imports the user's script again, which fails without a `__main__` guard.
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
from erltool.tasks.equality import for_library, is_copied, plainly_same
from erltool.tasks.jury import PATIENCE
from erltool.threads import cores

SECONDS = 1.0  # of processor time for an answer
BATCH_SECONDS = 4.0, 0.006  # of processor time on each core: for a batch, and for each answer in it
START_SECONDS = 120.0  # for the library's import
WORKERS = 4  # at most; one on each core


class Judge:
    """Judges answers. Its processes start with the first question that needs them, and end with this process.

    `library` is "math_verify" or "reasoning_gym". An answer gets `seconds` of processor time, and a batch
    `batch_seconds`, by default BATCH_SECONDS for its size. Raises ErltoolError where the library is not installed, but
    never for a response. Threads may share a judge and take turns; after a fork the child starts processes of its own.
    """

    def __init__(self, library: str = "math_verify", seconds: float = SECONDS, batch_seconds: float | None = None):
        self.library, self.seconds, self.batch_seconds = library, seconds, batch_seconds
        self.not_judged = 0
        """Answers so far that counted as wrong because the time of their batch was over."""
        self._unread: set[str] = set()
        self._forget()

    def math(self, truth: str, response: str) -> float:
        """1.0 if the response's answer equals `truth` (math-verify: numbers, LaTeX, sets, intervals), else 0.0."""
        return self.maths([truth], [response])[0]

    def maths(self, truths: Sequence[str], responses: Sequence[str], prompts: Sequence[str] = ()) -> list[float]:
        """`math` for a batch. With `prompts`, a formula that a response copied from its prompt is no answer."""
        rewards: list[float] = []
        questions: dict[int, tuple] = {}
        for i, (truth, response) in enumerate(zip(truths, responses, strict=True)):
            answer = extract_answer(response) or _same_text(truth, response)
            same = False if prompts and is_copied(answer, prompts[i], truth) else plainly_same(truth, answer)
            rewards.append(float(same or False))
            if same is None and (wanted := for_library(truth)):
                questions[i] = wanted, for_library(answer)
            elif same is None:
                self._warn_unread(truth)
        return self._completed(rewards, questions)

    def gym(self, dataset: str, entry: dict, response: str, options: dict | None = None) -> float:
        """Score in [0, 1] of a response's answer by reasoning-gym's data set with these `options`.

        In a response that marks no answer, the answer is the last number if the stored one is a number, else as many
        last lines as the stored one has.
        """
        return self.gyms(dataset, [entry], [response], options)[0]

    def gyms(
        self, dataset: str, entries: Sequence[dict], responses: Sequence[str], options: dict | None = None
    ) -> list[float]:
        """`gym` for a batch."""
        rewards: list[float] = []
        questions: dict[int, tuple] = {}
        for i, (entry, response) in enumerate(zip(entries, responses, strict=True)):
            answer = gym.answer_to(entry["answer"], response)
            score = gym.plain_score(dataset, entry, answer) if answer else 0.0
            rewards.append(float(score or 0.0))
            if score is None:
                questions[i] = dataset, options or {}, entry, answer
        return self._completed(rewards, questions)

    def _completed(self, rewards: list[float], questions: dict[int, tuple]) -> list[float]:
        """The rewards, with the answers to the questions in their places; equal questions are asked once."""
        places: dict[bytes, list[int]] = {}
        for i, question in questions.items():
            places.setdefault(pickle.dumps(question), []).append(i)
        scores = self.ask([questions[at[0]] for at in places.values()]) if places else []
        for score, at in zip(scores, places.values(), strict=True):
            for i in at:
                rewards[i] = score
        return rewards

    def ask(self, questions: Sequence[tuple]) -> list[float]:
        """Scores of jury.py's questions: (truth, answer), or (data set, options, entry, answer).

        An answer that is not judged in the batch's time gets 0 and a warning, and `not_judged` counts it. A true answer
        that the library cannot read gets a warning, too.
        """
        fixed, each = BATCH_SECONDS
        budget = fixed + each * len(questions) if self.batch_seconds is None else self.batch_seconds
        if os.getpid() != self._owner:
            self._forget()  # after a fork the processes are the parent's
        with self._turn:
            reply = self._reply(questions, budget) or self._reply(questions, budget) or {}
        scores, unread = reply.get("scores", [None] * len(questions)), reply.get("unread", [])
        if late := scores.count(None):
            self.not_judged += late
            text = f"{late} of {len(questions)} answers were not judged in {budget:.0f} s and count as wrong"
            warnings.warn(f"{text}; {self.not_judged} so far", stacklevel=2)
        for i in unread:
            self._warn_unread(questions[i][0])
        return [score or 0.0 for score in scores]

    def _warn_unread(self, truth: str) -> None:
        if truth not in self._unread:
            self._unread.add(truth)
            text = f"true answer {truth[:60]!a}: not readable as mathematics; only the same text will be right"
            warnings.warn(text, stacklevel=2)

    # --- the process ------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._owner, self._turn = os.getpid(), threading.Lock()
        self._process: subprocess.Popen | None = None

    def _reply(self, questions: Sequence[tuple], budget: float) -> dict | None:
        """The jury's reply; None if it died."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        assert process.stdin
        try:
            process.stdin.write(pickle.dumps((list(questions), self.seconds, budget, min(WORKERS, cores()))))
            process.stdin.flush()
            reply = self._line(PATIENCE * budget + START_SECONDS)  # it may have to make data sets first
        except OSError:
            reply = None
        except BaseException:  # interrupted: the reply would be taken for the next batch's
            self._stop()
            raise
        if reply is None:
            self._stop()
        return reply

    def _start(self) -> subprocess.Popen:
        self._stop()
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "erltool.tasks.jury", self.library, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the jury
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
        return process

    def _line(self, seconds: float) -> dict | None:
        assert self._process and self._process.stdout
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


def _same_text(truth: str, response: str) -> str:
    """The response if it holds no digit and is the true answer and nothing else; else ""."""
    is_short = len(response) <= MAX_ANSWER and not any(c.isdigit() for c in response)
    return response if is_short and tidy(response).casefold() == tidy(truth).casefold() else ""


def _end(process: subprocess.Popen, owner: int) -> None:
    """Ends the jury and its workers; no zombie and no open pipe is left."""
    if os.getpid() == owner:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in filter(None, (process.stdin, process.stdout)):
        with contextlib.suppress(OSError):
            pipe.close()
