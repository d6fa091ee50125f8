"""`erltool fit`."""

import dataclasses
import json
import sys
import textwrap
import warnings
from pathlib import Path

from erltool.cli import terminal
from erltool.cli.arguments import cut, picture
from erltool.cli.flags import add_log_flags, log_of_flags
from erltool.errors import ErltoolError
from erltool.text import visible


def run(parser, words) -> int:
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="RUN_OR_LOG", help="a run's folder, or another tool's log"
    )
    parser.add_argument(
        "--forecast", type=cut, metavar="CUT", help="fit this first fraction of the points, forecast the others"
    )
    add_log_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the fits as JSON")
    parser.add_argument("--png", type=picture, help="draw the fits to this file")
    args = parser.parsed(words)
    from erltool.law.fit import fit_law
    from erltool.law.forecast import forecast

    fits, forecasts = {}, {}
    for path in args.sources:
        entropy, performance, known, stated = _points(path, args)
        try:
            # The fit needs a unit; one that is guessed from a log's names and values is not marked as stated.
            fits[str(path)] = dataclasses.replace(fit_law(entropy, performance, **known), unit_stated=stated)
            if args.forecast is not None:
                forecasts[str(path)] = forecast(entropy, performance, cut=args.forecast, **known)
        except ErltoolError as e:
            more = "" if args.performance else "; --performance names a column that has more, such as the reward"
            raise ErltoolError(f"{path}: {e}; it was evaluated on {len(entropy)} steps{more}") from e
    if args.json:
        rows = {
            p: f.to_dict() | ({"forecast": forecasts[p].to_dict()} if p in forecasts else {}) for p, f in fits.items()
        }
        print(json.dumps(rows, indent=1))
    else:
        summaries = [
            f"{visible(p)}\n{f.summary()}" + (f"\n{forecasts[p].summary()}" if p in forecasts else "")
            for p, f in fits.items()
        ]
        print("\n\n".join(summaries))
    if args.png:
        _draw_fits(args.png, fits, forecasts)
    return 0


def _points(path: Path, args):
    """Entropies (nats) and performances of a run or a log, what is known of both, and whether the unit was stated."""
    from erltool.logs.read import said_of
    from erltool.runs.folder import claims_run
    from erltool.text import shown

    own = claims_run(path)
    # Our own runs need no window: they evaluate before a step's update, so the step's entropy is the same policy's.
    log = log_of_flags(path, args, {"performance": "eval_accuracy"} if own else {})
    for reason, count in log.skipped.items():
        terminal.complain(f"{path}: {count} {reason}")
    points = log.points(args.window or (1 if own else None))
    if dropped := points.attrs["dropped"]:
        terminal.complain(f"{dropped:,} measurements of performance without an entropy in the window")
    if not own:
        took = ", ".join(f"{role} {shown(log.columns[role], 40)}" for role in ("step", "entropy", "performance"))
        terminal.complain(f"{path}: {log.kind}")
        wrapped = textwrap.wrap(took, terminal.WIDTH, subsequent_indent="  ")
        print(visible("\n".join([*wrapped, *said_of(log)]), keep="\n"), file=sys.stderr)
    known = {"entropy_average": log.entropy_average, "unit": log.unit}
    return points["entropy"].to_numpy(), points["performance"].to_numpy(), known, log.unit_stated


def _draw_fits(file: Path, fits, forecasts) -> None:
    from erltool.files import writing
    from erltool.plots import new_axes, plot_fit, plot_forecast

    ax = new_axes(width=6, height=4)[0]
    for index, (path, f) in enumerate(fits.items()):
        draw, result = (plot_forecast, forecasts[path]) if path in forecasts else (plot_fit, f)
        draw(result, ax=ax, label=Path(path).name, index=index)
    ax.legend(fontsize=8)
    with writing(file), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font lacks a name's script and draws boxes
        ax.figure.savefig(file)
