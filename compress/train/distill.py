"""Learning from another network's outputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

_TINY = torch.finfo(torch.float32).tiny


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2: T^2 keeps the gradient's size when T changes.

    Args:
        student, teacher: logits (N, C).

    >>> soft_targets(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), 4.0).item()
    0.0
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def relative_error(student: Any, teacher: Any) -> Tensor:
    """Mean squared error over the teacher's variance, averaged over all tensors of the outputs.

    0 is the teacher's own output; 1 is no better than its mean, whatever the scale of a tensor.

    Args:
        student, teacher: tensors of any shape, or lists, tuples and dicts of them, alike in both.

    >>> one, other = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    >>> relative_error({"a": other, "b": one}, {"a": one, "b": one}).item()
    0.5
    """
    pairs = zip(pytree.tree_leaves(student), pytree.tree_leaves(teacher), strict=True)
    errors = [
        F.mse_loss(a.float(), b.float()) / b.float().var(correction=0).clamp(min=_TINY)
        for a, b in pairs
        if isinstance(b, Tensor)
    ]
    return torch.stack(errors).mean()
