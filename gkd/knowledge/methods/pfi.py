"""PFI: imitate features where predictions differ, and the order of an object's anchors.

*Knowledge Distillation for Object Detection via Rank Mimicking and Prediction-guided Feature
Imitation*, AAAI 2022, https://arxiv.org/abs/2112.04840.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.detectors.step import Needs
from gkd.errors import PairError
from gkd.knowledge.base import Knowledge
from gkd.knowledge.channels import match_channels
from gkd.knowledge.precision import full_precision
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import DensePredictions, Step


@full_precision
def prediction_guided_loss(student: Tensor, teacher: Tensor, student_logits: Tensor,
                           teacher_logits: Tensor) -> Tensor:
    r"""Teach the student the teacher's features, most where the predictions of both differ.

    Let :math:`P` be the mean squared difference of a cell's logits, and :math:`F` that of its
    features. The loss is :math:`\|P F\|_2 / (H W)`, where the norm is taken over the cells of an
    image, averaged over images. Gradients flow through both factors.

    Source: the paper's prediction-guided feature imitation, in the form of a public implementation
    (``PredictionGuidedFeatureImitation``, a loss for MMRazor that was never released); the weight
    of 1.5 belongs to this form. :math:`P` compares class predictions. As in that implementation,
    these are logits: probabilities of background hardly differ anywhere and would leave almost
    nothing to learn. An early commit of the implementation takes the mean of :math:`P F`, the last
    one the norm. The last one also divides by the number of images once more; this is left out
    here, so that the loss does not depend on the number of images per GPU.

    Args:
        student: The student's map, float of shape ``(B, C, H, W)``. It receives a gradient.
        teacher: The teacher's map, float of shape ``(B, C, H, W)``.
        student_logits: The student's class logits at the level's anchors, over rows, columns and
            the anchors of a cell, float of shape ``(B, H * W * A, num_logits)``. They receive a
            gradient.
        teacher_logits: The teacher's, likewise.

    Returns:
        Scalar.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
        >>> logits = torch.tensor([[[1.0], [2.0]]])
        >>> prediction_guided_loss(student, teacher, logits, torch.zeros(1, 2, 1))
        tensor(2.0616)
    """
    images, _, height, width = student.shape
    features = F.mse_loss(student, teacher.detach(), reduction='none').mean(dim=1)
    predictions = F.mse_loss(student_logits, teacher_logits.detach(), reduction='none')
    predictions = predictions.mean(dim=2).reshape(images, height, width, -1).mean(dim=3)
    norms = torch.linalg.vector_norm(predictions * features, dim=(1, 2))
    return norms.mean() / (height * width)


@full_precision
def rank_loss(student: Tensor, teacher: Tensor, objects: Tensor,
              counts: Sequence[int]) -> Tensor:
    r"""Teach the student to prefer, among the anchors of an object, those the teacher prefers.

    The scores of an object's positive anchors become a distribution over these anchors by a
    softmax; the loss is the divergence KL(teacher || student) of an object's two distributions,
    mean over the objects of an image, then over images. An object without a positive anchor, and
    an image without an object, count as 0.

    Source: the paper's rank mimicking, on classification scores, averaged as in the public
    implementation of :func:`prediction_guided_loss`. Scores are compared anchor by
    anchor; a public implementation (``RankMimicLoss``, for MMRazor) sorts both first, after which
    it no longer matters which anchor is the best.

    Args:
        student: The student's scores in [0, 1] of n positive anchors for the classes of their
            objects, float of shape ``(n,)``. The only argument that receives a gradient.
        teacher: The teacher's scores of the same anchors, float of shape ``(n,)``.
        objects: Object of every anchor, LongTensor of shape ``(n,)``, counted over the batch.
        counts: Number of objects of every image, including those without a positive anchor.

    Returns:
        Scalar; 0, with a gradient of 0, for no anchor.

    Example:
        >>> student, teacher = torch.tensor([0.0, 1.0, 0.3]), torch.tensor([1.0, 0.0, 0.9])
        >>> rank_loss(student, teacher, torch.tensor([0, 0, 2]), [2, 1])
        tensor(0.1155)
    """
    def log_distribution(scores: Tensor) -> Tensor:
        # Scores lie in [0, 1]: their exponentials need no shift to be safe.
        sums = scores.new_zeros(sum(counts)).index_add(0, objects, scores.exp())
        return scores - sums.index_select(0, objects).log()  # no sort for the gradient

    divergence = F.kl_div(log_distribution(student), log_distribution(teacher.detach()),
                          reduction='none', log_target=True)
    weights = torch.cat([divergence.new_full((count,), 1 / max(count, 1)) for count in counts])
    return (divergence * weights[objects]).sum() / len(counts)


@KNOWLEDGE.register_module()
class PFI(Knowledge):
    """Prediction-guided feature imitation, and rank mimicking.

    Feature imitation (:func:`prediction_guided_loss`, mean over levels) reads the class logits of
    the dense heads at all anchors and so needs the same anchors in both detectors. Rank mimicking
    (:func:`rank_loss`) also needs positive anchors, which anchor-based one-stage students have.
    The paper treats one-stage detectors only. For two-stage detectors the logits are those of the
    RPN (object or not), and rank mimicking is left out. The student's maps pass a 1x1 convolution
    where teacher and student differ in channels.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        feature_weight: Factor of the feature imitation. 1.5 in the RetinaNet configuration of a
            public implementation for MMRazor; the authors published no code.
        rank_weight: Factor of the rank mimicking; 0 leaves it out. By default 4 for one-stage
            students, as in the same configuration, and 0 for two-stage students.

    Raises:
        PairError: The dense heads do not predict the same at the same anchors, or there are no
            anchors to rank.
    """

    def __init__(self, pair: DetectorPair, feature_weight: float = 1.5,
                 rank_weight: Optional[float] = None):
        super().__init__(pair)
        refuse_unlike_predictions(pair)
        if rank_weight is None:
            rank_weight = 0.0 if pair.student.is_two_stage else 4.0
        self.needs = Needs(dense=True, logits=rank_weight != 0)
        if self.needs.logits:
            refuse_ranks(pair)
        self.feature_weight = feature_weight
        self.rank_weight = rank_weight
        self.adaptation = match_channels(pair.channels(pair.student), pair.channels(pair.teacher))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step; see :class:`Knowledge`."""
        levels = zip(self.adaptation, step.student.maps, step.teacher.maps,
                     split_levels(step.student.dense), split_levels(step.teacher.dense))
        features = torch.stack([prediction_guided_loss(adapt(own), target, *logits)
                                for adapt, own, target, *logits in levels])
        losses = dict(loss_pfi_feature=self.feature_weight * features.mean())
        if self.needs.logits:
            ranks = rank_loss(*(class_scores(logits, step.labels, self.pair.student.sigmoid)
                                for logits in (step.student.logits, step.teacher.logits)),
                              step.objects, [len(boxes) for boxes in step.gt_boxes])
            losses.update(loss_pfi_rank=self.rank_weight * ranks)
        return losses


