"""GID: imitate the instances on which teacher and student disagree the most.

*General Instance Distillation for Object Detection*, CVPR 2021, https://arxiv.org/abs/2103.02340.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from gkd.detectors.step import Needs
from gkd.device import on_device
from gkd.errors import ConfigError, PairError, require_count
from gkd.knowledge.base import Knowledge
from gkd.knowledge.instances import map_levels
from gkd.knowledge.precision import full_precision
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorInfo, DetectorPair
    from gkd.detectors.step import Step

AT_ONCE = 2  # instances per image that are compared with all anchors at a time

# The authors' settings for which GID has no argument.
CANDIDATES = 3000  # places with the largest difference that instances are chosen from
MIN_SIDE = 10  # pixels
ROI_SIZE = 10  # cells
SAMPLES = 2  # of RoIAlign, per cell and axis


def areas(boxes: Tensor) -> Tensor:
    """Areas ``(...)`` of boxes ``(..., 4)``."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


def overlaps(boxes: Tensor, others: Tensor, total: Tensor) -> Tensor:
    """IoU of boxes ``(..., 4)`` with others ``(..., 4)``, pair by pair; shapes may broadcast.

    The caller passes the sum of both areas, because the areas stay the same throughout a loop.
    """
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    return shared / (total - shared)


