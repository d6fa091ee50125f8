"""The command line: erltool demo | train | eval | plan | prompt | fit | import | export | lab | workshop | doctor.

A command's flags and modules are loaded only when that command is asked for. What a user can mend is one
line on stderr and exit status 2; a run that was interrupted exits with 130; where nobody reads what is printed,
as after `| head`, the status is 141.
"""

import argparse
import contextlib
import dataclasses
import difflib
import math
import os
import signal
import sys
import textwrap
import typing
import warnings
from pathlib import Path

from erltool import threads
from erltool.cli import terminal
from erltool.cli.arguments import above_zero, at_least, cut, not_negative, picture, place
from erltool.errors import ErltoolError
from erltool.text import visible

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


def main(words: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    words = sys.argv[1:] if words is None else words
    command = words[0] if words else "erltool"
    try:
        with terminal.readable_output():
            if command not in COMMANDS:
                return _no_command(words)
            return globals()[f"_{command}"](terminal.Parser(command, COMMANDS[command]), words[1:])
    except ErltoolError as e:
        return _fail(e)
    except terminal.Closed:
        return terminal.PIPE_CLOSED
    except OSError as e:
        return _fail(f"{e.filename or command}: {e.strerror or e}")
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _no_command(words: list[str]) -> int:
    if words and words[0] == "--version":
        from erltool import __version__

        print(__version__)
    elif words and words[0] in ("-h", "--help"):
        print(_overview())
    elif words:
        near = difflib.get_close_matches(words[0], COMMANDS, 1)
        return _fail(f"no command {words[0]!r}; use " + (near[0] if near else f"one of {', '.join(COMMANDS)}"))
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


def _fail(message, status: int = 2) -> int:
    terminal.complain(message)
    return status


# --- train ---------------------------------------------------------------------------------------


def _train(parser, words) -> int:
    from erltool.runs.folder import read_run

    parser.add_argument("--out", type=place, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    _add_config_flags(parser)
    args = vars(parser.parse_args(words))
    out, resume = args.pop("out"), args.pop("resume")
    if resume:
        from erltool.training.start import config_of

        before = config_of(read_run(out), args.get("trust_remote_code", False)).to_dict()
        return _follow(_config(before | args), out, resume, "train")
    return _follow(_config(args), out, resume, "train")


def _config(fields: dict):
    """The configuration of flags. These may let a model run code of its own, which no file can."""
    from erltool.training.config import TrainConfig

    return TrainConfig.from_dict(fields, trust_remote_code=True)


def _add_trust(parser) -> None:
    about = "let the model run code of its own, where the file asks for it"
    parser.add_argument("--trust-remote-code", action="store_true", help=about)


def _add_config_flags(parser) -> None:
    """One flag a field of TrainConfig; only the flags that were given come back."""
    from erltool.training.config import TrainConfig

    for field in dataclasses.fields(TrainConfig):
        flag, about = "--" + field.name.replace("_", "-"), field.metadata["help"].replace("%", "%%")
        if field.name in ("control", "controller"):
            from erltool.controls import catalog

            parse, known = {
                "control": (catalog.parse_control, catalog.CONTROLS),
                "controller": (catalog.parse_controller, catalog.CONTROLLERS),
            }[field.name]
            parser.add_argument(
                flag, type=_argument(parse), default=argparse.SUPPRESS, help=f"{about}; one of {', '.join(known)}"
            )
        elif field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=about)
        else:
            kind, *_ = typing.get_args(field.type) or (field.type,)
            known = "" if field.default is None else f" ({field.default})"
            parser.add_argument(
                flag, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=about + known
            )


def _argument(parse):
    """A parser for argparse, which shows the message of this exception only."""

    def parsed(text):
        try:
            return parse(text)
        except ErltoolError as e:
            raise argparse.ArgumentTypeError(str(e)) from e

    return parsed


def _follow(config, out: Path, resume: bool, name: str) -> int:
    """Trains and shows how far it is. Ctrl-C ends after the iteration with a checkpoint; a second one at once."""
    from erltool.training.loop import train

    steps, crowding, warned, accuracy = train(config, out, resume), threads.Crowding(), False, None
    with contextlib.closing(steps), _interruptible() as interrupted, _bar(config.steps, name) as bar:
        for step in steps:
            m, waited = step.metrics, crowding.look()
            accuracy = m.get("eval_accuracy", accuracy)
            bar.set_postfix_str(_postfix(m, waited, accuracy), refresh=False)
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
    return _fail(f"stopped after step {m['step']}; go on with: erltool train --resume --out {out}", 130)


def _postfix(metrics, waited: float, accuracy: float | None = None) -> str:
    """A step's numbers for the progress: entropy, reward, the last accuracy, the share of time without a core."""
    parts = [f"H {metrics['policy_entropy']:.3f}", f"R {metrics['reward']:.2f}"]
    parts += [f"acc {accuracy:.2f}"] if accuracy is not None else []
    return " ".join(parts + ([f"waits {waited:.0%}"] if waited else []))


def _bar(total: int, name: str, unit: str = "step"):
    return terminal.progress(total, name, unit)


@contextlib.contextmanager
def _interruptible():
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


# --- eval, plan, prompt --------------------------------------------------------------------------


def _eval(parser, words) -> int:
    parser.add_argument("what", metavar="RUN_OR_POLICY", help="folder of a run, or a policy as in train")
    parser.add_argument("--benchmark", default="", help="comma-separated; all for the paper's seven")
    parser.add_argument("--task", help="its held-out problems instead; a run's own task by default")
    parser.add_argument("--samples", type=at_least(1), help="responses to each problem; the protocol's by default")
    parser.add_argument("--temperature", type=not_negative, help="of sampling, 0 for greedy; the protocol's by default")
    parser.add_argument("--max-response-tokens", type=at_least(1), help="the run's, or up to 3072")
    parser.add_argument("--template", help="the run's, or boxed where the policy has a chat template")
    parser.add_argument("--limit", type=at_least(0), default=0, help="problems of each, 0 for all")
    parser.add_argument("--batch", type=at_least(0), default=256, help="responses sampled at a time, 0 for all (256)")
    parser.add_argument("--base", default="none", help="quantisation of a policy: none, nf4 or int8")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    _add_trust(parser)
    args = parser.parse_args(words)
    from erltool.training.evaluate import BENCHMARKS, evaluate, evaluation_report, evaluation_task
    from erltool.training.start import policy_for_evaluation

    if args.benchmark and args.task:
        raise ErltoolError("eval: give --benchmark or --task, not both")
    names = list(BENCHMARKS) if args.benchmark == "all" else [n for n in args.benchmark.split(",") if n]
    for name in names:
        if name not in BENCHMARKS:
            raise ErltoolError(f"benchmark {name!r} is not known: use {', '.join(BENCHMARKS)}, or all")
    asked = {name: evaluation_task(name) for name in names or filter(None, [args.task])}  # before the first is asked
    policy, config = policy_for_evaluation(
        args.what, args.base, args.template, args.device, trust_remote_code=args.trust_remote_code
    )
    if not asked:
        if not config:
            raise ErltoolError("eval: a policy has no task of its own; give --benchmark or --task")
        asked = {config.task: evaluation_task(config.task)}
    results = []
    for name, (task, temperature, samples) in asked.items():
        problems = task.held_out[: args.limit] if args.limit else task.held_out
        samples = args.samples or samples
        tokens = args.max_response_tokens or (config.max_response_tokens if config else _room(policy, problems))
        temperature = temperature if args.temperature is None else args.temperature
        with _bar(len(problems) * samples, name, "response") as bar:
            results.append(
                evaluate(
                    policy,
                    task,
                    problems,
                    samples,
                    max_response_tokens=tokens,
                    temperature=temperature,
                    batch=args.batch,
                    progress=bar.update,
                )
            )
    print(evaluation_report(results, as_json=args.json))
    return 0


def _room(policy, problems, most: int = 3072) -> int:
    """Tokens that a policy has positions for behind the longest of the problems, at most as many as the paper's."""
    longest = max(map(len, policy.encode([p.prompt for p in problems])), default=0)
    return max(1, min(most, (policy.longest or math.inf) - longest))


def _plan(parser, words) -> int:
    parser.add_argument("--prompt-tokens", type=at_least(1), default=256, help="length of the longest prompts (256)")
    parser.add_argument(
        "--gpus", type=at_least(1), default=1, help="devices that share it, sharded as by FSDP or ZeRO-3 (1)"
    )
    _add_config_flags(parser)
    args = vars(parser.parse_args(words))
    from erltool.training.memory import CARDS, advice, plan_memory

    prompt_tokens, gpus = args.pop("prompt_tokens"), args.pop("gpus")
    device = "cpu" if args.get("device") == "cpu" else "cuda"
    config = _config(args | {"device": "cpu"})
    print(plan_memory(config, prompt_tokens, device, gpus=gpus))
    print(f"of each of {gpus} devices; counted, not measured\n" if gpus > 1 else "")
    for card in CARDS:
        changes = advice(config, card * 1e9, prompt_tokens, device, gpus)
        print(f"{card:3} GB  {'fits' if changes == [] else 'too small' if changes is None else ', '.join(changes)}")
    return 0


def _prompt(parser, words) -> int:
    parser.add_argument("--count", type=at_least(1), default=1, help="prompts to show (1)")
    _add_config_flags(parser)
    args = vars(parser.parse_args(words))
    from erltool.policies.load import load_tokenizer
    from erltool.policies.policy import Template
    from erltool.tasks.task import load_task

    count = args.pop("count")
    config = _config(args)
    task, tokenizer = load_task(config.task), load_tokenizer(config.policy, config.trust_remote_code)
    template = Template.choose(config.template, tokenizer, config.policy, task.examples(config.shots))
    print(f"template {template.name}; {len(task.train)} problems to train on, {len(task.held_out)} held out")
    for problem in task.train[:count]:
        tokens = template.encode([problem.prompt], tokenizer)[0]
        print(f"--- {len(tokens)} tokens\n{template.render(problem.prompt, tokenizer)}\n---")
    return 0


# --- experiment ----------------------------------------------------------------------------------


def _experiment(parser, words) -> int:
    parser.add_argument("grid", metavar="GRID", help="a .toml file, or the name of a shipped grid")
    parser.add_argument("--out", type=place, required=True, help="folder for the runs, a folder each")
    parser.add_argument("--record", type=place, metavar="FOLDER", help="keep finished runs there together, compactly")
    parser.add_argument("--list", action="store_true", help="only list the runs, and which are over")
    _add_trust(parser)
    args = parser.parse_args(words)
    from erltool.runs.folder import read_run, record_runs
    from erltool.training.experiments import is_over, line_of, load_grid, recorded_runs, run_grid

    grid = load_grid(args.grid, args.trust_remote_code)
    recorded = recorded_runs(grid, args.record)
    runs = {name: recorded[name] for name in grid.configs if name in recorded}

    def made_elsewhere():  # before this process, or by another one beside it
        return {n: read_run(args.out / n) for n in grid.configs if n not in runs and is_over(args.out / n)}

    runs |= made_elsewhere()
    over = f"{grid.name}: {len(grid.configs)} runs, {len(runs)} of them over. {grid.question}"
    print(terminal.filled(over, 0))
    print("\n".join(line_of(name, run) for name, run in runs.items()))
    if args.list:
        print("\n".join(f"{name}: to be made" for name in grid.configs if name not in runs))
        return 0
    with _interruptible() as interrupted, contextlib.closing(run_grid(grid, args.out, runs)) as progress:
        for name, bar, m in _bars(progress):
            if m.over:
                bar.close()
                runs[name] = m.over
                print(line_of(name, m.over), flush=True)
            if interrupted:
                break
    runs |= made_elsewhere()
    if args.record and runs:
        runs = {name: runs[name] for name in grid.configs if name in runs}  # in the grid's order
        record_runs(runs | {n: r for n, r in recorded.items() if n not in runs}, args.record)
        print(visible(f"written: {args.record}, {len(recorded | runs)} runs"))
    if interrupted:
        return _fail(f"stopped; go on with: erltool experiment {args.grid} --out {args.out}", 130)
    return 0


def _bars(progress):
    """A progress bar for each run of a grid, kept at its step: (name, bar, progress)."""
    shown, bar, crowding = "", None, threads.Crowding()
    for name, m in progress:
        if name != shown:
            shown, bar = name, _bar(m.steps, name[-30:])
        if m.metrics:
            bar.set_postfix_str(_postfix(m.metrics, crowding.look()), refresh=False)
        bar.update(m.step - bar.n)
        yield name, bar, m


# --- demo and fit --------------------------------------------------------------------------------


def _demo(parser, words) -> int:
    parser.add_argument("--out", type=place, default="erltool-demo", help="folder to write (erltool-demo)")
    parser.add_argument(
        "--iterations", type=at_least(1), default=DEMO_ITERATIONS, help=f"of each run ({DEMO_ITERATIONS})"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of both runs (0)")
    args = parser.parse_args(words)
    from erltool.cli import demo
    from erltool.runs.folder import read_run

    configs = demo.demo_configs(args.iterations, args.seed)
    for name, config in configs.items():
        folder = args.out / name
        there = (folder / "config.json").is_file()
        if status := _follow(config, folder, there, f"{demo.LABELS[name]:10}"):
            return status
    runs = {name: read_run(args.out / name) for name in configs}
    print("\n" + demo.summary_table(runs).to_string() + "\n")
    for name, run in runs.items():
        law = demo.law_of(run)
        if isinstance(law, str):
            print(f"{demo.LABELS[name]}: {law}")
    print(f"written: {demo.write_report(runs, args.out)}, {args.out / 'figure.png'} and the runs beside them")
    return 0


DEMO_ITERATIONS = 60


def _fit(parser, words) -> int:
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="RUN_OR_LOG", help="a run's folder, or another tool's log"
    )
    parser.add_argument(
        "--forecast", type=cut, metavar="CUT", help="fit this first share of the points, forecast the others"
    )
    _add_log_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the fits as JSON")
    parser.add_argument("--png", type=picture, help="draw the fits to this file")
    args = parser.parse_args(words)
    from erltool.law.fit import fit_law
    from erltool.law.forecast import forecast

    fits, forecasts = {}, {}
    for path in args.sources:
        entropy, performance, known, stated = _points(path, args)
        try:
            # What a log's name and values say of the unit is no statement, though the fit takes it as given.
            fits[str(path)] = dataclasses.replace(fit_law(entropy, performance, **known), unit_stated=stated)
            if args.forecast is not None:
                forecasts[str(path)] = forecast(entropy, performance, cut=args.forecast, **known)
        except ErltoolError as e:
            raise ErltoolError(f"{path}: {e}; it was evaluated on {len(entropy)} steps") from e
    if args.json:
        import json

        rows = {
            p: f.to_dict() | ({"forecast": forecasts[p].to_dict()} if p in forecasts else {}) for p, f in fits.items()
        }
        print(json.dumps(rows, indent=1))
    else:
        parts = [
            f"{visible(p)}\n{f.summary()}" + (f"\n{forecasts[p].summary()}" if p in forecasts else "")
            for p, f in fits.items()
        ]
        print("\n\n".join(parts))
    if args.png:
        _draw_fits(args.png, fits, forecasts)
    return 0


def _add_log_flags(parser) -> None:
    """What corrects the guesses about a log."""
    parser.add_argument("--entropy", metavar="COL", help="the entropy's column; --entropy=-COL for minus that column")
    parser.add_argument("--performance", metavar="COL", help="the performance's column, instead of the guess")
    parser.add_argument("--step", metavar="COL", help="the step's column, instead of the guess")
    parser.add_argument("--unit", help="of performance: fraction, percentage-points or as-given")
    parser.add_argument("--run", metavar="NAME", help="the run, where a log holds several")
    parser.add_argument(
        "--window", type=above_zero, help="steps up to a measurement over which a log's entropy is averaged"
    )


def _log(path: Path, args, columns: dict[str, str]):
    """A log as the flags want it, `columns` where they do not say."""
    from erltool.logs.read import read_log

    given = {role: getattr(args, role) for role in ("step", "entropy", "performance")}
    columns |= {role: name for role, name in given.items() if name}
    return read_log(path, columns=columns, unit=args.unit and args.unit.replace("-", " "), run=args.run)


def _points(path: Path, args):
    """Entropies (nats), performances, what is known of both, and whether the unit was stated, of a run or a log."""
    from erltool.logs.read import said_of
    from erltool.text import shown

    own = (path / "config.json").is_file()
    # A run of ours was evaluated before the update of its step, whose entropy is of the same policy: no window.
    log = _log(path, args, {"performance": "eval_accuracy"} if own else {})
    for reason, count in log.skipped.items():
        terminal.complain(f"{path}: {count} {reason}")
    points = log.points(args.window or (1 if own else None))
    if not own:
        took = ", ".join(f"{role} {shown(log.columns[role], 40)}" for role in ("step", "entropy", "performance"))
        terminal.complain(f"{path}: {log.kind}")
        print(visible("\n".join([*_wrapped(took), *said_of(log)]), keep="\n"), file=sys.stderr)
    known = {"entropy_average": log.entropy_average, "unit": log.unit}
    return points["entropy"].to_numpy(), points["performance"].to_numpy(), known, log.unit_stated


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 80, subsequent_indent="  ")


