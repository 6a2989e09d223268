"""The two editions of TensorRT: where each is loaded from, what it is told before a build, and which GPUs a plan fits.

Everything else, the builder, the runner and the reading of a parsed network, is one code for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compress.engines.sidecar import Sidecar
from compress.errors import BackendAbsent, EngineError

if TYPE_CHECKING:
    from compress.config import TargetConfig
    from compress.engines.base import OpenOptions
    from compress.engines.tensorrt.runner import TensorRTEngine
    from compress.progress import Progress


class Edition(ABC):
    """A backend; see ``compress.engines.base.BackendModule``.

    Attributes:
        name: in ``registries.BACKENDS``.
        title: in messages.
        install: how to get the package.
        place: where plans run.
        builds_without_gpu: whether it compiles for GPUs that are not on this machine.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    install: ClassVar[str]
    place: ClassVar[str]
    builds_without_gpu: ClassVar[bool] = False

    @abstractmethod
    def load(self) -> Any:
        """Import the module of the bindings, with its libraries.

        Raises:
            ImportError: the package, or one of its libraries, is not here.
        """

    @abstractmethod
    def configure(self, trt: Any, builder: Any, config: Any, target: TargetConfig) -> None:
        """Tell the builder's configuration what ``target`` asks for.

        Raises:
            EngineError: this version or machine cannot do that.
        """

    @abstractmethod
    def options(self, target: TargetConfig) -> dict[str, Any]:
        """The settings that the sidecar records."""

    @abstractmethod
    def device(self, target: TargetConfig) -> str:
        """The GPUs that a plan is built for, as the sidecar records them."""

    @abstractmethod
    def vouch(self, path: Path) -> Sidecar:
        """The sidecar of a plan that fits this machine.

        Raises:
            EngineError: the sidecar is missing, or the file, the version or the GPU does not match it.
        """

    @abstractmethod
    def context(self, trt: Any, engine: Any, path: Path) -> Any:
        """An execution context of the plan in ``path``; None if the GPU has no memory for it."""

    def before_build(self, config: Any, folder: Path) -> None:  # noqa: B027 - most need nothing
        """Give the builder what an earlier build has left in ``folder``."""

    def after_build(self, config: Any, folder: Path) -> None:  # noqa: B027
        """Leave in ``folder`` what makes the next build faster."""

    def after_run(self, context: Any, path: Path) -> None:  # noqa: B027
        """Called when the plan in ``path`` has run on shapes that are new to it."""

    def module(self) -> Any:
        """The module of the bindings.

        Raises:
            BackendAbsent: it cannot be imported; the message says what is missing.
        """
        trt, missing = self._find()
        if missing:
            raise self._absent(missing, self.install)
        return trt

    def _find(self) -> tuple[Any, str]:
        """The module of the bindings, and what is missing; one of the two is empty."""
        try:
            trt = self.load()
        except ModuleNotFoundError as error:
            return None, f"the Python package '{error.name}'"
        except (ImportError, OSError, AttributeError) as error:  # a function may be missing too
            return None, f"its libraries ({error})"
        if not hasattr(trt, "Builder"):  # any folder of that name could be imported
            return None, f"the Python package '{trt.__name__}'"
        return trt, ""

    def version(self) -> str:
        """The version of the bindings, and so of the library; "unknown" if it is not here."""
        try:
            return str(self.module().__version__)
        except BackendAbsent:
            return "unknown"

    def require(self, device: str) -> None:
        """Raise BackendAbsent, naming all that is missing, unless plans run on this machine."""
        import torch

        _, package = self._find()
        missing, remedies = ([package], [self.install]) if package else ([], [])
        if not torch.cuda.is_available():
            missing.append("an NVIDIA GPU that torch can see")
            remedies.append(self.place)
        if missing:
            raise self._absent(" and ".join(missing), "; ".join(remedies))
        if device != "cuda":
            raise EngineError(f"{self.title} runs on a GPU, not on '{device}'", remedy="use `--device cuda`")

    def require_builder(self, device: str) -> None:
        """Raise BackendAbsent unless plans can be built on this machine."""
        if self.builds_without_gpu:
            self.module()
        else:
            self.require(device)

    def build(self, onnx_path: Path, out_dir: Path, target: TargetConfig, progress: Progress) -> Path:
        """Build ``<name>.plan`` with its sidecar; see ``tensorrt.build.build``."""
        from compress.engines.tensorrt.build import build

        return build(self, onnx_path, out_dir, target, progress)

    def open_engine(self, path: Path, options: OpenOptions) -> TensorRTEngine:
        """Deserialize a plan whose sidecar matches it.

        Raises:
            EngineError: the sidecar is missing or does not match (unless ``options.trust``), or TensorRT rejects it.
            BackendAbsent: the library or a GPU is not on this machine.
        """
        from compress.engines.tensorrt.runner import TensorRTEngine

        self.require(options.device)
        return TensorRTEngine(self, path, options)

    def _absent(self, missing: str, remedy: str) -> BackendAbsent:
        return BackendAbsent(f"{self.title} cannot run on this machine: missing {missing}", remedy=remedy)
