"""Global knowledge in the class space: that of the layers by which the teacher classifies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.detectors.step import Needs
from gkd.errors import ConfigError, require_count
from gkd.frameworks import bbox2roi
from gkd.knowledge.precision import HALF, cast_weights, full_precision
from gkd.knowledge.settings import require_positive
from gkd.knowledge.similarities import Unit

if TYPE_CHECKING:
    from gkd.bank import PrototypeBank
    from gkd.detectors import DetectorPair
    from gkd.detectors.pair import DetectorInfo
    from gkd.detectors.step import DetectorOutputs, Step

KEY = 'global_knowledge.space = "classes"'
ADVICE = 'set global_knowledge.space="maps", or global_knowledge=None.'
TINY = 1e-6  # replaces a length or a sum of 0 in a divisor


@full_precision
def class_directions(prototypes: Tensor) -> Tensor:
    """Directions of the prototypes, scaled to give projections in units of their mean length.

    Args:
        prototypes: Features of P instances in the class space, ``(P, D)``.

    Returns:
        ``(D, P)``: the prototypes' directions, divided by their mean length.

    Example:
        >>> class_directions(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    length = torch.linalg.vector_norm(prototypes, dim=-1).mean()
    return Unit.apply(prototypes).mT / length.clamp(min=TINY)


@full_precision
def class_space_loss(student: Tensor, teacher: Tensor, directions: Tensor, weights: Tensor,
                     temperature: float) -> Tensor:
    r"""Teach the student which of all prototypes a cell or box resembles, and how clearly.

    Its coordinates are its projections onto the prototypes. A softmax turns them into a
    distribution, :math:`p = softmax(coordinates / T)`; the loss is :math:`KL(p^T \| p^S)`,
    averaged over all cells or boxes with their weights. Cosines would discard the strength of a
    response, which distinguishes the best of several boxes of an object from the others.

    Args:
        student: The student's features of n cells or boxes in the class space, float ``(n, D)``.
            The only argument that receives a gradient.
        teacher: The teacher's, likewise.
        directions: The prototypes' :func:`class_directions`, ``(D, P)``.
        weights: Weight of each, ``(n,)``, at least 0.
        temperature: T.

    Returns:
        Scalar; 0, with a gradient of 0, if all weights are 0 or there is no prototype.

    Example:
        >>> cells = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> class_space_loss(cells, cells, cells, torch.ones(2), temperature=0.1)
        tensor(0.)
        >>> class_space_loss(cells.flip(0), cells, cells, torch.ones(2), temperature=1.0)
        tensor(0.4621)
    """
    directions = directions / temperature
    logits = [cells @ directions for cells in (student, teacher.detach())]
    divergence = F.kl_div(*(F.log_softmax(role, dim=-1) for role in logits), reduction='none',
                          log_target=True).sum(dim=-1)
    return (divergence * weights).sum() / weights.sum().clamp(min=TINY)


class ClassSpaceKnowledge(nn.Module):
    """The student's coordinates in the teacher's class space approach the teacher's.

    Maps encode where objects are as well as what they are, so instances of different classes lie
    close together in their space. Behind the class layers of the teacher's head they do not. The
    student's adapted maps pass the same frozen layers, so the prototypes, as the teacher reads
    them there, are one basis for both detectors. Cells are compared instead of instances: those at
    which either detector is most confident of an object, weighted by this confidence. They include
    what the student mistakes for an object. If the teacher is two-stage, boxes are compared as its
    RoI head reads them: the most confident of the proposals that the student sampled. This is not
    the paper's form; see method section 5.

    Args:
        pair: Traits of teacher and student.
        loss_weight: Factor of the loss.
        temperature: Divides the coordinates; the smaller, the more the nearest prototypes count.
        num_cells: Number of cells or proposals compared per image, on all levels together.

    Raises:
        ConfigError: A setting is out of range, or the pair cannot be served: the teacher must
            have class layers, and both detectors must be one-stage and predict at every place, or
            both classify proposals.
    """

    def __init__(self, pair: DetectorPair, loss_weight: float = 3.0, temperature: float = 0.1,
                 num_cells: int = 256):
        super().__init__()
        require_positive(temperature, 'global_knowledge.temperature')
        require_count(num_cells, 'global_knowledge.num_cells')
        pair.require_class_layers(KEY, ADVICE)
        self.at_proposals = pair.teacher.is_two_stage
        if self.at_proposals:
            pair.require_logits_of_proposals(KEY, ADVICE)
        else:
            pair.require_same_family(KEY, ADVICE)
            pair.require_dense_predictions(KEY, ADVICE)
        self.needs = Needs(bank=True, class_layers=True, proposals=self.at_proposals,
                           score_maps=not self.at_proposals)
        self.levels = [pair.strides.index(stride) for stride in pair.teacher.roi_strides] \
            if self.at_proposals else list(range(pair.num_levels))
        self.pair = pair
        self.loss_weight = loss_weight
        self.temperature = temperature
        self.num_cells = num_cells
        self.places = 'proposals' if self.at_proposals else 'cells'
        self.arranged: tuple[Optional[PrototypeBank], Tensor] = (None, torch.empty(0))
        # In a tuple, so that the layers are no part of this module.
        self.cast: tuple[Optional[tuple[nn.Module, torch.dtype]], Optional[nn.Module]] = (None,
                                                                                          None)

    def forward(self, step: Step, adapted: list[Tensor], decay: float) -> dict[str, Tensor]:
        """Compare the most confident cells or proposals of a step.

        Args:
            step: The step, with prototypes and class layers.
            adapted: The student's maps in the space of the teacher's, ``(B, C_T, H_l, W_l)``.
            decay: Factor that falls from 1 to 0 over training.

        Raises:
            ConfigError: The prototypes were generated without the class space.
        """
        if not step.bank.class_features:
            raise ConfigError(f'{KEY}: the prototypes were generated without it. Train into '
                              f'another work dir, or --resume never.')
        compare = self.most_confident_proposals if self.at_proposals \
            else self.most_confident_cells
        student, teacher, weights = compare(step, adapted)
        loss = class_space_loss(student, teacher, self.directions(step.bank), weights,
                                self.temperature)
        return dict(loss_global=loss * (self.loss_weight * decay))

    def most_confident_cells(self, step: Step,
                             adapted: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``(n, D)`` of cells, the student's and the teacher's, and their weights."""
        weights, cells = self.select(torch.maximum(*(
            cell_confidence(part.score_maps, self.pair.num_classes + (not info.sigmoid),
                            info.sigmoid)
            for part, info in self.roles(step))).flatten(), step)
        read = map(self.class_layers(step, adapted), adapted)
        student, teacher = (
            torch.cat([level.flatten(2).mT for level in maps], dim=1).flatten(0, 1)
            .index_select(0, cells)  # whose gradient, unlike that of [cells], sorts nothing
            for maps in (read, step.teacher.class_maps))
        return student, teacher, weights

    def most_confident_proposals(self, step: Step,
                                 adapted: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``(n, D)`` of proposals, the student's and the teacher's, and their weights."""
        weights, chosen = self.select(torch.maximum(*(
            confidence(part.proposal_logits, info.sigmoid)
            for part, info in self.roles(step))), step)
        # Under autocast the maps are in half precision, but RoIAlign needs the RoIs' precision.
        maps = [adapted[level].float() for level in self.levels]
        student = self.class_layers(step, adapted)(maps, bbox2roi(step.proposals)[chosen])
        return student, step.teacher.class_features[chosen], weights

    def roles(self, step: Step) -> tuple[tuple[DetectorOutputs, DetectorInfo], ...]:
        """What each detector computed in a step, and its traits."""
        return (step.student, self.pair.student), (step.teacher, self.pair.teacher)

    def class_layers(self, step: Step, adapted: list[Tensor]) -> nn.Module:
        """The step's class layers; under autocast those whose weights need no further cast."""
        dtype = adapted[0].dtype
        if dtype not in HALF:
            return step.class_layers
        if self.cast[0] != (step.class_layers, dtype):
            self.cast = (step.class_layers, dtype), cast_weights(step.class_layers, dtype)
        return self.cast[1]

    def select(self, confidences: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The largest confidences ``(m,)`` of all cells or proposals, and their indices."""
        number = min(self.num_cells * len(step.images), len(confidences))
        return confidences.topk(number, sorted=False)

    def directions(self, bank: PrototypeBank) -> Tensor:
        """The bank's prototypes as :func:`class_directions`, made once per bank."""
        if bank is not self.arranged[0]:
            self.arranged = bank, class_directions(torch.cat(bank.class_features))
        return self.arranged[1]


@torch.no_grad()
def cell_confidence(score_maps: tuple[Tensor, ...], num_logits: int, sigmoid: bool) -> Tensor:
    """The largest class score at every cell of all levels, ``(B, N)`` in [0, 1].

    Args:
        score_maps: Class logits of every level, ``(B, A_l * num_logits, H_l, W_l)``.
        num_logits: Logits of an anchor.
        sigmoid: As for :func:`confidence`.
    """
    if sigmoid:  # the score grows with the logit: only the largest is needed
        return torch.cat([level.amax(dim=1).flatten(1) for level in score_maps],
                         dim=1).float().sigmoid()
    return torch.cat([
        confidence(level.unflatten(1, (-1, num_logits)).movedim(2, -1), sigmoid).amax(1).flatten(1)
        for level in score_maps], dim=1)


@torch.no_grad()
def confidence(logits: Tensor, sigmoid: bool) -> Tensor:
    """The largest score of any class ``(...)``, in [0, 1].

    Args:
        logits: Class logits ``(..., num_logits)``.
        sigmoid: Whether each class is scored by a sigmoid of its own; otherwise by a softmax, and
            the last logit is that of the background.
    """
    if sigmoid:
        return logits.amax(dim=-1).float().sigmoid()
    return logits.float().softmax(dim=-1)[..., :-1].amax(dim=-1)
