"""The command line: `erltool COMMAND`. Here are the flags and the printed words; the package does the work."""

from erltool.cli.command import main as main
