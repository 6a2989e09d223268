"""The former name of ``python -m benchmarks.rivals.quantization``."""

import sys

from benchmarks.rivals.quantization import main

if __name__ == "__main__":
    print("benchmarks.quantization is now called benchmarks.rivals.quantization", file=sys.stderr)  # noqa: T201
    sys.exit(main())
