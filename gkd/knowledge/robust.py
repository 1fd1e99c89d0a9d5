"""The Robust Distilling Module: global, local and soft-label knowledge, weighed by trust.

*Distilling Object Detectors with Global Knowledge*, ECCV 2022, https://arxiv.org/abs/2210.09022;
written out in docs/method.md, to which "method section" refers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor, nn

from gkd.detectors.step import Needs
from gkd.errors import ConfigError
from gkd.frameworks import logger
from gkd.knowledge.base import Knowledge
from gkd.knowledge.instances import instance_mask, map_levels, pool_instances
from gkd.knowledge.losses import (
    global_knowledge_loss,
    local_knowledge_loss,
    robust_weights,
    soft_label_loss,
)
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step
    from gkd.prototypes import PrototypeBank

DEFAULTS = MappingProxyType({})


class GlobalKnowledge(nn.Module):
    """The student's coordinates in the common basis approach the teacher's (method section 2.3).

    Args:
        loss_weight: Factor of the loss.
    """

    def __init__(self, loss_weight: float = 5.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, student: list[Tensor], teacher: list[Tensor], bank: PrototypeBank,
                weights: list[Tensor], decay: float) -> dict[str, Tensor]:
        """Sum the loss over levels.

        Args:
            student: The student's instance features, ``(n, D_S)``, one tensor a level.
            teacher: The teacher's, ``(n, D_T)``.
            bank: The current prototypes.
            weights: Robust weights of the instances, ``(n,)``, one tensor a level.
            decay: Factor that falls from 1 to 0 over training.

        Example:
            >>> from gkd.prototypes import PrototypeBank
            >>> basis = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
            >>> bank = PrototypeBank(student=[basis], teacher=[basis],
            ...                      offsets=[torch.tensor([0, 2])])
            >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
            >>> GlobalKnowledge()([student], [teacher], bank, [torch.ones(1)], decay=1.0)
            {'loss_global': tensor(2.5000)}
        """
        loss = sum(global_knowledge_loss(*level) for level in
                   zip(student, teacher, bank.student, bank.teacher, weights))
        return dict(loss_global=self.loss_weight * decay * loss)


class LocalKnowledge(nn.Module):
    """The student's adapted maps approach the teacher's (method section 2.4).

    Args:
        pair: Traits of teacher and student.
        foreground_weight: Factor of the loss inside instances.
        background_weight: Factor of the loss outside.
        level_reduction: ``'mean'`` or ``'sum'`` over levels. By default the authors' choice: the
            mean for two-stage, the sum for one-stage students.

    Raises:
        ConfigError: ``level_reduction`` is neither.
    """

    def __init__(self, pair: DetectorPair, foreground_weight: float = 1.0,
                 background_weight: float = 4.0, level_reduction: Optional[str] = None):
        super().__init__()
        if level_reduction is None:
            level_reduction = 'mean' if pair.student.is_two_stage else 'sum'
        if level_reduction not in ('mean', 'sum'):
            raise ConfigError(f'local_knowledge.level_reduction = {level_reduction!r}: '
                              f'must be "mean" or "sum".')
        self.foreground_weight = foreground_weight
        self.background_weight = background_weight
        self.level_reduction = level_reduction
        self.adaptation = nn.ModuleList(
            nn.Conv2d(student, teacher, kernel_size=3, padding=1) for student, teacher in
            zip(pair.channels(pair.student), pair.channels(pair.teacher)))

    def forward(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...],
                boxes: list[Tensor], strides: tuple[int, ...], weights: list[Tensor],
                decay: float) -> dict[str, Tensor]:
        """Compare maps inside and outside the instances.

        Args:
            student: The student's maps ``(B, C_S, H_l, W_l)``.
            teacher: The teacher's maps ``(B, C_T, H_l, W_l)``.
            boxes: Instances of every image, ``(n_b, 4)`` in pixels.
            strides: Stride of every level in pixels.
            weights: Robust weights of the instances, ``(n,)``, one tensor a level.
            decay: Factor that falls from 1 to 0 over training.
        """
        counts = [len(image_boxes) for image_boxes in boxes]
        foreground, background = [], []
        for level, adapt in enumerate(self.adaptation):
            mask = instance_mask(boxes, weights[level].split(counts), level, len(strides),
                                 strides[level], student[level].shape[-2:])
            inside, outside = local_knowledge_loss(adapt(student[level]), teacher[level], mask)
            foreground.append(inside)
            background.append(outside)
        return dict(loss_local_fg=self.foreground_weight * decay * self.reduce(foreground),
                    loss_local_bg=self.background_weight * decay * self.reduce(background))

    def reduce(self, losses: list[Tensor]) -> Tensor:
        """Reduce over levels."""
        total = torch.stack(losses)
        return total.mean() if self.level_reduction == 'mean' else total.sum()


class SoftLabel(nn.Module):
    """The student's class scores approach the teacher's (method section 2.5).

    Args:
        pair: Traits of teacher and student.
        loss_weight: Factor of the loss.
        temperature: Divides the logits.
        activation: ``'softmax'`` over the classes as the authors do for every head, or
            ``'sigmoid'`` for each class alone. By default softmax, but sigmoid where a sigmoid
            head has a single class: a softmax over one class is constant.

    Raises:
        ConfigError: Teacher and student do not classify the same boxes, or ``activation`` is
            unknown.
    """

    def __init__(self, pair: DetectorPair, loss_weight: float = 1.0, temperature: float = 2.0,
                 activation: Optional[str] = None):
        super().__init__()
        refuse_soft_labels(pair)
        single = pair.student.sigmoid and pair.num_classes == 1
        if activation is None:
            activation = 'sigmoid' if single else 'softmax'
            if single:
                logger().info(
                    'soft_label: activation="sigmoid", as the head scores a single class.')
        if activation not in ('softmax', 'sigmoid'):
            raise ConfigError(f'soft_label.activation = {activation!r}: '
                              f'must be "softmax" or "sigmoid".')
        self.loss_weight = loss_weight
        self.temperature = temperature
        self.activation = activation

    def forward(self, student: Tensor, teacher: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Compare the logits of the positives.

        Args:
            student: The student's logits, ``(n, num_logits)``.
            teacher: The teacher's, alike.
            weights: Robust weight of every positive on its own level, ``(n,)``.
        """
        loss = soft_label_loss(student, teacher, weights, self.temperature, self.activation)
        return dict(loss_soft=self.loss_weight * loss)


