"""What each prototype of a basis explains, and of which instances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Contributions:
    """What prototypes take away from the residuals, one after the other.

    Attributes:
        teacher: Energy taken from every instance's residual in the teacher's space, ``(K, N)``;
            an instance begins with 1. Negative where the joint coefficient makes it worse.
        student: The same in the student's space.
    """

    teacher: Tensor
    student: Tensor

    @property
    def leaning(self) -> Tensor:
        """Position of the prototype that explains most of an instance in both spaces, ``(N,)``."""
        return (self.teacher + self.student).argmax(dim=0)


@torch.no_grad()
def contributions(teacher: Tensor, student: Tensor, chosen: Tensor,
                  alpha: float = 10.0) -> Contributions:
    r"""Follow the joint matching pursuit along the prototypes that it has chosen.

    With the inner products :math:`i_a, i_b` of a prototype and an instance's residuals, the
    coefficients are :math:`w_a = ((1 + \alpha) i_a + \alpha i_b) / (1 + 2 \alpha)` and the same
    with a and b exchanged; a residual loses :math:`2 w i - w^2` of its squared length.

    Source: the paper's PGM; method section 1.3.

    Args:
        teacher: The teacher's features of N instances, float ``(N, D_T)``.
        student: The student's, ``(N, D_S)``.
        chosen: Rows of the prototypes in order of choice, ``(K,)`` int64.
        alpha: The value that they were chosen with.

    Returns:
        What each prototype takes away.

    Example:
        >>> features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> found = contributions(features, features, torch.tensor([0, 1]))
        >>> found.teacher
        tensor([[1., 0., 1.],
                [0., 1., 0.]], dtype=torch.float64)
        >>> found.leaning
        tensor([0, 1, 0])
    """
    residuals = [F.normalize(features.double(), dim=1) for features in (teacher, student)]
    atoms = [features[chosen] for features in residuals]
    taken = ([], [])
    for k in range(len(chosen)):
        inner = [residual @ atom[k] for residual, atom in zip(residuals, atoms)]
        for space, (own, other) in enumerate((inner, inner[::-1])):
            weight = ((1 + alpha) * own + alpha * other) / (1 + 2 * alpha)
            taken[space].append(2 * weight * own - weight ** 2)
            residuals[space] = residuals[space] - weight[:, None] * atoms[space][k]
    return Contributions(*(torch.stack(rounds) for rounds in taken))


def principal_plane(features: Tensor) -> tuple[Tensor, Tensor]:
    """Project instances onto the two directions in which they differ most (PCA).

    Args:
        features: ``(N, D)`` float; their directions count, not their lengths.

    Returns:
        Coordinates ``(N, 2)`` and the share of the variance along each axis ``(2,)``.

    Example:
        >>> features = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
        >>> places, shares = principal_plane(features)
        >>> places[:, 0].abs()
        tensor([0.7071, 0.7071, 0.0000], dtype=torch.float64)
    """
    centred = F.normalize(features.double(), dim=1)
    centred = centred - centred.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    places = centred @ vectors[:, [-1, -2]]
    return places, values[[-1, -2]] / values.sum().clamp(min=torch.finfo(values.dtype).tiny)


def align(places: Tensor, reference: Tensor) -> Tensor:
    """Rotate and mirror a map so that it lies as close to another as possible; distances stay.

    Args:
        places: ``(N, 2)``.
        reference: ``(N, 2)``, the same instances.

    Returns:
        ``(N, 2)`` (orthogonal Procrustes; places are taken to be centred).

    Example:
        >>> places = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
        >>> torch.allclose(align(places.flip(1), places), places, atol=1e-6)
        True
    """
    left, _, right = torch.linalg.svd(places.T @ reference)
    return places @ (left @ right)
