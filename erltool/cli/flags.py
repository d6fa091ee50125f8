"""Flags of several commands."""

import argparse
import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path

from erltool.cli.arguments import above_zero
from erltool.errors import ErltoolError


def config_of_flags(fields: dict):
    """The configuration of these fields. Flags may let a model run its own code; a file may not."""
    from erltool.training.config import TrainConfig

    return TrainConfig.from_dict(fields, trust_remote_code=True)


def add_trust(parser) -> None:
    about = "let the model run its own code, if the file asks for it"
    parser.add_argument("--trust-remote-code", action="store_true", help=about)


def add_config_flags(parser) -> None:
    """A flag for each field of TrainConfig. Only flags that the user gives are in the parsed namespace."""
    from erltool.controls import catalog
    from erltool.training.config import TrainConfig

    parsers = {"control": catalog.parse_control, "controller": catalog.parse_controller}
    names = {"control": list(catalog.CONTROLS), "controller": list(catalog.CONTROLLERS)}
    for field in dataclasses.fields(TrainConfig):
        about = field.metadata["help"].replace("%", "%%")
        settings: dict[str, object] = {}
        if field.name in parsers:
            settings["type"], about = _argument(parsers[field.name]), f"{about}; one of {', '.join(names[field.name])}"
        elif field.type is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            kind, *_ = typing.get_args(field.type) or (field.type,)
            settings |= {"type": kind, "metavar": kind.__name__.upper()}
            about += "" if field.default is None else f" ({field.default})"
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, default=argparse.SUPPRESS, help=about, **settings)


def _argument(parse: Callable[[str], object]) -> Callable[[str], object]:
    """A parser whose ErltoolError argparse shows; it shows the message of ArgumentTypeError only."""

    def parsed(text: str) -> object:
        try:
            return parse(text)
        except ErltoolError as e:
            raise argparse.ArgumentTypeError(str(e)) from e

    return parsed


def add_log_flags(parser) -> None:
    """Flags that correct the guesses about a log."""
    parser.add_argument("--entropy", metavar="COL", help="column of the entropy; --entropy=-COL for minus that column")
    parser.add_argument("--performance", metavar="COL", help="column of the performance")
    parser.add_argument("--step", metavar="COL", help="column of the step")
    parser.add_argument("--unit", help="unit of performance: fraction, percentage-points or as-given")
    parser.add_argument("--run", metavar="NAME", help="name of the run, if the log holds several")
    parser.add_argument("--window", type=above_zero, help="average entropy over this many steps up to an evaluation")


def log_of_flags(path: Path, args, columns: dict[str, str]):
    """The log that the flags describe; `columns` holds the columns that they do not name."""
    from erltool.logs.read import read_log

    columns |= {role: getattr(args, role) for role in ("step", "entropy", "performance") if getattr(args, role)}
    return read_log(path, columns=columns, unit=args.unit and args.unit.replace("-", " "), run=args.run)
