"""What is wrong with a quantized file for its target, and how that is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from compress.export.rules.registry import Severity

_SHOWN = 5  # findings of one rule that a text shows


@dataclass(frozen=True)
class Finding:
    """One problem in a file.

    Attributes:
        rule: which rule found it, such as ``relu-zero-point``.
        severity: ``error``: the file does not load, or what should be INT8 runs in float; ``warning``: slower
            than possible, or correct on some processors only.
        node: the node, tensor or property of the file, with the layer's name if the file gives it.
        message: what is wrong and its consequence; ``node`` is the beginning of the sentence.
        remedy: how to fix it.
    """

    rule: str
    severity: Severity
    node: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """The findings in one file; ``str`` gives them as text.

    Attributes:
        parser: the engine's own parser that has read the file too, with its version; empty if none was asked.
    """

    file: str
    target: str
    findings: tuple[Finding, ...]
    parser: str = ""

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors

    def __str__(self) -> str:
        head = f"{self.file} for {self.target}: {self.errors} error(s), {self.warnings} warning(s)"
        head += f"; read by {self.parser}" if self.parser else ""
        return "\n".join([head, describe(self.findings)]) if self.findings else head

    def to_json(self) -> str:
        """The findings and the two counts."""
        return json.dumps({**asdict(self), "errors": self.errors, "warnings": self.warnings}, indent=2)


def describe(findings: Sequence[Finding]) -> str:
    """Findings as text, grouped by rule; the first few of each rule are shown.

    >>> print(describe([Finding("scale", "error", "q1", "has a scale of 0", "calibrate again")]))
    error: scale
      q1 has a scale of 0
      fix: calibrate again
    """
    lines = []
    for rule in dict.fromkeys(finding.rule for finding in findings):
        group = [finding for finding in findings if finding.rule == rule]
        lines.append(f"{group[0].severity}: {rule}")
        lines += [f"  {finding.node} {finding.message}" for finding in group[:_SHOWN]]
        if len(group) > _SHOWN:
            lines.append(f"  ... and {len(group) - _SHOWN} more")
        lines.append(f"  fix: {group[0].remedy}")
    return "\n".join(lines)
