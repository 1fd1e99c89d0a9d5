"""What a dense head predicts at every place: a one-stage head, or the RPN of a two-stage."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

import torch
from torch import Tensor, nn

from gkd.detectors.pair import DetectorInfo, DetectorPair
from gkd.detectors.step import DensePredictions, Needs


def dense_head(detector: nn.Module) -> Optional[nn.Module]:
    """The head that predicts at every place: a one-stage detector's, or an RPN; None without."""
    head = getattr(detector, 'rpn_head', None)
    return main_head(detector) if head is None else head


def main_head(detector: nn.Module) -> Optional[nn.Module]:
    """The head of a one-stage detector, or of one that segments without boxes; None without."""
    heads = (getattr(detector, name, None) for name in ('bbox_head', 'mask_head', 'panoptic_head'))
    return next((head for head in heads if head is not None), None)


def object_classes(head: nn.Module) -> int:
    """Classes of objects, which have boxes; a panoptic head also has classes of regions."""
    return getattr(head, 'num_things_classes', head.num_classes)


def class_layers(head: Optional[nn.Module]) -> Optional[nn.Sequential]:
    """The layers of a dense head between a map and the layer that scores classes.

    None if the head has none, as SSD's, or other ones for every level, as RTMDet's.

    Args:
        head: A head, built by MMDetection.
    """
    layers = getattr(head, 'cls_convs', None)
    if not isinstance(layers, nn.ModuleList) or not len(layers) \
            or any(isinstance(layer, nn.ModuleList) for layer in layers):
        return None
    return nn.Sequential(*layers)


def predicted_maps(head: Optional[nn.Module],
                   maps: tuple[Tensor, ...]) -> Optional[tuple[list[Tensor], ...]]:
    """What a dense head predicts from maps; None without such a head, or if its form differs.

    Args:
        head: A head, built by MMDetection.
        maps: All maps of its detector, ``(B, C, H_l, W_l)``.
    """
    if head is None or wants_more_than_maps(head):
        return None
    try:
        outputs = head(maps)
    except (AssertionError, NotImplementedError):
        return None  # it predicts for one image at a time (guided anchors), or stage by stage
    return outputs if is_dense(head, outputs, maps) else None


def wants_more_than_maps(head: nn.Module) -> bool:
    """Whether a head's ``forward`` must be given other arguments than maps."""
    required = [name for name, parameter in inspect.signature(head.forward).parameters.items()
                if parameter.default is parameter.empty
                and parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    # MMDetection 3's DETR runs its transformer itself, and its head reads the queries.
    return len(required) > 1 or 'hidden_states' in required


def is_dense(head: nn.Module, outputs: object, maps: tuple[Tensor, ...]) -> bool:
    """Whether outputs are class scores and regressions at every place, level by level."""
    classes = getattr(head, 'cls_out_channels', None)
    if not isinstance(outputs, (tuple, list)) or len(outputs) < 2 or not classes:
        return False
    scores = outputs[0]
    if not isinstance(scores, (tuple, list)) or len(scores) != len(maps):
        return False
    anchors = [len(level) for level in
               getattr(getattr(head, 'prior_generator', None), 'base_anchors', ())]
    return all(
        torch.is_tensor(level) and level.shape[0] == own.shape[0]
        and level.shape[2:] == own.shape[2:]
        and (level.shape[1] == classes * anchors[number] if anchors
             else level.shape[1] % classes == 0)
        for number, (level, own) in enumerate(zip(scores, maps)))


@contextmanager
def without_regression(head: nn.Module) -> Iterator[None]:
    """Leave out the layers between a map and a dense head's regression while a block runs.

    What the head returns as regressions means nothing then. See :func:`scores_apart`.
    """
    layers = head.reg_convs
    head.reg_convs = nn.ModuleList()
    try:
        yield
    finally:
        head.reg_convs = layers


def scores_apart(head: Optional[nn.Module], maps: tuple[Tensor, ...]) -> bool:
    """Whether the class scores of a dense head stay the same :func:`without_regression`.

    Some heads first regress a box and then score the class of what lies there (VFNet, RepPoints).

    Args:
        head: A head, built by MMDetection.
        maps: Maps of the sizes of those of its detector, ``(B, C, H_l, W_l)``.
    """
    layers = getattr(head, 'reg_convs', None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    generator = torch.Generator().manual_seed(0)
    maps = tuple(torch.randn(level.shape, generator=generator).to(level) for level in maps)
    whole = predicted_maps(head, maps)
    try:
        with without_regression(head):
            part = predicted_maps(head, maps)
    except (RuntimeError, IndexError):
        return False  # other channels, or layers of its own for every level (RTMDet)
    return None not in (whole, part) and all(map(torch.equal, whole[0], part[0]))


def class_logits(scores: list[Tensor], info: DetectorInfo) -> list[Tensor]:
    """A dense head's class scores as logits; most heads return logits already.

    Example:
        >>> from types import SimpleNamespace
        >>> class_logits([torch.tensor([0.5])], SimpleNamespace(probabilities=True))  # as TOOD's
        [tensor([0.])]
    """
    if not info.probabilities:
        return scores
    return [level.float().logit(eps=1e-6) for level in scores]


def dense_predictions(head: nn.Module, outputs: tuple[list[Tensor], ...],
                      maps: tuple[Tensor, ...], pair: DetectorPair, info: DetectorInfo,
                      needs: Needs) -> Optional[DensePredictions]:
    """Arrange a dense head's maps of the paired levels as one list of places per image.

    Args:
        head: The head, built by MMDetection.
        outputs: What its ``forward`` returned: class logits ``(B, A * C, H_l, W_l)`` and box
            regressions ``(B, A * R, H_l, W_l)`` of every level of the detector.
        maps: What it predicted from, all maps of the detector.
        pair: Traits of teacher and student.
        info: Traits of this detector.
        needs: What the kinds of knowledge want to see.

    Returns:
        The predictions on the paired levels; of a head that predicts otherwise (YOLOv3) only its
        anchors, and None if there is nothing that is needed.
    """
    levels = pair.levels(info)
    predictions = None
    if needs.dense and info.predicts_densely:
        scores = class_logits(outputs[0], info)
        logits = [per_place(scores[level], head.cls_out_channels) for level in levels]
        predictions = DensePredictions(torch.cat(logits, dim=1),
                                       tuple(level.shape[1] for level in logits))
    if info.anchors and (needs.anchors or needs.boxes):
        anchors = head.prior_generator.grid_priors(
            [level.shape[-2:] for level in maps], device=maps[0].device)
        anchors = [anchors[level] for level in levels]
        predictions = predictions or DensePredictions(None, tuple(map(len, anchors)))
        predictions.anchors = torch.cat(anchors)
    if info.box_coding and needs.boxes:
        deltas = torch.cat([per_place(outputs[1][level], 4) for level in levels], dim=1)
        predictions.deltas = deltas
        # In half precision the coordinates of large images would be off by pixels.
        predictions.boxes = head.bbox_coder.decode(
            predictions.anchors.expand_as(deltas).flatten(0, 1),
            deltas.detach().float().flatten(0, 1)).view_as(deltas)
    return predictions


def per_place(scores: Tensor, channels: int) -> Tensor:
    """Turn a map ``(B, A * channels, H, W)`` into ``(B, H * W * A, channels)``.

    Example:
        >>> per_place(torch.tensor([[[[0, 1]], [[2, 3]]]]), channels=2)
        tensor([[[0, 2],
                 [1, 3]]])
    """
    return scores.permute(0, 2, 3, 1).reshape(len(scores), -1, channels)
