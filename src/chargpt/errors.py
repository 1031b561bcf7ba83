"""The exceptions that the command line turns into exit codes."""

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    USER_ERROR = 2
    INTERRUPTED = 3


class UserError(ValueError):
    """An invalid request: one line that says what was wrong, what was found and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """A signal (Ctrl-C, SIGTERM) stopped the command, which can be resumed: exit code 3."""


class TrainingError(Exception):
    """The run cannot continue for a reason other than a user error: one line, exit code 1."""


class TrialPruned(Exception):
    """The pruner of a search has stopped this trial: exit code 0, because this is not a failure."""


class DivergenceError(Exception):
    """The loss or a weight is NaN or infinite: exit code 1; the last good checkpoint is kept."""


def describe_error(error: BaseException) -> str:
    """The class of an exception and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
