"""On the CPU convolutions work with channels last."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from gkd.commands.layout import overflows, place

CPU, LAST = torch.device('cpu'), dict(cpu_channels_last=True)


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def test_maps_of_a_placed_model_have_channels_last():
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain, placed = conv_net(), place(conv_net(), CPU, LAST)
    out = placed(images)
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
    torch.testing.assert_close(out, plain(images))


def test_values_and_names_stay():
    plain, placed = conv_net().state_dict(), place(conv_net(), CPU, LAST).state_dict()
    assert list(plain) == list(placed)
    assert all(torch.equal(plain[name], placed[name]) for name in plain)


def test_volumes_stay_as_they_are():
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ConvTranspose2d(3, 4, 3))
    place(model, CPU, LAST)
    assert model[0].weight.is_contiguous() and not model[1].weight.is_contiguous()


@pytest.mark.parametrize('channels', [8, 16])
def test_a_gradient_that_would_overflow_is_taken_with_channels_first(channels):
    """With 8 channels last, oneDNN 3.x ends the process here or at exit."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1),
                          nn.Conv2d(channels, 16, 1, stride=2))
    placed = place(deepcopy(plain), CPU, LAST)
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain(images).square().mean().backward()
    maps = placed(images)
    maps.square().mean().backward()
    assert maps.is_contiguous(memory_format=torch.channels_last) == (channels == 16)
    for expected, actual in zip(plain.parameters(), placed.parameters()):
        torch.testing.assert_close(actual.grad, expected.grad)


@pytest.mark.parametrize('target, config', [('meta', LAST), ('cpu', {})])
def test_elsewhere_and_by_default_the_layout_stays(target, config):
    assert place(conv_net(), torch.device(target), config)[0].weight.is_contiguous()


@pytest.mark.parametrize('expected, channels, kernel, settings', [
    (True, 8, 1, dict(stride=2)), (True, 8, 1, dict(stride=(1, 2))), (False, 8, 1, dict()),
    (False, 8, 3, dict(stride=2)), (False, 16, 1, dict(stride=2)),
    (True, 32, 1, dict(stride=2, groups=4)),  # 8 in each group
])
def test_which_gradients_would_overflow(expected, channels, kernel, settings):
    assert overflows(nn.Conv2d(channels, 16, kernel, **settings)) == expected
