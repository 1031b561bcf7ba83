"""What goes wrong, by whose hand: the exceptions that the command line turns into exit codes."""

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    USER_ERROR = 2
    INTERRUPTED = 3


class UserError(ValueError):
    """What was asked cannot be done: one line that says what was wrong, what was found and what to do.

    The command line prints it without a traceback and exits with 2.
    """


class Interrupted(Exception):
    """Training was asked to stop (Ctrl-C, SIGTERM) and has saved itself: exit code 3."""


class TrainingError(Exception):
    """The run cannot go on, through no mistake in what was asked: one line, exit code 1."""


class TrialPruned(Exception):
    """A search has stopped a trial that others outdid: exit code 0, for nothing went wrong."""


class DivergenceError(Exception):
    """The loss is no longer a number: exit code 1, the last good checkpoint is kept."""
