"""Pooling, levels and masks of instances against loops over boxes and the original's arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.devices import fake_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gkd.knowledge import instance_mask, map_levels, pool_instances

DATA = Path(__file__).parent / 'data'
LAYOUTS = torch.contiguous_format, torch.channels_last


def boxes_strategy(largest=96.0, most=6):
    """Boxes that may be thin, empty, reach out of the map, or end right on a cell's border."""
    corner = st.one_of(
        st.sampled_from([-9.0, 0.0, 8.0, 16.0, 40.0, 64.0]),
        st.floats(-20, largest, width=32),
    )
    side = st.one_of(st.sampled_from([0.0, 3.0, 8.0, 130.0]), st.floats(0, largest, width=32))
    box = st.tuples(corner, corner, side, side).map(
        lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
    )
    return st.lists(box, max_size=most).map(
        lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    )


def pool_by_loop(feature, boxes, scale_x, scale_y):
    height, width = feature.shape[2:]
    pooled = [feature.new_zeros(0, feature.shape[1])]
    for image, image_boxes in zip(feature, boxes):
        for x1, y1, x2, y2 in image_boxes:
            left, right = (min(max(int(x * scale_x), 0), width - 1) for x in (x1, x2))
            top, bottom = (min(max(int(y * scale_y), 0), height - 1) for y in (y1, y2))
            window = image[:, top : bottom + 1, left : right + 1]
            pooled.append(window.mean(dim=(1, 2))[None])
    return torch.cat(pooled)


def draw_by_loop(boxes, weights, level, num_levels, stride, size):
    height, width = size
    masks = torch.zeros(len(boxes), height, width)
    for mask, image_boxes, image_weights in zip(masks, boxes, weights):
        for box, weight in zip(
            image_boxes[map_levels(image_boxes, num_levels) == level],
            image_weights[map_levels(image_boxes, num_levels) == level],
        ):
            x1, y1, x2, y2 = (int(value / stride) for value in box)
            x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
            if x1 == x2 or y1 == y2:
                y, x = min(y1, height - 1), min(x1, width - 1)
                mask[y, x] = max(mask[y, x], weight)
            else:
                mask[y1 : max(y2, 0), x1 : max(x2, 0)] = weight
    return masks


class TestPoolInstances:
    @pytest.mark.parametrize('layout', LAYOUTS)
    @settings(max_examples=40, deadline=None)
    @given(boxes=st.lists(boxes_strategy(), min_size=2, max_size=2))
    def test_is_the_mean_of_each_window(self, layout, boxes):
        feature = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
        feature = feature.to(memory_format=layout)
        for scale in (1 / 8, (0.11, 0.07)):
            expected = pool_by_loop(feature, boxes, *(scale if scale != 1 / 8 else (scale, scale)))
            pooled = pool_instances(feature, boxes, scale)
            torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-6)

    def test_images_may_have_many_boxes_or_few(self):
        feature = torch.randn(3, 2, 6, 6)
        boxes = [torch.rand(count, 2).repeat(1, 2) * 24 + torch.tensor([0, 0, 9, 20])
                 for count in (1, 17, 0)]
        torch.testing.assert_close(pool_instances(feature, boxes, 1 / 8),
                                   pool_by_loop(feature, boxes, 1 / 8, 1 / 8))

    def test_a_box_of_negative_size_is_the_cell_of_its_corner(self):
        feature = torch.arange(16.0).reshape(1, 1, 4, 4)
        pooled = pool_instances(feature, [torch.tensor([[20.0, 9.0, 4.0, 1.0]])], scale=1 / 8)
        assert pooled.tolist() == [[6.0]]

    def test_no_boxes_give_no_rows_but_a_gradient(self):
        feature = torch.randn(2, 3, 4, 4, requires_grad=True)
        pooled = pool_instances(feature, [torch.zeros(0, 4)] * 2, 0.25)
        assert pooled.shape == (0, 3)
        pooled.sum().backward()
        assert torch.equal(feature.grad, torch.zeros_like(feature))

    @pytest.mark.parametrize('layout', LAYOUTS)
    def test_gradient(self, layout):
        boxes = [torch.tensor([[0.0, 3.0, 9.0, 20.0], [4.0, 4.0, 5.0, 5.0]]), torch.zeros(0, 4)]
        feature = torch.randn(2, 2, 3, 4, dtype=torch.float64).to(memory_format=layout)
        feature.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: pool_instances(x, boxes, 1 / 8), feature)
        gradient, = torch.autograd.grad(pool_instances(feature, boxes, 1 / 8).sum(), feature)
        assert gradient.is_contiguous(memory_format=layout)

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
    def test_is_float32_under_autocast(self, dtype):
        feature = torch.randn(1, 4, 16, 16).to(dtype)
        boxes = [torch.tensor([[0.0, 0.0, 120.0, 120.0], [30.0, 9.0, 70.0, 80.0]])]
        with torch.autocast('cpu', dtype=torch.bfloat16):
            pooled = pool_instances(feature, boxes, 1 / 8)
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, pool_by_loop(feature.float(), boxes, 1 / 8, 1 / 8))

    def test_makes_nothing_of_size_boxes_times_map(self):
        """The largest is of size boxes x channels x rows, with the boxes filled up to 24."""
        class Largest(TorchDispatchMode):
            numel = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                for tensor in result if isinstance(result, (tuple, list)) else [result]:
                    if isinstance(tensor, torch.Tensor):
                        self.numel = max(self.numel, tensor.numel())
                return result

        count, channels, side = 20, 30, 10
        feature = torch.randn(1, channels, side, side, requires_grad=True)
        with Largest() as largest:
            pool_instances(feature, [torch.rand(count, 4) * 80], 1 / 8).sum().backward()
        assert largest.numel <= 24 * channels * side

    def test_refuses_another_number_of_images(self):
        with pytest.raises(ValueError, match='2 images, boxes 1'):
            pool_instances(torch.rand(2, 3, 4, 4), [torch.rand(1, 4)], 1.0)


