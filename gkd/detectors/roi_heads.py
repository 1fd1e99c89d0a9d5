"""What is done with a RoI head, be it plain or a cascade of heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Callable, Union

import torch
from torch import Tensor, nn

from gkd.detectors.step import Call, recorded
from gkd.watching import watched


def first(parts: object) -> object:
    """The first of a cascade's parts; a part of a plain RoI head as it is."""
    return parts[0] if isinstance(parts, (list, nn.ModuleList)) else parts


def each(parts: Union[nn.Module, list, None]) -> list[nn.Module]:
    """A cascade's parts, one a stage; that of a plain RoI head alone; none if there is none."""
    if parts is None:
        return []
    return [*parts] if isinstance(parts, (list, nn.ModuleList)) else [parts]


def is_cascade(roi_head: nn.Module) -> bool:
    """Whether a RoI head has one head per stage."""
    return isinstance(roi_head.bbox_head, nn.ModuleList)


def classify(roi_head: nn.Module, maps: tuple[Tensor, ...], rois: Tensor,
             stage: int = 0) -> dict:
    """Run a RoI head, or a stage of a cascade, on boxes.

    Args:
        roi_head: The head, built by MMDetection.
        maps: All maps of its detector, ``(B, C, H_l, W_l)``.
        rois: ``(k, 5)`` as image, x1, y1, x2, y2 in pixels.
        stage: Which of a cascade's heads; its last one if it has fewer.

    Returns:
        MMDetection's results, with ``cls_score`` ``(k, num_logits)`` and mostly ``bbox_feats``.
    """
    further = {}
    # HTC and SCNet add features of the whole image.
    if getattr(roi_head, 'with_semantic', False):
        further['semantic_feat'] = roi_head.semantic_head(maps)[1]
    if getattr(roi_head, 'with_glbctx', False):
        further['glbctx_feat'] = roi_head.glbctx_head(maps)[1]
    stages = (min(stage, len(roi_head.bbox_head) - 1),) if is_cascade(roi_head) else ()
    return roi_head._bbox_forward(*stages, maps, rois, **further)


class RoIClassLayers(nn.Module):
    """The layers of a RoI head between maps and the layer that scores the classes of boxes.

    Args:
        roi_head: The head, built by MMDetection; of a cascade, its first head. Parts are shared,
            not copied.

    Raises:
        AttributeError: The head has no single layer that scores classes.
    """

    def __init__(self, roi_head: nn.Module):
        super().__init__()
        self.bbox_roi_extractor = first(roi_head.bbox_roi_extractor)
        self.bbox_head = first(roi_head.bbox_head)
        self.strides = tuple(self.bbox_roi_extractor.featmap_strides)
        self.channels = self.bbox_head.fc_cls.in_features

    def forward(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Read boxes.

        Args:
            maps: Maps of the extractor's strides ``(B, C, H_l, W_l)`` in float32, finest first;
                further ones are not read.
            rois: ``(k, 5)`` as image, x1, y1, x2, y2 in pixels.

        Returns:
            What the layer that scores classes is given, ``(k, D)``.
        """
        with pooling_without_waiting(self, rois.device):
            pooled = self.bbox_roi_extractor(tuple(maps[:len(self.strides)]), rois)
        with class_inputs(self.bbox_head) as read:
            self.bbox_head(pooled)
        return read[-1].args[0]


def class_inputs(bbox_head: nn.Module) -> AbstractContextManager[list[Call]]:
    """Record the calls of the layer that scores classes while the context is open."""
    return recorded(bbox_head.fc_cls, 'forward')


@contextmanager
def pooling_without_waiting(roi_head: nn.Module, device: torch.device) -> Iterator[None]:
    """Let a RoI head, or every stage of a cascade, pool without a host sync meanwhile.

    MMDetection's extractor counts the RoIs of every level, so the host waits for the device.
    Instead, the few RoIs of a frozen teacher are pooled on every level, and the features of the
    right level are chosen.

    Args:
        roi_head: The head, built by MMDetection.
        device: Where it computes; on the CPU nothing waits.
    """
    with ExitStack() as stack:
        for extractor in each(getattr(roi_head, 'bbox_roi_extractor', None)):
            if device.type != 'cpu' and type(extractor).__name__ == 'SingleRoIExtractor':
                stack.enter_context(watched(
                    extractor, 'forward', partial(pool_in_place_of, extractor)))
        yield


def pool_in_place_of(extractor: nn.Module, _: Callable, maps: tuple[Tensor, ...], rois: Tensor,
                     *args, **kwargs) -> Tensor:
    """What :func:`pooling_without_waiting` lets an extractor do."""
    return pool_on_all_levels(extractor, maps, rois)


def pool_on_all_levels(extractor: nn.Module, maps: tuple[Tensor, ...],
                       rois: Tensor) -> Tensor:
    """RoI features ``(k, C, h, w)``, each from its own level, all computed on all levels."""
    levels = extractor.map_roi_levels(rois, len(maps))[:, None, None, None]
    pooled = extractor.roi_layers[0](maps[0], rois)
    for level, (layer, feature) in enumerate(zip(extractor.roi_layers[1:], maps[1:]), start=1):
        pooled = torch.where(levels == level, layer(feature, rois), pooled)
    return pooled
