"""The processes that judge answers: their limits of time and memory, and that none outlives its trainer."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import pytest

from erltool import ErltoolError
from erltool.tasks.judge import Judge
from erltool.tasks.task import Problem, task_of_answers

pytest.importorskip("math_verify")

HOSTILE = (
    "9^{9^{9^{9^{9}}}}", "factorial(10**9)", r"\binom{10^{9}}{5*10^{8}}!", "(" * 900, r"\frac" * 180,
    "__import__('os')", "\x00", "\ud800", "{" * 400 + "}" * 400, r"\sum_{i=1}^{10^{12}} i!", "x" * 999,
    "%s%n", '{"score": 1.0}\n', r"\prod_{i=1}^{10^9}(x+i)", "x" + "^{2" * 200 + "}" * 200, "2^{2^{2^{2^{2^{2}}}}}",
)  # fmt: skip
SLOW = [rf"\boxed{{9^{{9^{{9^{{9^{{{i}}}}}}}}}}}" for i in range(100)]  # each takes more than a second


@pytest.fixture(scope="module")
def judge():
    return Judge()


@pytest.mark.parametrize(
    ("truth", "response", "reward"),
    [
        ("42", r"\boxed{42}", 1), ("42", "the answer is 42.", 1), ("42", r"\boxed{43}", 0), ("42", "", 0),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1), (r"\frac{\sqrt{2}}{2}", r"\boxed{\frac{1}{\sqrt{2}}}", 1),
        ("(1,2)", r"\boxed{(1, 2)}", 1), (r"\{1,2\}", r"\boxed{\{2,1\}}", 1), ("x+1", r"\boxed{1+x}", 1),
        ("[0,1)", r"\boxed{[0,1]}", 0), ("x+1", r"\boxed{x-1}", 0), (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", 0),
    ],
)  # fmt: skip
def test_math(judge, truth, response, reward):
    assert judge.math(truth, response) == reward


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_answers_are_wrong_and_the_judge_lives_on(judge, hostile):
    assert judge.math("x+y", f"\\boxed{{{hostile}}}") == 0.0
    assert judge.math("x+y", r"\boxed{y+x}") == 1.0


def processor_seconds(judge) -> float:
    """Processor time of the jury's workers that have ended."""
    fields = Path(f"/proc/{judge._process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def test_an_answer_gets_a_second_of_processor_time_without_the_librarys_start(judge):
    judge._stop()
    assert judge.math("x+y", r"\boxed{y+x}") == 1.0  # starts the jury, which takes more than a second
    before = processor_seconds(judge)
    assert judge.math("x+y", SLOW[0]) == 0.0
    assert 0.9 < processor_seconds(judge) - before < 1.5


def test_no_hostile_answer_holds_up_the_others_wherever_it_stands(judge, monkeypatch):
    monkeypatch.setattr(judge, "batch_seconds", 3)
    before = judge.not_judged
    right = [("x+y", rf"\boxed{{y+x+{i}-{i}}}") for i in range(30)]
    batch = [("x+y", slow) for slow in SLOW[:40]] + right + [("x+y", slow) for slow in SLOW[40:80]]
    with pytest.warns(UserWarning, match=r"^\d+ of 110 answers were not judged in 3 s and") as said:
        rewards = judge.maths(*zip(*batch, strict=True))
    assert rewards == [0.0] * 40 + [1.0] * 30 + [0.0] * 40
    assert len(said) == 1 and 0 < judge.not_judged - before <= 80
    assert str(said[0].message).startswith(f"{judge.not_judged - before} of")
    assert str(said[0].message).endswith(f"count as wrong; {judge.not_judged} so far")


def test_a_batch_within_its_time_says_nothing(judge):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert judge.maths(["x+y"] * 3 + ["7"], [r"\boxed{y+x}", SLOW[0], r"\boxed{x}", "7"]) == [1, 0, 0, 1]


def test_the_same_question_is_asked_once(judge):
    before = processor_seconds(judge)
    assert judge.maths(["x+y"] * 50, [SLOW[0]] * 50) == [0.0] * 50
    assert processor_seconds(judge) - before < 2


def test_plain_answers_need_no_process():
    judge = Judge("no_such_library")
    truths = ["7", "1/2", "1,000", "0.42", "2.5", "yes", "B", "x+y", "5 cm", "7"]
    answers = ["7.0", r"\frac12", "1000", r"42\%", "2 1/2", "Yes", "(B)", "x + y", r"5\text{ cm}", "None"]
    assert judge.maths(truths, [rf"\boxed{{{a}}}" for a in answers]) == [1.0] * 9 + [0.0]


@pytest.mark.parametrize("truth", [r"\frac{1 +", "<<x>>", "one @ two"])
def test_a_true_answer_that_no_one_can_read_is_said_once_and_only_its_own_text_is_right(judge, truth):
    with pytest.warns(UserWarning, match=r"^true answer '.*': not readable as mathematics") as said:
        for _ in range(2):
            assert judge.maths([truth] * 3, [f"Answer: {truth}", "Answer: x/2", r"\boxed{1}"]) == [1, 0, 0]
    assert len(said) == 1


def test_a_missing_library_is_named():
    with pytest.raises(ErltoolError, match="needs the package no-such-library; pip install no-such-library"):
        Judge("no_such_library").ask([("x", "y")])


def test_importing_the_judge_loads_no_library():
    code = "import sys, erltool.tasks.judge; print({'math_verify', 'sympy', 'reasoning_gym'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_limits_of_the_surroundings_are_kept_and_are_no_verdict():
    code = r"""
import resource, signal
from erltool.tasks.judge import Judge
for what, value in ((resource.RLIMIT_CPU, 500), (resource.RLIMIT_AS, 3 * 2**30), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(what, (value, value))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
signal.signal(signal.SIGPROF, signal.SIG_IGN)
print(Judge().maths(["x+y"] * 3, [r"\boxed{y+x}", r"\boxed{9^{9^{9^{9^9}}}}", r"\boxed{x}"]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout == "[1.0, 0.0, 0.0]\n" and out.stderr == ""


# --- what becomes of the processes ----------------------------------------------------------------------


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]


def gone(pids: list[int], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, pids))


def trainer(body: str) -> subprocess.Popen:
    """A process that runs `body`, which prints the jury's id and keeps running."""
    code = "from erltool.tasks.judge import Judge\njudge = Judge(seconds=30, batch_seconds=60)\n" + textwrap.dedent(
        body
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


ASKS = """
    import threading, time
    judge.math("x+y", r"\\boxed{y+x}")
    busy = lambda: judge.maths(["x+y"] * 2, [r"\\boxed{9^{9^{9^{9^{%d}}}}}" % i for i in (8, 9)])
    threading.Thread(target=busy, daemon=True).start()
    print(judge._process.pid, flush=True)
    time.sleep(60)
"""


def jury_of(process: subprocess.Popen, workers: int) -> list[int]:
    jury = int(process.stdout.readline())
    until = time.monotonic() + 20
    while len(children(jury)) < workers and time.monotonic() < until:
        time.sleep(0.05)
    found = [jury, *children(jury)]
    assert len(found) == 1 + workers and all(map(alive, found))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_when_the_trainer_dies_its_judges_die_at_work(by):
    process = trainer(ASKS)
    pids = jury_of(process, workers=min(2, len(os.sched_getaffinity(0))))
    process.send_signal(by)
    process.wait()
    process.stdout.close()
    assert gone(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_an_idle_jury_ends_with_its_trainer_and_at_the_end_of_its_input():
    body = """
        import time
        judge.math("x+y", r"\\boxed{y+x}")
        print(judge._process.pid, flush=True)
        time.sleep(60)  # not input(), which ends at once where the tests have none
    """
    process = trainer(body)
    pids = jury_of(process, workers=0)
    process.kill()
    process.wait()
    process.stdout.close()
    assert gone(pids)
    # As on systems that do not signal a parent's death: the parent lives, and only its pipe is closed.
    jury = subprocess.Popen([sys.executable, "-m", "erltool.tasks.jury", "math_verify", str(os.getpid())],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert jury.stdout.readline() == b'{"ready": true}\n'
    jury.stdin.close()
    assert jury.wait(10) == 0
    jury.stdout.close()


def test_a_jury_whose_trainer_is_gone_before_it_starts_does_not_stay():
    jury = subprocess.run(
        [sys.executable, "-m", "erltool.tasks.jury", "math_verify", "1"], stdin=subprocess.PIPE, timeout=60
    )
    assert jury.returncode == 0


def test_a_jury_that_dies_is_replaced(judge):
    assert judge.math("x+y", r"\boxed{y+x}") == 1.0
    judge._process.kill()
    assert judge.math("x+y", r"\boxed{y+x-1+1}") == 1.0
    judge._process.kill()
    judge._process.wait()
    assert judge.math("x+y", r"\boxed{y+x-1+1}") == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_zombie_and_no_pipe_is_left():
    def inventory():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), sorted(children(os.getpid()))

    before = inventory()
    judge = Judge()
    assert judge.maths(["x+y"] * 2, [r"\boxed{y+x}", SLOW[0]]) == [1, 0]
    jury = judge._process.pid
    assert children(jury) == []  # workers end with their batch
    del judge
    assert inventory() == before and not alive(jury)


def test_an_interrupted_question_leaves_no_reply_behind(judge, monkeypatch):
    assert judge.math("x+y", r"\boxed{y+x}") == 1.0
    line = judge._line

    def interrupted(seconds):
        monkeypatch.setattr(judge, "_line", line)
        raise KeyboardInterrupt

    monkeypatch.setattr(judge, "_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge.math("x+y", r"\boxed{y+x+1-1}")
    assert judge.math("x+y", r"\boxed{y+2x}") == 0.0 and judge.math("x+y", r"\boxed{x+y+0}") == 1.0


def test_threads_take_turns_and_a_jury_outlives_the_thread_that_started_it():
    judge, found = Judge(), {}
    ask = lambda i: found.update({i: judge.math("x+y", rf"\boxed{{y+x+{i}-{i % 2}}}")})  # noqa: E731
    first = threading.Thread(target=ask, args=(0,))
    first.start()
    first.join()
    jury = judge._process.pid
    time.sleep(0.3)  # waits for the signal that the end of its parent thread sends
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: 1.0, 1: 1.0, 2: 0.0, 3: 0.0, 4: 0.0}
    assert judge._process.pid == jury


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork_each_has_a_jury_of_its_own():
    judge = Judge()
    assert judge.math("x+y", r"\boxed{y+x}") == 1.0
    jury = judge._process.pid
    pid = os.fork()
    if not pid:  # the child ends by os._exit, and so does its own jury
        right = judge.math("x+y", r"\boxed{y+x}") == 1.0 and judge._process.pid != jury
        judge._stop()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert judge.math("x+y", r"\boxed{y+x+1-1}") == 1.0 and judge._process.pid == jury


@pytest.mark.parametrize(
    ("truth", "prompt", "response", "reward"),
    [
        ("(x-3)(x+3)", "Factor $x^2-9$.", "To factor $x^2 - 9$, we can", 0),
        ("(x-3)(x+3)", "Factor $x^2-9$.", r"\boxed{(x+3)(x-3)}", 1),
        ("9x^2-4", "Expand $(3x-2)(3x+2)$.", "To expand $(3x-2)(3x+2)$, we", 0),
        ("7x", "Simplify $3x+4x$.", "To simplify $3x+4x$, we combine", 0),
        (r"2\sqrt{3}", r"Simplify $\sqrt{12}$.", r"\boxed{\sqrt{12}}", 0),
        (r"2\sqrt{3}", r"Simplify $\sqrt{12}$.", r"\boxed{2\sqrt3}", 1),
        ("2x+3", "Which has the larger slope, $2x+3$ or $x+9$?", r"\boxed{2x + 3}", 1),
        ("y", "Name a letter other than x.", r"\boxed{y}", 1),
    ],
)
def test_a_formula_copied_from_the_prompt_is_no_answer(truth, prompt, response, reward):
    problem = Problem(prompt, truth)
    assert task_of_answers("algebra", [problem], []).rewards([problem], [response]) == [reward]
