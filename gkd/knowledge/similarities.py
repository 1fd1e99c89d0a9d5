"""Similarities of instances to prototypes, and the trust in an instance that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd.knowledge.channels import alike_levels
from gkd.knowledge.precision import full_precision


@dataclass(frozen=True)
class Basis:
    """Prototypes of levels with equal numbers of prototypes and of channels.

    It is made once per bank, so that steps do not repeat what stays the same.

    Attributes:
        levels: Which levels these are.
        student: The student's prototypes at length 1, ``(L, D_S, P)``.
        teacher: The teacher's, ``(L, D_T, P)``.
        classes: Class of every prototype, ``(L, 1, P)`` int64.
    """

    levels: range
    student: Tensor
    teacher: Tensor
    classes: Tensor

    @classmethod
    @torch.no_grad()
    @full_precision
    def of(cls, student: Sequence[Tensor], teacher: Sequence[Tensor],
           offsets: Sequence[Tensor]) -> list[Basis]:
        """Arrange the prototypes of all levels; usually one basis holds all of them.

        Args:
            student: The student's prototypes of every level, ``(P_l, D_S)``.
            teacher: The teacher's, ``(P_l, D_T)``.
            offsets: Where the classes of every level begin and end, ``(num_classes + 1,)``.
        """
        shapes = [[level.shape for level in role] for role in (student, teacher)]
        bases = []
        for levels in alike_levels(*shapes):
            units = [Unit.apply(torch.stack([role[level] for level in levels])).mT.contiguous()
                     for role in (student, teacher)]
            classes = torch.stack([classes_of(offsets[level], len(student[level]))
                                   for level in levels])
            bases.append(cls(levels, *units, classes.unsqueeze(1)))
        return bases


def classes_of(offsets: Tensor, count: int) -> Tensor:
    """Class of each of ``count`` prototypes.

    Example:
        >>> classes_of(torch.tensor([0, 2, 2, 3]), 3)
        tensor([0, 0, 2])
    """
    return torch.bucketize(torch.arange(count, device=offsets.device), offsets[1:], right=True)


class Unit(torch.autograd.Function):
    """Scale vectors ``(..., D)`` to length 1, with a gradient that takes few operations.

    A zero vector stays zero: it is similar to nothing and receives no gradient. Dividing it by a
    small number instead would make its gradient explode.
    """

    @staticmethod
    def forward(ctx, vectors: Tensor) -> Tensor:
        """Divide by the length."""
        norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        norm = F.threshold(norm, 0, float('inf'))
        units = vectors / norm
        ctx.save_for_backward(units, norm)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        """Remove the gradient's part along the vector, and divide by the length."""
        units, norm = ctx.saved_tensors
        along = (gradient * units).sum(dim=-1, keepdim=True)
        return torch.addcmul(gradient, units, along, value=-1) / norm


@full_precision
def similarities(features: Tensor, basis: Tensor) -> Tensor:
    """Cosines ``(..., n, P)`` of features ``(..., n, D)`` and unit vectors ``(..., D, P)``."""
    return Unit.apply(features) @ basis


@torch.no_grad()
def trust(student: Tensor, teacher: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Robust weights from the similarities to all prototypes.

    Args:
        student: The student's similarities, ``(L, n, P)``.
        teacher: The teacher's, likewise.
        labels: Class of every instance, ``(n,)``.
        classes: Class of every prototype, ``(L, 1, P)``.

    Returns:
        Tensor of shape ``(L, n)`` in [0, 1], without gradient; see :func:`robust_weights`.
    """
    if student.shape[-1] == 0:
        return student.new_ones(student.shape[:-1])
    other = labels[:, None] != classes
    # A cosine is at least -1, so one with another class, lowered by 4, is never the largest.
    best = [torch.add(role, other, alpha=-4).amax(dim=-1) for role in (student, teacher)]
    agreement = 1 - (best[0] - best[1]).abs()
    # At least 0; 1 where no prototype has the class.
    return torch.maximum(agreement, best[0] < -2)


@torch.no_grad()
@full_precision
def robust_weights(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    labels: Tensor,
    offsets: Tensor,
) -> Tensor:
    r"""How far teacher and student agree on what an instance looks like, from 0 to 1.

    With :math:`q` the largest cosine similarity of an instance's feature to the prototypes of its
    own class, in the student's and in the teacher's space, the weight is
    :math:`1 - |q^S - q^T|`. Instances of a class without prototypes, or of a class that the bank
    does not know, have weight 1.

    Source: the paper's RDM; method section 2.2.

    Args:
        student: The student's features of n instances, float of shape ``(n, D_S)``.
        teacher: The teacher's features of the same instances, float of shape ``(n, D_T)``.
        student_prototypes: The level's prototypes, float of shape ``(P, D_S)``.
        teacher_prototypes: The same instances in the teacher's space, ``(P, D_T)``.
        labels: The instances' classes, LongTensor of shape ``(n,)``.
        offsets: Class c owns prototypes ``offsets[c]:offsets[c + 1]``; LongTensor of shape
            ``(num_classes + 1,)``.

    Returns:
        Tensor of shape ``(n,)`` in [0, 1], without gradient.

    Example:
        >>> feature = torch.tensor([[1.0, 0.0]])
        >>> teacher_prototype, student_prototype = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]]])
        >>> robust_weights(feature, feature, student_prototype, teacher_prototype,
        ...                torch.tensor([0]), torch.tensor([0, 1]))
        tensor([0.])
    """
    [basis] = Basis.of([student_prototypes], [teacher_prototypes], [offsets])
    return trust(similarities(student[None], basis.student),
                 similarities(teacher[None], basis.teacher), labels, basis.classes)[0]
