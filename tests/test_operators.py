"""The operators of the detectors beyond the common ones, against answers in plain Python."""

import itertools
import math

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from helpers.by_hand import iou, random_boxes
from mmcv.ops import DeformConv2d, DeformRoIPool, RoIAlign, RoIPool, nms_match, soft_nms
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from mmcv.utils.ext_loader import check_ops_exist

# What mmcv-full compiles for GPUs only is not there to be compared on CPUs.
stand_in = pytest.mark.skipif(check_ops_exist(), reason='mmcv-full is installed')


def bilinear(plane, y, x):
    """Value of a map ``(h, w)`` at a place; what lies beyond it is 0."""
    def cell(row, column):
        inside = 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]
        return plane[row, column].item() if inside else 0.0

    if not (math.isfinite(y) and math.isfinite(x)):
        return 0.0
    row, column = math.floor(y), math.floor(x)
    dy, dx = y - row, x - column
    return ((1 - dy) * (1 - dx) * cell(row, column) + (1 - dy) * dx * cell(row, column + 1)
            + dy * (1 - dx) * cell(row + 1, column) + dy * dx * cell(row + 1, column + 1))


def deform_conv_by_hand(x, offset, mask, weight, stride, padding, dilation, groups, offset_groups):
    """Deformable convolution, number by number; ``offset`` and ``mask`` as mmcv's memory is."""
    outputs, kernel_h, kernel_w = weight.shape[0], *weight.shape[2:]
    height, width = ((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
                     for side, kernel in zip(x.shape[2:], (kernel_h, kernel_w)))
    taps = kernel_h * kernel_w
    result = torch.zeros(len(x), outputs, height, width, dtype=x.dtype)
    for image in range(len(x)):
        # The first numbers of the image's offsets, whatever the size of their map.
        moves = offset[image].reshape(-1)[:2 * taps * offset_groups * height * width]
        moves = moves.view(offset_groups, taps, 2, height, width)
        factors = mask[image].reshape(-1)[:taps * offset_groups * height * width]
        factors = factors.view(offset_groups, taps, height, width)
        for out, row, column in itertools.product(range(outputs), range(height), range(width)):
            first = out // (outputs // groups) * weight.shape[1]
            for i, (a, b) in itertools.product(range(weight.shape[1]),
                                               itertools.product(range(kernel_h),
                                                                 range(kernel_w))):
                own = (first + i) // (x.shape[1] // offset_groups)
                dy, dx = moves[own, a * kernel_w + b, :, row, column].tolist()
                value = bilinear(x[image, first + i], row * stride - padding + a * dilation + dy,
                                 column * stride - padding + b * dilation + dx)
                result[image, out, row, column] += (
                    weight[out, i, a, b] * factors[own, a * kernel_w + b, row, column] * value)
    return result


GEOMETRY = pytest.mark.parametrize('stride, padding, dilation, groups, offset_groups',
                                   [(1, 1, 1, 1, 1), (2, 1, 1, 2, 1), (1, 2, 2, 1, 2)])


@GEOMETRY
def test_deform_conv_by_hand(stride, padding, dilation, groups, offset_groups):
    layer = DeformConv2d(4, 2, 3, stride=stride, padding=padding, dilation=dilation,
                         groups=groups, deform_groups=offset_groups).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.double)
    size = F.conv2d(x, torch.zeros(1, 4, 3, 3, dtype=torch.double), None, stride, padding,
                    dilation).shape[2:]
    offset = torch.randn(2, 18 * offset_groups, *size, dtype=torch.double) * 2
    expected = deform_conv_by_hand(x, offset, torch.ones_like(offset), layer.weight.data, stride,
                                   padding, dilation, groups, offset_groups)
    assert torch.allclose(layer(x, offset), expected)