@KNOWLEDGE.register_module()
class RobustDistillingModule(Knowledge):
    """RDM: teach global, local and soft-label knowledge, each instance as far as it is trusted.

    An instance is trusted as far as teacher and student agree on how typical it is of its class:
    the difference of its largest similarities to the class's prototypes in both spaces. Instances
    are pooled once a level and weighed once, for all three kinds of knowledge.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        global_knowledge: Settings of :class:`GlobalKnowledge`; None leaves it out.
        local_knowledge: Settings of :class:`LocalKnowledge`; None leaves it out.
        soft_label: Settings of :class:`SoftLabel`; None leaves it out.
        instances: ``'positives'`` teaches the positives that the student's sampler chose, ``'gt'``
            the ground-truth boxes.
        robust: Weigh by trust; False gives every instance weight 1.

    Raises:
        ConfigError: A setting is unknown, all three are left out, or the pair cannot be served.
    """

    def __init__(self, pair: DetectorPair, global_knowledge: Optional[Mapping] = DEFAULTS,
                 local_knowledge: Optional[Mapping] = DEFAULTS,
                 soft_label: Optional[Mapping] = DEFAULTS, instances: str = 'positives',
                 robust: bool = True):
        super().__init__(pair)
        if instances not in ('positives', 'gt'):
            raise ConfigError(f'RobustDistillingModule.instances = {instances!r}: '
                              f'must be "positives" or "gt".')
        if instances == 'positives' and not pair.student.samples_positives:
            raise ConfigError(
                f'RobustDistillingModule: student {pair.student.name} samples no positive boxes; '
                f'set instances="gt" to teach at the ground truth.')
        self.instances = instances
        self.robust = robust
        self.global_knowledge = build(GlobalKnowledge, global_knowledge, 'global_knowledge')
        self.local_knowledge = build(LocalKnowledge, local_knowledge, 'local_knowledge', pair)
        self.soft_label = build(SoftLabel, soft_label, 'soft_label', pair)
        if not any((self.global_knowledge, self.local_knowledge, self.soft_label)):
            raise ConfigError('RobustDistillingModule: global_knowledge, local_knowledge and '
                              'soft_label are all None; nothing is left to teach.')
        self.needs = Needs(logits=self.soft_label is not None,
                           bank=robust or self.global_knowledge is not None)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step; see :class:`Knowledge`."""
        decay = 1 - step.progress
        losses = {}
        if self.instances == 'gt':
            boxes, labels = step.gt_boxes, torch.cat(step.gt_labels)
        else:
            boxes, labels = step.boxes, step.labels
        features = [pool_levels(part.maps, step.strides, boxes)
                    for part in (step.student, step.teacher)]
        weights = self.weigh(*features, labels, step.bank)
        if self.global_knowledge is not None:
            losses.update(self.global_knowledge(*features, step.bank, weights, decay))
        if self.local_knowledge is not None:
            losses.update(self.local_knowledge(step.student.maps, step.teacher.maps, boxes,
                                               step.strides, weights, decay))
        if self.soft_label is not None:
            own = self.weigh_positives(step, weights)
            losses.update(self.soft_label(step.student.logits, step.teacher.logits, own))
        return losses

    def weigh(self, student: list[Tensor], teacher: list[Tensor], labels: Tensor,
              bank: Optional[PrototypeBank]) -> list[Tensor]:
        """Robust weights ``(n,)`` of instances with features ``(n, D)``, level by level."""
        if not self.robust:
            return [feature.new_ones(len(feature)) for feature in student]
        return [robust_weights(*level[:4], labels, level[4]) for level in
                zip(student, teacher, bank.student, bank.teacher, bank.offsets)]

    def weigh_positives(self, step: Step, weights: list[Tensor]) -> Tensor:
        """Robust weight ``(n,)`` of every positive on its own level (method section 2.5)."""
        if self.pair.student.is_two_stage:
            # A RoI head has pooled the positives already, each from its own level.
            levels = step.roi_levels
            pooled = [[part.roi_features.detach().mean(dim=(-2, -1), dtype=torch.float)]
                      * self.pair.num_levels for part in (step.student, step.teacher)]
            weights = self.weigh(*pooled, step.labels, step.bank)
        else:
            levels = map_levels(torch.cat(step.boxes), self.pair.num_levels)
            if self.instances == 'gt':
                with torch.no_grad():
                    pooled = [pool_levels(part.maps, step.strides, step.boxes)
                              for part in (step.student, step.teacher)]
                    weights = self.weigh(*pooled, step.labels, step.bank)
        return torch.stack(weights).gather(0, levels[None]).squeeze(0)


def build(kind: type, settings: Optional[Mapping], key: str, *args) -> Optional[nn.Module]:
    """Build a part from its settings; None stays None.

    Raises:
        ConfigError: A setting is unknown.
    """
    if settings is None:
        return None
    known = set(inspect.signature(kind).parameters) - {'pair'}
    unknown = settings.keys() - known
    if unknown:
        raise ConfigError(f'{key} has unknown settings {sorted(unknown)}; '
                          f'it takes {sorted(known)}.')
    return kind(*args, **settings)


def pool_levels(maps: tuple[Tensor, ...], strides: tuple[int, ...],
                boxes: list[Tensor]) -> list[Tensor]:
    """Features ``(n, C)`` of the boxes on every level of a detector's maps."""
    return [pool_instances(feature, boxes, 1 / stride) for feature, stride in zip(maps, strides)]


def refuse_soft_labels(pair: DetectorPair) -> None:
    """Raise ConfigError where teacher and student cannot classify the same boxes."""
    where = 'soft_label', 'set soft_label=None to distil without soft labels.'
    pair.require_class_logits(*where)
    pair.require_same_family(*where)
    pair.require_same_scores(*where)
    if not pair.student.is_two_stage:
        pair.require_same_anchors(*where)