@torch.no_grad()
@full_precision
def select_instances(
    student_scores: Tensor,
    teacher_scores: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    sizes: Sequence[tuple[int, int]],
    num_instances: int = 10,
    iou_threshold: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """Select the general instances: distinct boxes that are scored most differently.

    The score of a place is the absolute difference of the student's and the teacher's scores; its
    box is that of the detector with the higher score. Non-maximum suppression over all classes and
    levels then keeps the places with the highest scores whose boxes do not overlap a better one by
    more than the threshold. Boxes are clipped to their image without its padding. Boxes of 10
    pixels or less on a side are never selected, nor are those beyond the 3000 best before
    suppression.

    Source: the authors' code of the paper's general instance selection module. From the code come
    the score, as the difference of both detectors' largest class scores, and the numbers 10 and
    3000. It has not been checked whether that score is exactly the paper's equation.

    Args:
        student_scores: The student's scores at N places, in [0, 1], float of shape ``(B, N)``.
        teacher_scores: The teacher's, likewise.
        student_boxes: The student's boxes ``x1, y1, x2, y2`` in pixels, float of shape
            ``(B, N, 4)``.
        teacher_boxes: The teacher's, likewise.
        sizes: Height and width of every image in pixels, without its padding.
        num_instances: The paper's K, the instances of an image.
        iou_threshold: The largest IoU that two selected boxes may have.

    Returns:
        Boxes ``(B, num_instances, 4)``, best first, and which of them are instances
        ``(B, num_instances)`` bool: where an image has fewer, the rest is arbitrary. Both without
        gradient.

    Example:
        >>> boxes = torch.tensor([[[0., 0., 20., 20.], [1., 0., 21., 20.], [40., 0., 60., 20.]]])
        >>> scores = torch.tensor([[0.9, 0.8, 0.3]])
        >>> chosen, valid = select_instances(torch.zeros(1, 3), scores, boxes, boxes,
        ...                                  sizes=[(64, 64)], num_instances=3)
        >>> chosen[valid]
        tensor([[ 0.,  0., 20., 20.],
                [40.,  0., 60., 20.]])
    """
    difference = teacher_scores - student_scores
    boxes = torch.where(difference[..., None] > 0, teacher_boxes, student_boxes)
    limits = on_device([[[width, height] * 2] for height, width in sizes], boxes.device,
                       boxes.dtype)
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    fits = ((boxes[..., 2:] - boxes[..., :2]) > MIN_SIDE).all(dim=-1)
    # All sizes are fixed: to count what is left, the host would have to wait for the device.
    used = -1
    scores = difference.abs().masked_fill(~fits, used)
    scores, places = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
    boxes = boxes.gather(1, places[..., None].expand(-1, -1, 4))
    boxes_areas = areas(boxes)
    chosen, bests = [], []
    for _ in range(num_instances):
        best, place = scores.max(dim=1, keepdim=True)
        box = boxes.gather(1, place[..., None].expand(-1, -1, 4))
        total = boxes_areas + boxes_areas.gather(1, place)
        # The box overlaps itself entirely and so is not selected again.
        scores = scores.masked_fill(overlaps(box, boxes, total) > iou_threshold, used)
        chosen.append(box)
        bests.append(best)
    return torch.cat(chosen, dim=1), torch.cat(bests, dim=1) > used


@torch.no_grad()
@full_precision
def responsible_anchors(anchors: Tensor, boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Find the anchors that would be positive if the instances were the ground truth.

    An anchor is positive if its IoU with an instance reaches the threshold, or if that IoU is
    above 0 and no other anchor has a higher IoU with the instance.

    Source: the mask of the paper's response-based distillation.

    Args:
        anchors: All anchors ``x1, y1, x2, y2`` in pixels, float of shape ``(N, 4)``.
        boxes: The instances, float of shape ``(B, K, 4)``.
        valid: Which of them count, bool of shape ``(B, K)``.
        threshold: IoU in [0, 1].

    Returns:
        Bool of shape ``(B, N)``.

    Example:
        >>> anchors = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 9.], [5., 0., 15., 10.]])
        >>> responsible_anchors(anchors, anchors[None, :1], torch.tensor([[True]]), threshold=0.5)
        tensor([[ True,  True, False]])
    """
    found = torch.zeros(len(boxes), len(anchors), dtype=torch.bool, device=boxes.device)
    boxes = (boxes * valid[..., None]).unsqueeze(2)  # a box of no size overlaps nothing
    boxes_areas, anchors_areas = areas(boxes), areas(anchors)
    least = torch.finfo(boxes.dtype).tiny
    # A few instances per image at a time: with all of them the overlaps would take gigabytes.
    for some, some_areas in zip(boxes.split(AT_ONCE, dim=1), boxes_areas.split(AT_ONCE, dim=1)):
        iou = overlaps(some, anchors, some_areas + anchors_areas)
        best = iou.amax(dim=2, keepdim=True)
        found |= (iou >= best.clamp(least, max(threshold, least))).any(dim=1)
    return found


@full_precision
def feature_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Teach the student the teacher's features of the instances.

    The loss is the squared difference of the RoI features, summed over channels and averaged over
    the cells of all instances.

    Source: the paper's feature-based distillation; the mean over cells is from the authors' code.

    Args:
        student: The student's adapted RoI features, float of shape ``(n, C, h, w)``. The only
            argument that receives a gradient.
        teacher: The teacher's, likewise.
        valid: Which instances count, bool of shape ``(n,)``.

    Returns:
        Scalar; 0, with a gradient of 0, for no instance.
    """
    squared = F.mse_loss(student, teacher.detach(), reduction='none').sum(dim=1)
    return (squared.mean(dim=(1, 2)) * valid).sum() / valid.sum().clamp(min=1)


