"""The former name of ``python -m benchmarks.arm``."""

import sys

from benchmarks.arm import main

if __name__ == "__main__":
    print("benchmarks.emulate is now called benchmarks.arm", file=sys.stderr)  # noqa: T201
    sys.exit(main())
