"""The processes that judge answers: `python -m erltool.tasks.jury LIBRARY PARENT`, started by judge.py.

The jury imports the library once and forks workers, which start in milliseconds and may be killed. A worker judges one
answer at a time, under limits of processor time and memory that the kernel enforces. The jury reads a batch from stdin
(a pickle, which only its parent can write) and replies with one line of JSON. It ends with its stdin or its parent.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import pickle
import re
import resource
import selectors
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe

from erltool.tasks.answers import MAX_ANSWER

MEMORY = 2**30  # bytes of address space that a worker may add to what it inherits
FIRST, FLOOR = 0.1, 0.03  # seconds of processor time for an answer in the first round, and at least in any round
QUICK = 0.015  # seconds of processor time that a normal answer takes
PATIENCE = 5  # how many times the budget the first round may take on a busy machine
PDEATHSIG = 1  # Linux's PR_SET_PDEATHSIG
_SLOW = re.compile(r"[!^(]|\\(?:sum|prod|int|lim|binom)|[0-9]{7}")


@dataclass
class _Worker:
    pid: int
    pipe: Connection
    used: float = 0.0  # seconds of processor time
    question: int = -1
    limit: float = 0.0
    kill_at: float = 0.0


class Bench:
    """Workers that judge one batch; each has `budget` seconds of processor time.

    Processor time is given out in rounds, so that no slow answer takes the time of a quick one. In the first round
    each answer gets FIRST; in a later round an equal part of the rest, at least twice what it had before. An answer
    that uses up `seconds` is wrong. An answer that is open when the budget is spent is not judged.

    The later rounds also end by the clock, after at least half the budget. The first round may take PATIENCE times the
    budget, because whether a quick answer is right must not depend on what else the machine does.
    """

    def __init__(self, questions: list, score_of: Callable, seconds: float, budget: float, workers: int):
        self.questions, self.score_of, self.seconds, self.budget = questions, score_of, seconds, budget
        self.size = min(workers, len(questions))
        self.started, self.first_round = time.monotonic(), True
        self.deadline = self.started + PATIENCE * budget
        self.spent = 0.0  # by workers that have ended
        self.scores: list[float | None] = [None] * len(questions)
        self.had = [0.0] * len(questions)
        self.unread: list[int] = []
        self.open = deque(sorted(range(len(questions)), key=lambda i: _slowness(questions[i])))
        self.later: deque[int] = deque()
        self.idle: list[_Worker] = []
        self.busy: dict[int, _Worker] = {}
        self.selector = selectors.DefaultSelector()

    def judge(self) -> dict:
        self.selector.register(0, selectors.EVENT_READ)  # the parent writes nothing now: readable means its end
        try:
            while (self.open or self.later or self.busy) and self.left() > 0 and time.monotonic() < self.deadline:
                self.hand_out()
                self.collect()
        finally:
            for worker in [*self.idle, *self.busy.values()]:
                self.dismiss(worker)
            self.selector.close()
        return {"scores": self.scores, "unread": self.unread}

    def left(self) -> float:
        return self.budget * self.size - self.spent - sum(w.used for w in [*self.idle, *self.busy.values()])

    def hand_out(self) -> None:
        while (self.open or self.later) and len(self.busy) < self.size:
            i, limit = self.take()
            worker = self.idle.pop() if self.idle else self.hire()
            worker.question, worker.limit = i, limit
            worker.kill_at = time.monotonic() + PATIENCE * (limit + 1)  # if it waits and takes no processor time
            self.busy[worker.pipe.fileno()] = worker
            with contextlib.suppress(OSError):  # the worker has died, and `collect` will find out
                worker.pipe.send_bytes(json.dumps([i, limit]).encode())

    def take(self) -> tuple[int, float]:
        """The next question, and its processor time in seconds."""
        if not self.open:
            if self.first_round:
                self.deadline = max(self.started, time.monotonic() - self.budget / 2) + self.budget
            self.open, self.later, self.first_round = self.later, deque(), False
        i, left, others = self.open.popleft(), max(FLOOR, self.left()), len(self.open) + len(self.busy)
        limit = left / (others + 1)
        if self.first_round and limit < self.seconds:
            limit = min(FIRST, left - QUICK * others)
        return i, min(left, self.seconds, max(FLOOR, limit, 2 * self.had[i]))

    def collect(self) -> None:
        until = min([self.deadline, *(w.kill_at for w in self.busy.values())])
        for key, _ in self.selector.select(max(0.0, until - time.monotonic())):
            if key.fd == 0:
                os._exit(0)
            worker = self.busy.pop(key.fd)
            try:
                score, worker.used = json.loads(worker.pipe.recv_bytes())
            except (OSError, EOFError):
                self.cut(worker)
                continue
            self.idle.append(worker)
            self.scores[worker.question] = score or 0.0
            if score is None:
                self.unread.append(worker.question)
        for fd, worker in list(self.busy.items()):
            if time.monotonic() > worker.kill_at:
                self.cut(self.busy.pop(fd))

    def cut(self, worker: _Worker) -> None:
        """Ends a worker that has died over its question or waits too long; the question is wrong or asked again."""
        i, self.had[worker.question] = worker.question, worker.limit
        code = self.dismiss(worker)
        if code in (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGKILL) and worker.limit < self.seconds:
            self.later.append(i)
        elif code < 0:  # else the worker failed by itself, and the answer is not judged
            self.scores[i] = 0.0

    def hire(self) -> _Worker:
        ours, theirs = Pipe()
        jury, pid = os.getpid(), os.fork()
        if not pid:
            ours.close()
            self.selector.close()
            for other in [*self.idle, *self.busy.values()]:
                other.pipe.close()
            _work(theirs, jury, self.questions, self.score_of, self.budget * self.size)
        theirs.close()
        self.selector.register(ours, selectors.EVENT_READ)
        return _Worker(pid, ours)

    def dismiss(self, worker: _Worker) -> int:
        """Ends a worker that may have ended; returns its exit code, or minus the signal that ended it."""
        self.selector.unregister(worker.pipe)
        worker.pipe.close()
        os.kill(worker.pid, signal.SIGKILL)
        _, status, usage = os.wait4(worker.pid, 0)
        self.spent += usage.ru_utime + usage.ru_stime
        return os.waitstatus_to_exitcode(status)


def _slowness(question: tuple) -> float:
    """How slow a question looks; quick ones are asked first."""
    return len(_SLOW.findall(question[-1])) + len(question[-1]) / MAX_ANSWER


def _work(pipe: Connection, jury: int, questions: list, score_of: Callable, seconds: float) -> None:
    """A worker's loop: for [question, limit] it sends [score, or None for an unreadable true answer, its processor time
    so far]. The kernel ends the worker when the timer, which counts its own processor time, runs out."""
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        die_with(jury, signal.SIGKILL)
        _limit(resource.RLIMIT_AS, _address_space() + MEMORY)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_CPU, int(seconds) + 5)  # in case the timer fails
        while True:
            i, limit = json.loads(pipe.recv_bytes())  # raises EOFError when the jury has closed its end
            signal.setitimer(signal.ITIMER_PROF, limit)
            try:
                score = min(1.0, max(0.0, float(score_of(*questions[i]))))
            except Unreadable:
                score = None
            except BaseException:  # hostile text raises anything in a parser; the answer is wrong
                score = 0.0
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send_bytes(json.dumps([score, time.process_time()]).encode())
    finally:
        os._exit(0)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))


def _address_space() -> int:
    """Bytes of address space that this process has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


