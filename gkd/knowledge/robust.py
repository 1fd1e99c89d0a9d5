"""The Robust Distilling Module: global, local and soft-label knowledge, weighed by trust.

*Distilling Object Detectors with Global Knowledge*, ECCV 2022, https://arxiv.org/abs/2210.09022;
written out in docs/method.md, to which "method section" refers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Optional, Union

import torch
from torch import Tensor, nn

from gkd.argument_types import check_types
from gkd.detectors.places import centres, smallest_object
from gkd.detectors.step import Needs
from gkd.errors import ConfigError
from gkd.frameworks import logger
from gkd.knowledge.adaptation import adaptation
from gkd.knowledge.base import Knowledge
from gkd.knowledge.class_space import ClassSpaceKnowledge
from gkd.knowledge.global_knowledge import Compared, GlobalKnowledge
from gkd.knowledge.instances import Instances, draw_masks, map_levels, mean_windows, pool_maps
from gkd.knowledge.local_knowledge import LocalKnowledge
from gkd.knowledge.settings import choose_instances
from gkd.knowledge.similarities import Basis, similarities, trust
from gkd.knowledge.soft_label import SoftLabel, choose_soft_label
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.bank import PrototypeBank
    from gkd.detectors import DetectorPair
    from gkd.detectors.step import Step

DEFAULTS = MappingProxyType({})


@KNOWLEDGE.register_module()
class RobustDistillingModule(Knowledge):
    """RDM: teach global, local and soft-label knowledge, each instance weighted by its trust.

    The trust in an instance is how far teacher and student agree on how typical it is of its
    class: 1 minus the difference of its largest similarities to the class's prototypes in the two
    spaces. Instances are pooled once per level and weighted once, for all three kinds of
    knowledge.

    Args:
        pair: Traits of teacher and student; the :class:`gkd.distiller.Distiller` fills it in.
        global_knowledge: Settings of :class:`~gkd.knowledge.global_knowledge.GlobalKnowledge`;
            None leaves it out. With ``space='classes'`` those of
            :class:`~gkd.knowledge.class_space.ClassSpaceKnowledge`, which takes its place: not the
            paper's form, but of more use in our measurements.
        local_knowledge: Settings of :class:`~gkd.knowledge.local_knowledge.LocalKnowledge`; None
            leaves it out.
        soft_label: Settings of :class:`~gkd.knowledge.soft_label.SoftLabel`; None leaves it out.
            ``'auto'`` teaches it with its default settings if teacher and student classify the
            same boxes. Otherwise it is left out, and the log says why.
        instances: ``'positives'`` teaches the positives that the student's sampler chose, ``'gt'``
            the ground-truth boxes; ``'auto'`` the positives if the student samples some, else the
            ground-truth boxes.
        robust: Weigh by trust; False gives every instance weight 1.
        decay: Lower the weights of global and local knowledge from 1 to 0 over training.
        start: Share of the training's epochs, in [0, 1), before teaching begins: until then all
            losses are 0. For example, 0.5 means the first 12 of 24 epochs. The decay is not
            delayed.

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
        soft_label, self.left_out = choose_soft_label(soft_label, pair)
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
        log_what_is_taught(self)
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
                losses.update(self.teach_boxes(step, own, of_positives))
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
                        f'detector is most confident of a class')
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
            Weights of the cells, ``(B, H_l, W_l)`` per level.
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

    def teach_boxes(self, step: Step, weights: Tensor,
                    of_positives: Optional[Tensor]) -> dict[str, Tensor]:
        """Soft labels at the boxes that the student's sampler chose, of all stages of a cascade.

        Args:
            step: The step.
            weights: Robust weights of the taught instances, each on its own level, ``(n,)``.
            of_positives: Those of the RoI-pooled positives, ``(L, n)``; None if not compared.
        """
        if of_positives is not None:
            weights = own_level(of_positives, step.roi_levels)
        elif self.instances == 'gt':
            weights = self.weigh_boxes(step, step.boxes, step.labels)
        losses = self.soft_label(step.student.logits, step.teacher.logits, weights)
        self.teach_stages(step, losses)
        return losses

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


def log_what_is_taught(module: RobustDistillingModule) -> None:
    """Log once what a module teaches, at which boxes, and why it may leave out soft labels."""
    name = type(module).__name__
    logger().info(f'{name} teaches {module.describe(module.pair.student.name)}.')
    left_out = module.describe_left_out()
    if left_out:
        logger().info(f'{name} leaves out {left_out}')


def build(kind: type, settings: Optional[Mapping], key: str, *args) -> Optional[nn.Module]:
    """Build a part from its settings; None stays None.

    Raises:
        ConfigError: A setting is unknown, or of another type.
    """
    if settings is None:
        return None
    known = set(inspect.signature(kind).parameters) - {'pair'}
    unknown = settings.keys() - known
    if unknown:
        raise ConfigError(f'{key} has unknown settings {sorted(unknown)}; '
                          f'it takes {sorted(known)}.')
    check_types(kind.__init__, settings, key)
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
