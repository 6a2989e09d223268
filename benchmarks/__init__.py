"""Commands that measure accuracy and latency before and after compression; ``python -m benchmarks`` lists them."""

from pathlib import Path

from compress.startup import begin

begin(__name__)
__path__.append(str(Path(__file__).parent / "old_names"))  # `python -m benchmarks.profile` and the like still work
