"""The command line: erltool demo | train | eval | plan | prompt | fit | import | export | lab | workshop | doctor.

Each is a file here with a function `run`; its flags and modules are loaded only when it is asked for. What a user can
mend is one line on stderr and exit status 2; a run that was interrupted exits with 130; where nobody reads what is
printed, as after `| head`, the status is 141.
"""

import difflib
import importlib
import sys
import textwrap

from erltool.cli import terminal
from erltool.errors import ErltoolError

COMMANDS = {
    "demo": "train with and without entropy control, fit the law, draw; a minute and a half on 2 cores",
    "train": "train a policy; the flags are the fields of TrainConfig",
    "eval": "accuracy of a run or a policy on benchmarks or a task",
    "plan": "memory that training needs, and what to lower",
    "prompt": "show a task's prompts as a policy is given them",
    "experiment": "make the runs of a declared grid, resumable at any point",
    "fit": "fit R = -a exp(H) + b to recorded runs",
    "import": "read another tool's log: entropy and performance by step, and as a run",
    "export": "a run's configuration for verl: command line, data, and what differs there",
    "lab": "open JupyterLab on the lessons",
    "workshop": "write the lessons without solutions, and a timed plan with them for the instructor",
    "doctor": "check versions, device, memory, threads and JupyterLab",
}
FILES = {"import": "import_"}  # a command is the file of its name; no file can be named as this one


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
        near = difflib.get_close_matches(words[0], COMMANDS, 1)
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
