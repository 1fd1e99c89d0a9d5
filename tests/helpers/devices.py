"""Devices that are not there, or that an older torch makes less of."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from gkd.detectors.step import DensePredictions, DetectorOutputs, Step
from gkd.installed import numbers
from gkd.prototypes import PrototypeBank


def computes_half() -> bool:
    """Whether this torch computes in float16 on the CPU, under autocast, too."""
    image = torch.ones(1, 1, 4, 4)
    try:
        F.conv2d(image.half(), image.half())
        with torch.autocast('cpu', torch.float16):
            return F.conv2d(image, image).dtype == torch.float16
    except RuntimeError:
        return False


fake_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() and numbers(torch.__version__) < (2, 9),
    reason='torch before 2.9 asks the driver even for fake tensors of a GPU')
half_on_cpu = pytest.mark.skipif(
    not computes_half(), reason='this torch has no half precision on the CPU')


class StayOnDevice(TorchDispatchMode):
    """Raise where a tensor is copied from the device to the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        inputs, outputs = set(), set()
        tree_map_only(torch.Tensor, lambda tensor: inputs.add(tensor.device.type),
                      (args, kwargs or {}))
        tree_map_only(torch.Tensor, lambda tensor: outputs.add(tensor.device.type), result)
        # A single number may be read from the host; it takes part in arithmetic on the device.
        assert not ('cuda' in inputs and outputs == {'cpu'}), f'{function} leaves the device'
        return result


def to_fake(value, fake, device):
    """The same structure of fake leaves on ``device``."""
    def convert(tensor):
        leaf = fake.from_tensor(tensor).detach().to(device)
        return leaf.requires_grad_(tensor.requires_grad)

    if isinstance(value, (Step, DetectorOutputs, DensePredictions, PrototypeBank)):
        value = copy.copy(value)
        vars(value).update({name: to_fake(part, fake, device)
                            for name, part in vars(value).items()})
        return value
    return tree_map_only(torch.Tensor, convert, value)
