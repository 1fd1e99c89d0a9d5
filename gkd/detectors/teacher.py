"""The frozen teacher, in the precision that it computes in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor, nn

from gkd.detectors.dense import class_layers, main_head
from gkd.detectors.fast_copy import fast_copy
from gkd.detectors.roi_heads import RoIClassLayers
from gkd.errors import ConfigError
from gkd.frameworks import BaseDetector, logger

PRECISIONS = dict(full=None, half=torch.float16, bfloat16=torch.bfloat16)
ADVICE = "Set model.teacher.precision='full' to compute in full precision from the start."
# Steps between two checks whether a map has overflowed.
INTERVAL = 50


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
        graphs: Number of image shapes for which launches on a GPU are recorded.
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
            self.running = fast_copy(self.exact, dtype, self.watch, self.graphs)
        except RuntimeError as error:
            logger().warning(f'Teacher: {type(self.exact).__name__} cannot compute in '
                             f'{dtype} and stays in full precision: {error}')
            return
        if device.type != 'cpu':
            self.exact.cpu()
        if self.precision is None:
            logger().info(f'Teacher: computes in half precision, as its device is a GPU. {ADVICE}')

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
        """Let the exact detector compute if a map has overflowed; called once per step."""
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