@full_precision
def relation_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Teach the student how far the instances lie apart in the teacher's feature space.

    The loss is smooth L1 (beta 1) between the Euclidean distances of all pairs of instances of the
    batch, averaged over pairs. In each space the distances are first divided by their mean.

    Source: the paper's relation-based distillation.

    Args:
        student: The student's adapted RoI features, float of shape ``(n, C, h, w)``. The only
            argument that receives a gradient.
        teacher: The teacher's, likewise.
        valid: Which instances count, bool of shape ``(n,)``.

    Returns:
        Scalar; 0, with a gradient of 0, for less than two instances.
    """
    pairs = valid[:, None] & valid & ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    count = pairs.sum().clamp(min=1)

    # Distances of all pairs at once by products; these are exact if vectors are not far from 0.
    vectors = torch.stack([student, teacher.detach()]).flatten(2)
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    squared = vectors.square().sum(dim=2)
    squared = squared[:, :, None] + squared[:, None] - 2 * vectors @ vectors.mT
    distances = squared.clamp(min=1e-12).sqrt() * pairs
    mean = distances.sum(dim=(1, 2), keepdim=True) / count
    own, target = (distances / mean.clamp(min=1e-12)).unbind()
    return F.smooth_l1_loss(own, target, reduction='sum') / count


@full_precision
def class_response_loss(student: Tensor, teacher: Tensor, anchors: Tensor) -> Tensor:
    """Teach the student the teacher's class scores at the responsible anchors.

    The loss is the binary cross-entropy with the teacher's scores as targets, summed over classes
    and averaged over the anchors. If both scores are equal, it is the teacher's entropy, not 0.

    Source: the paper's response-based distillation.

    Args:
        student: The student's logits, float of shape ``(B, N, C)``. The only argument that
            receives a gradient.
        teacher: The teacher's, likewise.
        anchors: Which anchors count, bool of shape ``(B, N)``.

    Returns:
        Scalar; 0, with a gradient of 0, for no anchor.
    """
    entropy = F.binary_cross_entropy_with_logits(student, teacher.detach().sigmoid(),
                                                 reduction='none').sum(dim=2)
    return (entropy * anchors).sum() / anchors.sum().clamp(min=1)


@full_precision
def box_response_loss(student: Tensor, teacher: Tensor, anchors: Tensor) -> Tensor:
    """Teach the student the teacher's box offsets at the responsible anchors.

    The loss is the absolute difference, summed over the four offsets and averaged over the
    anchors.

    Source: the paper's response-based distillation.

    Args:
        student: The student's offsets, float of shape ``(B, N, 4)``. The only argument that
            receives a gradient.
        teacher: The teacher's, likewise.
        anchors: Which anchors count, bool of shape ``(B, N)``.

    Returns:
        Scalar; 0, with a gradient of 0, for no anchor.
    """
    difference = (student - teacher.detach()).abs().sum(dim=2)
    return (difference * anchors).sum() / anchors.sum().clamp(min=1)


@KNOWLEDGE.register_module()
class GID(Knowledge):
    """General instance distillation: features, relations and responses where detectors disagree.

    Instances are selected by the predictions of the dense heads (:func:`select_instances`),
    without the ground truth. The dense head of a two-stage detector is its RPN, whose only class
    is "object". RoIAlign pools each instance to 10 x 10 cells, from the level that its size
    belongs to; the student's features then pass a 3x3 convolution.

    The authors' code (a reproduction for Detectron2) builds that convolution for whole maps and
    then does not use it. Here it is applied to the pooled features, as in the paper, for the
    relation loss too.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        feature_weight: Factor of :func:`feature_loss`.
        relation_weight: Factor of :func:`relation_loss`.
        class_weight: Factor of :func:`class_response_loss`.
        box_weight: Factor of :func:`box_response_loss`. The defaults of all four weights are from
            the authors' configurations for RetinaNet; they have none for two-stage detectors.
        num_instances: Instances of an image, the paper's K.
        iou_threshold: The largest IoU that two instances may have; 0.3 as in the paper.
        anchor_iou: Anchors whose IoU with an instance reaches this value are taught; an instance's
            best anchor always is. By default the usual threshold of positive anchors: 0.5 for
            one-stage detectors, 0.7 for an RPN.

    Raises:
        ConfigError: A setting is out of range, the dense heads do not predict the same offsets of
            the same anchors, one of them scores classes by softmax, or a detector's levels differ
            in their channels.
    """

    needs = Needs(dense=True, boxes=True)

    def __init__(self, pair: DetectorPair, feature_weight: float = 5e-4,
                 relation_weight: float = 40.0, class_weight: float = 0.1,
                 box_weight: float = 1.0, num_instances: int = 10, iou_threshold: float = 0.3,
                 anchor_iou: Optional[float] = None):
        super().__init__(pair)
        refuse_unlike_boxes(pair)
        channels = [common_channels(pair, info) for info in (pair.student, pair.teacher)]
        require_count(num_instances, 'GID.num_instances')
        if anchor_iou is None:
            anchor_iou = 0.7 if pair.student.is_two_stage else 0.5
        for name, iou in dict(iou_threshold=iou_threshold, anchor_iou=anchor_iou).items():
            if not 0 <= iou <= 1:
                raise ConfigError(f'GID.{name} = {iou!r}: must be an IoU, from 0 to 1.')
        self.feature_weight = feature_weight
        self.relation_weight = relation_weight
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.num_instances = num_instances
        self.iou_threshold = iou_threshold
        self.anchor_iou = anchor_iou
        self.adaptation = nn.Conv2d(*channels, kernel_size=3, padding=1)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step; see :class:`Knowledge`."""
        own, target = step.student.dense, step.teacher.dense
        # The sigmoid of the largest logit is the largest score, for a fraction of the work.
        boxes, valid = select_instances(
            *(dense.logits.detach().amax(dim=2).float().sigmoid() for dense in (own, target)),
            own.boxes, target.boxes, step.image_sizes, self.num_instances, self.iou_threshold)
        instances = valid.flatten()
        student, teacher = (pool_rois(part.maps, step.strides, boxes)
                            for part in (step.student, step.teacher))
        features = self.adaptation(student), teacher
        anchors = responsible_anchors(own.anchors, boxes, valid, self.anchor_iou)
        return dict(
            loss_gid_feature=self.feature_weight * feature_loss(*features, instances),
            loss_gid_relation=self.relation_weight * relation_loss(*features, instances),
            loss_gid_cls=self.class_weight * class_response_loss(own.logits, target.logits,
                                                                 anchors),
            loss_gid_bbox=self.box_weight * box_response_loss(own.deltas, target.deltas, anchors))


