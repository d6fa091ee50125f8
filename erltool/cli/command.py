"""The command line: `erltool COMMAND` or `python -m erltool COMMAND`, with the commands below.

Each command is a file in this folder with a function `run`, and only the command that is called is imported. An error
that the user can fix is one line on stderr and exit status 2. An interrupted command exits with 130, and one whose
output nobody reads, as after `| head`, with 141.
"""

import difflib
import importlib
import sys
import textwrap

from erltool.cli import terminal
from erltool.errors import ErltoolError

COMMANDS = {
    "demo": "train with and without Clip-Cov, fit the law, write a report; 90 seconds on 2 cores",
    "train": "train a policy; the flags are the fields of TrainConfig",
    "eval": "measure the accuracy of a run or a policy on benchmarks or a task",
    "plan": "estimate the memory that training needs, and which settings make it fit a GPU",
    "prompt": "show a task's prompts as the policy reads them",
    "experiment": "train every run of a grid; can be interrupted and resumed",
    "fit": "fit the law R = -a exp(H) + b to runs and logs",
    "report": "write runs and logs as one interactive HTML file: curves, tokens, law, alarms, advice",
    "microscope": "measure which tokens of a run's updates spend the entropy, and what sparing them costs",
    "advise": "say in one paragraph what a run's entropy is worth, who spends it, and which control to try",
    "runs": "list the runs in a place: a log, Trackio's cache, MLflow's database, a folder of folders",
    "watch": "follow a run while it is written: entropy, reward, law, forecast, alarms",
    "import": "read another tool's log, show its entropy and performance, write it as a run",
    "inspect": "show the tokens of anyone's rollouts: covariance, push, and what a control would take",
    "check": "find what is wrong with a configuration of verl, TRL, SkyRL, prime-rl or erltool",
    "export": "translate a run's configuration to verl: command, data, and differences",
    "lab": "open the lessons in JupyterLab",
    "workshop": "write the lessons without solutions, and the instructor's timed plan with solutions",
    "doctor": "check versions, device, memory, threads and JupyterLab; with --policy, how exact its log-probs are",
}
FILES = {"import": "import_", "inspect": "inspect_"}  # names that Python or its library has


def main(words: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    words = sys.argv[1:] if words is None else words
    command = words[0] if words else "erltool"
    try:
        with terminal.readable_output():
            if command not in COMMANDS:
                return _no_command(words)
            module = importlib.import_module(f"erltool.cli.{FILES.get(command, command)}")
            return module.run(terminal.Parser(command, COMMANDS[command]), words[1:])
    except ErltoolError as e:
        return terminal.fail(e)
    except terminal.Closed:
        return terminal.PIPE_CLOSED
    except OSError as e:
        return terminal.fail(f"{e.filename or command}: {e.strerror or e}")
    except KeyboardInterrupt:
        return terminal.fail("interrupted", 130)


def _no_command(words: list[str]) -> int:
    if words and words[0] == "--version":
        from erltool import __version__

        print(__version__)
    elif words and words[0] in ("-h", "--help"):
        print(_overview())
    elif words:
        near = difflib.get_close_matches(words[0], COMMANDS, 1, cutoff=0.7)  # "law" is not a slip for "lab"
        return terminal.fail(f"no command {words[0]!r}; use " + (near[0] if near else f"one of {', '.join(COMMANDS)}"))
    else:
        print(_overview(), file=sys.stderr)
        return 2
    return 0


def _overview() -> str:
    lines = [
        textwrap.fill(text, terminal.WIDTH - 1, initial_indent=f"  {name:11}", subsequent_indent=" " * 13)
        for name, text in COMMANDS.items()
    ]
    text = "\n".join(lines)
    return f"usage: erltool COMMAND [flags]\n\n{text}\n\nerltool COMMAND --help lists a command's flags."
