"""Robust weights, and the three kinds of knowledge: global, local and soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

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


@full_precision
def similarity_loss(student: Tensor, teacher: Tensor, weights: Tensor,
                    factor: float = 1.0) -> Tensor:
    """The sum over levels of :func:`global_knowledge_loss`, from similarities.

    Args:
        student: The student's similarities, ``(L, n, P)``, which receive a gradient.
        teacher: The teacher's, likewise.
        weights: Robust weights, ``(L, n)``.
        factor: Factor of the loss.

    Returns:
        Scalar; 0, with a gradient of 0, for no instance or prototype.
    """
    weights = weights.detach().unsqueeze(-1)
    total = F.smooth_l1_loss(weights * student, weights * teacher.detach(), reduction='sum')
    return total * (factor / max(1, student[0].numel()))


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
        student: the student's features of n instances, float of shape ``(n, D_S)``.
        teacher: the teacher's features of the same instances, float of shape ``(n, D_T)``.
        student_prototypes: the level's prototypes, float of shape ``(P, D_S)``.
        teacher_prototypes: the same instances in the teacher's space, ``(P, D_T)``.
        labels: the instances' classes, LongTensor of shape ``(n,)``.
        offsets: class c owns prototypes ``offsets[c]:offsets[c + 1]``; LongTensor of shape
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


@full_precision
def global_knowledge_loss(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    weights: Tensor,
) -> Tensor:
    r"""Teach the student to see an instance as the teacher does, in terms of the prototypes.

    The loss is smooth L1 (beta 1) between the robustly weighted similarities of student and
    teacher to the prototypes of all classes, :math:`r_i \cos(f^S_i, p^S_k)` and
    :math:`r_i \cos(f^T_i, p^T_k)`, averaged over instances and prototypes.

    Source: the paper's RDM; method section 2.3.

    Args:
        student: the student's features of n instances, float of shape ``(n, D_S)``. The only
            argument that receives a gradient.
        teacher: the teacher's features of the same instances, float of shape ``(n, D_T)``.
        student_prototypes: the level's prototypes, float of shape ``(P, D_S)``.
        teacher_prototypes: the same instances in the teacher's space, ``(P, D_T)``.
        weights: robust weights of the instances, float of shape ``(n,)``.

    Returns:
        Scalar, without factor and decay; 0, with a gradient of 0, for no instance or prototype.

    Example:
        >>> feature = torch.tensor([[1.0, 0.0]])
        >>> prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> global_knowledge_loss(feature, -feature, prototypes, prototypes, torch.tensor([0.5]))
        tensor(0.2500)
    """
    own = similarities(student[None], Unit.apply(student_prototypes.detach()).mT)
    with torch.no_grad():
        target = similarities(teacher[None], Unit.apply(teacher_prototypes).mT)
    return similarity_loss(own, target, weights[None])


@full_precision
def local_knowledge_loss(
    student_adapted: Tensor, teacher: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Teach the student the teacher's map, separately for objects and background.

    Each loss is a weighted sum of the squared difference of the maps. The weights are :math:`m`
    for the foreground and :math:`1 - [m > 0]` for the background. The sum is divided by twice the
    sum of the weights over all channels (at least by 1):
    :math:`\sum m (F^S - F^T)^2 / \max(1, 2 C \sum m)`.

    Source: the paper's RDM; method section 2.4.

    Args:
        student_adapted: the student's map after the adaptation layer, float of shape
            ``(B, C, H, W)``. The only argument that receives a gradient.
        teacher: the teacher's map, float of shape ``(B, C, H, W)``.
        mask: the instances' weights on the map (:func:`~gkd.knowledge.instance_mask`), float of
            shape ``(B, H, W)``.

    Returns:
        ``(foreground, background)``, scalars without weight and decay.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
        >>> local_knowledge_loss(student, teacher, torch.tensor([[[0.5, 0.0]]]))
        (tensor(0.5000), tensor(0.5000))
    """
    return local_knowledge_losses([student_adapted], [teacher], [mask])[0].unbind()


def local_knowledge_losses(student_adapted: Sequence[Tensor], teacher: Sequence[Tensor],
                           masks: Sequence[Tensor]) -> Tensor:
    """:func:`local_knowledge_loss` of every level; levels of equal channels are computed together.

    Args:
        student_adapted: The student's maps after the adaptation layers, ``(B, C_l, H_l, W_l)``.
        teacher: The teacher's, likewise.
        masks: The instances' weights on every level, ``(B, H_l, W_l)``.

    Returns:
        Tensor of shape ``(L, 2)``: foreground and background.
    """
    channels = [feature.shape[1] for feature in teacher]
    return torch.cat([
        WeightedDistances.apply(*(level.detach() for maps in (masks, teacher)
                                  for level in maps[alike.start:alike.stop]),
                                *student_adapted[alike.start:alike.stop])
        for alike in alike_levels(channels, channels)])


