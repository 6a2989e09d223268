"""The errors that a user is meant to read.

Each error says what was wrong and, where possible, how to fix it; the command line prints it without a traceback. This
is the lowest layer, so that the data code can raise these errors without importing the stages above it.
"""

from __future__ import annotations


class PipelineError(Exception):
    """An error that says what went wrong and how to fix it.

    Args:
        message: what was wrong and where, in one sentence.
        remedy: what the user can do about it, in one sentence; may be empty.

    >>> print(DataError("no images in data/train", remedy="put one folder per class there"))
    no images in data/train
      fix: put one folder per class there
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.remedy}" if self.remedy else self.message


class DataError(PipelineError):
    """A dataset that cannot be read, or does not fit the network."""
