"""Objects that the processes of a run exchange, on the CPU."""

from __future__ import annotations

from typing import Any, Optional

import torch.distributed as dist

__all__ = ['all_gather', 'cpu_group', 'gather']


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, in order of rank; all call this together.

    Features are on the CPU and are exchanged there: NCCL would move them through GPU memory.
    """
    if not dist.is_initialized():
        return [value]
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value, group=cpu_group())
    return gathered


def gather(value: Any) -> Optional[list[Any]]:
    """As :func:`all_gather`, for the first process alone; None in the others."""
    if not dist.is_initialized():
        return [value]
    gathered = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered, group=cpu_group())
    return gathered


def cpu_group() -> dist.ProcessGroup:
    """A process group for CPU tensors, made once."""
    if dist.get_backend() == 'gloo':
        return dist.group.WORLD
    if not hasattr(cpu_group, 'group'):
        cpu_group.group = dist.new_group(backend='gloo')
    return cpu_group.group


def leave_group() -> None:
    """Leave the group of processes, if this one is still in it."""
    if dist.is_initialized():
        dist.destroy_process_group()
