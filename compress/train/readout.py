"""Read a classifier's output as logits: networks may end in a softmax or a sigmoid or have one output for two classes.

The logarithm of a probability is a logit, up to a constant that no softmax sees: cross-entropy and distillation on it
are the likelihood and the divergence of the network's own probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress.errors import ModelError
from compress.frontend.export import in_mode

_TINY = torch.finfo(torch.float32).tiny
_REACH = (0.0, 1.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # of the probing noise: logits leave 0..1 somewhere


@dataclass(frozen=True)
class Readout:
    """How to read an output.

    Attributes:
        classes: two where the network has one output.
        probabilities: the outputs are probabilities: of each class, or of the second one.
    """

    classes: int
    probabilities: bool

    def __call__(self, output: object, images: int) -> Tensor:
        """The logits (images, classes) of a network's output for some images.

        Raises:
            ModelError: it is several tensors, or not one row an image.
        """
        rows = one_row_each(output, images).float()
        if rows.shape[1] > 1:
            return rows.clamp(min=_TINY).log() if self.probabilities else rows
        second = rows.logit(eps=1e-6) if self.probabilities else rows
        return torch.cat([torch.zeros_like(second), second], 1)


@torch.no_grad()
def readout(net: nn.Module, preprocess: Preprocess) -> Readout:
    """Find out how to read a network's output, by running it on noise of growing strength.

    Raises:
        ModelError: it is no classifier, or does not run on such images.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(_REACH), *preprocess.shape, generator=generator)
    output = run(net, noise * torch.tensor(_REACH)[:, None, None, None], preprocess)
    rows = one_row_each(output, len(_REACH)).float()
    shares = bool(((rows >= 0) & (rows <= 1)).all())
    if (count := rows.shape[1]) > 1:
        shares = shares and bool((rows.sum(1) - 1).abs().max() < 1e-2)  # also in half precision
    return Readout(max(count, 2), shares)


def one_row_each(output: object, images: int) -> Tensor:
    """What a network returned for some images, if that is one tensor (images, outputs).

    Raises:
        ModelError: it is not.
    """
    if not isinstance(output, Tensor):
        what = f"a {type(output).__name__} of {len(output)}" if hasattr(output, "__len__") else type(output).__name__
        raise ModelError(
            f"the network returns {what}, not one tensor of logits",
            remedy="wrap it in a factory that returns the classifier's output alone",
        )
    if output.ndim != 2 or len(output) != images:
        raise ModelError(
            f"the network turns {images} images into {tuple(output.shape)}, not (images, classes)",
            remedy="training and evaluation need a classifier",
        )
    return output


def run(net: nn.Module, images: Tensor, preprocess: Preprocess) -> object:
    """What the network returns for some images, in eval mode, on the device where it is.

    Raises:
        ModelError: the network does not run on such images.
    """
    with in_mode(net, training=False):
        try:
            return net(images.to(device_of(net)))
        except RuntimeError as error:
            raise ModelError(
                f"the network does not run on an input of {preprocess.shape}: {str(error).splitlines()[0]}",
                remedy="check data.input_size and data.channels against the network",
            ) from None


def device_of(net: nn.Module) -> torch.device:
    """Where the network's parameters are; the CPU where it has none."""
    parameter = next(net.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