@full_precision
def pool_rois(maps: tuple[Tensor, ...], strides: tuple[int, ...], boxes: Tensor) -> Tensor:
    """RoI features ``(B * K, C, 10, 10)`` of boxes ``(B, K, 4)``, each from its own level.

    The level follows the rule of the paper on feature pyramid networks: if strides double from
    level to level, boxes of 224 up to 448 pixels are pooled from the map of stride 16.
    """
    images = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
    boxes = boxes.flatten(0, 1)
    levels = map_levels(boxes, len(maps), finest_scale=14 * strides[0])
    rois = torch.cat([images[:, None], boxes], dim=1).to(maps[0].dtype)
    # Pooling these few boxes on every level costs less than finding out the level of each.
    pooled = torch.stack([roi_align(feature, rois, ROI_SIZE, 1 / stride, SAMPLES, aligned=True)
                          for feature, stride in zip(maps, strides)])
    own = levels == torch.arange(len(maps), device=boxes.device)[:, None]
    return (pooled * own[..., None, None, None]).sum(dim=0)


def common_channels(pair: DetectorPair, info: DetectorInfo) -> int:
    """Channels of every paired level of a detector.

    Raises:
        PairError: They differ.
    """
    channels = set(pair.channels(info))
    if len(channels) > 1:
        raise PairError(f'GID: the levels of {info.name} have {pair.channels(info)} channels, '
                        f'but instances of all levels are compared with each other; use a neck '
                        f'such as FPN, whose levels have as many.')
    return channels.pop()


def refuse_unlike_boxes(pair: DetectorPair) -> None:
    """Raise PairError where the dense heads do not classify and refine the same anchors."""
    teacher, student = pair.teacher, pair.student
    advice = 'teach by PKD or CWD, which compare feature maps alone.'
    pair.require_same_family('GID', advice)
    pair.require_dense_predictions('GID', advice)
    for role, info in (('teacher', teacher), ('student', student)):
        if not info.box_coding:
            raise PairError(f'GID: {role} {info.name} does not predict boxes as offsets of '
                            f'anchors; {advice}')
        if not info.is_two_stage and not info.sigmoid:
            raise PairError(f'GID: {role} {info.name} scores classes by softmax; instances are '
                            f'selected and taught by the scores of a sigmoid; {advice}')
    pair.require_same_anchors('GID', advice)
    if teacher.box_coding != student.box_coding:
        raise PairError(f'GID: teacher and student predict boxes on different scales (means and '
                        f'standard deviations {teacher.box_coding} and {student.box_coding}); '
                        f'use one `bbox_coder` for both, or {advice}')
