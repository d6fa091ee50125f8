"""How threads wait for work, and whether a wait for a core is noticed."""

import os
import subprocess
import sys
import threading

import pytest

from erltool import threads
from erltool.cli import command as cli
from erltool.threads import CHOICES, CROWDED, Crowding

LINUX = pytest.mark.skipif(not os.path.isdir(threads.TASKS), reason="needs Linux")
SPIN = pytest.mark.skipif(threads.cores() < 2, reason="torch takes one thread on one core, and one does not spin")
WITHOUT = {k: v for k, v in os.environ.items() if k not in CHOICES}


def printed(code: str, **env) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=WITHOUT | env, capture_output=True, text=True
    ).stdout.strip()


GAPS = """
import os, time
import torch
from erltool.threads import Courtesy
torch.set_num_threads(2)
a, b = torch.randn(256, 96), torch.randn(96, 384)

def seconds_on_core():
    times = {t: int(open(f"/proc/self/task/{t}/schedstat").read().split()[0]) for t in os.listdir("/proc/self/task")}
    return times.pop(str(os.getpid())), sum(times.values())

def spun():
    before, until = seconds_on_core(), time.monotonic() + 1
    while time.monotonic() < until:
        a @ b
        pause = time.thread_time() + 0.002
        while time.thread_time() < pause:
            pass
    main, others = (y - x for x, y in zip(before, seconds_on_core()))
    return others / main

courtesy = Courtesy()
found = []
for share in (0.0, 0.5, 0.0, 0.5):
    courtesy._crowding.look = lambda: share
    courtesy.look()
    time.sleep(0.5)  # the team comes, or goes
    found.append(spun())
courtesy.close()
time.sleep(0.5)
print(*found, spun()) if "libgomp" in open("/proc/self/maps").read() else print("no libgomp")
"""


def waiting(**env) -> list[float]:
    """The second thread's seconds on a core over the first's, which does a product every 2 ms: with no others, with
    others, without, with, and after it is over."""
    said = printed(GAPS, OMP_NUM_THREADS="2", MKL_NUM_THREADS="2", **env)
    if said == "no libgomp":
        pytest.skip("torch has another OpenMP here")
    return list(map(float, said.split()))


@LINUX
@SPIN
def test_threads_sleep_while_they_wait_as_long_as_others_want_the_cores():
    alone, beside, alone_again, beside_again, over = waiting()
    assert max(beside, beside_again) < 0.3 and min(alone, alone_again, over) > 0.5


@LINUX
@SPIN
def test_how_threads_wait_is_the_users_to_choose():
    assert min(waiting(GOMP_SPINCOUNT="300000")) > 0.5
    assert max(waiting(OMP_WAIT_POLICY="passive")) < 0.3


def test_courtesy_changes_no_result(tiny_config, tmp_path, monkeypatch):
    import torch

    import erltool

    monkeypatch.setattr(threads, "CHOICES", ())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    teams = []
    try:
        for crowded in (0.0, 0.5):
            monkeypatch.setattr(Crowding, "look", lambda self, crowded=crowded: crowded)
            for _ in erltool.train(tiny_config(), out=tmp_path / str(crowded)):
                teams.append(sum(thread.name == "Courtesy" for thread in threading.enumerate()))
    finally:
        torch.set_num_threads(before)
    assert teams == [0] * 8 + [1] * 8
    assert (tmp_path / "0.0/metrics.jsonl").read_bytes() == (tmp_path / "0.5/metrics.jsonl").read_bytes()


# --- noticing ----------------------------------------------------------------------------------------

BESIDE_OTHERS = """
import os, sys, time
from erltool.threads import Crowding
others = int(sys.argv[1])
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for all of them
pids = [os.fork() for _ in range(others)]
crowding, until = Crowding(span=0.5), time.monotonic() + 0.6
while time.monotonic() < until:
    pass
if 0 in pids:
    os._exit(0)
print(crowding.look())
"""


@LINUX
def test_a_process_that_shares_its_core_notices():
    share = float(subprocess.run([sys.executable, "-c", BESIDE_OTHERS, "1"], capture_output=True, text=True).stdout)
    assert CROWDED < 0.4 < share <= 1


@pytest.mark.parametrize(
    ("run", "waited", "share"),
    [(40.0, 0.8, 0.02), (20.0, 20.0, 0.5), (0.5, 0.5, 0.0), (0.0, 0.0, 0.0), (-1.0, 30.0, 1.0)],
)
def test_the_share_is_of_a_whole_span_in_which_the_process_worked(run, waited, share, monkeypatch):
    now, spent = [0.0], [(5.0, 5.0)]
    monkeypatch.setattr(threads.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(threads, "seconds_run_and_waited", lambda: spent[-1])
    crowding = Crowding(span=20)
    now[0] = 19.9
    spent.append((5 + run, 5 + waited))
    assert crowding.look() == 0  # the first span is not over
    now[0] = 20.1
    assert crowding.look() == pytest.approx(share if share > CROWDED else 0, abs=0.01)
    assert crowding.share == pytest.approx(share, abs=0.01)
    now[0], spent[-1] = 30.0, (100.0, 1000.0)
    assert crowding.look() == (crowding.share if share > CROWDED else 0)  # until the next is
    assert crowding.share == pytest.approx(share, abs=0.01)
    now[0], spent[-1] = 41.0, (5 + run + 40, 5 + waited)
    assert crowding.look() == 0  # over again


def test_where_the_kernel_does_not_count_nothing_is_said(monkeypatch):
    monkeypatch.setattr(threads, "TASKS", "/nowhere")
    assert threads.seconds_run_and_waited() == (0, 0)
    crowding = Crowding(span=0)
    assert crowding.look() == 0


def test_training_says_once_that_it_waits_and_shows_how_long(tiny_policy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Crowding, "look", lambda self: 0.47)
    words = ["--steps=8", "--prompts-per-iteration=4", "--group-size=4", "--updates-per-iteration=2", "--lora-rank=4",
             "--max-response-tokens=8", "--eval-every=0", f"--policy={tiny_policy}"]  # fmt: skip
    assert cli.main(["train", f"--out={tmp_path / 'run'}", *words]) == 0
    err = capsys.readouterr().err
    assert err.count("threads waited for a core 47% of the time") == 1 and "OMP_NUM_THREADS" in err
    assert " waits 47%" in err.splitlines()[-1]
    monkeypatch.setattr(Crowding, "look", lambda self: 0.0)
    assert cli.main(["train", f"--out={tmp_path / 'calm'}", *words]) == 0
    assert "wait" not in capsys.readouterr().err


@pytest.mark.parametrize(("share", "level"), [(0.02, "ok"), (0.47, "note")])
def test_the_doctor_says_whether_threads_wait(share, level, capsys, monkeypatch):
    monkeypatch.setattr(threads, "seconds_run_and_waited", iter([(0, 0), (1 - share, share)]).__next__)
    cli.main(["doctor"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "waited for a core" in line)
    assert line.startswith(level) and f"{share:.0%}" in line
