"""Soft labels: the teacher's class scores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Optional, Union

from torch import Tensor, nn

from gkd.errors import ConfigError, PairError
from gkd.frameworks import logger
from gkd.knowledge.losses import soft_label_loss
from gkd.knowledge.settings import require_positive

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair


class SoftLabel(nn.Module):
    """The student's class scores approach the teacher's (method section 2.5).

    Args:
        pair: Traits of teacher and student.
        loss_weight: Factor of the loss.
        temperature: Divides the logits.
        activation: ``'softmax'`` over the classes as the authors do for every head, or
            ``'sigmoid'`` for each class alone. By default softmax; but sigmoid if a sigmoid head
            has a single class, because a softmax over one class is constant.

    Raises:
        ConfigError: Teacher and student do not classify the same boxes, ``activation`` is
            unknown, or ``temperature`` is not positive.
    """

    def __init__(self, pair: DetectorPair, loss_weight: float = 1.0, temperature: float = 2.0,
                 activation: Optional[str] = None):
        super().__init__()
        refuse_soft_labels(pair)
        single = pair.student.sigmoid and pair.num_classes == 1
        if activation is None:
            activation = 'sigmoid' if single else 'softmax'
            if single:
                logger().info(
                    'soft_label: activation="sigmoid", as the head scores a single class.')
        if activation not in ('softmax', 'sigmoid'):
            raise ConfigError(f'soft_label.activation = {activation!r}: '
                              f'must be "softmax" or "sigmoid".')
        require_positive(temperature, 'soft_label.temperature')
        self.loss_weight = loss_weight
        self.temperature = temperature
        self.activation = activation

    def forward(self, student: Tensor, teacher: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Compare the logits of the positives.

        Args:
            student: The student's logits, ``(n, num_logits)``.
            teacher: The teacher's, likewise.
            weights: Robust weight of every positive on its own level, ``(n,)``.
        """
        loss = soft_label_loss(student, teacher, weights, self.temperature, self.activation)
        return dict(loss_soft=loss * self.loss_weight)


def choose_soft_label(soft_label: Union[Mapping, str, None],
                      pair: DetectorPair) -> tuple[Optional[Mapping], str]:
    """Choose whether soft labels are taught.

    Args:
        soft_label: As a config says it: settings, None to leave them out, or ``'auto'`` to teach
            them with the default settings where that is possible.
        pair: Traits of teacher and student.

    Returns:
        Settings of :class:`SoftLabel` or None, and why they are left out.

    Raises:
        ConfigError: ``soft_label`` is neither.
    """
    if not isinstance(soft_label, str):
        return soft_label, 'soft_label=None.'
    if soft_label != 'auto':
        raise ConfigError(f'RobustDistillingModule.soft_label = {soft_label!r}: '
                          f'must be "auto", None or a dict of settings.')
    try:
        refuse_soft_labels(pair)
    except PairError as error:
        reason = str(error).replace('soft_label: ', '', 1)
        # The log says what is left out; it gives no advice to leave it out.
        return None, re.sub(r'[;,] (or )?set soft_label=None.*$', '.', reason)
    return {}, ''


def refuse_soft_labels(pair: DetectorPair) -> None:
    """Raise PairError where teacher and student cannot classify the same boxes."""
    where = 'soft_label', 'set soft_label=None to distil without soft labels.'
    if pair.student.trains_places:
        pair.require_dense_predictions(*where)
    else:
        pair.require_class_logits(*where)
    pair.require_same_family(*where)
    pair.require_same_scores(*where)
    if not pair.student.is_two_stage:
        pair.require_same_places(*where)
