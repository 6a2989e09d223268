"""The former name of ``python -m benchmarks.latency_table``."""

import sys

from benchmarks.latency_table import main

if __name__ == "__main__":
    print("benchmarks.profile is now called benchmarks.latency_table", file=sys.stderr)  # noqa: T201
    sys.exit(main())
