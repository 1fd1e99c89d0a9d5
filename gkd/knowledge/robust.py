"""The Robust Distilling Module: global, local and soft-label knowledge, weighed by trust.

*Distilling Object Detectors with Global Knowledge*, ECCV 2022, https://arxiv.org/abs/2210.09022;
written out in docs/method.md, to which "method section" refers.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, Optional, Union

import torch
from torch import Tensor, nn

from gkd.detectors.places import centres, smallest_object
from gkd.detectors.step import Needs
from gkd.errors import ConfigError
from gkd.frameworks import logger
from gkd.knowledge.adaptation import adaptation, quiet_adaptation
from gkd.knowledge.base import Knowledge
from gkd.knowledge.channels import taught_levels
from gkd.knowledge.class_space import ClassSpaceKnowledge
from gkd.knowledge.instances import (
    Instances,
    draw_masks,
    map_levels,
    mean_windows,
    on_device,
    pool_maps,
)
from gkd.knowledge.losses import (
    Basis,
    local_knowledge_losses,
    similarities,
    similarity_loss,
    soft_label_loss,
    trust,
)
from gkd.knowledge.settings import choose_instances
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.bank import PrototypeBank
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step

DEFAULTS = MappingProxyType({})

# Similarities of n instances to P prototypes on L levels, the student's and the teacher's,
# (L, n, P) each.
Compared = tuple[Tensor, Tensor]


class GlobalKnowledge(nn.Module):
    """The student's coordinates in the common basis approach the teacher's (method section 2.3).

    Args:
        loss_weight: Factor of the loss.
        levels: On which levels an instance is compared: ``'all'`` as in the paper, or ``'own'``,
            the one that its size assigns it to.

    Raises:
        ConfigError: ``levels`` is neither.
    """

    def __init__(self, loss_weight: float = 5.0, levels: str = 'all'):
        super().__init__()
        if levels not in ('all', 'own'):
            raise ConfigError(f'global_knowledge.levels = {levels!r}: must be "all" or "own".')
        self.loss_weight = loss_weight
        self.levels = levels

    def forward(self, compared: list[Compared], weights: Tensor, own: Tensor,
                decay: float) -> dict[str, Tensor]:
        """Sum the loss over levels.

        Args:
            compared: Similarities on all levels; the first n are the instances'.
            weights: Robust weights of the instances, ``(L, n)``.
            own: Level of every instance, ``(n,)``.
            decay: Factor that falls from 1 to 0 over training.

        Example:
            >>> student, teacher = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
            >>> GlobalKnowledge()([(student, teacher)], torch.ones(1, 1), torch.tensor([0]), 1.0)
            {'loss_global': tensor(2.5000)}
        """
        if self.levels == 'own':
            weights = weights * (own == torch.arange(len(weights), device=own.device)[:, None])
        levels = weights.split([len(student) for student, _ in compared])
        losses = [similarity_loss(student[:, :weight.shape[1]], teacher[:, :weight.shape[1]],
                                  weight, self.loss_weight * decay)
                  for (student, teacher), weight in zip(compared, levels)]
        return dict(loss_global=reduce(operator.add, losses))


class LocalKnowledge(nn.Module):
    """The student's adapted maps approach the teacher's (method section 2.4).

    Args:
        pair: Traits of teacher and student.
        foreground_weight: Factor of the loss inside instances.
        background_weight: Factor of the loss outside.
        levels: Paired levels to teach, 0 being the finest; by default all, as the authors do.
        level_reduction: ``'mean'`` or ``'sum'`` over these. By default the authors' choice: the
            mean for two-stage, the sum for one-stage students.
        quiet_start: Start the adaptation layers near 0 (standard deviation 1e-4) instead of with
            torch's initialisation. The authors' code intends this but does not achieve it (method
            section 3). It is worth a try if the learning rate has no warm-up.

    Raises:
        ConfigError: ``level_reduction`` is neither, or a level does not exist.
    """

    def __init__(self, pair: DetectorPair, foreground_weight: float = 1.0,
                 background_weight: float = 4.0, level_reduction: Optional[str] = None,
                 quiet_start: bool = False, levels: Optional[Sequence[int]] = None):
        super().__init__()
        if level_reduction is None:
            level_reduction = 'mean' if pair.student.is_two_stage else 'sum'
        if level_reduction not in ('mean', 'sum'):
            raise ConfigError(f'local_knowledge.level_reduction = {level_reduction!r}: '
                              f'must be "mean" or "sum".')
        taught = taught_levels(pair, levels, 'local_knowledge')
        share = 1 / len(taught) if level_reduction == 'mean' else 1.0
        # Levels that are not taught count 0, so that their adaptation layers have a gradient: the
        # class space may need them, and distributed training waits for every layer's.
        self.weights = [[share * weight if level in taught else 0.0
                         for weight in (foreground_weight, background_weight)]
                        for level in range(pair.num_levels)]
        self.adaptation = quiet_adaptation(pair) if quiet_start else adaptation(pair)

    def forward(self, adapted: list[Tensor], teacher: tuple[Tensor, ...],
                masks: list[Tensor], decay: float) -> dict[str, Tensor]:
        """Compare maps inside and outside the instances.

        Args:
            adapted: The student's adapted maps ``(B, C_T, H_l, W_l)``.
            teacher: The teacher's maps ``(B, C_T, H_l, W_l)``.
            masks: Weights of the instances on every level's cells, ``(B, H_l, W_l)``.
            decay: Factor that falls from 1 to 0 over training.
        """
        levels = local_knowledge_losses(adapted, teacher, masks)
        weights = [[weight * decay for weight in level] for level in self.weights]
        inside, outside = (levels * on_device(weights, levels.device, levels.dtype)).sum(0)
        return dict(loss_local_fg=inside, loss_local_bg=outside)


class SoftLabel(nn.Module):
    """The student's class scores approach the teacher's (method section 2.5).

    Args:
        pair: Traits of teacher and student.
        loss_weight: Factor of the loss.
        temperature: Divides the logits.
        activation: ``'softmax'`` over the classes as the authors do for every head, or
            ``'sigmoid'`` for each class alone. By default softmax; but sigmoid if a sigmoid head
            has a single class, because a softmax over one class is constant.

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
            teacher: The teacher's, likewise.
            weights: Robust weight of every positive on its own level, ``(n,)``.
        """
        loss = soft_label_loss(student, teacher, weights, self.temperature, self.activation)
        return dict(loss_soft=loss * self.loss_weight)


@KNOWLEDGE.register_module()
class RobustDistillingModule(Knowledge):
    """RDM: teach global, local and soft-label knowledge, each instance weighted by its trust.

    The trust in an instance is how far teacher and student agree on how typical it is of its
    class: 1 minus the difference of its largest similarities to the class's prototypes in the two
    spaces. Instances are pooled once per level and weighted once, for all three kinds of
    knowledge.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        global_knowledge: Settings of :class:`GlobalKnowledge`; None leaves it out. With
            ``space='classes'`` those of :class:`~gkd.knowledge.class_space.ClassSpaceKnowledge`,
            which takes its place: not the paper's form, but of more use in our measurements.
        local_knowledge: Settings of :class:`LocalKnowledge`; None leaves it out.
        soft_label: Settings of :class:`SoftLabel`; None leaves it out. ``'auto'`` teaches it with
            its default settings if teacher and student classify the same boxes. Otherwise it is
            left out, and the log says why.
        instances: ``'positives'`` teaches the positives that the student's sampler chose, ``'gt'``
            the ground-truth boxes; ``'auto'`` the positives if the student samples some, else the
            ground-truth boxes.
        robust: Weigh by trust; False gives every instance weight 1.
        decay: Lower the weights of global and local knowledge from 1 to 0 over training.
        start: Share of the training's epochs, in [0, 1), before teaching begins: until then all
            losses are 0. For example, 0.5 stands for the first 12 of 24 epochs. The decay goes on
            meanwhile.

    Raises:
        ConfigError: A setting is unknown or out of range, all three kinds of knowledge are left
            out, or the pair is not supported.
    """

    def __init__(self, pair: DetectorPair, global_knowledge: Optional[Mapping] = DEFAULTS,
                 local_knowledge: Optional[Mapping] = DEFAULTS,
                 soft_label: Union[Mapping, str, None] = 'auto', instances: str = 'auto',
                 robust: bool = True, decay: bool = True, start: float = 0.0):
        super().__init__(pair)
        if not 0 <= start < 1:
            raise ConfigError(f'RobustDistillingModule.start = {start!r}: must be at least 0 and '
                              f'below 1, a share of the training.')
        instances = choose_instances(instances, pair, 'RobustDistillingModule',
                                     'set instances="gt" to teach at the ground truth.')
        if isinstance(soft_label, str) and soft_label != 'auto':
            raise ConfigError(f'RobustDistillingModule.soft_label = {soft_label!r}: '
                              f'must be "auto", None or a dict of settings.')
        left_out = 'soft_label=None.'
        if soft_label == 'auto':
            soft_label = DEFAULTS
            try:
                refuse_soft_labels(pair)
            except ConfigError as error:
                soft_label, left_out = None, str(error).replace('soft_label: ', '', 1)
        self.instances = instances
        self.robust = robust
        self.decay = decay
        self.start = start
        self.global_knowledge = build_global_knowledge(global_knowledge, pair)
        self.in_class_space = isinstance(self.global_knowledge, ClassSpaceKnowledge)
        self.adaptation = (adaptation(pair, self.global_knowledge.levels)
                           if self.in_class_space and local_knowledge is None else None)
        self.compares = robust or (self.global_knowledge is not None and not self.in_class_space)
        self.local_knowledge = build(LocalKnowledge, local_knowledge, 'local_knowledge', pair)
        self.soft_label = build(SoftLabel, soft_label, 'soft_label', pair)
        if not any((self.global_knowledge, self.local_knowledge, self.soft_label)):
            raise ConfigError('RobustDistillingModule: global_knowledge, local_knowledge and '
                              'soft_label are all None; nothing is left to teach.')
        self.left_out = re.sub(r'[;,] (or )?set soft_label=None.*$', '.', left_out)
        say_what_is_taught(self)
        at_places = pair.student.trains_places
        self.needs = Needs(logits=self.soft_label is not None and not at_places,
                           dense=self.soft_label is not None and at_places,
                           bank=robust or self.global_knowledge is not None)
        if self.in_class_space:
            self.needs |= self.global_knowledge.needs
        self.arranged: tuple[Optional[PrototypeBank], list[Basis]] = (None, [])

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step; see :class:`Knowledge`."""
        decay = 1 - step.progress if self.decay else 1.0
        losses = {}
        boxes, labels = self.taught_instances(step)
        instances = Instances.of(boxes)
        compared = self.compare(step, instances)
        weights, of_positives = self.weigh(step, compared, labels)
        levels = map_levels(instances.boxes, len(step.strides))
        own = own_level(weights, levels)
        if self.global_knowledge is not None and not self.in_class_space:
            losses.update(self.global_knowledge(compared, weights, levels, decay))
        if self.adapting is not None:
            adapted = [adapt(feature)
                       for adapt, feature in zip(self.adapting, step.student.maps)]
        if self.in_class_space:
            losses.update(self.global_knowledge(step, adapted, decay))
        if self.local_knowledge is not None:
            masks = self.masks(step, instances, levels, own)
            losses.update(self.local_knowledge(adapted, step.teacher.maps, masks, decay))
        if self.soft_label is not None:
            if self.pair.student.trains_places:
                losses.update(self.teach_places(step, instances, labels, own))
            else:
                if of_positives is not None:
                    own = own_level(of_positives, step.roi_levels)
                elif self.instances == 'gt':
                    own = self.weigh_boxes(step, step.boxes, step.labels)
                losses.update(self.soft_label(step.student.logits, step.teacher.logits, own))
                self.teach_stages(step, losses)
        if step.progress < self.start:
            # The losses stay in the graph: distributed training waits for every layer's gradient.
            losses = {name: 0 * loss for name, loss in losses.items()}
        return losses

    @property
    def adapting(self) -> Optional[nn.ModuleList]:
        """What brings the student's maps into the teacher's space; None if nothing needs it."""
        if self.local_knowledge is not None:
            return self.local_knowledge.adaptation
        return self.adaptation

    def describe(self, student: str = 'the student') -> str:
        """What is taught at what, in words; see :class:`Knowledge`."""
        at_places = self.pair.student.trains_places
        at_boxes = [name for name, taught in (
            ('global knowledge', self.global_knowledge is not None and not self.in_class_space),
            ('local knowledge', self.local_knowledge is not None),
            ('soft labels', self.soft_label is not None and not at_places)) if taught]
        boxes = {'positives': f'the positives that {student} trains on',
                 'gt': 'the ground-truth boxes'}[self.instances]
        said = [f'{", ".join(at_boxes)} at {boxes}'] if at_boxes else []
        if self.in_class_space:
            said.append(f'global knowledge at the {self.global_knowledge.places} where either '
                        f'detector is surest of a class')
        if self.soft_label is not None and at_places:
            said.append(f'soft labels at the cells that {student} trains as objects')
        return '; '.join(said)

    def describe_left_out(self) -> str:
        """Soft labels and why they are left out, if they are; see :class:`Knowledge`."""
        return '' if self.soft_label is not None else f'soft labels: {self.left_out}'

    def taught_instances(self, step: Step) -> tuple[list[Tensor], Tensor]:
        """Boxes of every image, ``(n_b, 4)``, and classes, ``(n,)``, of what is taught."""
        if self.instances == 'gt':
            return step.gt_boxes, torch.cat(step.gt_labels)
        return step.boxes, step.labels

    def masks(self, step: Step, instances: Instances, levels: Tensor,
              weights: Tensor) -> list[Tensor]:
        """The mask of local knowledge on every level.

        Args:
            step: The step.
            instances: What is taught.
            levels: Level of every instance, ``(n,)``.
            weights: Its robust weight there, ``(n,)``.

        Returns:
            Weights of the cells, ``(B, H_l, W_l)`` a level.
        """
        sizes = [feature.shape[2:] for feature in step.student.maps]
        return draw_masks(instances, levels, weights, sizes, step.strides)

    def bases(self, bank: PrototypeBank) -> list[Basis]:
        """The bank's prototypes in the form that similarities need, arranged once per bank."""
        if bank is not self.arranged[0]:
            self.arranged = bank, Basis.of(bank.student, bank.teacher, bank.offsets)
        return self.arranged[1]

    @property
    def weighs_pooled(self) -> bool:
        """Whether positives are weighted by their RoI-pooled features, each on its own level."""
        infos = self.pair.teacher, self.pair.student
        return self.robust and self.soft_label is not None and self.pair.student.is_two_stage \
            and all(info.pools_maps for info in infos)

    def compare(self, step: Step, instances: Instances,
                with_pooled: bool = True) -> list[Compared]:
        """Similarities of instances on every level; levels of equal shape are computed together.

        The similarities of the positives' RoI-pooled features follow, if these are to be weighted
        (:attr:`weighs_pooled`) and ``with_pooled`` is True.
        """
        if not self.compares:
            return []
        sizes = [feature.shape[2:] for feature in step.student.maps]
        windows = mean_windows(instances, sizes, [(1 / stride,) * 2 for stride in step.strides])
        compared = []
        for basis in self.bases(step.bank):
            alike = slice(basis.levels.start, basis.levels.stop)
            compared.append([])
            for part, prototypes in ((step.student, basis.student), (step.teacher, basis.teacher)):
                features = pool_maps(part.maps[alike], windows[alike], instances)
                if self.weighs_pooled and with_pooled:
                    pooled = part.roi_features.detach().mean(dim=(-2, -1), dtype=torch.float)
                    features = torch.cat([features, pooled.expand(len(features), -1, -1)], dim=1)
                compared[-1].append(similarities(features, prototypes))
        return compared

    def weigh(self, step: Step, compared: list[Compared], labels: Tensor,
              with_pooled: bool = True) -> tuple[Tensor, Optional[Tensor]]:
        """Robust weights ``(L, n)`` of instances, and of RoI-pooled positives if compared.

        The weights of RoI-pooled positives are meaningful only on a positive's own level.
        """
        if not self.robust:
            return torch.ones(len(step.strides), len(labels), device=labels.device), None
        pooled = self.weighs_pooled and with_pooled
        rows = torch.cat([labels, step.labels]) if pooled else labels
        weights = torch.cat([trust(*both, rows, basis.classes)
                             for both, basis in zip(compared, self.bases(step.bank))])
        of_positives = weights[:, len(labels):] if pooled else None
        return weights[:, :len(labels)], of_positives

    @torch.no_grad()
    def weigh_boxes(self, step: Step, boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Robust weight ``(n,)`` of every box on its own level, as it is pooled from the maps."""
        instances = Instances.of(boxes)
        compared = self.compare(step, instances, with_pooled=False)
        weights, _ = self.weigh(step, compared, labels, with_pooled=False)
        return own_level(weights, map_levels(instances.boxes, len(step.strides)))

    def teach_stages(self, step: Step, losses: dict[str, Tensor]) -> None:
        """Add the soft labels of a cascade's later stages, with the weights of their losses."""
        for stage, *logits in zip(step.stages, step.student.stage_logits,
                                  step.teacher.stage_logits):
            weights = self.weigh_boxes(step, stage.boxes, stage.labels)
            taught = self.soft_label(*logits, weights)
            losses['loss_soft'] = losses['loss_soft'] + stage.loss_weight * taught['loss_soft']

    def teach_places(self, step: Step, instances: Instances, labels: Tensor,
                     weights: Tensor) -> dict[str, Tensor]:
        """Soft labels at the places that a head without sampling trains as objects.

        All places are compared, and those that are no objects get weight 0. So the host need not
        know how many are objects.

        Args:
            step: The step.
            instances: Ground truth.
            labels: Its classes, ``(n,)``.
            weights: Its robust weights, each on its own level, ``(n,)``.
        """
        points = centres([feature.shape[2:] for feature in step.student.maps], step.strides,
                         labels.device)
        number, held = smallest_object(step.place_labels, points, instances.padded,
                                       instances.pad(labels))
        trust_of_places = torch.where(held, instances.pad(weights).gather(1, number), 1.0)
        objects = (step.place_labels >= 0) & (step.place_labels < self.pair.num_classes)
        # The soft-label loss is a mean over all places; this turns it into a mean over objects.
        share = objects.numel() / objects.sum().clamp(min=1)
        student, teacher = (part.dense.logits.flatten(0, 1) for part in (step.student,
                                                                         step.teacher))
        return self.soft_label(student, teacher, (trust_of_places * objects * share).flatten())


def own_level(weights: Tensor, levels: Tensor) -> Tensor:
    """Pick from weights ``(L, n)`` those on the level ``(n,)`` of every instance.

    Example:
        >>> own_level(torch.tensor([[0.1, 0.2], [0.3, 0.4]]), torch.tensor([1, 0]))
        tensor([0.3000, 0.2000])
    """
    return weights.gather(0, levels[None]).squeeze(0)


def say_what_is_taught(module: RobustDistillingModule) -> None:
    """Log once what a module teaches, at which boxes, and why it may leave out soft labels."""
    name = type(module).__name__
    logger().info(f'{name} teaches {module.describe(module.pair.student.name)}.')
    left_out = module.describe_left_out()
    if left_out:
        logger().info(f'{name} leaves out {left_out}')


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


def build_global_knowledge(settings: Optional[Mapping],
                           pair: DetectorPair) -> Optional[nn.Module]:
    """Build global knowledge in the space that its settings name; None stays None.

    Args:
        settings: ``space``, ``'maps'`` or ``'classes'``, and those of the part.
        pair: Traits of teacher and student.

    Raises:
        ConfigError: The space or a setting is unknown, or the pair cannot be served.
    """
    if settings is None:
        return None
    settings = dict(settings)
    space = settings.pop('space', 'maps')
    if space == 'maps':
        return build(GlobalKnowledge, settings, 'global_knowledge')
    if space == 'classes':
        return build(ClassSpaceKnowledge, settings, 'global_knowledge', pair)
    raise ConfigError(f'global_knowledge.space = {space!r}: must be "maps" or "classes".')


def refuse_soft_labels(pair: DetectorPair) -> None:
    """Raise ConfigError where teacher and student cannot classify the same boxes."""
    where = 'soft_label', 'set soft_label=None to distil without soft labels.'
    if pair.student.trains_places:
        pair.require_dense_predictions(*where)
    else:
        pair.require_class_logits(*where)
    pair.require_same_family(*where)
    pair.require_same_scores(*where)
    if not pair.student.is_two_stage:
        pair.require_same_places(*where)
