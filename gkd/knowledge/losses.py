"""Robust weights, and the three kinds of knowledge: global, local and soft labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.knowledge.precision import full_precision


def _cosine(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine similarity of every feature ``(n, D)`` with every prototype ``(P, D)``: ``(n, P)``.

    A zero vector is similar to nothing (0) and receives no gradient, which dividing by a small
    number instead would blow up.
    """
    return _unit(features) @ _unit(prototypes).T


def _unit(vectors: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / norm.masked_fill(norm == 0, float('inf'))


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
    :math:`1 - |q^S - q^T|`. A class without prototypes, or one that the bank does not know, has
    nothing to judge an instance by: weight 1.

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
    if len(student_prototypes) == 0:
        return student.new_ones(len(student))
    columns = torch.arange(len(student_prototypes), device=offsets.device)
    class_of_column = torch.bucketize(columns, offsets[1:], right=True)
    other = labels[:, None] != class_of_column
    best = [
        _cosine(features, prototypes).masked_fill(other, -float('inf')).amax(dim=1)
        for features, prototypes in ((student, student_prototypes), (teacher, teacher_prototypes))
    ]
    agreement = (1 - (best[0] - best[1]).abs()).clamp(0, 1)
    return agreement.masked_fill(other.all(dim=1), 1.0)


@full_precision
def global_knowledge_loss(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    weights: Tensor,
) -> Tensor:
    r"""Teach the student to see an instance as the teacher does, in terms of the prototypes.

    Smooth L1 (beta 1) between the robustly weighted similarities of student and teacher to the
    prototypes of all classes, :math:`r_i \cos(f^S_i, p^S_k)` and :math:`r_i \cos(f^T_i, p^T_k)`,
    mean over instances and prototypes.

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
    if len(student) == 0 or len(student_prototypes) == 0:
        return _zero_loss(student)
    weights = weights.detach()[:, None]
    similarity = _cosine(student, student_prototypes.detach())
    with torch.no_grad():
        target = weights * _cosine(teacher, teacher_prototypes)
    return F.smooth_l1_loss(weights * similarity, target)


@full_precision
def local_knowledge_loss(
    student_adapted: Tensor, teacher: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Teach the student the teacher's map, objects and background apart.

    The squared difference of the maps, weighted with :math:`m` for the foreground and with
    :math:`1 - [m > 0]` for the background, each divided by twice its weight over all channels
    (at least by 1): :math:`\sum m (F^S - F^T)^2 / \max(1, 2 C \sum m)`.

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
    squared = F.mse_loss(student_adapted, teacher.detach(), reduction='none').sum(dim=1)
    channels = teacher.shape[1]

    def average(weight: Tensor) -> Tensor:
        return (squared * weight).sum() / (2 * channels * weight.sum()).clamp(min=1)

    mask = mask.detach().to(squared.dtype)
    return average(mask), average((mask <= 0).to(squared.dtype))


@full_precision
def soft_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    temperature: float = 2.0,
    activation: str = 'softmax',
) -> Tensor:
    r"""Teach the student the teacher's class probabilities of the same instances.

    :math:`\mathrm{mean}_i\, r_i\, t^2\, \mathrm{mean}_c\, \mathrm{KL}_c`, with the elementwise
    terms of the divergence of the softened probabilities. ``'softmax'`` compares one distribution
    over the classes; ``'sigmoid'`` compares, class by class, whether the class is present, for
    heads of independent classes.

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
    return (weights.detach() * divergence.mean(dim=1)).mean() * temperature**2


def _divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """Elementwise terms of KL(teacher || student)."""
    return F.kl_div(log_student, log_teacher, reduction='none', log_target=True)


def _zero_loss(inputs: Tensor) -> Tensor:
    """0 that depends on ``inputs``, so that every step of every process has a gradient."""
    return inputs.flatten()[:0].sum()
