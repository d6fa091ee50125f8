"""Errors that a user can mend: one line with what is wrong, where, and the remedy."""


class ErltoolError(ValueError):
    """Raised for bad input or a bad environment; the command line prints it and exits with 2."""


class Diverged(ErltoolError):
    """Raised where a run's numbers are no longer finite. This run cannot go on, others can."""


class InUse(ErltoolError):
    """Raised where another process writes to a folder that only one process may write to."""
