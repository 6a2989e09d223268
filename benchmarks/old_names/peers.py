"""The former name of ``python -m benchmarks.rivals.peers``."""

import sys

from benchmarks.rivals.peers.__main__ import main

if __name__ == "__main__":
    print("benchmarks.peers is now called benchmarks.rivals.peers", file=sys.stderr)  # noqa: T201
    sys.exit(main())
