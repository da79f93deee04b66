"""Base class of the errors that end a command with a message and exit code 1."""


class LaunchError(Exception):
    """An error whose message names the problem, the value and the remedy."""