def _draw_fits(file: Path, fits, forecasts) -> None:
    from erltool.files import writing
    from erltool.plots import new_axes, plot_fit, plot_forecast

    ax = new_axes(width=6, height=4)[0]
    for index, (path, f) in enumerate(fits.items()):
        draw, what = (plot_forecast, forecasts[path]) if path in forecasts else (plot_fit, f)
        draw(what, ax=ax, label=Path(path).name, index=index)
    ax.legend(fontsize=8)
    with writing(file), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font has not: boxes
        ax.figure.savefig(file)


# --- import --------------------------------------------------------------------------------------


def _import(parser, words) -> int:
    parser.add_argument("log", type=Path, metavar="LOG", help="file or folder: verl, TRL, OpenRLHF, W&B, CSV, ...")
    _add_log_flags(parser)
    parser.add_argument("--out", type=place, metavar="FOLDER", help="write the log there as a run")
    args = parser.parse_args(words)
    from erltool.logs.read import log_report, write_run

    log = _log(args.log, args, {})
    print(log_report(log, args.window))
    if args.out:
        write_run(log, args.out, args.window)
        print(visible(f"written: {args.out}; fit the law to it with: erltool fit {args.out}"))
    return 0


# --- export --------------------------------------------------------------------------------------


def _export(parser, words) -> int:
    parser.add_argument("engine", choices=("verl",), help="for which engine")
    parser.add_argument("source", type=Path, metavar="RUN_OR_CONFIG", help="a run's folder, or TrainConfig as JSON")
    parser.add_argument("--gpus", type=at_least(1), default=8, help="devices of the node (8)")
    parser.add_argument("--prompt-tokens", type=at_least(1), default=512, help="length of the longest prompts (512)")
    parser.add_argument(
        "--out", type=place, metavar="FOLDER", help="write the command, the data and the verifier there"
    )
    _add_trust(parser)
    args = parser.parse_args(words)
    from erltool.engines.verl import export_verl, read_config, write_export

    config = read_config(args.source, args.trust_remote_code)
    export = export_verl(config, args.gpus, args.prompt_tokens)
    print("\n".join(terminal.filled(row, 4) for row in export.table().splitlines()))
    if args.out:
        print("\nwritten: " + ", ".join(map(str, write_export(export, config, args.out))))
    else:
        print(f"\n{export.command()}\n\nerltool: --out FOLDER writes the data files that it names", flush=True)
    return 0


