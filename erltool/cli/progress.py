"""Following work on a terminal: a bar, what is warned of, and Ctrl-C."""

import contextlib
import signal
import sys
from pathlib import Path

from erltool import threads
from erltool.cli import terminal


def follow(config, out: Path, resume: bool, name: str) -> int:
    """Trains and shows how far it is. Ctrl-C ends after the iteration with a checkpoint; a second one at once."""
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
    return terminal.fail(f"stopped after step {m['step']}; go on with: erltool train --resume --out {out}", 130)


def postfix(metrics, waited: float, accuracy: float | None = None) -> str:
    """A step's numbers for the progress: entropy, reward, the last accuracy, the share of time without a core."""
    parts = [f"H {metrics['policy_entropy']:.3f}", f"R {metrics['reward']:.2f}"]
    parts += [f"acc {accuracy:.2f}"] if accuracy is not None else []
    return " ".join(parts + ([f"waits {waited:.0%}"] if waited else []))


@contextlib.contextmanager
def interruptible():
    """A list that gets an entry at the first Ctrl-C; the second one raises KeyboardInterrupt as usual."""
    interrupted: list[int] = []

    def note(number, frame):
        interrupted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if sys.stderr and sys.stderr.isatty():
            print(file=sys.stderr)  # the bar's line is not ended
        terminal.complain("finishing the iteration; Ctrl-C again stops at once")

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: interrupts do not come here
        yield interrupted
        return
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
