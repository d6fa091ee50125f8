"""The processes that judge answers: `python -m erltool.tasks.jury LIBRARY PARENT`, started by judge.py.

This one imports the library once and forks workers, which cost milliseconds and may be killed: every answer is judged
by a worker, under a limit of processor time that the kernel holds, and of memory. Asked for a batch on stdin (a
pickle, from the parent alone), it replies with one line of JSON. It ends when its stdin does or its parent dies.
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
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from erltool.tasks.answers import MAX_ANSWER

MEMORY = 2**30  # bytes of address space that a worker may add to what it inherits
FIRST, FLOOR = 0.1, 0.03  # seconds of processor time that an answer gets at first; and where that is too much
QUICK = 0.015  # that an answer takes which is not made to be slow
PATIENCE = 5  # times the budget the first round may take on a machine that has others to serve
PDEATHSIG = 1  # Linux's PR_SET_PDEATHSIG
_SLOW = re.compile(r"[!^(]|\\(?:sum|prod|int|lim|binom)|[0-9]{7}")


@dataclass
class _Worker:
    pid: int
    socket: socket.socket
    used: float = 0.0  # seconds of processor time
    question: int = -1
    limit: float = 0.0
    kill_at: float = 0.0


class Bench:
    """Workers that judge one batch, `budget` seconds each.

    Processor time is shared out in rounds. In the first each question gets FIRST, in the others an equal share of
    what is left, at least twice what it had before; `seconds` at most. So no slow answer takes the time of a quick
    one, wherever it stands. What has had `seconds` is wrong; what is open when the budget is spent was not judged.
    The clock ends the later rounds, which get half the budget at least; the first goes on behind it, because whether
    a quick answer is right must not depend on what else the machine does.
    """

    def __init__(self, questions: list, score_of: Callable, seconds: float, budget: float, workers: int):
        self.questions, self.score_of, self.seconds, self.budget = questions, score_of, seconds, budget
        self.size = min(workers, len(questions))
        self.started, self.first_round = time.monotonic(), True
        self.deadline = self.started + PATIENCE * budget
        self.spent = 0.0  # by workers that are gone
        self.scores: list[float | None] = [None] * len(questions)
        self.had = [0.0] * len(questions)
        self.unread: list[int] = []
        self.open, self.later = deque(sorted(range(len(questions)), key=lambda i: _looks(questions[i]))), deque()
        self.idle: list[_Worker] = []
        self.busy: dict[int, _Worker] = {}
        self.selector = selectors.DefaultSelector()

    def judge(self) -> dict:
        self.selector.register(0, selectors.EVENT_READ)  # the parent says nothing meanwhile: readable is its end
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
            worker.kill_at = time.monotonic() + PATIENCE * (limit + 1)  # one that waits takes no processor time
            self.busy[worker.socket.fileno()] = worker
            with contextlib.suppress(OSError):  # a worker that has died: `collect` sees it
                worker.socket.sendall(json.dumps([i, limit]).encode() + b"\n")

    def take(self) -> tuple[int, float]:
        """The next question and the processor time that it gets."""
        if not self.open:
            if self.first_round:
                self.deadline = max(self.started, time.monotonic() - self.budget / 2) + self.budget
            self.open, self.later, self.first_round = self.later, deque(), False
        i, left, others = self.open.popleft(), max(FLOOR, self.left()), len(self.open) + len(self.busy)
        share = left / (others + 1)
        if self.first_round and share < self.seconds:
            share = min(FIRST, left - QUICK * others)
        return i, min(left, self.seconds, max(FLOOR, share, 2 * self.had[i]))

    def collect(self) -> None:
        until = min([self.deadline, *(w.kill_at for w in self.busy.values())])
        for key, _ in self.selector.select(max(0.0, until - time.monotonic())):
            if key.fd == 0:
                os._exit(0)
            worker = self.busy.pop(key.fd)
            reply = _received(worker.socket)
            if reply is None:
                self.cut(worker)
                continue
            score, worker.used = reply
            self.idle.append(worker)
            self.scores[worker.question] = score or 0.0
            if score is None:
                self.unread.append(worker.question)
        for fd, worker in list(self.busy.items()):
            if time.monotonic() > worker.kill_at:
                self.cut(self.busy.pop(fd))

    def cut(self, worker: _Worker) -> None:
        """Of a worker that has died over its question, or is to."""
        i, self.had[worker.question] = worker.question, worker.limit
        code = self.dismiss(worker)
        if code in (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGKILL) and worker.limit < self.seconds:
            self.later.append(i)
        elif code < 0:  # else the worker is at fault, and the answer was not judged
            self.scores[i] = 0.0

    def hire(self) -> _Worker:
        ours, theirs = socket.socketpair()
        jury, pid = os.getpid(), os.fork()
        if not pid:
            ours.close()
            self.selector.close()
            for other in [*self.idle, *self.busy.values()]:
                other.socket.close()
            _work(theirs, jury, self.questions, self.score_of, self.budget * self.size)
        theirs.close()
        self.selector.register(ours, selectors.EVENT_READ)
        return _Worker(pid, ours)

    def dismiss(self, worker: _Worker) -> int:
        """Ends a worker, unless it has ended; returns its exit code, for a signal the signal's number below 0."""
        self.selector.unregister(worker.socket)
        worker.socket.close()
        os.kill(worker.pid, signal.SIGKILL)
        _, status, usage = os.wait4(worker.pid, 0)
        self.spent += usage.ru_utime + usage.ru_stime
        return os.waitstatus_to_exitcode(status)