@GEOMETRY
def test_modulated_deform_conv_by_hand(stride, padding, dilation, groups, offset_groups):
    x, weight = torch.randn(2, 4, 5, 6).double(), torch.randn(2, 4 // groups, 3, 3).double()
    size = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
    offset = torch.randn(2, 18 * offset_groups, *size).double() * 2
    mask, bias = torch.rand(2, 9 * offset_groups, *size).double(), torch.randn(2).double()
    result = mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, bias, stride, padding,
                                              dilation, groups, offset_groups)
    expected = deform_conv_by_hand(x, offset, mask, weight, stride, padding, dilation, groups,
                                   offset_groups)
    assert torch.allclose(result, expected + bias[:, None, None])


def test_offsets_of_a_larger_map_are_read_as_mmcv_does():
    x, weight = torch.randn(2, 2, 3, 4).double(), torch.randn(1, 2, 3, 3).double()
    offset, mask = torch.randn(2, 18, 6, 7).double(), torch.rand(2, 9, 6, 7).double()
    result = mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
    assert torch.allclose(result, deform_conv_by_hand(x, offset, mask, weight, 1, 1, 1, 1, 1))


@pytest.mark.parametrize('size', [(4, 5), (6, 7)])
def test_modulated_deform_conv_gradients(size):
    inputs = [torch.randn(2, 2, 4, 5), torch.randn(2, 18, *size), torch.rand(2, 9, *size),
              torch.randn(2, 2, 3, 3), torch.randn(2)]
    inputs = [tensor.double().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(
        lambda *tensors: mmcv.ops.modulated_deform_conv2d(*tensors, 1, 1), inputs)


def test_deform_conv_gradients():
    inputs = [torch.randn(2, 2, 4, 5), torch.randn(2, 36, 2, 3), torch.randn(2, 1, 3, 3)]
    inputs = [tensor.double().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(
        lambda *tensors: mmcv.ops.deform_conv2d(*tensors, 2, 1, 1, 2, 2), inputs)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 3e38])
def test_offsets_that_are_no_places_read_nothing(bad):
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    offset = torch.zeros(1, 18, 4, 4)
    offset[0, 8, 1, 1] = bad  # the kernel's middle, one place
    offset.requires_grad_()
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1
    result = mmcv.ops.deform_conv2d(x, offset, weight, 1, 1)
    expected = x.detach().clone()
    expected[0, 0, 1, 1] = 0
    assert torch.allclose(result, expected)
    result.sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(offset.grad).all()


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_deform_conv_of_half_precision(dtype):
    x, offset, weight = torch.randn(1, 2, 5, 5), torch.randn(1, 18, 5, 5), torch.randn(2, 2, 3, 3)
    offset = offset.to(dtype)
    result = mmcv.ops.deform_conv2d(x.to(dtype), offset, weight.to(dtype), 1, 1)
    exact = mmcv.ops.deform_conv2d(x.to(dtype).float(), offset.float(), weight.to(dtype).float(),
                                   1, 1)
    assert result.dtype == dtype and torch.equal(result, exact.to(dtype))


ROIS = torch.tensor([[0, 2.0, 3.0, 60.5, 50.0], [1, 0.0, 0.0, 5.0, 3.0], [1, -6.0, 20.0, 88., 80.],
                     [0, 16.0, 8.0, 40.0, 32.0]], dtype=torch.double)


