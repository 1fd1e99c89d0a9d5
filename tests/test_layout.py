"""On the CPU convolutions work with channels last."""

import torch
from torch import nn

from gkd.commands.layout import place


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def test_maps_of_a_placed_model_have_channels_last():
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain, placed = conv_net(), place(conv_net(), torch.device('cpu'))
    out = placed(images)
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
    torch.testing.assert_close(out, plain(images))


def test_values_and_names_stay():
    plain, placed = conv_net().state_dict(), place(conv_net(), torch.device('cpu')).state_dict()
    assert list(plain) == list(placed)
    assert all(torch.equal(plain[name], placed[name]) for name in plain)


def test_volumes_stay_as_they_are():
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ConvTranspose2d(3, 4, 3))
    place(model, torch.device('cpu'))
    assert model[0].weight.is_contiguous() and not model[1].weight.is_contiguous()


def test_on_other_devices_the_layout_stays():
    model = place(conv_net(), torch.device('meta'))
    assert model[0].weight.is_contiguous()
