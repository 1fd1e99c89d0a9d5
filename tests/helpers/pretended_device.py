"""A pretended device: its tensors are computed on the CPU, but may not meet those of the CPU.

Whole training steps run on it, values and gradients included, on a machine without a GPU.
"""

import contextlib
import traceback
from collections import Counter
from typing import Union
from unittest import mock

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gkd.installed import mmdet_major

NAME = 'pretended'
# What may read from both devices.
COPIES = {'aten::copy_', 'aten::_to_copy'}
# What a GPU answers only once all before it is computed, as the host wants to know how much it is.
WAITS = {'aten::_local_scalar_dense', 'aten::nonzero', 'aten::masked_select', 'aten::equal',
         'aten::_unique2', 'aten::unique_dim', 'aten::repeat_interleave', 'torchvision::nms'}
can_be_pretended = pytest.mark.skipif(
    not hasattr(backend_registration, '_setup_privateuseone_for_python_backend'),
    reason='this torch cannot have a device that is written in Python')


class Pretended(torch.Tensor):
    """A tensor on the device; ``values`` is what it stands for, on the CPU."""

    @staticmethod
    def __new__(cls, values):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device=torch.device(NAME, 0))
        tensor.values = values
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __getitem__(self, index):
        """Some of it; torch makes tensors of lists in C++, which knows nothing of the device."""
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(part).to(self.device) if isinstance(
            part, list) else part for part in parts))

    def tolist(self):
        """Its numbers; torch refuses to read those of a subclass."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return torch.utils._python_dispatch._get_current_dispatch_mode().__torch_dispatch__(
            function, types, args, kwargs)


class OnDevice(TorchDispatchMode):
    """Compute what concerns the device; count where the host waits for it.

    Attributes:
        waits: How often, by the operation and the line that called it.
    """

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function._schema.name, dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
        here = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
        wanted = kwargs.get('device') and torch.device(kwargs['device']).type
        if wanted == NAME:
            kwargs['device'] = 'cpu'
        # A single number may come from the host.
        if there and any(tensor.dim() for tensor in here) and name not in COPIES:
            raise RuntimeError(f'{name} mixes devices, called by {caller()}')
        if there and (name in WAITS or picks_by_mask(name, args) or (
                name == 'aten::_to_copy' and wanted == 'cpu' and not kwargs.get('non_blocking'))):
            self.waits[f'{name} {caller()}'] += 1
        stays = isinstance(args[0], Pretended) if name == 'aten::copy_' else \
            wanted == NAME if wanted else bool(there)
        own = {id(tensor.values): tensor for tensor in there}
        own.update((id(tensor), tensor) for tensor in here)
        result = function(*tree_map(values_of, args), **tree_map(values_of, kwargs))
        return tree_map(lambda leaf: own.get(id(leaf)) if id(leaf) in own else
                        Pretended(leaf) if stays and isinstance(leaf, torch.Tensor) else leaf,
                        result)


def values_of(leaf):
    """What a tensor of the device stands for; anything else as it is."""
    return leaf.values if isinstance(leaf, Pretended) else leaf


def picks_by_mask(name, args):
    """Whether an operation reads rows by a mask, so that their number is known afterwards only."""
    return name == 'aten::index' and any(
        leaf.dtype == torch.bool for leaf in tree_leaves(args[1:])
        if isinstance(leaf, torch.Tensor))


def caller():
    """The innermost line that is neither torch's nor of this file."""
    frames = [frame for frame in traceback.extract_stack()
              if '/torch/' not in frame.filename and frame.filename != __file__]
    return f'{frames[-1].filename}:{frames[-1].lineno}'


def register():
    """Let torch know the device, for the rest of the process."""
    module = backend_registration._DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    backend_registration._setup_privateuseone_for_python_backend(NAME, module)


def indexes_of_mmengine():
    """Let the device's tensors index MMEngine's data, which lists types of tensors by device."""
    if mmdet_major() == 2:
        return contextlib.nullcontext()
    from mmengine.structures import instance_data
    return mock.patch.object(instance_data, 'IndexType',
                             Union[instance_data.IndexType, torch.Tensor])


@contextlib.contextmanager
def pretended_device():
    """Have the device, and yield it with the counts of the host's waits.

    Torch knows the device for the rest of the process, so this belongs into one of its own.
    """
    register()
    tensor = torch.tensor

    def tensor_there(data, *args, device=None, **kwargs):
        made = tensor(data, *args, **kwargs)
        return made.to(device) if device is not None else made

    def new_tensor(self, data, dtype=None, device=None, **kwargs):
        data = values_of(data)
        return tensor(data, dtype=dtype or getattr(data, 'dtype', self.dtype),
                      **kwargs).to(device or self.device)

    # Written in C++, which knows nothing of a device in Python.
    with mock.patch.object(torch, 'tensor', tensor_there), \
            mock.patch.object(torch.Tensor, 'new_tensor', new_tensor), \
            indexes_of_mmengine(), OnDevice() as mode:
        yield torch.device(NAME, 0), mode.waits
