"""Feature-based knowledge distillation: attention, features where attention is, and relations.

Zhang and Ma, *Improve Object Detection with Feature-based Knowledge Distillation: Towards
Accurate and Efficient Detectors*, ICLR 2021, https://openreview.net/forum?id=uKhGRvM8QNH.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gkd.knowledge.attention import (
    Attention,
    attention,
    attention_masks,
    masked_squared_differences,
)
from gkd.knowledge.base import Knowledge
from gkd.knowledge.channels import alike_levels
from gkd.knowledge.distances import squared_distances
from gkd.knowledge.precision import full_precision
from gkd.knowledge.settings import require_positive, value_or
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step

ONE_STAGE = MappingProxyType(dict(attention_weight=2.4e-2, feature_weight=4.2e-4,
                                  relation_weight=4.2e-4, temperature=0.1))
TWO_STAGE = MappingProxyType(dict(attention_weight=4e-3, feature_weight=7e-5,
                                  relation_weight=7e-5, temperature=0.5))
# For the non-local blocks, level by level from the finest; further levels are like the last.
POOLING = (8, 4, 2, 2, 2)  # height and width, in cells, that one key stands for
FINE_LEVELS, FINE_CHANNELS = 2, 64  # the 2 finest levels have at most 64 inner channels


@KNOWLEDGE.register_module()
class FBKD(Knowledge):
    r"""Teach where the teacher looks, what it sees there, and how the places of an image relate.

    Let :math:`A` be a level's map, of the student or of the teacher, and let :math:`G^s` and
    :math:`G^c` be the means of :math:`|A|` over channels and over cells. Every norm is an L2 norm
    over the whole batch. The losses of a level are (paper, Sec. 3.1 and 3.2):

    * attention transfer :math:`\|G^s(A^S) - G^s(A^T)\| + \|G^c(A^S) - G^c(A^T)\|`;
    * feature imitation :math:`\sqrt{\sum (A^S - A^T)^2 M^s M^c}`, where :math:`M^s` and
      :math:`M^c` are the means of both detectors' attention masks, softmaxes of :math:`G / T` over
      the cells and over the channels, without gradient;
    * relation :math:`\|r(A^S) - r(A^T)\|`, where :math:`r` is a non-local block
      (:class:`NonLocal`), one for each detector. From the finest level on, one of its keys stands
      for 8, 4, 2, 2 and 2 cells a side. The block has fewer channels on the two finest levels.

    The losses are summed over levels. The student's maps, attention and relations pass adaptation
    layers before they are compared, as in the authors' code: 1x1 convolutions for the maps and the
    relations, a fully connected layer for the channels, a 3x3 convolution for the cells. The
    teacher's non-local block is trained together with the student; the teacher itself is frozen.

    The paper and the published code differ in three points, which are settled here as follows:

    * The attention that is transferred is the mean of the absolute values, as in the paper. The
      code takes the mean of the signed values.
    * Features are masked by cell and by channel, as in the paper. The code masks them only by cell
      for two-stage detectors.
    * Each of the paper's weights and temperatures is used where the code uses it.

    The student's masks come from its adapted map, which has as many channels as the teacher's, so
    that the detectors' channel counts may differ.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        attention_weight: Factor of the attention transfer. The defaults of this and all following
            arguments are from the authors' code: here 2.4e-2 for one-stage students and 4e-3 for
            two-stage students.
        feature_weight: Factor of the masked imitation; by default 4.2e-4 or 7e-5.
        relation_weight: Factor of the relations; by default 4.2e-4 or 7e-5.
        temperature: Temperature of the masks; by default 0.1 or 0.5.

    Raises:
        ConfigError: ``temperature`` is not positive.
    """

    def __init__(self, pair: DetectorPair, attention_weight: Optional[float] = None,
                 feature_weight: Optional[float] = None, relation_weight: Optional[float] = None,
                 temperature: Optional[float] = None):
        super().__init__(pair)
        default = TWO_STAGE if pair.student.is_two_stage else ONE_STAGE
        self.attention_weight = value_or(attention_weight, default['attention_weight'])
        self.feature_weight = value_or(feature_weight, default['feature_weight'])
        self.relation_weight = value_or(relation_weight, default['relation_weight'])
        self.temperature = value_or(temperature, default['temperature'])
        require_positive(self.temperature, 'FBKD.temperature')
        channels = pair.channels(pair.student), pair.channels(pair.teacher)
        self.alike = alike_levels(*channels)
        self.levels = nn.ModuleList(FBKDLevel(student, teacher, level) for
                                    level, (student, teacher) in enumerate(zip(*channels)))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step; see :class:`Knowledge`."""
        own = step.student.maps
        target = [feature.detach() for feature in step.teacher.maps]
        adapted, own_relations, target_relations = self.convolve(own, target)
        own_attention, target_attention = attention(own), attention(target)
        masks = feature_masks(attention([feature.detach() for feature in adapted]),
                              target_attention, self.temperature)
        losses = torch.cat([
            squared_distances([*self.adapt_cells(own_attention.cells, own),
                               *self.adapt_channels(own_attention.channels), *own_relations],
                              [*target_attention.cells, *target_attention.channels,
                               *target_relations]),
            masked_squared_differences(adapted, target, *masks).sum(dim=(1, 2))])
        # Where maps are equal, the gradient of the root is 0 instead of undefined.
        losses = F.threshold(losses, 0, torch.finfo(losses.dtype).tiny).sqrt()
        cells, channels, relation, feature = losses.unflatten(0, (4, -1)).sum(dim=1).unbind()
        return dict(loss_fbkd_attention=self.attention_weight * (cells + channels),
                    loss_fbkd_feature=self.feature_weight * feature,
                    loss_fbkd_relation=self.relation_weight * relation)

    def adapt_cells(self, cells: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
        """Adapt the attention of the cells of maps, ``(B, H_l * W_l)`` per level."""
        return [level.spatial_adaptation(values.view_as(feature[:, :1])).flatten(1)
                for level, values, feature in zip(self.levels, cells, maps)]

    def adapt_channels(self, channels: Sequence[Tensor]) -> list[Tensor]:
        """Adapt the attention of channels, ``(B, C_l)`` per level; equal levels together."""
        layers = [level.channel_adaptation for level in self.levels]
        adapted = []
        for alike in self.alike:
            some = slice(alike.start, alike.stop)
            weight = torch.stack([layer.weight for layer in layers[some]])
            bias = torch.stack([layer.bias for layer in layers[some]])
            adapted += torch.baddbmm(bias[..., None], weight, torch.stack(channels[some]).mT).mT
        return adapted

    def convolve(self, own: Sequence[Tensor], target: Sequence[Tensor]
                 ) -> tuple[Sequence[Tensor], ...]:
        """The student's adapted maps, its adapted relations and the teacher's relations."""
        blocks = [(level.student_relation, level.teacher_relation) for level in self.levels]
        joint = iter(join([layers for level, (student, teacher) in zip(self.levels, blocks)
                           for layers in ((level.feature_adaptation, *student.projections),
                                          teacher.projections)], own[0].dtype))
        levels = []
        for level, (student, teacher), one, other in zip(self.levels, blocks, own, target):
            adapted, *projected = project(one, *next(joint)).split(
                [level.feature_adaptation.out_channels, *student.sizes], dim=1)
            relation = level.relation_adaptation(student.relate(one, *projected))
            projected = project(other, *next(joint)).split(teacher.sizes, dim=1)
            levels.append((adapted, relation, teacher.relate(other, *projected)))
        return tuple(zip(*levels))


class FBKDLevel(nn.Module):
    """The layers of one level.

    Args:
        student_channels: Channels of the student's map, ``C_S``.
        teacher_channels: Channels of the teacher's map, ``C_T``.
        level: Number of the level, 0 for the finest.
    """

    def __init__(self, student_channels: int, teacher_channels: int, level: int):
        super().__init__()
        self.feature_adaptation = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.channel_adaptation = nn.Linear(student_channels, teacher_channels)
        self.spatial_adaptation = nn.Conv2d(1, 1, kernel_size=3, padding=1)
        self.relation_adaptation = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.student_relation, self.teacher_relation = (
            NonLocal(channels, inner_channels(channels, level),
                     POOLING[min(level, len(POOLING) - 1)])
            for channels in (student_channels, teacher_channels))


def inner_channels(channels: int, level: int) -> int:
    """Channels inside a level's non-local block.

    Example:
        >>> [inner_channels(256, level) for level in range(4)], inner_channels(16, 0)
        ([64, 64, 128, 128], 8)
    """
    half = max(channels // 2, 1)
    return min(half, FINE_CHANNELS) if level < FINE_LEVELS else half


class NonLocal(nn.Module):
    r"""A non-local block with dot products, in linear memory.

    It computes :math:`r_i = x_i + W\, \frac{1}{J} \sum_j (\theta_i \cdot \phi_j)\, g_j` over all
    :math:`J` cells of the max-pooled :math:`\phi` and :math:`g`. 1x1 convolutions make
    :math:`\theta`, :math:`\phi` and :math:`g`, with fewer channels than the map; :math:`W` leads
    back to all channels, is batch normalised and starts at 0 (paper, Sec. 3.2 and Fig. 2; sizes as
    in the authors' code). There is no softmax between the two products, so the second one can be
    computed first: no matrix of all pairs of cells is ever built.

    All layers start as torch initialises them. If they started much smaller, the epsilon of batch
    normalisation would outweigh the variance, and the relations would be just the maps.

    Args:
        channels: Channels of the map.
        inner: Channels between the convolutions.
        pooling: Height and width in cells that the keys and values are max-pooled over, at most
            the map's.
    """

    def __init__(self, channels: int, inner: int, pooling: int):
        super().__init__()
        self.queries, self.keys, self.values = (
            nn.Conv2d(channels, inner, kernel_size=1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv2d(inner, channels, kernel_size=1),
                                 nn.BatchNorm2d(channels))
        nn.init.zeros_(self.out[1].weight)
        self.pooling = pooling
        self.sizes = inner, 2 * inner

    @property
    def projections(self) -> tuple[nn.Conv2d, ...]:
        """The layers of queries, keys and values."""
        return self.queries, self.keys, self.values

    def forward(self, x: Tensor) -> Tensor:
        """Relate all cells of every map ``(B, C, H, W)``; the result has the same shape."""
        [joint] = join([self.projections], x.dtype)
        return self.relate(x, *project(x, *joint).split(self.sizes, dim=1))

    def relate(self, x: Tensor, queries: Tensor, others: Tensor) -> Tensor:
        """Relate the cells of maps by their queries, and by their keys and values."""
        window = [min(self.pooling, length) for length in x.shape[2:]]
        keys, values = F.max_pool2d(others, window).chunk(2, dim=1)
        return x + self.normalise(self.out[0](relate(queries, keys, values)))

    def normalise(self, related: Tensor) -> Tensor:
        """Batch normalise ``(B, C, H, W)``.

        A batch of one image with one cell is its own mean, so that nothing but the bias is left;
        torch refuses it, as its variance cannot be estimated.
        """
        layer = self.out[1]
        if isinstance(layer, nn.BatchNorm2d) and related.numel() == related.shape[1]:
            weight, bias = (values[:, None, None] for values in (layer.weight, layer.bias))
            return (related - related) * weight + bias  # every layer has a gradient, as DDP wants
        return layer(related)


def join(groups: Sequence[Sequence[nn.Conv2d]],
         dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Per group, weight and bias of one 1x1 convolution that replaces several on the same map.

    All groups are joined at once: a GPU takes longer to start copying a few numbers than to copy
    many.

    Args:
        groups: Layers whose map is the same.
        dtype: The student's maps'. Autocast, where it is on, would cast every part to it.
    """
    parts = [[getattr(layer, name) for layer in layers] for layers in groups
             for name in ('weight', 'bias')]
    joint = torch.cat([part.flatten() for group in parts for part in group]).to(dtype)
    joint = joint.split([sum(map(torch.numel, group)) for group in parts])
    return [(weight.unflatten(0, (-1, layers[0].in_channels, 1, 1)), bias)
            for layers, weight, bias in zip(groups, joint[::2], joint[1::2])]


def project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution of several layers, in full precision before it is split among them."""
    return F.conv2d(x, weight, bias).to(torch.promote_types(x.dtype, torch.float))


@full_precision
def relate(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    r"""At every cell i the mean over all cells j of :math:`(q_i \cdot k_j)\, v_j`.

    Args:
        queries: Float of shape ``(B, C, H, W)``.
        keys: Float of shape ``(B, C, H', W')``.
        values: Float of shape ``(B, D, H', W')``.

    Returns:
        Tensor of shape ``(B, D, H, W)``.

    Example:
        >>> one = torch.ones(1, 2, 3, 3)
        >>> relate(one, one, one)[0, :, 0, 0]
        tensor([2., 2.])
    """
    related = Relate.apply(*(part.flatten(2) for part in (queries, keys, values)))
    return related.unflatten(2, queries.shape[2:])


class Relate(torch.autograd.Function):
    """:func:`relate` for cells in one row, with a gradient that takes few operations."""

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Relate queries ``(B, C, N)`` by keys ``(B, C, J)`` and values ``(B, D, J)``."""
        context = mean_product(values, keys.mT, keys.shape[2])
        ctx.save_for_backward(queries, keys, values, context)
        return context @ queries

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values."""
        queries, keys, values, context = ctx.saved_tensors
        of_context = mean_product(gradient, queries.mT, keys.shape[2])
        return context.mT @ gradient, of_context.mT @ values, of_context @ keys


def mean_product(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Matrix product of a batch divided by a count."""
    ignored = first[:1, :1, :1]  # nothing is added
    return torch.baddbmm(ignored, first, second, beta=0, alpha=1 / count)


@torch.no_grad()
def feature_masks(student: Attention, teacher: Attention,
                  temperature: float) -> tuple[Tensor, Tensor]:
    """Mean masks of both detectors.

    Args:
        student: Attention of the student's adapted maps.
        teacher: Attention of the teacher's maps.
        temperature: Temperature of the masks.

    Returns:
        Masks of cells ``(L, B, S)`` and of channels ``(L, B, C)``, without gradient; see
        :func:`~gkd.knowledge.attention.attention_masks`.
    """
    both = Attention(*([*own, *target] for own, target in zip(student, teacher)))
    return tuple(mask.unflatten(0, (2, -1)).mean(dim=0)
                 for mask in attention_masks(both, temperature))
