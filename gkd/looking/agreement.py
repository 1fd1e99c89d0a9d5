"""How far teacher and student agree on instances, and the mean of it with its confidence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def coordinates(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine similarity of instances ``(n, D)`` to prototypes ``(P, D)``: ``(n, P)``."""
    return F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).T


def typicality(coordinates: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """How typical of its class an instance is: its similarity to the class's nearest prototype.

    The robust weight is 1 minus the difference between the typicality for the teacher and that for
    the student (method section 2.2).

    Args:
        coordinates: Similarities ``(n, P)`` to the prototypes of all classes.
        labels: Classes of the instances, ``(n,)`` int64.
        offsets: Class c owns columns ``offsets[c]:offsets[c + 1]``; ``(num_classes + 1,)`` int64.

    Returns:
        ``(n,)`` in [-1, 1], NaN where the class has no prototype.

    Example:
        >>> typicality(torch.tensor([[0.2, 0.9, 0.4]]), torch.tensor([0]), torch.tensor([0, 1, 3]))
        tensor([0.2000])
    """
    columns = torch.arange(coordinates.shape[1])
    own = (columns >= offsets[labels, None]) & (columns < offsets[labels + 1, None])
    best = coordinates.masked_fill(~own, -torch.inf).amax(dim=1)
    return best.masked_fill(~own.any(dim=1), torch.nan)


def mean_with_band(values: Tensor, groups: Tensor,
                   confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    r"""Mean over instances, and the half width of its confidence band.

    Instances of one image resemble each other, so images, not instances, count as independent
    draws. With G images, n instances and :math:`s_g` the sum of an image's deviations from the
    mean, the variance of the mean is :math:`\frac{G}{G - 1} \sum_g s_g^2 / n^2` (the
    cluster-robust estimate). With one instance per image its root is the textbook's
    :math:`s / \sqrt n`.

    Args:
        values: ``(n, ...)`` float.
        groups: Image of every instance, ``(n,)`` int64.
        confidence: Share of repetitions whose band holds the true mean, as for a normal
            distribution.

    Returns:
        Mean and half width, each of the shape of one instance's values. The width is infinite if
        all instances are of one image.

    Example:
        >>> mean, half = mean_with_band(torch.tensor([1., 2., 3.]), torch.tensor([0, 1, 2]))
        >>> round(mean.item(), 3), round(half.item(), 3)  # 1.96 * 1 / sqrt(3)
        (2.0, 1.132)
    """
    mean = values.mean(dim=0)
    _, group = groups.unique(return_inverse=True)
    count = int(group.max()) + 1
    sums = torch.zeros(count, *values.shape[1:], dtype=values.dtype)
    sums.index_add_(0, group, values - mean)
    if count == 1:
        return mean, torch.full_like(mean, torch.inf)
    variance = count / (count - 1) * sums.square().sum(dim=0) / len(values) ** 2
    quantile = torch.distributions.Normal(0, 1).icdf(torch.tensor((1 + confidence) / 2))
    return mean, quantile * variance.sqrt()
