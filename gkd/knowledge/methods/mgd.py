"""Masked generative distillation.

Yang et al., *Masked Generative Distillation*, ECCV 2022, https://arxiv.org/abs/2205.01529.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor, nn

from gkd.errors import ConfigError
from gkd.knowledge.base import Knowledge
from gkd.knowledge.channels import channels_of, match_channels, taught_levels
from gkd.knowledge.distances import squared_distances
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step


@KNOWLEDGE.register_module()
class MGD(Knowledge):
    r"""Let the student generate the teacher's full map from its own, randomly masked map.

    On every level, random cells of the student's map (after a 1x1 convolution where channel counts
    differ) are masked, in all channels at once. A block :math:`G` of two 3x3 convolutions with a
    ReLU between them generates the teacher's map from the remaining cells (paper, Sec. 3). The
    loss of an image is :math:`\sum (F^T - G(F^S M))^2` over all cells, masked or not. It is
    averaged over images and summed over levels, as in the authors' code. The authors' one-stage
    students also start from the teacher's neck and head: ``inherit=['neck', 'bbox_head']`` in the
    distillation config's ``student``.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        loss_weight: Factor of the loss, the paper's alpha. Like the mask ratio, it defaults to the
            authors' choice for detection: 2e-5 for one-stage, 5e-7 for two-stage students.
        mask_ratio: Probability that a cell is masked, the paper's lambda, in [0, 1); by default
            0.65 for one-stage, 0.45 for two-stage students.
        levels: Paired levels to teach, 0 being the finest. By default the authors' choice: all
            for one-stage students, the 4 finest (without P6) for two-stage students.

    Raises:
        ConfigError: ``mask_ratio`` is not in [0, 1), or a level is not there.
    """

    def __init__(self, pair: DetectorPair, loss_weight: Optional[float] = None,
                 mask_ratio: Optional[float] = None, levels: Optional[Sequence[int]] = None):
        super().__init__(pair)
        if loss_weight is None:
            loss_weight = 5e-7 if pair.student.is_two_stage else 2e-5
        if mask_ratio is None:
            mask_ratio = 0.45 if pair.student.is_two_stage else 0.65
        if not 0 <= mask_ratio < 1:
            raise ConfigError(f'MGD.mask_ratio = {mask_ratio!r}: must be at least 0 and below 1.')
        self.loss_weight = loss_weight
        self.mask_ratio = mask_ratio
        self.levels = taught_levels(pair, levels, 'MGD', 4 if pair.student.is_two_stage else None)
        student, teacher = channels_of(pair, self.levels)
        self.adaptation = match_channels(student, teacher)
        self.generation = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, kernel_size=3, padding=1), nn.ReLU(),
                          nn.Conv2d(channels, channels, kernel_size=3, padding=1))
            for channels in teacher)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the loss of one step; see :class:`Knowledge`."""
        generated = []
        for level, adapt, generate in zip(self.levels, self.adaptation, self.generation):
            feature = adapt(step.student.maps[level])
            generated.append(generate(feature * random_mask(feature, self.mask_ratio)))
        target = [step.teacher.maps[level].detach() for level in self.levels]
        distance = squared_distances(generated, target).sum() / len(target[0])
        return dict(loss_mgd=self.loss_weight * distance)


def random_mask(feature: Tensor, ratio: float) -> Tensor:
    """Mask of a map's cells, ``(B, 1, H, W)``: 0 with the probability ``ratio``, else 1.

    Args:
        feature: The map ``(B, C, H, W)``; the mask has its device and dtype.
        ratio: Probability that a cell is masked, in [0, 1).
    """
    images, _, height, width = feature.shape
    # Drawn in float32 whatever the map's precision: half precision is too coarse for a ratio.
    drawn = torch.rand(images, 1, height, width, device=feature.device)
    return (drawn >= ratio).to(feature.dtype)
