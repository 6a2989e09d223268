"""The lint rules for quantized files, one function per rule; ``docs/targets.md`` says why engines need each."""

from compress.export.rules import integers, layers, storage
from compress.export.rules.registry import RULES, Severity

__all__ = ["RULES", "Severity", "integers", "layers", "storage"]
