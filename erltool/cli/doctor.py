"""`erltool doctor`."""

from erltool.cli import terminal


def run(parser, words) -> int:
    parser.parsed(words)
    from erltool.cli.findings import findings

    worst = 0
    for level, text in findings():
        line = f"{('ok', 'note', 'FAIL')[level]:5}{text}"
        print(terminal.filled(line, 5), flush=True)
        worst = max(worst, level)
    return 1 if worst == 2 else 0
