"""Focal and global distillation.

Yang et al., *Focal and Global Knowledge Distillation for Detectors*, CVPR 2022,
https://arxiv.org/abs/2111.11837.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gkd.errors import ConfigError
from gkd.frameworks import ContextBlock
from gkd.knowledge.attention import attention_mask, channel_attention, spatial_attention
from gkd.knowledge.base import Knowledge
from gkd.knowledge.channels import channels_of, match_channels, taught_levels
from gkd.knowledge.precision import full_precision
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
    r"""Teach objects and background apart where the teacher attends, and the context of a map.

    With :math:`F` a level's map (the student's after a 1x1 convolution where channel counts
    differ), :math:`A^s = HW\,\mathrm{softmax}(\mathrm{mean}_c |F| / T)` and
    :math:`A^c = C\,\mathrm{softmax}(\mathrm{mean}_{hw} |F| / T)`, the losses of an image are

    * focal (paper, Sec. 3.1): :math:`\sum S A^s_T A^c_T (F_T - F_S)^2` over the cells of objects
      and over those of the background, :math:`S` dividing each object by its area and the
      background by its own (:func:`scale_masks`);
    * attention (paper, Sec. 3.1): :math:`\sum |A^s_T - A^s_S| + \sum |A^c_T - A^c_S|`;
    * global (paper, Sec. 3.2): :math:`\sum (R(F_T) - R(F_S))^2`, :math:`R` being a global context
      block (GCNet) for each detector; the teacher's is trained too, the teacher is not.

    Images are averaged, levels summed, as the authors do. Boxes are drawn by the level's stride;
    the authors' code divides them by the size of the image without its padding, but takes the size
    of the map with it, which moves them where an image is padded. The authors' one-stage students
    also start from the teacher's neck and head: ``inherit=['neck', 'bbox_head']`` in the
    distillation config's ``student``.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        foreground_weight: Factor of objects, the paper's alpha. By default, as all weights, the
            authors' choice: 1e-3 for one-stage students with anchors, 1.6e-3 without anchors, 5e-5
            for two-stage students.
        background_weight: Factor of the background, beta; by default half of that.
        attention_weight: Factor of the attention, gamma; by default 5e-4, 8e-4 or 5e-5.
        global_weight: Factor of the context, lambda; by default 5e-6, 8e-6 or 5e-7.
        temperature: Of the attention; the authors' 0.5 (0.8 for their FCOS).
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
        if temperature <= 0:
            raise ConfigError(f'FGD.temperature = {temperature!r}: must be positive.')
        if pair.student.is_two_stage:
            default = TWO_STAGE
        else:
            default = ANCHOR_BASED if pair.student.anchors else ANCHOR_FREE

        def chosen(value: Optional[float], name: str) -> float:
            return default[name] if value is None else value

        self.foreground_weight = chosen(foreground_weight, 'foreground_weight')
        self.background_weight = chosen(background_weight, 'background_weight')
        self.attention_weight = chosen(attention_weight, 'attention_weight')
        self.global_weight = chosen(global_weight, 'global_weight')
        self.temperature = temperature
        self.levels = taught_levels(pair, levels, 'FGD', 4 if pair.student.is_two_stage else None)
        student, teacher = channels_of(pair, self.levels)
        self.adaptation = match_channels(student, teacher)
        self.student_context, self.teacher_context = (
            nn.ModuleList(ContextBlock(channels, ratio=0.5) for channels in teacher)
            for _ in range(2))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step; see :class:`Knowledge`."""
        losses = []
        for level, adapt, *contexts in zip(self.levels, self.adaptation, self.student_context,
                                           self.teacher_context):
            own, target = adapt(step.student.maps[level]), step.teacher.maps[level].detach()
            masks = scale_masks(step.gt_boxes, step.strides[level], target.shape[-2:])
            context = squared_difference(*(block(feature) for block, feature in
                                           zip(contexts, (own, target))))
            losses.append((*focal_losses(own, target, *masks, self.temperature),
                           attention_loss(own, target, self.temperature), context))
        foreground, background, attention, context = map(sum, zip(*losses))
        return dict(loss_fgd_fg=self.foreground_weight * foreground,
                    loss_fgd_bg=self.background_weight * background,
                    loss_fgd_attention=self.attention_weight * attention,
                    loss_fgd_global=self.global_weight * context)


@torch.no_grad()
def scale_masks(boxes: list[Tensor], stride: float,
                size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Weights of a map's cells: objects by their area, the background by its own.

    A box covers the cells ``floor(x1 / stride)..ceil(x2 / stride)`` by
    ``floor(y1 / stride)..ceil(y2 / stride)``, both ends included as in the authors' code, and
    writes 1 / their number into those that the map has; the smallest box wins where several
    overlap. Cells of no box hold 1 / their number in the second mask.

    Source: paper, Sec. 3.1, binary and scale mask.

    Args:
        boxes: Per image the boxes ``x1, y1, x2, y2`` in pixels, float of shape ``(n_b, 4)``.
        stride: Pixels per cell.
        size: ``(H, W)`` of the map.

    Returns:
        ``(foreground, background)``, float of shape ``(B, H, W)``, without gradient.

    Example:
        >>> boxes = [torch.tensor([[8.0, 0.0, 16.0, 8.0]])]
        >>> scale_masks(boxes, stride=8, size=(2, 4))
        (tensor([[[0.0000, 0.2500, 0.2500, 0.0000],
                  [0.0000, 0.2500, 0.2500, 0.0000]]]),
         tensor([[[0.2500, 0.0000, 0.0000, 0.2500],
                  [0.2500, 0.0000, 0.0000, 0.2500]]]))
    """
    height, width = size
    # Images with fewer boxes than others are filled up with boxes outside of the map.
    padded = pad_sequence(boxes, batch_first=True, padding_value=-2 * stride)
    images, count, _ = padded.shape
    foreground = padded.new_zeros(images, height, width)
    if count:
        first, last = (padded[..., :2] / stride).floor(), (padded[..., 2:] / stride).ceil()
        weights = 1 / (last - first + 1).prod(dim=2)
        x = torch.arange(width, device=padded.device)
        y = torch.arange(height, device=padded.device)
        columns = (x >= first[..., :1]) & (x <= last[..., :1])
        rows = (y >= first[..., 1:]) & (y <= last[..., 1:])
        rows = rows * weights[..., None]
        foreground = (rows[..., None] * columns[..., None, :]).amax(dim=1)
    background = (foreground == 0).to(foreground.dtype)
    return foreground, background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1)


