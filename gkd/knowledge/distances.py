"""Squared Euclidean distances between the tensors of student and teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.knowledge.precision import full_precision


@full_precision
def squared_distances(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum of the squared differences of two tensors, for every pair of them.

    Gradients flow into both; the caller detaches what must not be trained.

    Args:
        student: The student's tensors, such as the maps of every level.
        teacher: The teacher's, each of the shape of the student's at its place.

    Returns:
        Float of shape ``(L,)`` for L pairs.

    Example:
        >>> squared_distances([torch.tensor([3.0, 4.0])], [torch.zeros(2)])
        tensor([25.])
    """
    return torch.stack([F.mse_loss(own, target, reduction='sum')
                        for own, target in zip(student, teacher)])
