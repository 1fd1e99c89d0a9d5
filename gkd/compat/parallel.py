"""Patches of mmcv's data-parallel wrappers."""

from __future__ import annotations

import contextlib
import functools
import importlib
from unittest import mock

import mmcv.parallel._functions
import torch
from mmcv.parallel import MMDataParallel, MMDistributedDataParallel
from torch.nn.parallel import DistributedDataParallel


def run_steps_through_torch_ddp() -> None:
    """Let ``MMDistributedDataParallel`` run on torch's own forward pass, on CPU as well.

    Reason: its ``forward`` reads ``_use_replicated_tensor_module``, which torch has no more; its
    ``train_step`` and ``val_step`` are a copy of the forward pass of torch 1.x, which does not
    prepare the reducer of torch 2.x; and without GPUs none of the three unpacks the
    ``DataContainer`` of a batch. torch's forward pass does all the bookkeeping in every version;
    only the module's method differs.
    For: mmcv 1.x with torch >= 2.0.
    """

    def run_ddp_forward(self, *inputs, **kwargs):
        device_ids = self.device_ids or [-1]  # mmcv's name for "stay on the CPU"
        inputs, kwargs = self.scatter(inputs, kwargs, device_ids)
        method = getattr(self.module, self._method) if self._method else self.module
        return method(*inputs[0], **kwargs[0])

    def step(self, *inputs, _method, **kwargs):
        self._method = _method
        try:
            return DistributedDataParallel.forward(self, *inputs, **kwargs)
        finally:
            self._method = None

    MMDistributedDataParallel._method = None
    MMDistributedDataParallel._run_ddp_forward = run_ddp_forward
    MMDistributedDataParallel.train_step = functools.partialmethod(step, _method='train_step')
    MMDistributedDataParallel.val_step = functools.partialmethod(step, _method='val_step')


def stay_on_the_cpu_beside_gpus() -> None:
    """Let ``MMDataParallel`` with ``device_ids=[]`` compute on the CPU where there is a GPU, too.

    Reason: mmcv means the CPU by it, but torch, as soon as it sees a GPU, looks for the first of
    the devices and ends in ``list index out of range``.
    For: mmcv 1.x.
    """
    # The package has a function of the same name.
    torch_parallel = importlib.import_module('torch.nn.parallel.data_parallel')
    init = MMDataParallel.__init__

    @functools.wraps(init)
    def __init__(self, *args, **kwargs):
        on_cpu = kwargs.get('device_ids') == []
        with mock.patch.object(torch_parallel, '_get_available_device_type',
                               lambda: None) if on_cpu else contextlib.nullcontext():
            init(self, *args, **kwargs)

    MMDataParallel.__init__ = __init__


def copy_on_cuda_streams() -> None:
    """Give mmcv's scatter CUDA streams for GPU numbers.

    Reason: mmcv asks torch's private ``_get_stream`` with the number of the GPU; since 2.1 that
    takes a ``torch.device`` and ends in ``'int' object has no attribute 'type'``.
    For: mmcv 1.x with torch >= 2.1.
    """

    @functools.cache
    def get_stream(gpu: int):
        return torch.cuda.Stream(gpu)

    mmcv.parallel._functions._get_stream = get_stream