def _looks(question: tuple) -> float:
    """How slow a question looks, so that those that look quick are asked first."""
    return len(_SLOW.findall(question[-1])) + len(question[-1]) / MAX_ANSWER


def _received(source: socket.socket) -> tuple[float | None, float] | None:
    """A worker's score, None where the true answer cannot be read, and its processor time so far; None if it died."""
    line = b""
    while not line.endswith(b"\n"):
        try:
            piece = source.recv(4096)
        except OSError:
            return None
        if not piece:
            return None
        line += piece
    return json.loads(line)


def _work(asked: socket.socket, jury: int, questions: list, score_of: Callable, seconds: float) -> None:
    """A worker's life. Its timer counts its own processor time, and the kernel ends it when the time is over."""
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        die_with(jury, signal.SIGKILL)
        _limit(resource.RLIMIT_AS, _address_space() + MEMORY)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_CPU, int(seconds) + 5)  # should the timer fail
        for line in asked.makefile("rb"):
            i, limit = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, limit)
            try:
                score = min(1.0, max(0.0, float(score_of(*questions[i]))))
            except Unreadable:
                score = None
            except BaseException:  # a parser's errors on hostile text are its own; whatever they are, it is wrong
                score = 0.0
            signal.setitimer(signal.ITIMER_PROF, 0)
            asked.sendall(json.dumps([score, time.process_time()]).encode() + b"\n")
    finally:
        os._exit(0)


def _limit(what: int, value: int) -> None:
    _, most = resource.getrlimit(what)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(what, (value, value))


def _address_space() -> int:
    """Bytes that this process has taken already, where the system says."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


class Unreadable(Exception):
    """The true answer is none that the library can read."""


def die_with(parent: int, by: int) -> None:
    """Ends this process when its parent ends: by signal `by` on Linux, and at once if the parent is gone already."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(0)


# --- the libraries --------------------------------------------------------------------------------


def _math_scores(_questions: list) -> Callable:
    return math_score


def math_score(truth: str, answer: str) -> float:
    """Whether math-verify finds the LaTeX of an answer equal to that of the true one. Raises Unreadable."""
    from math_verify import verify

    wanted = _parsed(truth)
    if not wanted:
        raise Unreadable
    # No time limit inside: its signals are for the main thread only, and ours holds for all.
    return float(verify(wanted, _parsed(answer), timeout_seconds=None))


@functools.lru_cache(1024)
def _parsed(latex: str) -> list:
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # LaTeX alone: its search for any number would find 42 in "A. 42". Units are equality.py's, which knows 5t from 5 m.
    normal = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
    config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=normal)
    return parse(f"\\boxed{{{latex}}}", [config], fallback_mode="no_fallback", parsing_timeout=None)


# The parser and sympy are slow on their first formulas of a kind; workers inherit what this process has learnt.
WARM_UP = (
    (r"\frac{1}{2}x^2+\sqrt{3}\pi", r"\frac12(x^2+2\sqrt3\pi)"), (r"\frac{1+\sqrt5}{2}", r"\frac{1-\sqrt{5}}{2}"),
    (r"(-\infty,2)\cup[3,\infty)", r"(-\infty,2]\cup(3,\infty)"), (r"\{1,2\}", r"\{2,3\}"), ("1,2,-3", "3,2,1"),
    (r"(1,-2,\frac{3}{4})", "(1,-2,3)"), ("y=2x+1", "2x+2"), (r"0<x\le 5", "(0,5]"), ("x>3", "3<x"), ("(1,2)", "1,2"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"), ("2^{10}-3!", "1018"),
    (r"\sin(2x)+\log_2 8", r"2\sin x\cos x+3"), (r"e^{2}", r"\ln 2"), ("1+2i", "1-2i"), (r"|x|", r"\binom{5}{2}"),
)  # fmt: skip


def _load(library: str) -> Callable[[list], Callable]:
    """What makes a batch's scorer of its questions. Raises ImportError."""
    importlib.import_module(library)
    if library == "reasoning_gym":
        from erltool.tasks.gym import scorer

        return scorer
    for truth, answer in WARM_UP:
        math_score(truth, answer)
    return _math_scores


def main(library: str, parent: int) -> None:
    # The signal also comes when only the thread of the parent ends that started this process.
    signal.signal(signal.SIGHUP, lambda *_: None if os.getppid() == parent else os._exit(0))
    die_with(parent, signal.SIGHUP)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for a reply
    try:
        scorer = _load(library)
    except ImportError as e:
        print(json.dumps({"missing": e.name}), file=out, flush=True)
        return
    gc.collect()
    gc.freeze()  # what workers inherit is not theirs to look through
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