class Unreadable(Exception):
    """Raised where the library cannot read the true answer."""


def die_with(parent: int, by: int) -> None:
    """Makes Linux send signal `by` to this process when its parent ends; ends at once if the parent has ended."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(0)


# --- the libraries --------------------------------------------------------------------------------


def math_score(truth: str, answer: str) -> float:
    """1.0 if math-verify finds two answers in LaTeX equal, else 0.0. Raises Unreadable for the true one."""
    from math_verify import verify

    wanted = _parsed(truth)
    if not wanted:
        raise Unreadable
    # No time limit of its own: the worker's limit holds.
    return float(verify(wanted, _parsed(answer), timeout_seconds=None))


@functools.lru_cache(1024)
def _parsed(latex: str) -> list:
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # LaTeX only: math-verify's search for any number would find 42 in "A. 42". Units are left to equality.py.
    normal = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
    config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=normal)
    return parse(f"\\boxed{{{latex}}}", [config], fallback_mode="no_fallback", parsing_timeout=None)


# The parser and sympy are slow on the first formula of each kind; workers inherit the caches that these fill.
WARM_UP = (
    (r"\frac{1}{2}x^2+\sqrt{3}\pi", r"\frac12(x^2+2\sqrt3\pi)"), (r"\frac{1+\sqrt5}{2}", r"\frac{1-\sqrt{5}}{2}"),
    (r"(-\infty,2)\cup[3,\infty)", r"(-\infty,2]\cup(3,\infty)"), (r"\{1,2\}", r"\{2,3\}"), ("1,2,-3", "3,2,1"),
    (r"(1,-2,\frac{3}{4})", "(1,-2,3)"), ("y=2x+1", "2x+2"), (r"0<x\le 5", "(0,5]"), ("x>3", "3<x"), ("(1,2)", "1,2"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"), ("2^{10}-3!", "1018"),
    (r"\sin(2x)+\log_2 8", r"2\sin x\cos x+3"), (r"e^{2}", r"\ln 2"), ("1+2i", "1-2i"), (r"|x|", r"\binom{5}{2}"),
)  # fmt: skip


def _load(library: str) -> Callable[[list], Callable]:
    """Imports the library; returns the function that makes a batch's scorer from its questions. Raises ImportError."""
    importlib.import_module(library)
    if library == "reasoning_gym":
        from erltool.tasks.gym import scorer

        return scorer
    for truth, answer in WARM_UP:
        math_score(truth, answer)
    return lambda questions: math_score


def main(library: str, parent: int) -> None:
    # The signal also comes when the parent lives and only the thread that started this process ends.
    signal.signal(signal.SIGHUP, lambda *_: None if os.getppid() == parent else os._exit(0))
    die_with(parent, signal.SIGHUP)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for a reply
    try:
        scorer = _load(library)
    except ImportError as e:
        print(json.dumps({"missing": e.name}), file=out, flush=True)
        return
    gc.collect()
    gc.freeze()  # so that workers do not collect, and copy, what they inherit
    print(json.dumps({"ready": True}), file=out, flush=True)
    while True:
        try:
            questions, seconds, budget, workers = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        score_of = scorer(questions)
        print(json.dumps(Bench(questions, score_of, seconds, budget, workers).judge()), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
