"""Objects that the processes of a run exchange, on the CPU."""

from __future__ import annotations

import atexit
import gc
from typing import Any, Optional

import torch.distributed as dist

__all__ = ['all_gather', 'cpu_group', 'gather', 'leave_group']


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
        atexit.register(leave_cpu_group)
    return cpu_group.group


def leave_cpu_group() -> None:
    """Leave the group that :func:`cpu_group` made, if this process is still in it."""
    group = vars(cpu_group).pop('group', None)
    if group is not None and dist.is_initialized():
        dist.destroy_process_group(group)


def leave_group() -> None:
    """Leave the group of processes, if this one is still in it, and end its threads.

    After a collective gloo's threads let go of its tensors, for which they need Python's lock. A
    thread that still waits for it when Python ends aborts the process ("terminate called without
    an active exception"). They end with their group, which a distributed model keeps.
    """
    if dist.is_initialized():
        gc.collect()  # models, most of which are in cycles
        leave_cpu_group()
        dist.destroy_process_group()
