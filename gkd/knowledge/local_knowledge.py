"""Local knowledge: the teacher's maps, inside of objects and outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

from torch import Tensor, nn

from gkd.device import on_device
from gkd.errors import ConfigError
from gkd.knowledge.adaptation import adaptation, quiet_adaptation
from gkd.knowledge.channels import taught_levels
from gkd.knowledge.losses import local_knowledge_losses

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair


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
