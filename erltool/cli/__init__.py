"""The command line: `erltool COMMAND`. What a command does is in the package; here are its flags and its words."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    from erltool.cli.command import main

    return main(argv)
