"""The former name of ``python -m benchmarks.rivals.pruning``."""

import sys

from benchmarks.rivals.pruning import main

if __name__ == "__main__":
    print("benchmarks.pruning is now called benchmarks.rivals.pruning", file=sys.stderr)  # noqa: T201
    sys.exit(main())
