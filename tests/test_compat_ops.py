"""mmcv's operators on torchvision, against answers in plain Python."""

import importlib.machinery
import math
import sys

import mmcv.ops
import numpy as np
import pytest
import torch
import torchvision
from helpers.by_hand import random_boxes
from mmcv.ops import RoIAlign, batched_nms, nms
from mmcv.utils.ext_loader import check_ops_exist
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

from gkd.compat import ops
from gkd.errors import EnvironmentMismatchError

stand_in = pytest.mark.skipif(check_ops_exist(), reason='mmcv-full is installed')


def greedy_nms(boxes, scores, threshold, offset):
    """Keep the best box, drop what overlaps it by more than the threshold, and so on."""
    boxes, left = boxes.double().tolist(), scores.argsort(descending=True).tolist()

    def side(low, high):
        return max(high - low + offset, 0)

    def iou(a, b):
        inter = side(max(a[0], b[0]), min(a[2], b[2])) * side(max(a[1], b[1]), min(a[3], b[3]))
        areas = [side(box[0], box[2]) * side(box[1], box[3]) for box in (a, b)]
        return inter / (sum(areas) - inter)

    kept = []
    while left:
        kept.append(left.pop(0))
        left = [index for index in left if iou(boxes[kept[-1]], boxes[index]) <= threshold]
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
def test_nms_is_greedy(offset, threshold):
    boxes, scores = random_boxes(80), torch.rand(80)
    dets, kept = nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == greedy_nms(boxes, scores, threshold, offset)
    assert 0 < len(kept) < 80
    assert torch.equal(dets, torch.cat([boxes[kept], scores[kept, None]], dim=1))


