"""Errors meant for people: one message that names the thing, the place and the mend."""


class IngotError(Exception):
    """Something went wrong that the person at the terminal can mend; the command ends with exit code 1."""

    exit_code = 1


class Interrupted(IngotError):
    """The person went away, and what it says goes on without them; the command ends with exit code 130."""

    exit_code = 130


class UsageError(IngotError):
    """A wrong recipe or option; the command ends with exit code 2."""

    exit_code = 2
