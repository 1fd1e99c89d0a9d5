"""The frozen teacher, in the precision that it computes in."""

from __future__ import annotations

import copy
import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gkd.detectors.dense import class_layers, main_head, predicted_maps
from gkd.detectors.roi_heads import RoIClassLayers, each
from gkd.detectors.view import classified_boxes, image_channels, image_size
from gkd.errors import ConfigError
from gkd.frameworks import BaseDetector, fuse_conv_bn, logger

PRECISIONS = dict(full=None, half=torch.float16, bfloat16=torch.bfloat16)
ADVICE = "Set model.teacher.precision='full' to compute in full precision from the start."
# Steps between two checks whether a map has overflowed.
INTERVAL = 50
# Relative difference of maps up to which a rebuilt teacher counts as the same.
ROUNDING = 1e-3


class Teacher:
    """A detector that is never trained, and its copy for fast inference on a GPU.

    Teaching needs the teacher's maps no more exact than a GPU's convolutions compute them: TF32,
    the default for float32, rounds to 10 bits of mantissa, as many as float16 has. On a GPU, a
    copy of the detector in half precision therefore computes in its place, with batch
    normalisation folded into the convolutions and, where its layers can, channels last; the exact
    weights stay on the CPU. The largest number in half precision is 65,504. If a map has a larger
    value, this value counts as 0, and the exact detector takes over within :data:`INTERVAL` steps.
    The check does not wait for the device.

    Args:
        detector: The detector, built by MMDetection, with its weights.
        precision: ``'half'``, ``'bfloat16'`` or ``'full'``, on any device; None for half on a GPU
            and full on the CPU.
        graphs: Number of image shapes for which a :class:`Replay` computes the copy's pyramid.
        reads_classes: Whether ``class_layers`` are wanted.

    Attributes:
        exact: The detector as it was given.
        running: The detector that computes: the exact one, or its copy.
        class_layers: A copy of the layers of its head between maps and its class scores, always
            in full precision, as gradients pass through it; None unless wanted.

    Raises:
        ConfigError: ``precision`` is unknown.
    """

    def __init__(self, detector: BaseDetector, precision: Optional[str] = None, graphs: int = 0,
                 reads_classes: bool = False):
        if precision is not None and precision not in PRECISIONS:
            raise ConfigError(f'model.teacher.precision = {precision!r}: must be one of '
                              f'{", ".join(map(repr, PRECISIONS))}, or None for half on a GPU and '
                              f'full on the CPU.')
        self.exact = self.running = detector.requires_grad_(False)
        detector.eval()  # a statement of its own: eval() of some detectors returns nothing
        self.precision = precision
        self.graphs = graphs
        self.reads_classes = reads_classes
        self.class_layers: Optional[nn.Module] = None
        self.sums: Optional[Tensor] = None  # not finite once a map was not
        self.looked_at: Optional[Tensor] = None  # an earlier value, on its way to the host
        self.event: Optional[torch.cuda.Event] = None
        self.steps = 0
        self.copied_dtype: Optional[torch.dtype] = None
        self.apply(lambda tensor: tensor)

    def __deepcopy__(self, memo: dict) -> Teacher:
        """Itself: a copy of a distiller, such as an average of its weights, shares the teacher."""
        return self

    @property
    def dtype(self) -> Optional[torch.dtype]:
        """What the copy computes in; None if the exact detector computes."""
        return None if self.running is self.exact else self.copied_dtype

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the detector, as ``nn.Module._apply`` does, and choose what computes."""
        # While a copy computes on a GPU, the exact weights lie on the CPU.
        device = next(self.running.parameters()).device
        self.exact._apply(lambda tensor: fn(tensor.to(device)))
        if self.reads_classes:
            self.class_layers = copy.deepcopy(layers_of(self.exact))
        device = next(self.exact.parameters()).device
        default = 'half' if device.type == 'cuda' else 'full'
        dtype = PRECISIONS[self.precision or default]
        self.running = self.exact
        if dtype is None or next(self.exact.parameters()).dtype != torch.float32:
            return
        self.copied_dtype = dtype
        self.sums, self.looked_at, self.steps = torch.zeros((), device=device), None, 0
        try:
            self.running = self.fast_copy(dtype)
        except RuntimeError as error:
            logger().warning(f'Teacher: {type(self.exact).__name__} cannot compute in '
                             f'{dtype} and stays in full precision: {error}')
            return
        if device.type != 'cpu':
            self.exact.cpu()
        if self.precision is None:
            logger().info(f'Teacher: computes in half precision, as its device is a GPU. {ADVICE}')

    def fast_copy(self, dtype: torch.dtype) -> BaseDetector:
        """The copy, with channels last if its layers can: weight standardisation cannot."""
        try:
            return fast_copy(self.exact, dtype, torch.channels_last, self.watch, self.graphs)
        except RuntimeError:
            return fast_copy(self.exact, dtype, torch.contiguous_format, self.watch, self.graphs)

    @property
    def class_channels(self) -> int:
        """Channels behind the class layers; 0 if these are not wanted."""
        if self.class_layers is None:
            return 0
        if isinstance(self.class_layers, RoIClassLayers):
            return self.class_layers.channels
        with torch.no_grad():
            weight = next(self.class_layers.parameters())
            return self.class_layers(weight.new_zeros(1, weight.shape[1], 8, 8)).shape[1]

    def watch(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Let values that are not finite count as 0, and remember that there were some."""
        self.sums += torch.stack([feature.sum(dtype=torch.float) for feature in maps]).sum()
        return tuple(feature.nan_to_num(0, 0, 0) for feature in maps)

    def check(self) -> None:
        """Once a step of the copy: let the exact detector compute if a map has overflowed."""
        if self.looked_at is not None and arrived(self.event):
            overflow, self.looked_at = not math.isfinite(self.looked_at.item()), None
            if overflow:
                self.fall_back()
                return
        if self.steps % INTERVAL == 0:
            self.looked_at = self.sums.to('cpu', non_blocking=True)
            self.event = None
            if self.sums.is_cuda:
                self.event = torch.cuda.Event()
                self.event.record()
        self.steps += 1

    def fall_back(self) -> None:
        """Let the exact detector compute from now on, and say so."""
        logger().warning(f'Teacher: a feature map left the range of {self.dtype}; it computes in '
                         f'full precision from now on. {ADVICE}')
        self.exact.to(self.sums.device)
        self.running = self.exact