@full_precision
def class_scores(logits: Tensor, labels: Tensor, sigmoid: bool) -> Tensor:
    """Scores ``(n,)`` of anchors for given classes, from logits ``(n, num_logits)``."""
    scores = logits.sigmoid() if sigmoid else logits.softmax(dim=1)
    return scores.gather(1, labels[:, None]).squeeze(1)


def split_levels(dense: DensePredictions) -> tuple[Tensor, ...]:
    """Class logits ``(B, N_l, num_logits)`` of every level."""
    return dense.logits.split(dense.counts, dim=1)


def refuse_unlike_predictions(pair: DetectorPair) -> None:
    """Raise PairError where logits of the dense heads cannot be compared place by place."""
    where = 'PFI', 'teach by PKD or CWD, which compare feature maps alone.'
    pair.require_same_family(*where)
    pair.require_dense_predictions(*where)
    if not pair.student.is_two_stage:
        pair.require_same_scores(*where)
    pair.require_same_anchors(*where)


def refuse_ranks(pair: DetectorPair) -> None:
    """Raise PairError where there are no positive anchors that both detectors classify."""
    advice = 'set rank_weight=0 to imitate features alone.'
    if pair.student.is_two_stage:
        raise PairError(f'PFI: ranks are those of the anchors of a one-stage detector, and '
                        f'student {pair.student.name} is a two-stage one; {advice}')
    pair.require_positives('PFI', advice)
    pair.require_class_logits('PFI', advice)
