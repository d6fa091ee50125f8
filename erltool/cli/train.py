"""`erltool train`."""

from erltool.cli.arguments import place
from erltool.cli.flags import add_config_flags, config_of_flags
from erltool.cli.progress import follow


def run(parser, words) -> int:
    from erltool.runs.folder import read_run

    parser.add_argument("--out", type=place, required=True, help="folder for the run")
    parser.add_argument("--resume", action="store_true", help="continue the run from its last checkpoint")
    add_config_flags(parser)
    args = vars(parser.parsed(words))
    out, resume = args.pop("out"), args.pop("resume")
    if resume:
        from erltool.training.start import config_of

        before = config_of(read_run(out), args.get("trust_remote_code", False)).to_dict()
        return follow(config_of_flags(before | args), out, resume, "train")
    return follow(config_of_flags(args), out, resume, "train")
