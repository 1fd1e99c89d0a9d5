"""Ways to choose prototypes: the joint search, and the controls that it is measured against."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.prototypes.pursuit import select_prototypes

SELECTIONS = ('joint', 'random', 'kmeans', 'teacher', 'student')


def choose_instances(selection: str, teacher: Tensor, student: Tensor, num_prototypes: int,
                     seed: int = 0, **pursuit: float) -> Tensor:
    """Choose the prototypes of one class on one level.

    All ways give the same number of prototypes, so that their effects can be compared. If there
    are fewer instances than that, ``'random'`` and ``'kmeans'`` repeat some.

    Args:
        selection: ``'joint'`` searches both feature spaces at once
            (:func:`~gkd.prototypes.select_prototypes`). ``'teacher'`` and ``'student'`` run the
            same search in one of the two spaces. ``'random'`` draws instances without looking at
            them. ``'kmeans'`` takes the instances that are nearest to the centres of k-means over
            the normalised features of both spaces, side by side.
        teacher: The teacher's features of N instances, float of shape ``(N, D_T)``.
        student: The student's features of the same instances, float of shape ``(N, D_S)``.
        num_prototypes: How many to choose, K.
        seed: Seed of ``'random'`` and of the first centres of ``'kmeans'``.
        **pursuit: Further settings of the search.

    Returns:
        LongTensor of shape ``(num_prototypes,)``: the chosen rows.

    Raises:
        ValueError: ``selection`` is unknown, or the search refuses its input.

    Example:
        >>> teacher = torch.tensor([[3.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 2.0]])
        >>> sorted(choose_instances('kmeans', teacher, teacher, 2).tolist()) in ([0, 2], [0, 3],
        ...                                                                      [1, 2], [1, 3])
        True
    """
    if selection == 'joint':
        return select_prototypes(teacher, student, num_prototypes, **pursuit)
    if selection in ('teacher', 'student'):
        # In two equal spaces all coefficients agree, so this is the search in one space.
        space = teacher if selection == 'teacher' else student
        return select_prototypes(space, space, num_prototypes, **pursuit)
    if selection == 'random':
        rows = np.random.default_rng(seed).permutation(len(teacher))[:num_prototypes]
    elif selection == 'kmeans':
        rows = nearest_to_centres(teacher, student, min(num_prototypes, len(teacher)), seed)
    else:
        raise ValueError(f'selection = {selection!r}: must be one of {", ".join(SELECTIONS)}.')
    return torch.from_numpy(np.resize(rows, num_prototypes)).to(teacher.device)


def nearest_to_centres(teacher: Tensor, student: Tensor, clusters: int, seed: int) -> np.ndarray:
    """Rows of the instances that are nearest to the centres of k-means, one per cluster."""
    from scipy.cluster.vq import kmeans2  # the search itself needs nothing but torch

    features = torch.cat([F.normalize(teacher.double(), dim=1),
                          F.normalize(student.double(), dim=1)], dim=1).cpu()
    centres, _ = kmeans2(features.numpy(), clusters, minit='++', seed=seed)
    return torch.cdist(torch.from_numpy(centres), features).argmin(dim=1).numpy()
