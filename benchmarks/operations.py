"""How many operations a step of every method starts, forward and backward.

On a GPU the time of small operations is that of starting them. Their number is counted on the CPU,
on random records of two detectors with five levels, and is the same on any machine; torch's
version may change it a little. The convolutions that adapt the student's maps are counted too.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import measure
import torch
from mmdet.models import SingleRoIExtractor
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gkd.detectors import DetectorInfo, DetectorOutputs, DetectorPair, Step
from gkd.detectors.roi_heads import RoIClassLayers, pool_on_all_levels
from gkd.detectors.step import DensePredictions
from gkd.prototypes import PrototypeBank
from gkd.registry import KNOWLEDGE

# The module of this project first, then the methods that it is compared with.
OURS, IN_CLASS_SPACE = 'RobustDistillingModule', 'RobustDistillingModule, class space'
METHODS = {
    OURS: dict(type=OURS),
    IN_CLASS_SPACE: dict(type=OURS, global_knowledge=dict(space='classes')),
    **{name: dict(type=name) for name, kind in sorted(KNOWLEDGE.module_dict.items())
       if kind.__module__.startswith('gkd.') and name != OURS},
}
CLASSES = 80
# They start nothing on a GPU.
NOTHING_COMPUTED = {f'aten::{name}' for name in (
    '_unsafe_view', 'empty', 'empty_like', 'new_empty', 'promote_types')}
STRIDES = {'one-stage': (8, 16, 32, 64, 128), 'two-stage': (4, 8, 16, 32, 64)}


class Operations(TorchDispatchMode):
    """Count the operations that are dispatched and compute: no views, no new memory."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        returns = function._schema.returns
        view = returns and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        if not view and function._schema.name not in NOTHING_COMPUTED:
            self.counts[function._schema.name] += 1
        return result


def dense_predictions(family: str, images: int, sides: Sequence[int]) -> DensePredictions:
    """Random predictions at one anchor a cell."""
    strides = STRIDES[family]
    anchors = torch.cat([torch.cartesian_prod(torch.arange(side), torch.arange(side)) * stride
                         for side, stride in zip(sides, strides)]).float()
    anchors = torch.cat([anchors, anchors + 40], dim=1)
    count = len(anchors)
    return DensePredictions(
        torch.randn(images, count, CLASSES if family == 'one-stage' else 1, requires_grad=True),
        tuple(side**2 for side in sides), anchors, anchors + torch.rand(images, count, 4),
        torch.randn(images, count, 4, requires_grad=True))


def dense_class_layers(channels: int, _: Sequence[int]) -> nn.Module:
    """Four layers of 3 x 3, as RetinaNet's head has."""
    return nn.Sequential(*(
        nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()) for _ in range(4)))


def box_class_layers(channels: int, strides: Sequence[int]) -> nn.Module:
    """Two linear layers on RoI features, as Faster R-CNN's head has, pooled as on a GPU."""
    extractor = SingleRoIExtractor(dict(type='RoIAlign', output_size=7, sampling_ratio=0),
                                   channels, list(strides[:4]))
    extractor.forward = partial(pool_on_all_levels, extractor)
    head = Shared2FCBBoxHead(channels, in_channels=channels, num_classes=CLASSES)
    return RoIClassLayers(SimpleNamespace(bbox_roi_extractor=extractor, bbox_head=head))


