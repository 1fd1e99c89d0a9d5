"""Feature-based knowledge distillation: attention, features where attention is, and relations.

Zhang and Ma, *Improve Object Detection with Feature-based Knowledge Distillation: Towards
Accurate and Efficient Detectors*, ICLR 2021, https://openreview.net/forum?id=uKhGRvM8QNH.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.errors import ConfigError
from gkd.knowledge.attention import attention_mask, channel_attention, spatial_attention
from gkd.knowledge.base import Knowledge
from gkd.knowledge.precision import full_precision
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step

ONE_STAGE = MappingProxyType(dict(attention_weight=2.4e-2, feature_weight=4.2e-4,
                                  relation_weight=4.2e-4, temperature=0.1))
TWO_STAGE = MappingProxyType(dict(attention_weight=4e-3, feature_weight=7e-5,
                                  relation_weight=7e-5, temperature=0.5))
# Of the non-local blocks, level by level from the finest on; further levels are like the last.
POOLING = (8, 4, 2, 2, 2)  # cells, height and width that one key stands for
FINE_LEVELS, FINE_CHANNELS = 2, 64  # inner channels of so many finest levels, at most


@KNOWLEDGE.register_module()
class FBKD(Knowledge):
    r"""Teach where the teacher looks, what it sees there, and how the places of an image relate.

    With :math:`A` the student's and the teacher's map of a level, :math:`G^s` and :math:`G^c` the
    mean of :math:`|A|` over channels and over cells, and every norm an L2 norm over the whole
    batch, a level's losses are (paper, Sec. 3.1 and 3.2):

    * attention transfer :math:`\|G^s(A^S) - G^s(A^T)\| + \|G^c(A^S) - G^c(A^T)\|`;
    * feature imitation :math:`\sqrt{\sum (A^S - A^T)^2 M^s M^c}`, where :math:`M^s` and
      :math:`M^c` are the means of both detectors' attention masks, softmaxes of :math:`G / T` over
      the cells and over the channels, without gradient;
    * relation :math:`\|r(A^S) - r(A^T)\|`, :math:`r` being a non-local block for each detector,
      :class:`NonLocal`, whose keys stand for 8, 4, 2, 2 and 2 cells a side, from the finest level
      on, and which is narrower on the two finest.

    Levels are summed. The student's maps, attention and relations pass adaptation layers before
    they are compared, as the authors' do: 1x1 convolutions for the maps and the relations, a fully
    connected layer for the channels, a 3x3 convolution for the cells. The teacher's non-local
    block is trained too, with the student; the teacher is not.

    Where paper and published code part: the attention that is transferred is that of the absolute
    values (paper; the code takes the mean of the signed ones), features are masked by cell and
    channel (paper; the code for two-stage detectors only by cell), and of the paper's weights and
    temperatures each goes where the code has it. The student's masks are those of its adapted map,
    whose channels are the teacher's, so that channel counts may differ.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        attention_weight: Factor of the attention transfer. By default, as all of the following,
            what the authors' code has: 2.4e-2 for one-stage, 4e-3 for two-stage students.
        feature_weight: Factor of the masked imitation; by default 4.2e-4 or 7e-5.
        relation_weight: Factor of the relations; by default 4.2e-4 or 7e-5.
        temperature: Of the masks; by default 0.1 or 0.5.

    Raises:
        ConfigError: ``temperature`` is not positive.
    """

    def __init__(self, pair: DetectorPair, attention_weight: Optional[float] = None,
                 feature_weight: Optional[float] = None, relation_weight: Optional[float] = None,
                 temperature: Optional[float] = None):
        super().__init__(pair)
        default = TWO_STAGE if pair.student.is_two_stage else ONE_STAGE

        def chosen(value: Optional[float], name: str) -> float:
            return default[name] if value is None else value

        self.attention_weight = chosen(attention_weight, 'attention_weight')
        self.feature_weight = chosen(feature_weight, 'feature_weight')
        self.relation_weight = chosen(relation_weight, 'relation_weight')
        temperature = chosen(temperature, 'temperature')
        if temperature <= 0:
            raise ConfigError(f'FBKD.temperature = {temperature!r}: must be positive.')
        self.levels = nn.ModuleList(
            FBKDLevel(student, teacher, level, temperature) for level, (student, teacher) in
            enumerate(zip(pair.channels(pair.student), pair.channels(pair.teacher))))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step; see :class:`Knowledge`."""
        losses = [level(own, target.detach()) for level, own, target in
                  zip(self.levels, step.student.maps, step.teacher.maps)]
        attention, feature, relation = map(sum, zip(*losses))
        return dict(loss_fbkd_attention=self.attention_weight * attention,
                    loss_fbkd_feature=self.feature_weight * feature,
                    loss_fbkd_relation=self.relation_weight * relation)


