"""Layers that bring the student's maps into the teacher's space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import torch
from torch import nn

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair


def adaptation(pair: DetectorPair, levels: Optional[Sequence[int]] = None) -> nn.ModuleList:
    """One 3x3 convolution per paired level, ``C_S -> C_T``; maps keep their size.

    Weights, and so the maps, have channels last: GPUs convolve so, and would bring weights and
    results of every layer from one layout to the other and back.

    Args:
        pair: Traits of teacher and student.
        levels: Paired levels whose maps are needed, 0 being the finest; by default all. Maps of
            other levels stay as they are: distributed training waits for every layer's gradient.

    Returns:
        The convolutions, finest level first.
    """
    wanted = range(pair.num_levels) if levels is None else levels
    layers = nn.ModuleList(
        nn.Conv2d(student, teacher, kernel_size=3, padding=1) if level in wanted else nn.Identity()
        for level, (student, teacher) in
        enumerate(zip(pair.channels(pair.student), pair.channels(pair.teacher))))
    for layer in (layers[level] for level in wanted):
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return layers


def quiet_adaptation(pair: DetectorPair) -> nn.ModuleList:
    """The layers of :func:`adaptation`, starting out near 0.

    As in the public implementations of FGFI and DeFeat, the weights have a standard deviation of
    1e-4. (Those implementations also fold back values beyond two standard deviations.) The
    convolution therefore learns first, and pulls the student towards the teacher's map only as it
    learns.

    Args:
        pair: Traits of teacher and student.

    Returns:
        The convolutions, finest level first.
    """
    layers = adaptation(pair)
    for layer in layers:
        nn.init.normal_(layer.weight, std=1e-4)
    return layers