def layers_of(detector: BaseDetector) -> nn.Module:
    """The class layers of a detector that has them."""
    if getattr(detector, 'roi_head', None) is not None:
        return RoIClassLayers(detector.roi_head)
    return class_layers(main_head(detector))


def arrived(event: Optional[torch.cuda.Event]) -> bool:
    """Whether the value that was requested from the device has arrived."""
    return event is None or event.query()


@torch.no_grad()
def fast_copy(detector: BaseDetector, dtype: torch.dtype, layout: torch.memory_format,
              watch: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
              graphs: int) -> BaseDetector:
    """A copy of a detector that computes in another precision.

    Batch normalisation is folded into the convolutions where that changes nothing but rounding.
    The other batch normalisation layers keep their statistics in float32, whose range is wide.

    Args:
        detector: In eval mode, in float32.
        dtype: Precision of the copy.
        layout: How images and the weights of convolutions lie in memory.
        watch: Called with the maps of every image; returns copies of them to use.
        graphs: Number of image shapes whose launches are recorded.

    Raises:
        RuntimeError: A part of the detector that a step may run does not compute in this
            precision or layout.
    """
    size = image_size(detector)
    image = torch.randn(1, image_channels(detector.backbone), size, size,
                        generator=torch.Generator().manual_seed(0))
    image = image.to(next(detector.parameters()))
    exact = detector.extract_feat(image)
    fused = fuse_conv_bn(copy.deepcopy(detector))
    if not all(same(*maps) for maps in zip(fused.extract_feat(image), exact)):
        fused = copy.deepcopy(detector)
    # Boxes are pooled in float32: half precision would round their coordinates.
    extractors = roi_extractors(fused)
    pooling = {module for extractor in extractors for module in extractor.modules()}
    for module in fused.modules():
        if not isinstance(module, _BatchNorm) and module not in pooling:
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.is_floating_point():
                    setattr(module, name, cast(tensor, dtype, layout))
    pyramid = Replay(fused.extract_feat, graphs) if graphs else fused.extract_feat

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


class Replay:
    """A function of images whose launches on a GPU are recorded for the shapes that come often.

    For a small batch, the host needs more time to launch a deep network's kernels than the GPU
    needs to run them. A recording (CUDA graph) is launched at once. It costs memory for the
    network's maps, which it does not share with other tensors.

    Args:
        function: Takes images, returns maps; without gradient.
        most: Number of shapes that are recorded: the first ones that come a third time.
    """

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]], most: int):
        self.function = function
        self.most = most
        self.seen: Counter = Counter()
        self.recorded: dict[torch.Size, tuple] = {}

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps; the next call overwrites them."""
        if not images.is_cuda or torch.is_grad_enabled():
            return self.function(images)
        if images.shape not in self.recorded:
            self.seen[images.shape] += 1
            if self.seen[images.shape] < 3 or len(self.recorded) == self.most:
                return self.function(images)
            self.recorded[images.shape] = self.record(images)
        inputs, graph, maps = self.recorded[images.shape]
        inputs.copy_(images)
        graph.replay()
        return maps

    def record(self, images: Tensor) -> tuple[Tensor, torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        """The input buffer for images, the recording, and the buffers that then hold the maps."""
        inputs, graph = images.clone(), torch.cuda.CUDAGraph()
        # Recordings never run at the same time, so they may share memory.
        others = [graph for _, graph, _ in self.recorded.values()]
        # Other threads, which load data or wait for other processes, may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=others[0].pool() if others else None,
                              capture_error_mode='thread_local'):
            maps = self.function(inputs)
        return inputs, graph, maps


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
