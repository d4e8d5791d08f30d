"""The one exception that a user's mistake raises."""


class StageError(Exception):
    """One line that says what is wrong and what to do; the command prints it and exits with 2."""
