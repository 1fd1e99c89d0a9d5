"""FGFI: imitate the teacher's map where anchors lie close to an object.

*Distilling Object Detectors with Fine-grained Feature Imitation*, CVPR 2019,
https://arxiv.org/abs/1906.03609.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from gkd.detectors.step import Needs
from gkd.errors import ConfigError, PairError
from gkd.knowledge.adaptation import quiet_adaptation
from gkd.knowledge.base import Knowledge
from gkd.knowledge.precision import full_precision
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step


@torch.no_grad()
def near_objects(anchors: Tensor, boxes: Sequence[Tensor], threshold: float = 0.5) -> Tensor:
    """Find the anchors near an object: those that overlap it almost as well as its best anchor.

    An anchor is near an object if their IoU is above ``threshold`` times the IoU of the object's
    best anchor. So an object that no anchor overlaps well still has anchors near it.

    Source: the paper, Sec. 3.1 (imitation region estimation).

    Args:
        anchors: All anchors ``x1, y1, x2, y2`` in pixels, float of shape ``(N, 4)``.
        boxes: Per image the ground-truth boxes in pixels, float of shape ``(g_b, 4)``.
        threshold: The paper's psi, in [0, 1).

    Returns:
        Whether an anchor is near any object of an image, bool of shape ``(B, N)``.

    Example:
        >>> anchors = torch.tensor([[0., 0., 8., 8.], [4., 0., 12., 8.], [8., 0., 16., 8.]])
        >>> near_objects(anchors, [torch.tensor([[0., 0., 10., 8.]]), torch.zeros(0, 4)])
        tensor([[ True,  True, False],
                [False, False, False]])
    """
    def near(image_boxes: Tensor) -> Tensor:
        iou = box_iou(image_boxes, anchors)
        return (iou > threshold * iou.amax(dim=1, keepdim=True)).any(dim=0)

    # Image by image, because overlaps take boxes x anchors numbers: 1e8 for a crowded image.
    return torch.stack([near(image_boxes) for image_boxes in boxes])


@full_precision
def masked_squared_distance(student: Tensor, teacher: Tensor, cells: Tensor) -> Tensor:
    """Sum of the squared differences of two maps over the channels of the given cells.

    Source: the paper, Sec. 3.2, the sum of Eq. 2 without its divisor.

    Args:
        student: The student's adapted map, float of shape ``(B, C, H, W)``. The only argument that
            receives a gradient.
        teacher: The teacher's map, float of shape ``(B, C, H, W)``.
        cells: Which cells count, bool of shape ``(B, H, W)``.

    Returns:
        Scalar.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
        >>> masked_squared_distance(student, teacher, torch.tensor([[[True, False]]]))
        tensor(2.)
    """
    squared = F.mse_loss(student, teacher.detach(), reduction='none').sum(dim=1)
    return (squared * cells).sum()


@KNOWLEDGE.register_module()
class FGFI(Knowledge):
    r"""Fine-grained feature imitation: the teacher's map near objects, and nowhere else.

    With :math:`I` = 1 at cells that have an anchor near an object (:func:`near_objects`) and
    :math:`N_p = \sum I`, the loss is
    :math:`\lambda / (2 N_p) \sum I\, (f_{adapt}(F^S) - F^T)^2`, summed over channels (the paper's
    Eq. 2 and 3).

    The paper describes a single map. Here the sum and :math:`N_p` run over all paired levels, and
    an object's best anchor is the best among the anchors of all levels. The map of an object is
    therefore imitated on the levels that have anchors of its size. This amounts to what the
    authors advise for FPN: imitate only on the levels that an object is assigned to. The
    adaptation is a 3x3 convolution for every level. It lacks the public implementation's ReLU,
    because FPN maps have values of both signs. The anchors are those of the student's one-stage
    head or RPN.

    In the public implementation the loss is 0 during the first 400 iterations. Here the learning
    rate's warm-up and the small initial weights of the adaptation serve the same purpose.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        loss_weight: The paper's :math:`\lambda`. 0.01 is the public implementation's; its authors
            advise to tune it for other detectors. The loss grows with the teacher's channels.
        threshold: The paper's :math:`\psi`; 0.5 is the paper's choice.

    Raises:
        PairError: The student has no anchors.
        ConfigError: ``threshold`` is not in [0, 1).
    """

    needs = Needs(anchors=True)

    def __init__(self, pair: DetectorPair, loss_weight: float = 0.01, threshold: float = 0.5):
        super().__init__(pair)
        if not pair.student.anchors:
            raise PairError(
                f'FGFI: student {pair.student.name} has no anchors, by which FGFI chooses what to '
                f'imitate; use a student with an anchor-based head or RPN, or a kind of knowledge '
                f'that needs none, such as DeFeat.')
        if not 0 <= threshold < 1:
            raise ConfigError(f'FGFI.threshold = {threshold!r}: must be at least 0 and below 1, '
                              f'as a fraction of the IoU of an object\'s best anchor.')
        self.loss_weight = loss_weight
        self.threshold = threshold
        self.adaptation = quiet_adaptation(pair)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the loss of one step; see :class:`Knowledge`."""
        dense = step.student.dense
        near = near_objects(dense.anchors, step.gt_boxes, self.threshold)
        squared, cells = [], []
        for adapt, own, target, places in zip(self.adaptation, step.student.maps,
                                              step.teacher.maps, near.split(dense.counts, dim=1)):
            # A cell counts once, however many of its anchors are near.
            cells.append(places.unflatten(1, (*own.shape[-2:], -1)).any(dim=-1))
            squared.append(masked_squared_distance(adapt(own), target, cells[-1]))
        count = torch.stack([level.sum() for level in cells]).sum()
        return dict(loss_fgfi=self.loss_weight * sum(squared) / (2 * count).clamp(min=1))
