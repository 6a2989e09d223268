"""The errors of the stages, each with the exit code of the command line.

Codes: 0 pass, 1 error, 2 usage, 3 regression, 4 measurement invalid, 5 backend absent.
"""

from __future__ import annotations

from calibration.errors import DataError, PipelineError

__all__ = [
    "BackendAbsent",
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EngineError",
    "ModelError",
    "PipelineError",
]


class ConfigError(PipelineError):
    """A configuration or command line that is wrong or contradictory."""

    exit_code = 2


class CheckpointError(PipelineError):
    """A weights file that cannot be loaded into the network."""


class ModelError(PipelineError):
    """A network that cannot be traced, pruned, quantized or exported."""


class BudgetError(PipelineError):
    """A pruning budget that no width assignment meets."""


class EngineError(PipelineError):
    """An engine that could not be built, is not what was requested, or failed to run."""


class BackendAbsent(EngineError):  # noqa: N818 - the exit code's name
    """An engine's runtime, or the device that it needs, is not on this machine."""

    exit_code = 5
