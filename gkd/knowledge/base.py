"""The one interface of everything that a student can be taught."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from torch import Tensor, nn

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair, StepRecord
    from gkd.prototypes import PrototypeBank


class Knowledge(nn.Module):
    """A kind of knowledge: reads what teacher and student saw in a step, returns losses.

    To add one: subclass in a file of its own, register with ``KNOWLEDGE``, list it in a config.
    Layers that only distillation needs (such as adaptation convolutions) are submodules; they
    train with the student, are saved with it and are left behind on export.

    Args:
        pair: Traits of teacher and student. A subclass raises :class:`gkd.errors.ConfigError`
            here, with the reason, if it cannot serve them.

    Attributes:
        needs_logits: The teacher's class logits at the student's positives are wanted.
        needs_proposals: Both detectors' class logits at all of a two-stage student's sampled
            proposals are wanted.
        needs_dense: Both detectors' :class:`~gkd.detectors.step.DensePredictions` are wanted.
        needs_bank: A prototype bank must have been generated.
    """

    needs_logits = False
    needs_proposals = False
    needs_dense = False
    needs_bank = False

    def __init__(self, pair: DetectorPair):
        super().__init__()
        self.pair = pair

    def forward(self, student: StepRecord, teacher: StepRecord, bank: Optional[PrototypeBank],
                progress: float) -> dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            student: What the student computed; gradients flow into it.
            teacher: What the teacher computed, on the same images, boxes and levels.
            bank: The current prototypes; None unless ``needs_bank``.
            progress: Epochs done / epochs in all, in [0, 1).

        Returns:
            Scalars by name; a name starts with ``loss`` and is logged as it is.
        """
        raise NotImplementedError
