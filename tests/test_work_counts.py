"""What a step and a search compute, counted: nothing twice, nothing larger than need be."""

from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from helpers import small_detectors as small
from helpers.distillers import build, build_distiller, losses_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from gkd.detectors import DetectorInfo, DetectorOutputs, DetectorPair, Step
from gkd.detectors.step import recorded
from gkd.knowledge import RobustDistillingModule, robust
from gkd.prototypes import PrototypeBank, select_prototypes


class LargestTensor(TorchDispatchMode):
    """Remember how many elements the largest tensor has that any operator puts out."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.look_at, result)
        return result

    def look_at(self, tensor):
        # An expanded tensor takes the memory of what it was expanded from.
        storage = tensor.untyped_storage().nbytes() // tensor.element_size()
        self.elements = max(self.elements, min(tensor.numel(), storage))


def count_calls(modules):
    """Count the forward calls of named modules."""
    calls = Counter()
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


def parts(role, detector):
    """The parts of a detector that a step runs, by name."""
    modules = dict(backbone=detector.backbone, neck=detector.neck)
    if hasattr(detector, 'roi_head'):
        modules.update(rpn=detector.rpn_head, extractor=detector.roi_head.bbox_roi_extractor,
                       head=detector.roi_head.bbox_head)
    else:
        modules.update(head=detector.bbox_head)
    return {f'{role} {name}': module for name, module in modules.items()}


@pytest.mark.parametrize('family', small.FAMILIES)
def test_every_network_runs_once_a_step(family):
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector())
    adaptation = model.knowledge[0].local_knowledge.adaptation
    modules = {**parts('student', model.student), **parts('teacher', model.teacher),
               **{f'adaptation {level}': layer for level, layer in enumerate(adaptation)}}
    calls = count_calls(modules)
    losses_of(model, small.batch())
    # The teacher judges the student's proposals and needs none of its own.
    assert calls == {name: 1 for name in modules if name != 'teacher rpn'}


def assignments(detector, model):
    """Calls of a detector's assigners and samplers in a step of ``model``."""
    with ExitStack() as stack:
        def calls(part, method):
            return stack.enter_context(recorded(part, method))

        if hasattr(detector, 'roi_head'):
            rpn, roi = detector.rpn_head, detector.roi_head
            found = [calls(rpn.assigner, 'assign'), calls(rpn.sampler, 'sample'),
                     calls(roi.bbox_assigner, 'assign'), calls(roi.bbox_sampler, 'sample')]
        else:
            head = detector.bbox_head
            found = [calls(head.assigner, 'assign'), calls(head.sampler, 'sample')]
        losses_of(model, small.batch())
    return [len(calls) for calls in found]


@pytest.mark.parametrize('family', small.FAMILIES)
def test_boxes_are_assigned_as_often_as_without_a_teacher(family):
    detector = small.FAMILIES[family]
    plain = build(detector())
    taught = build_distiller(detector(24), detector())
    expected = assignments(plain, plain)
    assert set(expected) == {len(small.batch()['img'])}
    assert assignments(taught.student, taught) == expected


@pytest.mark.parametrize('family', small.FAMILIES)
def test_an_instance_is_pooled_once_a_level_and_detector(family):
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector())
    with recorded(robust, 'pool_maps') as calls, recorded(model, 'student_step') as steps:
        losses_of(model, small.batch())
    step = steps[0].result[1]
    pooled = Counter(id(feature) for call in calls for feature in call.args[0])
    assert set(pooled.values()) == {1}
    assert len(pooled) == 2 * model.pair.num_levels
    assert all(call.result.shape[1] == len(step.labels) for call in calls)


def test_no_tensor_of_boxes_by_channels_by_cells():
    images, channels, cells, positives, classes = 2, 48, 48, 100, 5
    strides = (8, 16)
    info = DetectorInfo('any', 'two-stage', (channels,) * 2, strides, classes, anchors=(),
                        sigmoid=False, samples_positives=True, classifies_boxes=True,
                        box_coding=())
    module = RobustDistillingModule(DetectorPair(info, info, strides))
    corners = torch.rand(images, positives, 2, 2).sort(dim=2).values * cells * strides[0]
    boxes = list(corners.flatten(2))
    labels = torch.randint(classes, (images * positives,))

    def outputs():
        return DetectorOutputs(
            maps=tuple(torch.randn(images, channels, size, size, requires_grad=True)
                       for size in (cells, cells // 2)),
            logits=torch.randn(len(labels), classes + 1, requires_grad=True),
            roi_features=torch.randn(len(labels), channels, 2, 2))

    offsets = torch.arange(0, 10 * classes + 1, 10)
    bank = PrototypeBank(student=[torch.rand(10 * classes, channels)] * 2,
                         teacher=[torch.rand(10 * classes, channels)] * 2, offsets=[offsets] * 2)
    size = (cells * strides[0],) * 2
    step = Step(torch.zeros(images, 3, *size), [size] * images, strides, boxes,
                list(labels.split(positives)), outputs(), outputs(), bank, boxes=boxes,
                labels=labels, roi_levels=torch.zeros(len(labels), dtype=torch.long))
    with LargestTensor() as largest:
        sum(module(step).values()).backward()
    assert step.student.maps[0].grad is not None
    # Boxes (filled up to 104) x channels x rows, and never all three with columns.
    assert largest.elements <= images * 104 * cells * max(channels, 1.5 * cells)


def test_search_builds_neither_all_pairs_nor_all_reconstructions():
    count, channels, prototypes = 600, 24, 10
    features = torch.randn(count, channels)
    with LargestTensor() as largest:
        chosen = select_prototypes(features, features + 0.1, prototypes, max_pairs=20 * count)
    assert len(chosen) == prototypes
    # Both spaces side by side, or one block of similarities.
    assert largest.elements <= count * 2 * channels