@full_precision
def focal_losses(student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor,
                 temperature: float) -> tuple[Tensor, Tensor]:
    """Squared difference of two maps, weighed by the teacher's attention, per image.

    Args:
        student: The student's adapted map ``(B, C, H, W)``.
        teacher: The teacher's map ``(B, C, H, W)``.
        foreground: Weights of the cells of objects ``(B, H, W)``.
        background: Weights of all other cells ``(B, H, W)``.
        temperature: Of the attention.

    Returns:
        Losses of objects and of background, scalars.
    """
    channels = attention_mask(channel_attention(teacher), temperature)
    cells = attention_mask(spatial_attention(teacher), temperature)
    squared = torch.einsum('bchw,bc->bhw', (student - teacher).square(), channels) * cells
    return tuple((squared * mask).sum() / len(squared) for mask in (foreground, background))


@full_precision
def attention_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Absolute difference of two maps' attention over cells and channels, per image.

    Args:
        student: The student's adapted map ``(B, C, H, W)``.
        teacher: The teacher's map ``(B, C, H, W)``.
        temperature: Of the attention.

    Returns:
        Scalar.
    """
    def difference(attention) -> Tensor:
        own, target = (attention_mask(attention(feature), temperature)
                       for feature in (student, teacher))
        return (own - target).abs().sum()

    return (difference(spatial_attention) + difference(channel_attention)) / len(student)


@full_precision
def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of the squared differences of two maps ``(B, C, H, W)``, per image.

    Example:
        >>> squared_difference(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
        tensor(48.)
    """
    return (student - teacher).square().sum() / len(student)
