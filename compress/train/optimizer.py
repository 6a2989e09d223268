"""The optimizer and the learning-rate schedule that a config asks for."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from compress.config import TrainConfig
from compress.errors import ConfigError


def make_optimizer(net: nn.Module, config: TrainConfig) -> Optimizer:
    """SGD with Nesterov momentum, or AdamW; weight decay on tensors of two dimensions and more alone.

    BN's scales and all biases go undecayed (Goyal et al. 2017, arXiv:1706.02677, section 5.3).
    """
    trainable = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr)
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def make_schedule(optimizer: Optimizer, config: TrainConfig, epochs: int, steps: int) -> LRScheduler:
    """The learning rate of each of ``epochs * steps`` optimizer steps.

    ``cosine`` falls to zero (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts); ``step`` multiplies by
    ``step_gamma`` at each of ``step_epochs``; ``onecycle`` rises for 30% and falls to zero (Smith and Topin 2017,
    arXiv:1708.07120), cycling momentum against it. All but ``onecycle`` may be preceded by a linear warm-up.

    Raises:
        ConfigError: ``step`` without ``step_epochs``, or a warm-up that is too long.
    """
    total = epochs * steps
    warm = round(config.warmup * steps)
    if config.schedule == "onecycle":
        return OneCycleLR(optimizer, config.lr, total_steps=total, cycle_momentum=config.momentum > 0)
    if warm >= total:
        raise ConfigError(f"warmup={config.warmup} epochs is not shorter than the training of {epochs}")
    main: LRScheduler
    match config.schedule:
        case "cosine":
            main = CosineAnnealingLR(optimizer, T_max=total - warm)
        case "step":
            if not config.step_epochs:
                raise ConfigError("schedule 'step' needs step_epochs", remedy="for example step_epochs = [10, 15]")
            if min(config.step_epochs) <= config.warmup:
                raise ConfigError(f"step_epochs={list(config.step_epochs)} begins within warmup={config.warmup} epochs")
            main = MultiStepLR(optimizer, [epoch * steps - warm for epoch in config.step_epochs], config.step_gamma)
        case "constant":
            main = ConstantLR(optimizer, factor=1.0)
    if not warm:
        return main
    rise = LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
    return SequentialLR(optimizer, [rise, main], milestones=[warm])
