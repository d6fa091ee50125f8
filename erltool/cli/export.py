"""`erltool export`."""

from pathlib import Path

from erltool.cli import terminal
from erltool.cli.arguments import at_least, place
from erltool.cli.flags import add_trust


def run(parser, words) -> int:
    parser.add_argument("engine", choices=("verl",), help="engine to export to")
    parser.add_argument("source", type=Path, metavar="RUN_OR_CONFIG", help="a run's folder, or TrainConfig as JSON")
    parser.add_argument("--gpus", type=at_least(1), default=8, help="GPUs of the node (8)")
    parser.add_argument("--prompt-tokens", type=at_least(1), default=512, help="length of the longest prompts (512)")
    parser.add_argument(
        "--whole-update", action="store_true", help="choose tokens over the whole update, by erltool inside verl"
    )
    parser.add_argument(
        "--out", type=place, metavar="FOLDER", help="write the command, the data and the verifier to it"
    )
    add_trust(parser)
    args = parser.parsed(words)
    from erltool.engines.verl import export_verl, read_config, write_export

    config = read_config(args.source, args.trust_remote_code)
    export = export_verl(config, args.gpus, args.prompt_tokens, args.whole_update)
    print("\n".join(terminal.filled(row, 4) for row in export.table().splitlines()))
    if args.out:
        print("\nwritten: " + ", ".join(map(str, write_export(export, config, args.out))))
    else:
        print(f"\n{export.command()}\n\nerltool: --out FOLDER writes the data files named above", flush=True)
    return 0