def records(family: str, images: int, channels: int = 16, positives: int = 5,
            dtype: torch.dtype = torch.float) -> tuple[DetectorPair, Step]:
    """Pair and step of five levels, every field filled; the student's maps are of ``dtype``."""
    strides = STRIDES[family]
    one_stage = family == 'one-stage'
    side = 2 * strides[-1]
    sides = [side // stride for stride in strides]
    info = DetectorInfo('any', family, (channels,) * 5, strides, CLASSES,
                        anchors=(((0.0, 0.0, 40.0, 40.0),),) * 5, sigmoid=one_stage,
                        samples_positives=True, classifies_boxes=True,
                        has_class_layers=True, roi_strides=() if one_stage else strides[:4],
                        box_coding=((0.0,) * 4, (1.0,) * 4))
    boxes = [(torch.rand(positives + image, 2, 2) * side).sort(dim=1).values.flatten(1)
             for image in range(images)]
    labels = [torch.randint(CLASSES, (len(image),)) for image in boxes]
    count = sum(map(len, boxes))
    proposals = [torch.cat([image, image]) for image in boxes]

    def outputs():
        return DetectorOutputs(
            maps=tuple(torch.randn(images, channels, size, size, requires_grad=True)
                       for size in sides),
            logits=torch.randn(count, CLASSES + (not one_stage), requires_grad=True),
            roi_features=None if one_stage else torch.randn(count, channels, 7, 7),
            proposal_logits=(None if one_stage
                             else torch.randn(2 * count, CLASSES + 1, requires_grad=True)),
            dense=dense_predictions(family, images, sides),
            score_maps=tuple(torch.randn(images, CLASSES, size, size) for size in sides))

    prototypes = [[torch.rand(10 * CLASSES, channels) for _ in strides] for _ in range(3)]
    bank = PrototypeBank(*prototypes[:2], offsets=[torch.arange(0, 10 * CLASSES + 1, 10)] * 5,
                         class_features=prototypes[2])
    class_layers = (dense_class_layers if one_stage else box_class_layers)(channels, strides)
    student, teacher = outputs(), outputs()
    student.maps = tuple(feature.detach().to(dtype).requires_grad_() for feature in student.maps)
    teacher.class_maps = tuple(torch.randn_like(feature) for feature in teacher.maps)
    teacher.class_features = torch.randn(2 * count, channels)
    return DetectorPair(info, info, strides), Step(
        torch.zeros(images, 3, side, side), [(side, side)] * images, strides, boxes, labels,
        student, teacher, bank, class_layers=class_layers.requires_grad_(False), boxes=boxes,
        labels=torch.cat(labels), objects=torch.arange(count), proposals=proposals,
        roi_levels=torch.arange(count) % 4,
        proposal_positives=torch.cat([torch.arange(len(image)) < len(image) // 2
                                      for image in proposals]))


def count_operations(module: torch.nn.Module, step: Step) -> tuple[Counter, Counter]:
    """Operations forward and backward, by name; what is done once a bank has been done.

    If the student's maps are in bfloat16, the forward pass runs under autocast.
    """
    half = step.student.maps[0].dtype == torch.bfloat16
    autocast = partial(torch.autocast, 'cpu', torch.bfloat16, enabled=half)
    with autocast():
        module(step)
    # Anew, as autocast keeps its copies of weights until its end.
    with Operations() as forward, autocast():
        losses = module(step)
    total = sum(losses.values())
    outputs = step.student
    inputs = [*outputs.maps, outputs.logits, outputs.proposal_logits, outputs.dense.logits,
              outputs.dense.deltas, *module.parameters()]
    inputs = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    with Operations() as backward:
        torch.autograd.grad(total, inputs, allow_unused=True)
    return forward.counts, backward.counts


def count_method(method: str, images: int, dtype: torch.dtype) -> dict:
    """Operations of one method with both families, as a row of the table."""
    row = dict(method=method)
    for family in STRIDES:
        pair, step = records(family, images, dtype=dtype)
        module = KNOWLEDGE.build(dict(METHODS[method], pair=pair))
        row[family] = [sum(count.values()) for count in count_operations(module, step)]
    return row


def main() -> None:
    """Parse the options and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=[*METHODS])
    parser.add_argument('--images', type=int, default=2, help='images per batch')
    parser.add_argument('--autocast', action='store_true',
                        help='under autocast, with bfloat16 maps of the student')
    args = parser.parse_args()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.autocast else torch.float
    rows = [count_method(method, args.images, dtype) for method in args.methods]
    columns = {'method': lambda row: row['method']}
    for family in STRIDES:
        for place, part in enumerate(('forward', 'backward', 'both')):
            columns[f'{family}, {part}'] = (
                lambda row, family=family, place=place:
                str([*row[family], sum(row[family])][place]))
    measure.report('operations', rows, columns, 'Operations of a step')


if __name__ == '__main__':
    main()
