"""The former name of ``python -m benchmarks.rivals.pruning``."""

import sys

from benchmarks.old_names import require_rivals

if __name__ == "__main__":
    require_rivals()
    from benchmarks.rivals.pruning import main

    print("benchmarks.pruning is now called benchmarks.rivals.pruning", file=sys.stderr)  # noqa: T201
    sys.exit(main())
