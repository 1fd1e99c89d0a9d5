"""The device of a process, and models on it."""

from __future__ import annotations

import inspect

import torch
from mmcv.cnn.utils import revert_sync_batchnorm
from mmcv.parallel import MMDataParallel, MMDistributedDataParallel
from mmcv.utils import get_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gkd.commands.allocator import keep_freed_memory


def use_device() -> torch.device:
    """The GPU of this process, or the CPU with its memory managed for training."""
    if torch.cuda.is_available():
        return torch.device('cuda', torch.cuda.current_device())
    keep_freed_memory()
    return torch.device('cpu')


def without_sync_on_cpu(model: nn.Module, device: torch.device) -> nn.Module:
    """Take synchronised batch normalisation out of a model on the CPU, where torch has none.

    Each process then normalises by its own images, as with plain batch normalisation.
    """
    if device.type != 'cpu' or not any(isinstance(module, nn.SyncBatchNorm)
                                       for module in model.modules()):
        return model
    get_logger('mmdet').warning('SyncBN needs GPUs: on the CPU every process normalises by its '
                                'own images.')
    return revert_sync_batchnorm(model)


def wrap(model: nn.Module, device: torch.device, find_unused: bool = False) -> nn.Module:
    """Wrap a model for data containers and, in a process group, for gradient averaging.

    Args:
        model: A model on ``device``.
        device: The GPU of this process, or the CPU.
        find_unused: Whether some parameters may be left without gradients.
    """
    device_ids = [device.index] if device.type == 'cuda' else None
    if torch.distributed.is_initialized():
        # Each process keeps its own batch statistics. Newer torch has renamed the setting.
        known = inspect.signature(DistributedDataParallel).parameters
        keep = 'forward_sync_buffers' if 'forward_sync_buffers' in known else 'broadcast_buffers'
        return MMDistributedDataParallel(model, device_ids=device_ids, **{keep: False},
                                         find_unused_parameters=find_unused)
    return MMDataParallel(model, device_ids=device_ids or [])