class FBKDLevel(nn.Module):
    """The layers and losses of one level.

    Args:
        student_channels: Channels of the student's map, ``C_S``.
        teacher_channels: Channels of the teacher's map, ``C_T``.
        level: Number of the level, 0 for the finest.
        temperature: Of the masks.
    """

    def __init__(self, student_channels: int, teacher_channels: int, level: int,
                 temperature: float):
        super().__init__()
        self.temperature = temperature
        self.feature_adaptation = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.channel_adaptation = nn.Linear(student_channels, teacher_channels)
        self.spatial_adaptation = nn.Conv2d(1, 1, kernel_size=3, padding=1)
        self.relation_adaptation = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.student_relation, self.teacher_relation = (
            NonLocal(channels, inner_channels(channels, level),
                     POOLING[min(level, len(POOLING) - 1)])
            for channels in (student_channels, teacher_channels))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compare maps ``(B, C_S, H, W)`` and ``(B, C_T, H, W)``: attention, feature, relation."""
        adapted = self.feature_adaptation(student)
        mask = feature_mask(adapted, teacher, self.temperature)
        cells = self.spatial_adaptation(spatial_attention(student)[:, None]).squeeze(1)
        channels = self.channel_adaptation(channel_attention(student))
        relation = self.relation_adaptation(self.student_relation(student))
        attention = (distance(cells, spatial_attention(teacher))
                     + distance(channels, channel_attention(teacher)))
        return (attention, distance(adapted, teacher, mask),
                distance(relation, self.teacher_relation(teacher)))


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

    :math:`r_i = x_i + W\, \frac{1}{J} \sum_j (\theta_i \cdot \phi_j)\, g_j` over all :math:`J`
    cells of the max-pooled :math:`\phi` and :math:`g`, with 1x1 convolutions to fewer channels,
    and back to all of them by :math:`W`, which is batch normalised and starts at 0 (paper, Sec.
    3.2 and Fig. 2; sizes as in the authors' code). As no softmax stands between the two products,
    the second one may come first: no matrix of all pairs of cells is ever built.

    All layers start as torch initialises them. If they started much smaller, batch normalisation
    would see little but its own epsilon, and the relations would be the maps.

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

    def forward(self, x: Tensor) -> Tensor:
        """Relate all cells of every map ``(B, C, H, W)``; the result has the same shape."""
        window = [min(self.pooling, length) for length in x.shape[2:]]
        keys, values = (F.max_pool2d(layer(x), window) for layer in (self.keys, self.values))
        return x + self.out(relate(self.queries(x), keys, values))


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
    context = values.flatten(2) @ keys.flatten(2).mT / keys.shape[2:].numel()
    return (context @ queries.flatten(2)).unflatten(2, queries.shape[2:])


@torch.no_grad()
def feature_mask(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Product of the mean spatial and the mean channel mask of two maps.

    Args:
        student: The student's adapted map ``(B, C, H, W)``.
        teacher: The teacher's map ``(B, C, H, W)``.
        temperature: Of the masks.

    Returns:
        Tensor of shape ``(B, C, H, W)``, without gradient.
    """
    cells, channels = (
        sum(attention_mask(attention(feature), temperature) for feature in (student, teacher)) / 2
        for attention in (spatial_attention, channel_attention))
    return cells[:, None] * channels[:, :, None, None]


@full_precision
def distance(student: Tensor, teacher: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """L2 norm of the difference of two tensors, each squared difference times its mask.

    Its gradient is 0, not undefined, where the tensors are equal.

    Example:
        >>> distance(torch.tensor([3.0, 4.0]), torch.zeros(2))
        tensor(5.)
    """
    difference = student - teacher
    if mask is not None:
        difference = difference * mask.sqrt()
    return torch.linalg.vector_norm(difference)