def test_nms_counts_the_last_pixel_with_offset():
    # Side 1 and 2 in pixels with the offset, 0 and 1 without: IoU 1/4 and 0.
    boxes = torch.tensor([[0., 0., 1., 1.], [0., 0., 0., 0.]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.2, offset=1)[1].tolist() == [0]
    assert nms(boxes, scores, 0.2, offset=0)[1].tolist() == [0, 1]


@pytest.mark.parametrize('overlap', [0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
def test_nms_keeps_a_box_that_overlaps_by_exactly_the_threshold(overlap):
    boxes = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 10. * overlap]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, overlap)[1].tolist() == [0, 1]
    assert nms(boxes, scores, overlap - 0.01)[1].tolist() == [0]


def test_nms_of_nothing_and_of_arrays():
    dets, kept = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64
    boxes, scores = random_boxes(20), torch.rand(20)
    dets, kept = nms(boxes.numpy(), scores.numpy(), 0.5)
    assert isinstance(dets, np.ndarray) and kept.tolist() == nms(boxes, scores, 0.5)[1].tolist()


@pytest.mark.parametrize('split_thr', [10000, 10])
def test_batched_nms_with_score_threshold(split_thr):
    boxes, scores, classes = random_boxes(60), torch.rand(60), torch.arange(60) % 3
    config = dict(type='nms', iou_threshold=0.4, score_threshold=0.3, split_thr=split_thr)
    dets, kept = batched_nms(boxes, scores, classes, config)
    expected = []
    for label in range(3):
        own = ((classes == label) & (scores > 0.3)).nonzero().flatten()
        expected += own[greedy_nms(boxes[own], scores[own], 0.4, 0)].tolist()
    assert kept.tolist() == sorted(expected, key=lambda index: -scores[index])
    assert torch.equal(dets[:, :4], boxes[kept]) and torch.equal(dets[:, 4], scores[kept])


def test_batched_nms_keeps_at_most_max_num():
    boxes, scores = random_boxes(60), torch.rand(60)
    config = dict(type='nms', iou_threshold=0.5)
    everything = batched_nms(boxes, scores, torch.zeros(60), config, class_agnostic=True)[1]
    best = batched_nms(boxes, scores, torch.zeros(60), dict(config, max_num=5),
                       class_agnostic=True)[1]
    assert best.tolist() == everything[:5].tolist()


def pooled_by_hand(features, roi, size, scale, sampling_ratio, aligned):
    """RoIAlign of one RoI, channel 0, value by value."""
    image, x1, y1, x2, y2 = roi.tolist()
    height, width = features.shape[2:]
    plane = features[int(image), 0].tolist()
    shift = 0.5 if aligned else 0.0
    left, top = x1 * scale - shift, y1 * scale - shift
    wide, high = (x2 - x1) * scale, (y2 - y1) * scale
    if not aligned:
        wide, high = max(wide, 1.0), max(high, 1.0)
    samples_y = sampling_ratio or math.ceil(high / size)
    samples_x = sampling_ratio or math.ceil(wide / size)

    def value(y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return 0.0
        y, x = max(y, 0.0), max(x, 0.0)
        row, column = min(int(y), height - 1), min(int(x), width - 1)
        if row == height - 1:
            y = row
        if column == width - 1:
            x = column
        below, right = min(row + 1, height - 1), min(column + 1, width - 1)
        dy, dx = y - row, x - column
        return ((1 - dy) * (1 - dx) * plane[row][column] + (1 - dy) * dx * plane[row][right]
                + dy * (1 - dx) * plane[below][column] + dy * dx * plane[below][right])

    def cell(i, j):
        values = [value(top + (i + (a + 0.5) / samples_y) * high / size,
                        left + (j + (b + 0.5) / samples_x) * wide / size)
                  for a in range(samples_y) for b in range(samples_x)]
        return sum(values) / len(values)

    return torch.tensor([[cell(i, j) for j in range(size)] for i in range(size)])


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_by_hand(aligned, sampling_ratio):
    features = torch.randn(2, 1, 9, 11)
    rois = torch.tensor([[0, 2.0, 3.0, 60.5, 50.0], [1, 0.0, 0.0, 5.0, 3.0],
                         [1, -6.0, 20.0, 88.0, 80.0], [0, 30.0, 30.0, 30.0, 30.0]])
    layer = RoIAlign(3, spatial_scale=1 / 8, sampling_ratio=sampling_ratio, aligned=aligned)
    pooled = layer(features, rois)
    assert pooled.shape == (4, 1, 3, 3)
    # The last RoI is a point: with `aligned` it has no samples, and pools to nothing.
    count = 4 if sampling_ratio or not aligned else 3
    for roi, result in list(zip(rois, pooled))[:count]:
        expected = pooled_by_hand(features, roi, 3, 1 / 8, sampling_ratio, aligned)
        assert torch.allclose(result[0], expected, atol=1e-5)
    assert torch.isfinite(pooled).all()


@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_gradient(aligned):
    features = torch.randn(1, 2, 6, 6, dtype=torch.double, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 2.0, 20.0, 15.0], [0, 4.0, 4.0, 9.0, 22.0]], dtype=torch.double)
    layer = RoIAlign((2, 3), spatial_scale=0.25, sampling_ratio=2, aligned=aligned)
    assert torch.autograd.gradcheck(lambda x: layer(x, rois), (features,))


def test_roi_align_of_half_precision_maps():
    features, rois = torch.randn(1, 3, 8, 8), torch.tensor([[0, 3.3, 2.7, 61.1, 49.9]])
    layer = RoIAlign(7, spatial_scale=1 / 8)
    exact = layer(features, rois)
    for dtype, tolerance in ((torch.half, 2e-3), (torch.bfloat16, 2e-2)):
        pooled = layer(features.to(dtype), rois)
        assert pooled.dtype == dtype
        assert torch.allclose(pooled.float(), exact, atol=tolerance)