class WeightedDistances(torch.autograd.Function):
    """Foreground and background loss of levels that have equal numbers of channels.

    The cells of all levels lie one after the other, each with its channels together. So one
    operation serves all levels, and the gradient of a map has channels last, as the adaptation
    layers want it. Only the differences are kept for the gradient, instead of both maps: maps take
    most of the memory that distillation needs.
    """

    @staticmethod
    def forward(ctx, *levels: Tensor) -> Tensor:
        """Compare maps: ``(L, 2)``.

        Args:
            ctx: Autograd's context.
            levels: Masks ``(B, H_l, W_l)``, then the teacher's maps ``(B, C, H_l, W_l)``, then the
                student's.
        """
        count = len(levels) // 3
        masks, teacher, student = levels[:count], levels[count:-count], levels[-count:]
        ctx.sizes = [mask.shape for mask in masks]
        ctx.dtypes = [own.dtype for own in student]
        cells = [size.numel() for size in ctx.sizes]
        channels = teacher[0].shape[1]
        # In full precision, without a copy of the student's map in it.
        dtype = torch.promote_types(teacher[0].dtype, torch.float)
        differences = teacher[0].new_empty(sum(cells), channels, dtype=dtype)
        for size, part, own, target in zip(ctx.sizes, differences.split(cells), student, teacher):
            torch.sub(own.movedim(1, -1), target.movedim(1, -1).to(dtype),
                      out=part.view(*size, channels))
        squared = torch.linalg.vector_norm(differences, dim=1).square()
        inside = torch.cat([mask.flatten() for mask in masks]).to(squared.dtype)
        weights = torch.stack([inside, (inside <= 0).to(squared.dtype)])
        sums = [level.sum(dim=-1)
                for level in torch.stack([weights * squared, weights]).split(cells, dim=-1)]
        losses, divisors = torch.stack(sums, dim=1)
        divisors = (2 * channels * divisors).clamp(min=1)
        ctx.save_for_backward(differences, weights, divisors)
        return losses / divisors

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Optional[Tensor], ...]:
        """Gradients of the student's maps; masks and the teacher's maps have none."""
        differences, weights, divisors = ctx.saved_tensors
        cells = [size.numel() for size in ctx.sizes]
        of_levels = (2 * gradient / divisors).unsqueeze(-1)
        of_cells = torch.cat([level.expand(-1, count)
                              for level, count in zip(of_levels, cells)], dim=1)
        of_cells = (of_cells * weights).sum(dim=0)
        # One new tensor a level, which can be freed, or added to, before the next is needed. It
        # has the precision of the map, of which autograd would make another copy otherwise.
        changes = []
        for part, factors, size, dtype in zip(differences.split(cells), of_cells.split(cells),
                                              ctx.sizes, ctx.dtypes):
            change = part.new_empty(*size, part.shape[-1], dtype=dtype)
            torch.mul(part.view_as(change), factors.view(*size, 1), out=change)
            changes.append(change.movedim(-1, 1))
        return (*[None] * (2 * len(cells)), *changes)


@full_precision
def soft_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    temperature: float = 2.0,
    activation: str = 'softmax',
) -> Tensor:
    r"""Teach the student the teacher's class probabilities of the same instances.

    The loss is :math:`\mathrm{mean}_i\, r_i\, t^2\, \mathrm{mean}_c\, \mathrm{KL}_c`, where
    :math:`\mathrm{KL}_c` are the elementwise terms of the divergence of the softened
    probabilities. ``'softmax'`` compares one distribution over the classes. ``'sigmoid'`` compares
    for each class whether it is present, for heads that score classes independently.

    Source: the paper's RDM; method section 2.5.

    Args:
        student_logits: the student's logits, float of shape ``(n, C)``. The only argument that
            receives a gradient.
        teacher_logits: the teacher's logits of the same instances, float of shape ``(n, C)``.
        weights: robust weights of the instances, float of shape ``(n,)``.
        temperature: both logits are divided by it.
        activation: ``'softmax'`` or ``'sigmoid'``.

    Returns:
        Scalar; 0, with a gradient of 0, for no instance.

    Raises:
        ValueError: if ``activation`` is neither of the two.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0]])
        >>> loss = soft_label_loss(-logits, logits, torch.tensor([1.0]))
        >>> round(loss.item(), 4)
        0.9242
    """
    if activation not in ('softmax', 'sigmoid'):
        raise ValueError(f"activation must be 'softmax' or 'sigmoid', got {activation!r}")
    if len(student_logits) == 0:
        return _zero_loss(student_logits)
    student, teacher = student_logits / temperature, teacher_logits.detach() / temperature
    if activation == 'softmax':
        divergence = _divergence(F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1))
    else:
        present = _divergence(F.logsigmoid(student), F.logsigmoid(teacher))
        absent = _divergence(F.logsigmoid(-student), F.logsigmoid(-teacher))
        divergence = present + absent
    total = divergence.sum(dim=1) @ weights.detach().to(divergence.dtype)
    return total * (temperature**2 / divergence.numel())


def _divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """Elementwise terms of KL(teacher || student)."""
    return F.kl_div(log_student, log_teacher, reduction='none', log_target=True)


def _zero_loss(inputs: Tensor) -> Tensor:
    """A loss of 0 that depends on ``inputs``, so that every step and process has a gradient."""
    return inputs.flatten()[:0].sum()
