"""The optimizer and the learning-rate schedule that a config asks for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from compress.config import TrainConfig
from compress.errors import ConfigError

_LEAST_SIZE = 1e-3  # of a tensor's values, so that zeros can leave their place


def make_optimizer(net: nn.Module, config: TrainConfig) -> Optimizer:
    """SGD with Nesterov momentum, Adam or AdamW; weight decay on tensors of two dimensions and more alone.

    BN's scales and all biases go undecayed (Goyal et al. 2017, arXiv:1706.02677, section 5.3). With ``relative_lr``
    each tensor has a rate of its own: ``config.lr`` times the root mean square of its values as they are now, as in
    Adafactor (Shazeer and Stern 2018, arXiv:1804.04235, section 8). A step of Adam then changes all tensors by the same
    share: the small weights of wide layers, quantizers' scales, and large weights.
    """
    trainable = [p for p in net.parameters() if p.requires_grad]
    tensors = [[p] for p in trainable] if config.relative_lr else [trainable]
    groups: list[dict[str, Any]] = []
    for some in tensors:
        size = _size(some[0]) if config.relative_lr else 1.0
        for decays in (True, False):
            chosen = [p for p in some if (p.ndim > 1) is decays]
            decay = config.weight_decay if decays else 0.0
            groups.append({"params": chosen, "weight_decay": decay, "lr": size * config.lr, "size": size})
    groups = [group for group in groups if group["params"]]
    if config.optimizer != "sgd":
        return (Adam if config.optimizer == "adam" else AdamW)(groups, lr=config.lr)
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def _size(tensor: Tensor) -> float:
    """Root mean square, with digits that do not depend on the number of threads."""
    return max(_LEAST_SIZE, float(f"{tensor.detach().double().square().mean().sqrt().item():.6g}"))


def make_schedule(optimizer: Optimizer, config: TrainConfig, epochs: int, steps: int) -> LRScheduler:
    """The learning rate of each of ``epochs * steps`` optimizer steps.

    ``cosine`` falls to zero (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts); ``step`` multiplies by
    ``step_gamma`` every ``step_size`` epochs or at each of ``step_epochs``; ``cyclical`` rises and falls in triangles
    between a quarter of the peak and the peak (Smith 2017, arXiv:1506.01186, section 3.3); ``onecycle`` rises for 30%
    and falls to zero (Smith and Topin 2017, arXiv:1708.07120), cycling momentum against it. ``cosine``, ``step`` and
    ``constant`` may be preceded by a linear warm-up.

    Raises:
        ConfigError: a warm-up that is too long.
    """
    total, rates = epochs * steps, [group["lr"] for group in optimizer.param_groups]
    warm = round(config.warmup * steps)
    if config.schedule == "onecycle":
        return OneCycleLR(optimizer, rates, total_steps=total, cycle_momentum=config.momentum > 0)
    if config.schedule == "cyclical":
        half = (config.cycle_epochs or epochs / 2) * steps / 2
        low = [rate / 4 for rate in rates]
        return CyclicLR(optimizer, low, rates, half, half, cycle_momentum=False)  # type: ignore[arg-type]
    if warm >= total:
        raise ConfigError(f"warmup={config.warmup} epochs is not shorter than the training of {epochs}")
    main: LRScheduler
    match config.schedule:
        case "cosine":
            main = CosineAnnealingLR(optimizer, T_max=total - warm)
        case "step":
            drops = config.step_epochs or range(config.step_size or epochs, epochs, config.step_size or epochs)
            main = MultiStepLR(optimizer, [epoch * steps - warm for epoch in drops], config.step_gamma)
        case "constant":
            main = ConstantLR(optimizer, factor=1.0)
    if not warm:
        return main
    rise = LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
    return SequentialLR(optimizer, [rise, main], milestones=[warm])
