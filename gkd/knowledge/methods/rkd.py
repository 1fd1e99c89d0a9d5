"""RKD: imitate the distances and angles between the instances of a batch.

*Relational Knowledge Distillation*, CVPR 2019, https://arxiv.org/abs/1904.05068; here in the form
of the published code of global knowledge, which offers it as an alternative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.errors import require_count
from gkd.knowledge.base import Knowledge
from gkd.knowledge.channels import alike_levels, channels_of, taught_levels
from gkd.knowledge.instances import Instances, mean_windows, pool_maps
from gkd.knowledge.precision import full_precision
from gkd.knowledge.settings import choose_instances
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step

# Instances that are nearer to each other than this count as lying at the same place.
SAME = 1e-6


@full_precision
def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Teach the student the distances between the instances in the teacher's space.

    The loss is smooth L1 (beta 1) between the Euclidean distances of all pairs, averaged over all
    ``n * n`` pairs, including those of an instance with itself. In each space the distances are
    first divided by their mean. The losses of several levels are summed.

    Source: the paper's distance-wise loss. The two spaces may have different dimensions.

    Args:
        student: The student's features of n instances, float of shape ``(n, D_S)``, or
            ``(L, n, D_S)`` on L levels. The only argument that receives a gradient.
        teacher: The teacher's, float of shape ``(n, D_T)`` or ``(L, n, D_T)``.

    Returns:
        Scalar; 0, with a gradient of 0, for less than two instances.

    Example:
        >>> student = torch.tensor([[0.0], [1.0], [2.0]])
        >>> distance_loss(student, 5 * student + 3)
        tensor(0.)
        >>> distance_loss(student, torch.tensor([[0.0], [1.0], [3.0]])) > 0
        tensor(True)
    """
    count = student.shape[-2]

    def relations(features: Tensor) -> Tensor:
        distances = torch.cdist(features, features,
                                compute_mode='donot_use_mm_for_euclid_dist')
        mean = distances.sum(dim=(-2, -1), keepdim=True) / max(count * (count - 1), 1)
        return distances / mean.clamp(min=SAME)

    difference = F.smooth_l1_loss(relations(student), relations(teacher.detach()),
                                  reduction='sum')
    return difference / max(count ** 2, 1)


@full_precision
def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Teach the student the angles that the instances form in the teacher's space.

    The loss is smooth L1 (beta 1) between the cosines of the angles at every instance to every two
    others, averaged over all ``n * n * n`` triples. If one of the two others is the instance
    itself or lies at the same place, the cosine is 0. The losses of several levels are summed.

    Source: the paper's angle-wise loss.

    Args:
        student: The student's features of n instances, float of shape ``(n, D_S)``, or
            ``(L, n, D_S)`` on L levels. The only argument that receives a gradient.
        teacher: The teacher's, float of shape ``(n, D_T)`` or ``(L, n, D_T)``.

    Returns:
        Scalar; 0, with a gradient of 0, for less than two instances.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> angle_loss(corner, 2 * corner.flip(1)).abs() < 1e-6
        tensor(True)
        >>> angle_loss(corner, torch.tensor([[0.0], [1.0], [2.0]])) > 0
        tensor(True)
    """
    def cosines(features: Tensor) -> Tensor:
        directions = features.unsqueeze(-3) - features.unsqueeze(-2)
        lengths = torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
        # A vector without a direction is divided by infinity: it becomes 0 and has no gradient.
        directions = directions / lengths.masked_fill(lengths < SAME, torch.inf)
        return directions @ directions.mT

    difference = F.smooth_l1_loss(cosines(student), cosines(teacher.detach()), reduction='sum')
    return difference / max(student.shape[-2] ** 3, 1)


@KNOWLEDGE.register_module()
class RKD(Knowledge):
    """Relational distillation of a step's instances, the alternative to global knowledge.

    Instances are pooled as for global knowledge (method section 2.1), on every level; the losses
    are :func:`distance_loss` and :func:`angle_loss`, sum over levels. They compare instances with
    each other and so need neither prototypes nor equal channels. The defaults of levels, weights,
    decay and instances are from the published code of global knowledge (``use_rkd``).

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        distance_weight: Factor of the distances.
        angle_weight: Factor of the angles.
        instances: ``'positives'`` relates the positives that the student's sampler chose, ``'gt'``
            the ground-truth boxes; ``'auto'`` the positives if the student samples some, else the
            ground-truth boxes.
        max_instances: If a step has more instances, this many are drawn at random, because the
            cosines of n instances are ``n * n * n`` numbers per level.
        decay: Lower both weights from 1 to 0 over training.
        levels: Paired levels to teach, 0 being the finest; by default all.

    Raises:
        ConfigError: A setting is out of range, or the student samples no positives.
    """

    def __init__(self, pair: DetectorPair, distance_weight: float = 5.0,
                 angle_weight: float = 10.0, instances: str = 'auto',
                 max_instances: int = 128, decay: bool = True,
                 levels: Optional[Sequence[int]] = None):
        super().__init__(pair)
        instances = choose_instances(instances, pair, 'RKD',
                                     'set instances="gt" to relate the ground truth.')
        require_count(max_instances, 'RKD.max_instances', least=2)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.instances = instances
        self.max_instances = max_instances
        self.decay = decay
        self.levels = taught_levels(pair, levels, 'RKD')
        self.alike = alike_levels(*channels_of(pair, self.levels))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step; see :class:`Knowledge`."""
        boxes = step.gt_boxes if self.instances == 'gt' else step.boxes
        instances = Instances.of(boxes)
        rows = instances.rows
        if len(rows) > self.max_instances:
            drawn = torch.randperm(len(rows), device=rows.device)[:self.max_instances]
            instances = replace(instances, rows=rows[drawn])
        windows = mean_windows(instances, [step.student.maps[level].shape[2:] for level in
                                           self.levels],
                               [(1 / step.strides[level],) * 2 for level in self.levels])
        distances, angles = [], []
        for alike in self.alike:
            student, teacher = (
                pool_maps([part.maps[self.levels[place]] for place in alike],
                          windows[alike[0]:alike[-1] + 1], instances)
                for part in (step.student, step.teacher))
            distances.append(distance_loss(student, teacher))
            angles.append(angle_loss(student, teacher))
        decay = 1 - step.progress if self.decay else 1.0
        return dict(loss_rkd_distance=self.distance_weight * decay * reduce(add, distances),
                    loss_rkd_angle=self.angle_weight * decay * reduce(add, angles))
