"""Patches of the heads of MMDetection 3.x."""

from __future__ import annotations

import functools

from mmdet.models.dense_heads import SSDHead


def let_ssd_detect() -> None:
    """Give SSD's heads the attribute ``loss_cls``, as all other dense heads have it.

    Reason: in a test, every dense head asks its ``loss_cls`` how classes are scored; SSD's head
    computes its loss itself, so a test of it ended with an AttributeError.
    For: mmdet 3.x up to 3.3.
    """
    initialise = SSDHead.__init__

    @functools.wraps(initialise)
    def initialise_all(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        if not hasattr(self, 'loss_cls'):
            self.loss_cls = None

    SSDHead.__init__ = initialise_all