# --- lab, workshop and doctor ---------------------------------------------------------------------


def _lab(parser, words) -> int:
    parser.add_argument("--lesson", type=int, metavar="N", help="open this one; the list of all by default")
    parser.add_argument("--dir", type=place, help="folder for a copy of the lessons (erltool-lessons from a wheel)")
    parser.add_argument("--fresh", action="store_true", help="make another copy, in a new folder with a number")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    args = parser.parse_args(words)
    from erltool.lessons.copies import lesson_path, lessons_folder

    if args.lesson is not None:
        lesson_path(args.lesson)  # before anything is copied
    folder = lessons_folder(args.dir, args.fresh)
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
    if args.lesson is not None:
        command.append(f"--LabApp.default_url=/lab/tree/{lesson_path(args.lesson, folder).name}")
    print(f"erltool: lessons in {folder}")
    sys.stdout.flush()
    os.execv(sys.executable, command + (["--no-browser"] if args.no_browser else []))


def _workshop(parser, words) -> int:
    from erltool.lessons.copies import SESSIONS, write_workshop

    parser.add_argument("--out", type=place, required=True, help="folder to write lessons/ and instructor.md into")
    parser.add_argument("--minutes", type=int, choices=SESSIONS, help="plan only for this length; for each by default")
    args = parser.parse_args(words)
    files = write_workshop(args.out, (args.minutes,) if args.minutes else tuple(SESSIONS))
    print(f"written: {len(files) - 1} lessons without solutions in {args.out / 'lessons'}, and {files[-1]}")
    return 0


def _doctor(parser, words) -> int:
    parser.parse_args(words)
    from erltool.cli.doctor import findings

    worst = 0
    for level, text in findings():
        line = f"{('ok', 'note', 'FAIL')[level]:5}{text}"
        print(terminal.filled(line, 5), flush=True)
        worst = max(worst, level)
    return 1 if worst == 2 else 0


if __name__ == "__main__":
    sys.exit(main())
