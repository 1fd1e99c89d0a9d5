"""The losses of the three kinds of knowledge: global, local and soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd.knowledge.channels import alike_levels
from gkd.knowledge.precision import full_precision
from gkd.knowledge.similarities import Unit, similarities


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
        student: The student's features of n instances, float of shape ``(n, D_S)``. The only
            argument that receives a gradient.
        teacher: The teacher's features of the same instances, float of shape ``(n, D_T)``.
        student_prototypes: The level's prototypes, float of shape ``(P, D_S)``.
        teacher_prototypes: The same instances in the teacher's space, ``(P, D_T)``.
        weights: Robust weights of the instances, float of shape ``(n,)``.

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
        student_adapted: The student's map after the adaptation layer, float of shape
            ``(B, C, H, W)``. The only argument that receives a gradient.
        teacher: The teacher's map, float of shape ``(B, C, H, W)``.
        mask: The instances' weights on the map (:func:`~gkd.knowledge.instance_mask`), float of
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
    most of the memory that distillation needs. They are computed in full precision and kept in
    the student's: what half precision rounds off is less than it has rounded off from the map.
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
        kept = reduce(torch.promote_types, ctx.dtypes)
        differences = student[0].new_empty(sum(cells), channels, dtype=kept)
        for size, part, own, target in zip(ctx.sizes, differences.split(cells), student, teacher):
            torch.sub(own.movedim(1, -1), target.movedim(1, -1).to(dtype),
                      out=part.view(*size, channels))
        squared = torch.linalg.vector_norm(differences, dim=1, dtype=dtype).square()
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
        student_logits: The student's logits, float of shape ``(n, C)``. The only argument that
            receives a gradient.
        teacher_logits: The teacher's logits of the same instances, float of shape ``(n, C)``.
        weights: Robust weights of the instances, float of shape ``(n,)``.
        temperature: Both logits are divided by it.
        activation: ``'softmax'`` or ``'sigmoid'``.

    Returns:
        Scalar; 0, with a gradient of 0, for no instance.

    Raises:
        ValueError: ``activation`` is neither of the two.

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