class TestMapLevels:
    def test_doubles_the_side_from_level_to_level(self):
        sides = torch.tensor([0.0, 55.0, 110.9, 111.0, 222.9, 223.0, 447.0, 5000.0])
        boxes = torch.stack([sides * 0 + 7, sides * 0 + 3, sides + 7, sides + 3], dim=1)
        assert map_levels(boxes, num_levels=4).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
        assert map_levels(boxes, num_levels=2).tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
        assert map_levels(boxes, 5, finest_scale=112).tolist() == [0, 0, 0, 0, 0, 1, 2, 4]

    def test_forgives_what_rounding_takes_from_a_side(self):
        boxes = torch.tensor([[500.1, 500.1, 611.1, 611.1]])
        assert (boxes[:, 2:] - boxes[:, :2] < 111).all()
        assert map_levels(boxes, 5).tolist() == [1]

    def test_goes_by_the_area(self):
        boxes = torch.tensor([[0.0, 0.0, 27.0, 447.0], [0.0, 0.0, 27.0, 446.0]])
        assert map_levels(boxes, 5).tolist() == [1, 0]

    def test_takes_no_boxes_and_broken_ones(self):
        assert map_levels(torch.zeros(0, 4), 5).shape == (0,)
        inverted = torch.tensor([[400.0, 400.0, 0.0, 0.0], [0.0, 400.0, 900.0, 0.0]])
        assert map_levels(inverted, 5).tolist() == [0, 0]


class TestInstanceMask:
    @pytest.mark.parametrize('name', ['two_stage', 'one_stage'])
    def test_is_the_originals(self, name):
        golden = {
            key: torch.from_numpy(value) for key, value in np.load(DATA / f'{name}.npz').items()
        }
        boxes = [golden['boxes0'], golden['boxes1']]
        strides = golden['strides'].tolist()
        for level, stride in enumerate(strides):
            weights = golden[f'robust_weights{level}'].split([len(box) for box in boxes])
            size = golden[f'student_feat{level}'].shape[2:]
            mask = instance_mask(boxes, weights, level, len(strides), stride, size)
            assert mask.dtype == torch.float32
            assert torch.equal(mask.double(), golden[f'mask{level}'])

    @settings(max_examples=150, deadline=None)
    @given(st.data(), st.sampled_from([8, 12, 16]), st.integers(0, 1))
    def test_writes_as_a_loop_would(self, data, stride, level):
        boxes = data.draw(st.lists(boxes_strategy(), min_size=1, max_size=2))
        weights = [torch.rand(len(image)) for image in boxes]
        arguments = (boxes, weights, level, 2, stride, (5, 6))
        assert torch.equal(instance_mask(*arguments), draw_by_loop(*arguments))

    def test_later_boxes_cover_earlier_and_narrow_ones_the_smaller(self):
        wide, thin = [0.0, 0.0, 16.0, 8.0], [1.0, 0.0, 7.0, 8.0]
        for rows, weights, expected in (
            ([wide, wide], [0.9, 0.2], [0.2, 0.2, 0.0]),
            ([thin, wide], [0.9, 0.2], [0.2, 0.2, 0.0]),
            ([wide, thin], [0.2, 0.9], [0.9, 0.2, 0.0]),
            ([wide, thin], [0.9, 0.2], [0.9, 0.9, 0.0]),
            ([thin, thin, thin], [0.4, 0.9, 0.2], [0.9, 0.0, 0.0]),
            ([], [], [0.0, 0.0, 0.0]),
        ):
            mask = instance_mask(
                [torch.tensor(rows).reshape(-1, 4)], [torch.tensor(weights)], 0, 5, 8, (1, 3)
            )
            assert torch.equal(mask, torch.tensor([[expected]]))

    def test_has_no_gradient(self):
        weights = torch.rand(1, requires_grad=True)
        assert not instance_mask([torch.rand(1, 4) * 50], [weights], 0, 1, 8, (4, 4)).requires_grad

    def test_numbers_more_boxes_than_int16_holds(self):
        boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(2**15 + 1, 1)
        weights = torch.full((len(boxes),), 0.5)
        weights[-1] = 0.25
        mask = instance_mask([boxes], [weights], 0, 1, 8, (1, 2))
        assert mask.tolist() == [[[0.25, 0.0]]]

    def test_refuses_another_number_of_images(self):
        with pytest.raises(ValueError, match='2 images, weights 1'):
            instance_mask([torch.rand(1, 4)] * 2, [torch.rand(1)], 0, 1, 8, (4, 4))


# 'cuda' makes fake tensors of a GPU, on any machine: a step by way of the CPU would mix devices.
@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=fake_gpu)])
def test_never_waits_for_the_device(device):
    with FakeTensorMode():
        feature = torch.rand(2, 3, 6, 7, device=device)
        boxes = [torch.rand(5, 4, device=device) * 40, torch.rand(0, 4, device=device)]
        weights = [torch.rand(5, device=device), torch.rand(0, device=device)]
        assert pool_instances(feature, boxes, 1 / 8).shape == (5, 3)
        assert map_levels(boxes[0], 5).device.type == device
        mask = instance_mask(boxes, weights, 0, 5, 8, (6, 7))
        assert mask.shape == (2, 6, 7) and mask.device.type == device
