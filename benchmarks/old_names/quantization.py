"""The former name of ``python -m benchmarks.rivals.quantization``."""

import sys

from benchmarks.old_names import require_rivals

if __name__ == "__main__":
    require_rivals()
    from benchmarks.rivals.quantization import main

    print("benchmarks.quantization is now called benchmarks.rivals.quantization", file=sys.stderr)  # noqa: T201
    sys.exit(main())