def samples_by_hand(plane, roi, bins, scale, sampling_ratio, moved=None, aligned=True):
    """Samples of every bin of a RoI, as lists; RoIAlign's places, each moved by its bin's."""
    x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0) for value in roi[1:].tolist())
    wide, high = x2 - x1, y2 - y1
    if not aligned:
        wide, high = max(wide, 1.0), max(high, 1.0)
    down, across = (sampling_ratio or math.ceil(side / bins) for side in (high, wide))
    height, width = plane.shape

    def value(y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return 0.0
        return bilinear(plane, min(max(y, 0), height - 1), min(max(x, 0), width - 1))

    def samples(i, j):
        dx, dy = (0, 0) if moved is None else moved[:, i, j].tolist()
        return [value(y1 + dy * high + (i + (a + 0.5) / down) * high / bins,
                      x1 + dx * wide + (j + (b + 0.5) / across) * wide / bins)
                for a in range(down) for b in range(across)]

    return [[samples(i, j) for j in range(bins)] for i in range(bins)]


@stand_in
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('moving', [True, False])
def test_deform_roi_pool_by_hand(sampling_ratio, moving):
    x = torch.randn(2, 2, 9, 11, dtype=torch.double)
    offset = torch.randn(4, 2, 3, 3, dtype=torch.double) if moving else None
    pooled = DeformRoIPool(3, 1 / 8, sampling_ratio, gamma=0.2)(x, ROIS, offset)
    for index, roi in enumerate(ROIS):
        moved = offset[index] * 0.2 if moving else None
        for channel in range(2):
            samples = samples_by_hand(x[int(roi[0]), channel], roi, 3, 1 / 8, sampling_ratio,
                                      moved)
            means = torch.tensor([[sum(bin) / len(bin) for bin in row] for row in samples])
            assert torch.allclose(pooled[index, channel], means.double(), atol=1e-6)


@pytest.mark.slow
@stand_in
def test_deform_roi_pool_gradients():
    x = torch.randn(2, 2, 9, 11, dtype=torch.double, requires_grad=True)
    offset = torch.randn(4, 2, 2, 2, dtype=torch.double, requires_grad=True)
    layer = DeformRoIPool(2, 1 / 8, gamma=0.2)
    assert torch.autograd.gradcheck(lambda *tensors: layer(tensors[0], ROIS, tensors[1]),
                                    (x, offset))
    assert torch.autograd.gradcheck(lambda x: layer(x, ROIS, None), (x,))


@stand_in
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_max_roi_align_by_hand(aligned, sampling_ratio):
    x = torch.randn(2, 2, 9, 11, dtype=torch.double, requires_grad=True)
    layer = RoIAlign(3, 1 / 8, sampling_ratio, pool_mode='max', aligned=aligned)
    pooled = layer(x, ROIS)
    for index, roi in enumerate(ROIS):
        samples = samples_by_hand(x[int(roi[0]), 1].detach(), roi, 3, 1 / 8, sampling_ratio,
                                  aligned=aligned)
        largest = torch.tensor([[max(bin) for bin in row] for row in samples])
        assert torch.allclose(pooled[index, 1], largest.double(), atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: layer(x, ROIS), (x,))


@stand_in
def test_roi_pool_by_hand():
    x = torch.randn(2, 2, 9, 11, dtype=torch.double, requires_grad=True)
    rois = torch.cat([ROIS, ROIS.new_tensor([[0, 80., 80., 99., 99.], [1, 9., 9., 3., 3.]])])
    layer = RoIPool(3, 1 / 8)
    pooled = layer(x, rois)
    for index, roi in enumerate(rois):
        x1, y1, x2, y2 = (roi[1:] + roi.new_tensor([0, 0, 1, 1])).div(8).tolist()
        for i, j in itertools.product(range(3), range(3)):
            rows = range(max(math.floor(y1 + i * (y2 - y1) / 3), 0),
                         min(math.ceil(y1 + (i + 1) * (y2 - y1) / 3), 9))
            columns = range(max(math.floor(x1 + j * (x2 - x1) / 3), 0),
                            min(math.ceil(x1 + (j + 1) * (x2 - x1) / 3), 11))
            cells = [x[int(roi[0]), 0, a, b].item() for a in rows for b in columns]
            expected = max(cells, default=0.0) if x2 > x1 else 0.0
            assert pooled[index, 0, i, j].item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda x: layer(x, rois), (x,))


