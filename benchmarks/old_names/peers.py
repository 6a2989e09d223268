"""The former name of ``python -m benchmarks.rivals.peers``."""

import sys

from benchmarks.old_names import require_rivals

if __name__ == "__main__":
    require_rivals()
    from benchmarks.rivals.peers.__main__ import main

    print("benchmarks.peers is now called benchmarks.rivals.peers", file=sys.stderr)  # noqa: T201
    sys.exit(main())
