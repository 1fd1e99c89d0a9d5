"""DeFeat: teach objects and background separately, on maps and in classifying proposals.

*Distilling Object Detectors via Decoupled Features*, CVPR 2021, https://arxiv.org/abs/2103.14475.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.detectors.step import Needs
from gkd.errors import PairError
from gkd.knowledge.adaptation import quiet_adaptation
from gkd.knowledge.base import Knowledge
from gkd.knowledge.instances import Instances, draw_masks, map_levels
from gkd.knowledge.losses import local_knowledge_losses
from gkd.knowledge.precision import full_precision
from gkd.knowledge.settings import require_positive
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step


@full_precision
def proposal_divergence(
    student: Tensor, teacher: Tensor, chosen: Tensor, temperature: float
) -> Tensor:
    r"""Divergence of the softened class distributions, averaged over some of the proposals.

    :math:`t^2 / K \sum_{i\ chosen} \mathrm{KL}(\mathrm{softmax}(z^T_i / t) \,\|\,
    \mathrm{softmax}(z^S_i / t))` with :math:`K` the number of chosen proposals, at least 1.

    Source: the paper's decoupled proposals of the classification head, as in its public
    implementation.

    Args:
        student: The student's logits, float of shape ``(m, C)``. The only argument that receives a
            gradient.
        teacher: The teacher's logits of the same proposals, float of shape ``(m, C)``.
        chosen: Which proposals count, bool of shape ``(m,)``.
        temperature: Both logits are divided by it.

    Returns:
        Scalar; 0, with a gradient of 0, where none is chosen.

    Example:
        >>> student, teacher = torch.zeros(2, 2), torch.tensor([[0.0, 2.0], [9.0, 0.0]])
        >>> loss = proposal_divergence(student, teacher, torch.tensor([True, False]), 1.0)
        >>> round(loss.item(), 4)
        0.3278
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction='none', log_target=True).sum(dim=1)
    return (divergence * chosen).sum() / chosen.sum().clamp(min=1) * temperature**2


@KNOWLEDGE.register_module()
class DeFeat(Knowledge):
    r"""Decoupled features: objects and background each with a weight of its own.

    **Maps** (the paper's decoupled features of the neck). An object covers its cells on the level
    that FPN assigns a box of its size to (:func:`~gkd.knowledge.instance_mask`); :math:`M` is 1
    there and 0 in the background. A level's losses are
    :math:`\alpha_{obj} / (2 N_{obj}) \sum M (\phi(F^S) - F^T)^2` and
    :math:`\alpha_{bg} / (2 N_{bg}) \sum (1 - M) (\phi(F^S) - F^T)^2`, where :math:`\phi` is a 3x3
    convolution and :math:`N` counts cells times channels, as in the public implementation; the
    loss is the mean over levels.

    **Classification** (its decoupled proposals of the classification head), for two-stage
    detectors: the divergence of the class distributions of teacher and student at the proposals
    that the student sampled, separately for positives and negatives, each with a temperature and a
    weight (:func:`proposal_divergence`). The public implementation takes the teacher's proposals
    unless it is set to take the student's.

    Defaults are those of the public implementation's configuration for Pascal VOC. It lists the
    settings of the classification but does not switch it on. Weights for COCO are not published
    (in an issue of the implementation, an author recalls 4 and 16 for the maps). The public
    implementation can also teach backbone maps, which are not taught here.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        object_weight: Factor of the maps' loss inside objects, :math:`\alpha_{obj}`.
        background_weight: Factor outside, :math:`\alpha_{bg}`.
        classification: Whether to teach the classification of proposals. By default it is taught
            to two-stage students and left out for one-stage students, which have no proposals;
            the public implementation does not teach it to them either.
        positive_weight: Factor of the classification's loss at positives.
        negative_weight: Factor at negatives.
        positive_temperature: Divides the logits of positives.
        negative_temperature: Divides the logits of negatives.

    Raises:
        PairError: The classification is to be taught, and teacher and student cannot classify
            the same proposals by softmax.
        ConfigError: A temperature is not positive.
    """

    def __init__(self, pair: DetectorPair, object_weight: float = 3.0,
                 background_weight: float = 12.0, classification: Optional[bool] = None,
                 positive_weight: float = 2.0, negative_weight: float = 2.0,
                 positive_temperature: float = 1.0, negative_temperature: float = 1.0):
        super().__init__(pair)
        if classification is None:
            classification = pair.student.is_two_stage
        if classification:
            refuse_classification(pair)
        for name, temperature in (('positive_temperature', positive_temperature),
                                  ('negative_temperature', negative_temperature)):
            require_positive(temperature, f'DeFeat.{name}')
        self.object_weight = object_weight
        self.background_weight = background_weight
        self.positive_weight = positive_weight
        self.negative_weight = negative_weight
        self.positive_temperature = positive_temperature
        self.negative_temperature = negative_temperature
        self.needs = Needs(proposals=classification)
        self.adaptation = quiet_adaptation(pair)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step; see :class:`Knowledge`."""
        losses = self.compare_maps(step)
        if self.needs.proposals:
            logits = step.student.proposal_logits, step.teacher.proposal_logits
            positives = step.proposal_positives
            losses['loss_defeat_positive'] = self.positive_weight * proposal_divergence(
                *logits, positives, self.positive_temperature)
            losses['loss_defeat_negative'] = self.negative_weight * proposal_divergence(
                *logits, ~positives, self.negative_temperature)
        return losses

    def compare_maps(self, step: Step) -> dict[str, Tensor]:
        """Compare the maps inside and outside the ground-truth boxes."""
        instances = Instances.of(step.gt_boxes)
        levels = map_levels(instances.boxes, len(step.strides))
        masks = draw_masks(instances, levels, torch.ones_like(levels),
                           [feature.shape[-2:] for feature in step.teacher.maps], step.strides)
        adapted = [adapt(own) for adapt, own in zip(self.adaptation, step.student.maps)]
        objects, background = local_knowledge_losses(adapted, step.teacher.maps, masks).mean(dim=0)
        return dict(loss_defeat_object=self.object_weight * objects,
                    loss_defeat_background=self.background_weight * background)


def refuse_classification(pair: DetectorPair) -> None:
    """Raise PairError where teacher and student cannot classify the same proposals."""
    advice = 'set classification=False to teach the maps alone.'
    pair.require_logits_of_proposals('DeFeat', advice)
    for role, info in (('teacher', pair.teacher), ('student', pair.student)):
        if info.sigmoid:
            raise PairError(f'DeFeat: {role} {info.name} scores classes by sigmoid, but DeFeat '
                            f'compares the distributions of a softmax; {advice}')
