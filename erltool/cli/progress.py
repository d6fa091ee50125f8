"""Follows a run on a terminal: a progress bar, warnings, and Ctrl-C."""

import contextlib
import signal
import sys
from pathlib import Path

from erltool import threads
from erltool.cli import terminal


def follow(config, out: Path, resume: bool, name: str) -> int:
    """Trains with a progress bar; returns the exit status. A first Ctrl-C stops after the iteration's checkpoint."""
    from erltool.training.loop import train

    steps, crowding, warned, accuracy = train(config, out, resume), threads.Crowding(), False, None
    with contextlib.closing(steps), interruptible() as interrupted, terminal.progress(config.steps, name) as bar:
        for step in steps:
            m, waited = step.metrics, crowding.look()
            accuracy = m.get("eval_accuracy", accuracy)
            bar.set_postfix_str(postfix(m, waited, accuracy), refresh=False)
            bar.update(m["step"] - bar.n)
            for alarm in step.alarms:
                bar.write(str(alarm), file=sys.stderr)
            if waited and not warned:
                warned = True
                bar.write(f"erltool: {threads.crowded_text(waited)}", file=sys.stderr)
            if interrupted and m["step"] % config.updates_per_iteration == 0 and m["step"] < config.steps:
                break
        else:
            return 0
    return terminal.fail(f"stopped after step {m['step']}; continue with: erltool train --resume --out {out}", 130)


def over_grid(progress):
    """(name, bar, progress) with a progress bar for each run of `run_grid`, which shows the run's step."""
    bars, crowding = {}, threads.Crowding()
    for name, m in progress:
        if name not in bars:
            bars[name] = terminal.progress(m.steps, name[-30:])
        if m.metrics:
            bars[name].set_postfix_str(postfix(m.metrics, crowding.look()), refresh=False)
        bars[name].update(m.step - bars[name].n)
        yield name, bars[name], m


def postfix(metrics, waited: float, accuracy: float | None = None) -> str:
    """A step's numbers for the progress bar: entropy, reward, last accuracy, fraction of the time without a core."""
    text = f"H {metrics['policy_entropy']:.3f} R {metrics['reward']:.2f}"
    text += "" if accuracy is None else f" acc {accuracy:.2f}"
    return text + (f" waits {waited:.0%}" if waited else "")


@contextlib.contextmanager
def interruptible():
    """Yields a list that the first Ctrl-C puts an entry in; the second raises KeyboardInterrupt as usual."""
    interrupted: list[int] = []

    def note(number, frame):
        interrupted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if sys.stderr and sys.stderr.isatty():
            print(file=sys.stderr)  # ends the line of the progress bar
        terminal.complain("finishing the iteration; Ctrl-C again stops at once")

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # only the main thread gets interrupts
        yield interrupted
        return
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
