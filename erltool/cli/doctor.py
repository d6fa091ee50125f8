"""`erltool doctor`."""

from erltool.cli import terminal
from erltool.cli.flags import add_config_flags, config_of_flags


def run(parser, words) -> int:
    add_config_flags(parser)
    fields = vars(parser.parsed(words))
    if fields:
        from erltool.training.precision import gauge

        print(gauge(config_of_flags(fields)))
        return 0
    from erltool.cli.findings import findings

    worst = 0
    for level, text in findings():
        line = f"{('ok', 'note', 'FAIL')[level]:5}{text}"
        print(terminal.filled(line, 5), flush=True)
        worst = max(worst, level)
    return 1 if worst == 2 else 0
