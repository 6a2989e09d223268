"""What can be wrong with a quantized file, one rule a function; ``docs/targets.md`` says why engines want it so."""

from compress.export.rules import integers, layers, storage
from compress.export.rules.registry import RULES, Severity

__all__ = ["RULES", "Severity", "integers", "layers", "storage"]
