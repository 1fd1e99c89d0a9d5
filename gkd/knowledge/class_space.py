"""Global knowledge where the teacher tells classes apart: in the space of its head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.detectors.step import Needs
from gkd.errors import ConfigError
from gkd.frameworks import bbox2roi
from gkd.knowledge.precision import HALF, cast_weights, full_precision
from gkd.knowledge.similarities import Unit

if TYPE_CHECKING:
    from gkd.bank import PrototypeBank
    from gkd.detectors import DetectorPair
    from gkd.detectors.pair import DetectorInfo
    from gkd.detectors.step import DensePredictions, Step

KEY = 'global_knowledge.space = "classes"'
ADVICE = 'set global_knowledge.space="maps", or global_knowledge=None.'
TINY = 1e-6  # stands in for a length or a sum of 0


@full_precision
def class_directions(prototypes: Tensor) -> Tensor:
    """What projects features of the class space onto prototypes, in units of their mean length.

    Args:
        prototypes: Features of P instances there, ``(P, D)``.

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

    Its coordinates are its projections onto the prototypes. They become a distribution,
    :math:`p = softmax(coordinates / T)`; the loss is :math:`KL(p^T \| p^S)`, the weighted mean
    over all. Cosines would forget how strong a response is, by which the best of several boxes of
    an object is told from the others.

    Args:
        student: The student's features of n cells or boxes in the class space, float ``(n, D)``.
            The only argument that receives a gradient.
        teacher: The teacher's, likewise.
        directions: The prototypes' :func:`class_directions`, ``(D, P)``.
        weights: What each counts for, ``(n,)``, at least 0.
        temperature: T.

    Returns:
        Scalar; 0, with a gradient of 0, if nothing counts or there is no prototype.

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

    Maps hold where objects are as well as what they are, and instances of different classes lie
    close together there; after the class layers of the teacher's head they do not. The student's
    adapted maps pass through the same frozen layers, so that the prototypes, as the teacher reads
    them there, are one basis for both. Not only instances are compared but the cells at which
    either detector is surest of an object, and by how sure: among them is what the student takes
    for one. If the teacher is two-stage, boxes are compared as its RoI head reads them: the
    surest of the proposals that the student sampled. Not the paper's form; see docs/method.md.

    Args:
        pair: Traits of teacher and student.
        loss_weight: Factor of the loss.
        temperature: Divides the coordinates; the smaller, the more the nearest prototypes count.
        num_cells: Cells, or proposals, an image that are compared, on all levels together.

    Raises:
        ConfigError: A setting is out of range, or the pair cannot be served: the teacher must
            have class layers, and both detectors must predict at every place, or both classify
            proposals.
    """

    def __init__(self, pair: DetectorPair, loss_weight: float = 3.0, temperature: float = 0.1,
                 num_cells: int = 256):
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f'global_knowledge.temperature = {temperature!r}: must be above 0.')
        if num_cells < 1:
            raise ConfigError(f'global_knowledge.num_cells = {num_cells!r}: must be at least 1.')
        pair.require_class_layers(KEY, ADVICE)
        self.at_proposals = pair.teacher.is_two_stage
        if self.at_proposals:
            pair.require_logits_of_proposals(KEY, ADVICE)
        else:
            pair.require_dense_predictions(KEY, ADVICE)
        self.needs = Needs(bank=True, class_layers=True, proposals=self.at_proposals,
                           dense=not self.at_proposals)
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
        """Compare the surest cells or proposals of a step.

        Args:
            step: The step, with prototypes and class layers.
            adapted: The student's maps in the space of the teacher's, ``(B, C_T, H_l, W_l)``.
            decay: Factor that falls from 1 to 0 over training.

        Raises:
            ConfigError: The prototypes are of a training in another space.
        """
        if not step.bank.class_features:
            raise ConfigError(f'{KEY}: the prototypes were generated without it. Train into '
                              f'another work dir, or --resume never.')
        compare = self.surest_proposals if self.at_proposals else self.surest_cells
        student, teacher, weights = compare(step, adapted)
        loss = class_space_loss(student, teacher, self.directions(step.bank), weights,
                                self.temperature)
        return dict(loss_global=loss * (self.loss_weight * decay))

    def surest_cells(self, step: Step, adapted: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``(n, D)`` of cells, the student's and the teacher's, and their weights."""
        sizes = [feature.shape[-2:].numel() for feature in adapted]
        weights, cells = self.surest(
            torch.maximum(sureness(step.student.dense, self.pair.student, sizes),
                          sureness(step.teacher.dense, self.pair.teacher, sizes)).flatten(), step)
        read = map(self.class_layers(step, adapted), adapted)
        student, teacher = (
            torch.cat([level.flatten(2).mT for level in maps], dim=1).flatten(0, 1)
            .index_select(0, cells)  # whose gradient, unlike that of [cells], sorts nothing
            for maps in (read, step.teacher.class_maps))
        return student, teacher, weights

    def surest_proposals(self, step: Step,
                         adapted: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``(n, D)`` of proposals, the student's and the teacher's, and their weights."""
        weights, chosen = self.surest(
            torch.maximum(best_score(step.student.proposal_logits, self.pair.student),
                          best_score(step.teacher.proposal_logits, self.pair.teacher)), step)
        # Under autocast the maps are in half precision, but RoIAlign needs the RoIs' precision.
        maps = [adapted[level].float() for level in self.levels]
        student = self.class_layers(step, adapted)(maps, bbox2roi(step.proposals)[chosen])
        return student, step.teacher.class_features[chosen], weights

    def class_layers(self, step: Step, adapted: list[Tensor]) -> nn.Module:
        """The step's class layers; under autocast those whose weights need no further cast."""
        dtype = adapted[0].dtype
        if dtype not in HALF:
            return step.class_layers
        if self.cast[0] != (step.class_layers, dtype):
            self.cast = (step.class_layers, dtype), cast_weights(step.class_layers, dtype)
        return self.cast[1]

    def surest(self, scores: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The largest of scores ``(m,)`` of all places of a step, and where they are."""
        number = min(self.num_cells * len(step.images), len(scores))
        return scores.topk(number, sorted=False)

    def directions(self, bank: PrototypeBank) -> Tensor:
        """The bank's prototypes as :func:`class_directions`, made once per bank."""
        if bank is not self.arranged[0]:
            self.arranged = bank, class_directions(torch.cat(bank.class_features))
        return self.arranged[1]


@torch.no_grad()
def sureness(dense: DensePredictions, info: DetectorInfo, sizes: list[int]) -> Tensor:
    """The largest class score at every cell of the paired levels, ``(B, N)`` in [0, 1].

    Args:
        dense: What a dense head predicted.
        info: Traits of its detector.
        sizes: Cells of every level.
    """
    counts = dense.counts[:len(sizes)]
    logits = dense.logits[:, :sum(counts)]
    if len({count // size for count, size in zip(counts, sizes)}) == 1:
        # As many predictions a cell on all levels, which are read in one go.
        counts, sizes = [sum(counts)], [sum(sizes)]
    return torch.cat([best_score(level.unflatten(1, (size, -1)), info, dim=(-2, -1))
                      for level, size in zip(logits.split(counts, dim=1), sizes)], dim=1)


@torch.no_grad()
def best_score(logits: Tensor, info: DetectorInfo, dim: tuple[int, ...] = (-1,)) -> Tensor:
    """The largest score of any class, in [0, 1], of logits ``(..., num_logits)``.

    Args:
        logits: Of a detector.
        info: Traits of the detector.
        dim: Dimensions over which the largest is taken: that of the classes, the last, at least.
    """
    if info.sigmoid:  # grows with the logit: only the largest needs it
        return logits.amax(dim).float().sigmoid()
    return logits.float().softmax(dim=-1)[..., :info.num_classes].amax(dim)
