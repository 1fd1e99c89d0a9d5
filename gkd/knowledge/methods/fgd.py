"""Focal and global distillation.

Yang et al., *Focal and Global Knowledge Distillation for Detectors*, CVPR 2022,
https://arxiv.org/abs/2111.11837.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.device import on_device
from gkd.frameworks import ContextBlock
from gkd.knowledge.attention import (
    attention,
    attention_masks,
    masked_squared_differences,
    stack_padded,
)
from gkd.knowledge.base import Knowledge
from gkd.knowledge.channels import channels_of, match_channels, taught_levels
from gkd.knowledge.distances import squared_distances
from gkd.knowledge.instances import Instances
from gkd.knowledge.precision import full_precision
from gkd.knowledge.settings import require_positive, value_or
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step

ANCHOR_BASED = MappingProxyType(dict(foreground_weight=1e-3, background_weight=5e-4,
                                     attention_weight=5e-4, global_weight=5e-6))
ANCHOR_FREE = MappingProxyType(dict(foreground_weight=1.6e-3, background_weight=8e-4,
                                    attention_weight=8e-4, global_weight=8e-6))
TWO_STAGE = MappingProxyType(dict(foreground_weight=5e-5, background_weight=2.5e-5,
                                  attention_weight=5e-5, global_weight=5e-7))


@KNOWLEDGE.register_module()
class FGD(Knowledge):
    r"""Teach objects and background separately where the teacher attends, and a map's context.

    With :math:`F` a level's map (the student's after a 1x1 convolution where channel counts
    differ), :math:`A^s = HW\,\mathrm{softmax}(\mathrm{mean}_c |F| / T)` and
    :math:`A^c = C\,\mathrm{softmax}(\mathrm{mean}_{hw} |F| / T)`, the losses of an image are

    * focal (paper, Sec. 3.1): :math:`\sum S A^s_T A^c_T (F_T - F_S)^2` over the cells of objects
      and, separately, over those of the background, where :math:`S` divides each object by its
      area and the background by the area of the background (:func:`object_masks`,
      :func:`background_mask`);
    * attention (paper, Sec. 3.1): :math:`\sum |A^s_T - A^s_S| + \sum |A^c_T - A^c_S|`;
    * global (paper, Sec. 3.2): :math:`\sum (R(F_T) - R(F_S))^2`, where :math:`R` is a global
      context block (GCNet), one for each detector. The teacher's block is trained too; the teacher
      itself is frozen.

    Losses are averaged over images and summed over levels, as in the authors' code. Boxes are
    scaled to a level by its stride. The authors' code instead divides them by the size of the
    image without its padding and multiplies them by the size of the map, which includes the
    padding; this shifts the boxes of padded images. The authors' one-stage students also start
    from the teacher's neck and head: ``inherit=['neck', 'bbox_head']`` in the distillation
    config's ``student``.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        foreground_weight: Factor of objects, the paper's alpha. All weights default to the
            authors' choice, this one to 1e-3 for one-stage students with anchors, 1.6e-3 for those
            without anchors and 5e-5 for two-stage students.
        background_weight: Factor of the background, beta; by default half of that.
        attention_weight: Factor of the attention, gamma; by default 5e-4, 8e-4 or 5e-5.
        global_weight: Factor of the context, lambda; by default 5e-6, 8e-6 or 5e-7.
        temperature: Temperature of the attention; the authors use 0.5 (0.8 for their FCOS).
        levels: Paired levels to teach, 0 being the finest. By default the authors' choice: all
            for one-stage students, the 4 finest (without P6) for two-stage students.

    Raises:
        ConfigError: ``temperature`` is not positive, or a level is not there.
    """

    def __init__(self, pair: DetectorPair, foreground_weight: Optional[float] = None,
                 background_weight: Optional[float] = None,
                 attention_weight: Optional[float] = None, global_weight: Optional[float] = None,
                 temperature: float = 0.5, levels: Optional[Sequence[int]] = None):
        super().__init__(pair)
        require_positive(temperature, 'FGD.temperature')
        if pair.student.is_two_stage:
            default = TWO_STAGE
        else:
            default = ANCHOR_BASED if pair.student.anchors else ANCHOR_FREE
        self.foreground_weight = value_or(foreground_weight, default['foreground_weight'])
        self.background_weight = value_or(background_weight, default['background_weight'])
        self.attention_weight = value_or(attention_weight, default['attention_weight'])
        self.global_weight = value_or(global_weight, default['global_weight'])
        self.temperature = temperature
        self.levels = taught_levels(pair, levels, 'FGD', 4 if pair.student.is_two_stage else None)
        student, teacher = channels_of(pair, self.levels)
        self.adaptation = match_channels(student, teacher)
        self.student_context, self.teacher_context = (
            nn.ModuleList(ContextBlock(channels, ratio=0.5) for channels in teacher)
            for _ in range(2))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step; see :class:`Knowledge`."""
        own = [adapt(step.student.maps[level]) for level, adapt in
               zip(self.levels, self.adaptation)]
        target = [step.teacher.maps[level].detach() for level in self.levels]
        own_masks, target_masks = (attention_masks(attention(maps), self.temperature)
                                   for maps in (own, target))
        objects = object_masks(step.gt_boxes, [step.strides[level] for level in self.levels],
                               [feature.shape[-2:] for feature in target])
        foreground, background = focal_losses(own, target, target_masks, objects)
        attended = attention_loss(own_masks, target_masks)
        context = squared_distances(*(
            [block(feature) for block, feature in zip(blocks, maps)] for blocks, maps in
            ((self.student_context, own), (self.teacher_context, target)))).sum() / len(own[0])
        return dict(loss_fgd_fg=self.foreground_weight * foreground,
                    loss_fgd_bg=self.background_weight * background,
                    loss_fgd_attention=self.attention_weight * attended,
                    loss_fgd_global=self.global_weight * context)


