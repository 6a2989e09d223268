"""The errors that a user is meant to read.

Every one says what was wrong, and where one can be named, how to mend it; the command line prints them without a
traceback. This is the lowest floor, so that the data code can raise them without knowing the stages above it.
"""

from __future__ import annotations


class PipelineError(Exception):
    """What went wrong and how to mend it.

    Args:
        message: what was wrong and where, in one sentence.
        remedy: what the user can do about it, in one sentence; may be empty.

    >>> print(DataError("no images in data/train", remedy="put one folder a class there"))
    no images in data/train
      fix: put one folder a class there
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
