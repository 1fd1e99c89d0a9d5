"""Layers that bring the student's maps into the teacher's space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair


def adaptation(pair: DetectorPair) -> nn.ModuleList:
    """One 3x3 convolution a paired level, ``C_S -> C_T``; maps keep their size.

    Args:
        pair: Traits of teacher and student.

    Returns:
        The convolutions, finest level first.
    """
    return nn.ModuleList(
        nn.Conv2d(student, teacher, kernel_size=3, padding=1) for student, teacher in
        zip(pair.channels(pair.student), pair.channels(pair.teacher)))


def quiet_adaptation(pair: DetectorPair) -> nn.ModuleList:
    """The layers of :func:`adaptation`, starting out near 0.

    As in the public implementations of FGFI and DeFeat, the weights' standard deviation is 1e-4
    (theirs also fold what lies beyond two of them): the convolution learns first, and only as it
    does is the student pulled towards the teacher's map.

    Args:
        pair: Traits of teacher and student.

    Returns:
        The convolutions, finest level first.
    """
    layers = adaptation(pair)
    for layer in layers:
        nn.init.normal_(layer.weight, std=1e-4)
    return layers
