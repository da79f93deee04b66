"""The error that ends a command with one sentence and exit code 1."""


class LaunchError(Exception):
    """Says what is wrong and what to do."""
