"""A copy of a detector for fast inference: another precision, folded normalisation."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gkd.detectors.cuda_graphs import RecordedLaunches
from gkd.detectors.dense import predicted_maps
from gkd.detectors.roi_heads import each
from gkd.detectors.view import classified_boxes, image_channels, image_size
from gkd.frameworks import BaseDetector, fuse_conv_bn

# Relative difference of maps up to which a detector with folded normalisation counts as the same.
ROUNDING = 1e-3


@torch.no_grad()
def fast_copy(detector: BaseDetector, dtype: torch.dtype,
              watch: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
              graphs: int) -> BaseDetector:
    """A copy of a detector that computes in another precision.

    Its maps have channels last if its layers can compute so: weight standardisation cannot.
    Batch normalisation is folded into the convolutions where that changes nothing but rounding.
    The other batch normalisation layers keep their statistics in float32, whose range is wide.

    Args:
        detector: In eval mode, in float32.
        dtype: Precision of the copy.
        watch: Called with the maps of every image; returns copies of them to use.
        graphs: Number of image shapes whose launches are recorded.

    Raises:
        RuntimeError: A part of the detector that a step may run does not compute in this
            precision.
    """
    try:
        return copy_in_layout(torch.channels_last, detector, dtype, watch, graphs)
    except RuntimeError:
        return copy_in_layout(torch.contiguous_format, detector, dtype, watch, graphs)


def copy_in_layout(layout: torch.memory_format, detector: BaseDetector, dtype: torch.dtype,
                   watch: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
                   graphs: int) -> BaseDetector:
    """The copy, with images and weights of convolutions that lie in memory in a given way."""
    size = image_size(detector)
    image = torch.randn(1, image_channels(detector.backbone), size, size,
                        generator=torch.Generator().manual_seed(0))
    image = image.to(next(detector.parameters()))
    fused = folded(detector, image)
    # Boxes are pooled in float32: half precision would round their coordinates.
    extractors = roi_extractors(fused)
    pooling = {module for extractor in extractors for module in extractor.modules()}
    for module in fused.modules():
        if not isinstance(module, _BatchNorm) and module not in pooling:
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.is_floating_point():
                    setattr(module, name, cast(tensor, dtype, layout))
    pyramid = RecordedLaunches(fused.extract_feat, graphs) if graphs else fused.extract_feat

    def extract_feat(images: Tensor, *args, **kwargs) -> tuple[Tensor, ...]:
        images = images.to(dtype, memory_format=layout)
        with torch.autocast(images.device.type, enabled=False):
            return watch(pyramid(images, *args, **kwargs))

    fused.extract_feat = extract_feat
    for head in heads(fused):
        head.forward = in_precision(head.forward, dtype)
    for extractor in extractors:
        extractor.forward = in_precision(extractor.forward, torch.float)
    maps = fused.extract_feat(image)
    for name in ('rpn_head', 'bbox_head'):
        predicted_maps(getattr(fused, name, None), maps)
    box = torch.tensor([[0, 0, 0, size / 2, size / 2]]).to(image)
    full = tuple(widened(feature, torch.contiguous_format) for feature in maps)
    classified_boxes(fused, full, box)
    return fused


def folded(detector: BaseDetector, image: Tensor) -> BaseDetector:
    """A copy, with batch normalisation folded into the convolutions if its maps stay the same.

    Where normalisation does not follow its convolution in the order of the layers, as in NAS-FCOS,
    folding fails or changes the maps.

    Args:
        detector: In eval mode, in float32.
        image: Noise ``(1, C, H, W)``.
    """
    exact = detector.extract_feat(image)
    try:
        fused = fuse_conv_bn(copy.deepcopy(detector))
        if all(same(*maps) for maps in zip(fused.extract_feat(image), exact)):
            return fused
    except RuntimeError:
        pass
    return copy.deepcopy(detector)


def same(feature: Tensor, other: Tensor) -> bool:
    """Whether two maps differ by rounding only."""
    return bool((feature - other).norm() <= ROUNDING * other.norm())


def cast(tensor: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Any:
    """A parameter or buffer in another precision; weights of convolutions in a layout."""
    memory = layout if tensor.dim() == 4 else torch.preserve_format
    values = tensor.detach().to(dtype, memory_format=memory)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=False)
    return values


def heads(detector: BaseDetector) -> list[nn.Module]:
    """The parts that predict: dense heads, and all parts of a RoI head but what pools."""
    found = [getattr(detector, 'rpn_head', None), getattr(detector, 'bbox_head', None)]
    found += [part for part in roi_parts(detector) if part not in roi_extractors(detector)]
    return [head for head in found if head is not None]


def roi_extractors(detector: BaseDetector) -> list[nn.Module]:
    """What pools boxes from maps; some kinds have weights of their own."""
    return [part for part, name in roi_parts(detector).items() if name.endswith('roi_extractor')]


def roi_parts(detector: BaseDetector) -> dict[nn.Module, str]:
    """The parts of a RoI head and their names; those of all stages of a cascade."""
    roi_head = getattr(detector, 'roi_head', None)
    children = roi_head.named_children() if roi_head is not None else ()
    return {part: name for name, parts in children for part in each(parts)}


def in_precision(function: Callable, dtype: torch.dtype) -> Callable:
    """The function, computed in ``dtype``; what it returns is float32."""
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with torch.autocast('cuda', enabled=False), torch.autocast('cpu', enabled=False):
            result = function(*converted(args, dtype), **kwargs)
        return converted(result, torch.float)

    return wrapped


def converted(value: Any, dtype: torch.dtype) -> Any:
    """A tensor, or all tensors in lists and tuples, in ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(converted(part, dtype) for part in value)
    return value


def widened(feature: Tensor, memory: torch.memory_format = torch.preserve_format) -> Tensor:
    """A map in float32 (or float64), by default as it lies in memory.

    Adapted maps of the student have channels last, too, so that the two are compared as they lie.
    """
    return feature.to(torch.promote_types(feature.dtype, torch.float), memory_format=memory)
