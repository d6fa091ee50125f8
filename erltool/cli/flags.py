"""Flags that several commands have."""

import argparse
import dataclasses
import typing
from pathlib import Path

from erltool.cli.arguments import above_zero
from erltool.errors import ErltoolError


def config_of_flags(fields: dict):
    """The configuration of flags. These may let a model run code of its own, which no file can."""
    from erltool.training.config import TrainConfig

    return TrainConfig.from_dict(fields, trust_remote_code=True)


def add_trust(parser) -> None:
    about = "let the model run code of its own, where the file asks for it"
    parser.add_argument("--trust-remote-code", action="store_true", help=about)


def add_config_flags(parser) -> None:
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


def add_log_flags(parser) -> None:
    """What corrects the guesses about a log."""
    parser.add_argument("--entropy", metavar="COL", help="the entropy's column; --entropy=-COL for minus that column")
    parser.add_argument("--performance", metavar="COL", help="the performance's column, instead of the guess")
    parser.add_argument("--step", metavar="COL", help="the step's column, instead of the guess")
    parser.add_argument("--unit", help="of performance: fraction, percentage-points or as-given")
    parser.add_argument("--run", metavar="NAME", help="the run, where a log holds several")
    parser.add_argument(
        "--window", type=above_zero, help="steps up to a measurement over which a log's entropy is averaged"
    )


def log_of_flags(path: Path, args, columns: dict[str, str]):
    """A log as the flags want it, `columns` where they do not say."""
    from erltool.logs.read import read_log

    given = {role: getattr(args, role) for role in ("step", "entropy", "performance")}
    columns |= {role: name for role, name in given.items() if name}
    return read_log(path, columns=columns, unit=args.unit and args.unit.replace("-", " "), run=args.run)