# The operator is used on CUDA; mmcv-full has it for CPU tensors only in its later versions.
@stand_in
@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (1.5, 0.6)])
def test_sigmoid_focal_loss_and_gradient(gamma, alpha):
    logits = (torch.randn(12, 4) * 3).requires_grad_()
    target = torch.arange(12) % 5  # 4 is background
    coefficients = torch.rand(12, 4)
    loss = mmcv.ops.sigmoid_focal_loss(logits, target, gamma, alpha, None, 'none')
    gradient, = torch.autograd.grad((loss * coefficients).sum(), logits)

    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    expected = py_sigmoid_focal_loss(logits, one_hot, gamma=gamma, alpha=alpha, reduction='none')
    expected_gradient, = torch.autograd.grad((expected * coefficients).sum(), logits)
    assert torch.allclose(loss, expected, atol=1e-6)
    assert torch.allclose(gradient, expected_gradient, atol=1e-6)


@stand_in
def test_sigmoid_focal_loss_weighs_rows_by_their_class():
    logits, target = torch.randn(3, 2), torch.tensor([0, 1, 2])
    plain = mmcv.ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    weighted = mmcv.ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, torch.tensor([3.0, 5.0]),
                                           'none')
    assert torch.allclose(weighted, plain * torch.tensor([[3.0], [5.0], [1.0]]))


@stand_in
def test_sigmoid_focal_loss_of_extreme_logits():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), 2.0, 0.25, None, 'sum')
    loss.backward()
    # Row 0 is right in both classes; row 1 is wrong in both, each time by 200.
    assert loss.item() == pytest.approx(0.25 * 200 + 0.75 * 200)
    assert torch.allclose(logits.grad, torch.tensor([[0.0, 0.0], [-0.25, 0.75]]), atol=1e-6)


@stand_in
@pytest.mark.parametrize('call, name', [
    (lambda: mmcv.ops.border_align(torch.randn(1, 4, 5, 5), torch.zeros(1, 25, 4), 2),
     'border_align_forward'),
    (lambda: mmcv.ops.box_iou_rotated(torch.zeros(2, 5), torch.zeros(2, 5)), 'box_iou_rotated'),
])
def test_missing_operator_says_how_to_get_it(call, name):
    with pytest.raises(EnvironmentMismatchError, match=f"'{name}'.*--with-ops"):
        call()


@stand_in
def test_mmcv_knows_that_nothing_is_compiled():
    assert not check_ops_exist()
    assert 'torchvision' in mmcv.utils.collect_env()['MMCV Compiler']


class Finder:
    """Finds an `mmcv._ext` that does what ``run`` does when it is imported."""

    def __init__(self, run):
        self.run = run

    def find_spec(self, name, path=None, target=None):
        if name == ops.EXTENSION:
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        self.run(module)


@pytest.fixture
def compiled(monkeypatch):
    """Pretend that mmcv-full is installed."""
    monkeypatch.delitem(sys.modules, ops.EXTENSION)

    def install(run):
        monkeypatch.setattr(sys, 'meta_path', [Finder(run), *sys.meta_path])

    return install


def test_compiled_operators_stay(compiled):
    compiled(lambda module: setattr(module, 'nms', 'compiled'))
    ops.install_ops()
    assert sys.modules[ops.EXTENSION].nms == 'compiled'


def test_operators_compiled_against_another_torch_are_named(compiled):
    def fail(module):
        raise ImportError('_ext.so: undefined symbol: _ZN2at4_ops5zeros4callE')

    compiled(fail)
    with pytest.raises(EnvironmentMismatchError,
                       match=r'do not load with torch.*undefined symbol(?s:.*)tools/setup.sh'):
        ops.install_ops()


def test_torchvision_of_another_torch_is_named(monkeypatch):
    def fail():
        raise RuntimeError("Couldn't load custom C++ ops.")

    monkeypatch.setattr(torchvision.extension, '_assert_has_ops', fail)
    monkeypatch.delitem(sys.modules, ops.EXTENSION)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(EnvironmentMismatchError, match='torchvision does not work with torch'):
        ops.install_ops()
