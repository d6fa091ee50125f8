"""The command line: `erltool COMMAND`. Here are the flags and the printed words; the package does the work."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    from erltool.cli.command import main

    return main(argv)
