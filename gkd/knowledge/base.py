"""The one interface of everything that a student can be taught."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from gkd.detectors.step import Needs, Step

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair


class Knowledge(nn.Module):
    """A kind of knowledge: reads what teacher and student saw in a step, returns losses.

    To add one: subclass in a file of its own, register with ``KNOWLEDGE``, list it in a config.
    Layers that only distillation needs (such as adaptation convolutions) are submodules; they
    train with the student, are saved with it and are left behind on export.

    Args:
        pair: Traits of teacher and student. A subclass raises :class:`gkd.errors.PairError` here,
            with the reason, if it cannot serve them.

    Attributes:
        needs: What a step must hold for it besides maps and boxes; set by a subclass, for the
            class or for the instance.
    """

    needs = Needs()

    def __init__(self, pair: DetectorPair):
        super().__init__()
        self.pair = pair

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            step: What both detectors saw and computed.

        Returns:
            Scalars by name; a name starts with ``loss`` and is logged as it is.
        """
        raise NotImplementedError

    def describe(self, student: str = 'the student') -> str:
        """What is taught at what, in words.

        Args:
            student: What to call the student.
        """
        return type(self).__name__

    def describe_left_out(self) -> str:
        """What is taught to other pairs but not to this, and why; empty if there is nothing."""
        return ''
