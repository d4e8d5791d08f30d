"""The exception that a user's mistake raises, and what an interrupted command says."""

INTERRUPTED = "interrupted; finished work is kept, the same command goes on"
INTERRUPTED_EARLY = "interrupted; nothing was saved yet, the same command begins again"
INTERRUPTED_CODE = 130  # what a command ends with then


class Interrupted(KeyboardInterrupt):
    """The interrupt of a command whose unfinished work lies in a folder that its user does not know."""

    def __init__(self, folder: object) -> None:
        super().__init__(INTERRUPTED.replace("is kept", f"is kept in {folder}"))


class StageError(Exception):
    """One line that says what is wrong and what to do; the command prints it and exits with 2."""


class StageFailed(StageError):
    """A stage that was started here has said its one line already: the exit code is 2, and that is all."""