@stand_in
@pytest.mark.parametrize('operator', ['carafe', 'carafe_naive'])
def test_carafe_by_hand(operator):
    x = torch.randn(2, 4, 3, 4, dtype=torch.double)
    weights = torch.rand(2, 2 * 9, 6, 8, dtype=torch.double)  # two groups, 3 x 3 cells
    result = getattr(mmcv.ops, operator)(x, weights, 3, 2, 2)
    for image, channel, row, column in itertools.product(range(2), range(4), range(6), range(8)):
        expected = 0.0
        for a, b in itertools.product(range(3), range(3)):
            y, z = row // 2 + a - 1, column // 2 + b - 1
            if 0 <= y < 3 and 0 <= z < 4:
                weight = weights[image, (channel // 2) * 9 + a * 3 + b, row, column]
                expected += (x[image, channel, y, z] * weight).item()
        assert result[image, channel, row, column].item() == pytest.approx(expected)


@stand_in
def test_carafe_gradients():
    inputs = (torch.randn(1, 2, 2, 3, dtype=torch.double, requires_grad=True),
              torch.rand(1, 9, 4, 6, dtype=torch.double, requires_grad=True))
    assert torch.autograd.gradcheck(lambda *tensors: mmcv.ops.carafe(*tensors, 3, 1, 2), inputs)


@stand_in
def test_masked_convolution_is_the_convolution_where_the_mask_is():
    layer = mmcv.ops.MaskedConv2d(3, 2, 3, padding=1)
    x, mask = torch.randn(1, 3, 5, 6), torch.rand(1, 5, 6) > 0.5
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1) * mask[:, None]
    assert torch.allclose(layer(x, mask), expected, atol=1e-6)
    assert not layer(x, mask & False).any()


@stand_in
def test_multi_scale_deformable_attention():
    """The form that is called on GPUs, against mmcv's own for CPUs, which samples by hand here."""
    shapes = torch.tensor([[3, 4], [2, 2]])
    starts = torch.tensor([0, 12])
    value = torch.randn(2, 16, 2, 3, dtype=torch.double, requires_grad=True)
    places = torch.rand(2, 5, 2, 2, 2, 2, dtype=torch.double, requires_grad=True)
    weights = torch.rand(2, 5, 2, 2, 2, dtype=torch.double, requires_grad=True)

    def attend(*tensors):
        return MultiScaleDeformableAttnFunction.apply(tensors[0], shapes, starts, *tensors[1:], 64)

    result = attend(value, places, weights)
    assert torch.allclose(result, multi_scale_deformable_attn_pytorch(value, shapes, places,
                                                                      weights))
    expected = 0.0  # of image 1, query 4, head 0, channel 2
    for level, (height, width) in enumerate(shapes.tolist()):
        plane = value[1, starts[level]:starts[level] + height * width, 0, 2].detach()
        for point in range(2):
            x, y = places[1, 4, 0, level, point].tolist()
            expected += weights[1, 4, 0, level, point].item() * bilinear(
                plane.view(height, width), y * height - 0.5, x * width - 0.5)
    assert result[1, 4, 2].item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(attend, (value, places, weights))


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms_by_hand(method, offset):
    boxes, scores = random_boxes(40), torch.rand(40)
    dets, kept = soft_nms(boxes, scores, 0.4, 0.6, 0.05, method, offset)
    left = {index: score for index, score in enumerate(scores.tolist())}
    expected = []
    while left:
        best = max(left, key=left.get)
        expected.append((best, left.pop(best)))
        for index in list(left):
            overlap = iou(boxes[best].tolist(), boxes[index].tolist(), offset)
            if method == 'gaussian':
                left[index] *= math.exp(-overlap * overlap / 0.6)
            elif overlap >= 0.4:
                left[index] *= 1 - overlap if method == 'linear' else 0
            if left[index] < 0.05:
                del left[index]
    assert kept.tolist() == [index for index, _ in expected]
    assert torch.equal(dets[:, :4], boxes[kept])
    assert dets[:, 4].tolist() == pytest.approx([score for _, score in expected], abs=1e-5)


def test_soft_nms_of_nothing():
    dets, kept = soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64


def test_nms_match_by_hand():
    boxes, scores = random_boxes(40), torch.rand(40)
    groups = nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.5)
    left, expected = scores.argsort(descending=True).tolist(), []
    while left:
        best = left[0]
        group = [index for index in left[1:]
                 if iou(boxes[best].tolist(), boxes[index].tolist()) >= 0.5]
        expected.append([best, *group])
        left = [index for index in left[1:] if index not in group]
    assert [group.tolist() for group in groups] == expected
