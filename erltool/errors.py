"""The one error a user can mend: what is wrong, where, and the remedy, in one line."""


class ErltoolError(ValueError):
    """Raised for bad input and bad surroundings; the command line prints it and exits with 2."""


class Diverged(ErltoolError):
    """Raised where a run's numbers are no longer finite: this run cannot go on, others can."""


class InUse(ErltoolError):
    """Raised where another process writes to a folder that has one writer at a time."""
