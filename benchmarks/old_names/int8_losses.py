"""The former name of ``python -m benchmarks.rivals.int8_losses``."""

import sys

from benchmarks.old_names import require_rivals

if __name__ == "__main__":
    require_rivals()
    from benchmarks.rivals.int8_losses import main

    print("benchmarks.int8_losses is now called benchmarks.rivals.int8_losses", file=sys.stderr)  # noqa: T201
    sys.exit(main())
