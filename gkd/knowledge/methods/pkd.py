"""PKD: imitate how the teacher's maps vary, whatever their mean and magnitude.

*PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient*,
NeurIPS 2022, https://arxiv.org/abs/2207.02039.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import torch.nn.functional as F
from torch import Tensor

from gkd.errors import require_count
from gkd.knowledge.base import Knowledge
from gkd.knowledge.channels import channels_of, match_channels, taught_levels
from gkd.knowledge.precision import full_precision
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step

# A channel with a smaller standard deviation counts as constant; dividing by it would only amplify
# rounding errors.
CONSTANT = 1e-6


def normalise(feature: Tensor) -> Tensor:
    """Give every channel mean 0 and variance 1 over all cells of all images.

    A constant channel becomes 0 and passes no gradient on.

    Args:
        feature: A map, float of shape ``(B, C, H, W)``.

    Returns:
        Tensor of the same shape.

    Example:
        >>> import torch
        >>> normalise(torch.tensor([1.0, 3.0, 1.0, 3.0]).reshape(1, 1, 2, 2))
        tensor([[[[-1.,  1.],
                  [-1.,  1.]]]])
    """
    centred = feature - feature.mean(dim=(0, 2, 3), keepdim=True)
    variance = centred.square().mean(dim=(0, 2, 3), keepdim=True)
    constant = variance < CONSTANT**2
    return centred.masked_fill(constant, 0) / variance.masked_fill(constant, 1).sqrt()


@full_precision
def pearson_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Teach the student a map that correlates with the teacher's, channel by channel.

    The loss is half the mean squared difference of the normalised maps. This equals :math:`1 - r`,
    averaged over channels, where :math:`r` is the Pearson correlation coefficient of a channel
    over all cells of all images.

    Source: the paper's normalisation and imitation loss. The public implementation (MMRazor's
    ``PKDLoss``) divides by the sample's standard deviation; here it is the population's, for which
    the identity above holds exactly.

    Args:
        student: The student's map, float of shape ``(B, C, H, W)``. The only argument that
            receives a gradient.
        teacher: The teacher's map, float of shape ``(B, C, H, W)``.

    Returns:
        Scalar from 0 to 2.

    Example:
        >>> import torch
        >>> student = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
        >>> [round(pearson_loss(student, other).item(), 4) for other in (10 * student, -student)]
        [0.0, 2.0]
    """
    return F.mse_loss(normalise(student), normalise(teacher.detach())) / 2


@KNOWLEDGE.register_module()
class PKD(Knowledge):
    r"""Pearson correlation distillation of FPN maps, for teachers and students of any kind.

    The loss is the weighted sum over levels of :func:`pearson_loss`. It ignores the mean and the
    magnitude of a channel. So levels and channels with large values do not outweigh the others,
    and the detectors' heads may differ. The student's maps pass a 1x1 convolution where teacher
    and student differ in channels; the authors' configurations have no such pair.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        loss_weight: Factor of the loss. By default the authors' choice in their configurations in
            MMRazor: 6 for a two-stage student, 10 for a one-stage student. (With a Mask R-CNN
            teacher they use 6 for a one-stage student too.)
        num_levels: How many levels are taught, from the finest on; all if there are fewer. The
            authors' configurations teach 4 of a pyramid's 5.
        levels: The paired levels to teach, instead of ``num_levels``; 0 is the finest.

    Raises:
        ConfigError: ``num_levels`` is no whole number from 1 on, or a level is not there.
    """

    def __init__(self, pair: DetectorPair, loss_weight: Optional[float] = None,
                 num_levels: int = 4, levels: Optional[Sequence[int]] = None):
        super().__init__(pair)
        require_count(num_levels, 'PKD.num_levels')
        if loss_weight is None:
            loss_weight = 6.0 if pair.student.is_two_stage else 10.0
        self.loss_weight = loss_weight
        self.levels = taught_levels(pair, levels, 'PKD', default=num_levels)
        self.adaptation = match_channels(*channels_of(pair, self.levels))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the loss of one step; see :class:`Knowledge`."""
        loss = sum(pearson_loss(adapt(step.student.maps[level]), step.teacher.maps[level])
                   for level, adapt in zip(self.levels, self.adaptation))
        return dict(loss_pkd=self.loss_weight * loss)