@torch.no_grad()
def object_masks(boxes: list[Tensor], strides: Sequence[float],
                 sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Weights of the objects' cells on every level: 1 / the area of their object.

    A box covers the cells ``floor(x1 / stride)..ceil(x2 / stride)`` by
    ``floor(y1 / stride)..ceil(y2 / stride)``, both ends included as in the authors' code. It
    writes 1 / the number of these cells into those that lie on the map; where boxes overlap, the
    smallest one wins. Cells outside all boxes hold 0.

    Source: paper, Sec. 3.1, binary and scale mask.

    Args:
        boxes: Per image the boxes ``x1, y1, x2, y2`` in pixels, float of shape ``(n_b, 4)``.
        strides: Pixels per cell of every level.
        sizes: ``(H_l, W_l)`` of every level's map.

    Returns:
        Float of shape ``(B, H_l, W_l)`` per level, without gradient.

    Example:
        >>> boxes = [torch.tensor([[8.0, 0.0, 16.0, 8.0]])]
        >>> object_masks(boxes, strides=[8], sizes=[(2, 4)])
        [tensor([[[0.0000, 0.2500, 0.2500, 0.0000],
                 [0.0000, 0.2500, 0.2500, 0.0000]]])]
    """
    instances = Instances.of(boxes)
    padded = instances.padded
    scale = on_device(strides, padded.device, padded.dtype)[:, None, None, None]
    first, last = (padded[..., :2] / scale).floor(), (padded[..., 2:] / scale).ceil()
    # The boxes that fill up images weigh nothing.
    weights = (instances.numbers > 0) / (last - first + 1).prod(dim=3)
    cells = torch.arange(max(map(max, sizes)), device=padded.device)
    covered = (cells >= first[..., None]) & (cells <= last[..., None])
    columns, rows = covered.unbind(dim=3)
    rows = rows * weights[..., None]
    return [(down[..., :height, None] * along[..., None, :width]).amax(dim=1)
            for down, along, (height, width) in zip(rows, columns, sizes)]


def background_mask(objects: Tensor) -> Tensor:
    """In every cell ``(..., N)`` without an object, 1 / the number of such cells; else 0.

    Example:
        >>> background_mask(torch.tensor([0.0, 0.5, 0.5, 0.0]))
        tensor([0.5000, 0.0000, 0.0000, 0.5000])
    """
    free = (objects == 0).to(objects.dtype)
    return free / free.sum(dim=-1, keepdim=True).clamp(min=1)


@full_precision
def focal_losses(student: list[Tensor], teacher: list[Tensor], masks: tuple[Tensor, Tensor],
                 objects: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Squared difference of maps, weighed by the teacher's attention, per image.

    Args:
        student: The student's adapted maps ``(B, C_l, H_l, W_l)``.
        teacher: The teacher's maps, likewise.
        masks: The teacher's :func:`~gkd.knowledge.attention.attention_masks`.
        objects: Weights of the cells of objects ``(B, H_l, W_l)``.

    Returns:
        Losses of objects and of background, summed over levels, scalars.
    """
    squared = masked_squared_differences(student, teacher, *masks)
    # The cells that fill up smaller levels are no background.
    foreground = stack_padded([level.flatten(1) for level in objects], filling=1)
    return tuple((squared * mask).sum() / squared.shape[1]
                 for mask in (foreground, background_mask(foreground)))


@full_precision
def attention_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Absolute difference of the attention over cells and channels, per image.

    Args:
        student: :func:`~gkd.knowledge.attention.attention_masks` of the student's adapted maps.
        teacher: Those of the teacher's maps.

    Returns:
        Scalar, the sum over levels.
    """
    cells, channels = (F.l1_loss(own, target, reduction='sum')
                       for own, target in zip(student, teacher))
    return (cells + channels) / student[0].shape[1]
