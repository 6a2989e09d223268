"""Commands under their former names, for scripts that call them."""

import importlib.util
import sys

from benchmarks.cli import ABSENT


def require_rivals() -> None:
    """Exit with code 5 if ``benchmarks.rivals`` is not installed: the wheel does not contain it."""
    if importlib.util.find_spec("benchmarks.rivals") is None:
        print("error: comparisons with other tools are in the source checkout, not in the wheel", file=sys.stderr)  # noqa: T201
        sys.exit(ABSENT)
