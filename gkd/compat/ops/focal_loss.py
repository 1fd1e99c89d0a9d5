"""The sigmoid focal loss, which MMDetection computes itself on CPUs and calls on GPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor,
                               gamma: float, alpha: float) -> None:
    """Focal loss of every logit, written to ``output``.

    Uses the log-sigmoid, which stays exact where the probability rounds to 0 or 1.

    Args:
        input: Logits ``(n, classes)``.
        target: ``(n,)`` int64; ``classes`` (or anything outside ``[0, classes)``) is background.
        weight: ``(classes,)`` or empty, a factor for the rows of each target class.
        output: ``(n, classes)``, written to.
        gamma: Focusing exponent.
        alpha: Factor of the positives; the negatives get ``1 - alpha``.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, Eq. 5.
    """
    sign, log_pt, factor = _focal_terms(input, target, weight, alpha)
    output.copy_(-factor * (-sign * input.float()).sigmoid().pow(gamma) * log_pt)


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor,
                                grad_input: Tensor, gamma: float, alpha: float) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward` to ``grad_input``."""
    sign, log_pt, factor = _focal_terms(input, target, weight, alpha)
    # q = 1 - p_t; with z = sign * x: dq/dz = -q(1 - q) and dlog(p_t)/dz = q, so
    # d/dz [-q^gamma log p_t] = q^gamma (gamma (1 - q) log p_t - q).
    q = (-sign * input.float()).sigmoid()
    grad_input.copy_(sign * factor * q.pow(gamma) * (gamma * (1 - q) * log_pt - q))


def _focal_terms(input: Tensor, target: Tensor, weight: Tensor,
                 alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return, each ``(n, classes)``: +1/-1 for positive/negative, log p_t, and the factor."""
    input = input.float()
    classes = input.size(1)
    positive = target[:, None] == torch.arange(classes, device=input.device)
    sign = positive.to(input.dtype) * 2 - 1
    factor = torch.where(positive, alpha, 1 - alpha).to(input.dtype)
    if weight.numel():
        background = weight.new_ones(1)  # mmcv names no weight for it
        row = torch.where((target >= 0) & (target < classes), target, classes)
        factor = factor * torch.cat([weight, background])[row].float()[:, None]
    return sign, F.logsigmoid(sign * input), factor
