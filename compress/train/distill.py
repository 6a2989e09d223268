"""Learning from another network's outputs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2: T^2 keeps the gradient's size when T changes.

    Args:
        student, teacher: logits (N, C).

    >>> import torch
    >>> soft_targets(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), 4.0).item()
    0.0
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
