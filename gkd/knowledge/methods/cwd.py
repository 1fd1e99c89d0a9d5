"""CWD: imitate where each channel of the teacher's maps is active.

*Channel-wise Knowledge Distillation for Dense Prediction*, ICCV 2021,
https://arxiv.org/abs/2011.13256.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import torch.nn.functional as F
from torch import Tensor

from gkd.knowledge.base import Knowledge
from gkd.knowledge.channels import channels_of, match_channels, taught_levels
from gkd.knowledge.precision import full_precision
from gkd.knowledge.settings import require_positive
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step


@full_precision
def channel_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Teach the student, channel by channel, which cells are the most active.

    A channel of an image becomes a distribution over its cells,
    :math:`\phi(y_c) = \mathrm{softmax}(y_c / T)` over :math:`H W` cells; the loss is
    :math:`T^2 \, \mathrm{KL}(\phi(y^T_c) \,\|\, \phi(y^S_c))`, mean over channels and images.

    Source: the paper's channel-wise divergence. The mean over the images of a batch is from the
    public implementation (MMRazor's ``ChannelWiseDivergence``).

    Args:
        student: The student's map, float of shape ``(B, C, H, W)``. The only argument that
            receives a gradient.
        teacher: The teacher's map, float of shape ``(B, C, H, W)``.
        temperature: Both maps are divided by it.

    Returns:
        Scalar.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 2.0]]]])
        >>> round(channel_divergence(student, teacher).item(), 4)
        0.3278
    """
    log_student, log_teacher = (F.log_softmax(feature.flatten(2) / temperature, dim=2)
                                for feature in (student, teacher.detach()))
    divergence = F.kl_div(log_student, log_teacher, reduction='none', log_target=True)
    return divergence.sum(dim=2).mean() * temperature**2


@KNOWLEDGE.register_module()
class CWD(Knowledge):
    """Channel-wise distillation of FPN maps, for teachers and students of any kind.

    The loss is the weighted sum over levels of :func:`channel_divergence`. The student's maps pass
    a 1x1 convolution where teacher and student differ in channels, as in the paper.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        loss_weight: Factor of the loss of each level. The defaults of this and all following
            arguments are from the authors' release for detectors; MMRazor's configurations have a
            weight of 10 and teach all levels.
        temperature: Softens the distributions of cells.
        levels: Paired levels to teach, 0 being the finest; by default the 4 finest.

    Raises:
        ConfigError: ``temperature`` is not positive, or a level is not there.
    """

    def __init__(self, pair: DetectorPair, loss_weight: float = 5.0, temperature: float = 1.0,
                 levels: Optional[Sequence[int]] = None):
        super().__init__(pair)
        require_positive(temperature, 'CWD.temperature')
        self.loss_weight = loss_weight
        self.temperature = temperature
        self.levels = taught_levels(pair, levels, 'CWD', default=4)
        self.adaptation = match_channels(*channels_of(pair, self.levels))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the loss of one step; see :class:`Knowledge`."""
        loss = sum(channel_divergence(adapt(step.student.maps[level]), step.teacher.maps[level],
                                      self.temperature)
                   for level, adapt in zip(self.levels, self.adaptation))
        return dict(loss_cwd=self.loss_weight * loss)
