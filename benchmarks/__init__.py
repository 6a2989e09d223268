"""Measures what compression costs in accuracy and buys in latency; ``python -m benchmarks`` lists the commands."""

from pathlib import Path

from compress.startup import begin

begin(__name__)
__path__.append(str(Path(__file__).parent / "old_names"))  # `python -m benchmarks.profile` and the like still work
