"""Global knowledge as in the paper: coordinates of instances in the basis of the prototypes."""

from __future__ import annotations

import operator
from functools import reduce

import torch
from torch import Tensor, nn

from gkd.errors import ConfigError
from gkd.knowledge.losses import similarity_loss

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
