"""Prototype search: density filter and joint matching pursuit over two feature spaces."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Totals that differ by less than this share of all energy differ by rounding only; the lower
# index wins. Rounding in double precision stays orders of magnitude below it.
TIE = 1e-12


@torch.no_grad()
def select_prototypes(
    teacher: Tensor,
    student: Tensor,
    num_prototypes: int = 10,
    alpha: float = 10.0,
    bandwidth: float = 0.1,
    density_quantile: float = 0.4,
    *,
    max_pairs: int = 2**21,
) -> Tensor:
    r"""Choose the instances that serve as common basis vectors of both feature spaces.

    Instances in sparse regions of either space are set aside, then a matching pursuit over both
    spaces at once picks, round by round, the instance that explains most of what is left of all
    features. With residuals :math:`R_a, R_b` and a candidate's unit vectors :math:`a, b`, the
    best coefficients of instance n follow from :math:`i_a = a \cdot R_a[n]` and
    :math:`i_b = b \cdot R_b[n]`, and the candidate lowers the total error by

    .. math:: \frac{1}{1 + 2\alpha} \sum_n (1 + \alpha)(i_a^2 + i_b^2) + 2 \alpha\, i_a i_b

    which depends on the instances only through the second moments :math:`R_a^T R_a`,
    :math:`R_b^T R_b` and :math:`R_a^T R_b`. A round therefore costs one product of the candidates
    with a ``(D_T + D_S, D_T + D_S)`` matrix, whatever the number of instances, and choosing a
    candidate changes that matrix only.

    All arithmetic is in double precision and equal candidates are decided by the lower index, so
    the choice depends neither on the input's precision nor on ``max_pairs``.

    Source: the paper's PGM; method sections 1.2 and 1.3.

    Args:
        teacher: The teacher's features of N instances, float of shape ``(N, D_T)``.
        student: The student's features of the same instances, float of shape ``(N, D_S)``.
        num_prototypes: How many to choose. An instance may be chosen more than once.
        alpha: Weight of the disagreement between an instance's coefficients in the two spaces.
        bandwidth: Width of the Gaussian, in cosine distance, that densities are measured with.
        density_quantile: Share of the instances that the density filter sets aside in each
            space. Where it leaves none, all are candidates.
        max_pairs: Upper bound on the elements of one ``(rows, N)`` block of similarities held at
            a time; it trades memory for speed and never changes the choice.

    Returns:
        LongTensor of shape ``(num_prototypes,)``: the chosen rows, in order of choice.

    Raises:
        ValueError: There is no instance, the two feature sets do not describe the same
            instances, a feature is not finite, or an option is out of range.

    Example:
        >>> features = torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        >>> select_prototypes(features, features, num_prototypes=2)
        tensor([0, 2])
    """
    _check_features(teacher, student)
    _check_options(num_prototypes, alpha, bandwidth, density_quantile, max_pairs)
    teacher = F.normalize(teacher.double(), dim=1)
    student = F.normalize(student.double(), dim=1)

    dense = torch.ones(len(teacher), dtype=torch.bool, device=teacher.device)
    for features in (teacher, student):
        density = _density(features, bandwidth, max_pairs)
        # kthvalue would do, but is refused on a GPU where only deterministic kernels are allowed.
        dense &= density > density.sort().values[int(density_quantile * len(density))]
    candidates = dense.nonzero().flatten()
    if len(candidates) == 0:
        candidates = torch.arange(len(teacher), device=teacher.device)
    return candidates[_pursue(teacher, student, candidates, num_prototypes, alpha)]


def _density(features: Tensor, bandwidth: float, max_pairs: int) -> Tensor:
    """Sum of a Gaussian of the cosine distances to all instances, ``(N,)``.

    Densities are compared in single precision: the filter tests strict inequality, and the last
    bits of a double differ by rounding, not by density.
    """
    density = features.new_zeros(len(features))
    rows = max(1, max_pairs // len(features))
    for start in range(0, len(features), rows):
        block, rest = slice(start, start + rows), slice(start + rows, None)
        # Similarity is symmetric: a block also gives the rest its share, so no pair comes twice.
        distance = (features[block] @ features[start:].T).sub_(1).div_(bandwidth)
        kernel = distance.square_().neg_().exp_()
        density[block] += kernel.sum(dim=1)
        density[rest] += kernel[:, rows:].sum(dim=0)
    return density.float()


def _pursue(
    teacher: Tensor, student: Tensor, candidates: Tensor, num_prototypes: int, alpha: float
) -> Tensor:
    """Joint matching pursuit; returns positions in ``candidates``, ``(num_prototypes,)``."""
    both = torch.cat([teacher, student], dim=1)
    moments = both.T @ both
    tie = TIE * moments.trace()
    atoms = both[candidates]

    # coupling[s, t]: how much the inner product in space t adds to the coefficient in space s.
    coupling = both.new_tensor([[1 + alpha, alpha], [alpha, 1 + alpha]]) / (1 + 2 * alpha)
    space = torch.arange(both.shape[1], device=both.device) >= teacher.shape[1]
    member = F.one_hot(space.long(), 2).to(both)
    weights = member @ coupling @ member.T

    chosen = []
    for _ in range(num_prototypes):
        gain = ((atoms @ (weights * moments)) * atoms).sum(dim=1)
        # One row, not a number: to index by a number, the host would wait for it.
        best = (gain >= gain.max() - tie).to(torch.uint8).argmax(dim=0, keepdim=True)
        chosen.append(best)
        # An instance's coefficients are linear in its residual, so taking the chosen atom's
        # share away maps every residual by one matrix of rank two, and the moments by it twice.
        atom = atoms[best].T * member
        moments = moments - atom @ (coupling @ (atom.T @ moments))
        moments = moments - ((moments @ atom) @ coupling) @ atom.T
    return torch.cat(chosen)


def _check_features(teacher: Tensor, student: Tensor) -> None:
    for name, features in (('teacher', teacher), ('student', student)):
        if features.dim() != 2 or not features.is_floating_point():
            raise ValueError(
                f'{name} features must be a float tensor of shape (N, D), got {features.dtype} '
                f'of shape {tuple(features.shape)}'
            )
        if not torch.isfinite(features).all():
            bad = (~torch.isfinite(features)).any(dim=1).nonzero()[0].item()
            raise ValueError(f'{name} features hold NaN or infinity, first in row {bad}')
    if len(teacher) != len(student):
        raise ValueError(
            'teacher and student features must describe the same instances, got '
            f'{len(teacher)} and {len(student)} rows'
        )
    if len(teacher) == 0:
        raise ValueError('cannot choose prototypes from 0 instances: pass at least one row')


def _check_options(
    num_prototypes: int, alpha: float, bandwidth: float, density_quantile: float, max_pairs: int
) -> None:
    if num_prototypes < 1:
        raise ValueError(f'num_prototypes must be at least 1, got {num_prototypes}')
    if alpha < 0:
        raise ValueError(f'alpha must not be negative, got {alpha}')
    if bandwidth <= 0:
        raise ValueError(f'bandwidth must be positive, got {bandwidth}')
    if not 0 <= density_quantile < 1:
        raise ValueError(f'density_quantile must be in [0, 1), got {density_quantile}')
    if max_pairs < 1:
        raise ValueError(f'max_pairs must be at least 1, got {max_pairs}')
