"""The former name of ``python -m benchmarks.rivals.pruning_stage``."""

import sys

from benchmarks.old_names import require_rivals

if __name__ == "__main__":
    require_rivals()
    from benchmarks.rivals.pruning_stage import main

    print("benchmarks.pruning_stage is now called benchmarks.rivals.pruning_stage", file=sys.stderr)  # noqa: T201
    sys.exit(main())
