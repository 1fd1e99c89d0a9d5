"""Training and testing in several processes, with or without GPUs."""

from __future__ import annotations

import atexit
import os
import re
import subprocess
from datetime import timedelta
from itertools import chain, zip_longest
from types import ModuleType
from typing import Callable, Optional

import torch
import torch.distributed as dist

from gkd.collectives import gather, leave_group
from gkd.errors import ConfigError, EnvironmentMismatchError

LAUNCHERS = ('none', 'pytorch', 'slurm')


def init_distributed(launcher: str, timeout: timedelta = timedelta(minutes=30)) -> bool:
    """Join the other processes of this run: over NCCL with a GPU each, over gloo without GPUs.

    Args:
        launcher: 'none' for one process; 'pytorch' for torchrun, whose ``RANK``, ``LOCAL_RANK``,
            ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT`` are read; 'slurm' for srun, whose
            ``SLURM_*`` variables are read (``MASTER_ADDR`` and ``MASTER_PORT`` override).
        timeout: How long a process waits for the others before it ends with an error.

    Returns:
        Whether the run is distributed.

    Raises:
        ConfigError: The launcher is unknown, or this node has fewer GPUs than processes.
        EnvironmentMismatchError: The launcher's variables are not set.
    """
    if launcher == 'none':
        return False
    if launcher not in LAUNCHERS:
        raise ConfigError(f"Unknown launcher '{launcher}'; choose one of {', '.join(LAUNCHERS)}.")
    if launcher == 'slurm':
        _set_variables_from_slurm()
    _require_variables('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
    if dist.is_initialized():
        return True

    backend = 'gloo'
    if torch.cuda.is_available():
        local_rank, gpus = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ConfigError(f'Process {local_rank} of this node has no GPU: {gpus} visible. '
                              f'Start at most {gpus} processes here.')
        torch.cuda.set_device(local_rank)
        backend = 'nccl'
    dist.init_process_group(backend, init_method='env://', timeout=timeout)
    if backend == 'gloo' and dist.get_rank() == 0:
        print(f'No GPU found: {dist.get_world_size()} processes compute on the CPU.')
    return True


def _set_variables_from_slurm() -> None:
    """Translate srun's variables into torchrun's."""
    _require_variables('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS')
    os.environ['RANK'] = os.environ['SLURM_PROCID']
    os.environ['LOCAL_RANK'] = os.environ['SLURM_LOCALID']
    os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_slurm_node()
    if 'MASTER_PORT' not in os.environ:
        # All processes must agree on it, and two jobs on one node should not.
        os.environ['MASTER_PORT'] = str(20000 + int(os.environ.get('SLURM_JOB_ID', 0)) % 10000)


def _first_slurm_node() -> str:
    nodes = os.environ.get('SLURM_JOB_NODELIST') or os.environ.get('SLURM_NODELIST', '')
    if re.fullmatch(r'[\w.-]+', nodes):
        return nodes  # a single one, nothing to expand
    try:
        listed = subprocess.run(['scontrol', 'show', 'hostnames', nodes], check=True,
                                capture_output=True, text=True).stdout.split()
        return listed[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise EnvironmentMismatchError(
            f'Cannot find the first node of SLURM_JOB_NODELIST={nodes!r} with scontrol ({error}). '
            'Set MASTER_ADDR to its name.') from None


def _require_variables(*names: str) -> None:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise EnvironmentMismatchError(
            f'{", ".join(missing)} not set: start several processes through '
            '`bash tools/train.sh CONFIG GPUS`, torchrun, or tools/slurm_train.sh; one process '
            'needs no launcher.')


def init_without_gpus() -> None:
    """Let mmcv's own ``init_dist`` work where there are no GPUs.

    Reason: it takes the rank modulo the number of GPUs, a division by zero without any, and asks
    for NCCL.
    For: mmcv 1.x.
    """
    from mmcv.runner import dist_utils

    init_over_gloo(dist_utils, unless=lambda: torch.cuda.is_available())


def init_over_gloo(dist_utils: ModuleType, unless: Callable[[], bool]) -> None:
    """Let ``init_dist`` of mmcv or MMEngine call :func:`init_distributed` where there is no GPU.

    Args:
        dist_utils: The module that holds it.
        unless: Whether there is a GPU.
    """
    def patched(launcher: str, init_with_gpus: Callable) -> Callable:
        def init(backend, *args, **kwargs):
            if unless():
                init_with_gpus(backend, *args, **kwargs)
            else:
                given = {name: kwargs[name] for name in ('timeout',) if kwargs.get(name)}
                init_distributed(launcher, **given)
                # MMDetection's own tools leave no group.
                atexit.register(leave_group)
        return init

    dist_utils._init_dist_pytorch = patched('pytorch', dist_utils._init_dist_pytorch)
    dist_utils._init_dist_slurm = patched('slurm', dist_utils._init_dist_slurm)


def collect_results_without_files() -> None:
    """Let the first process get the results of a test from the others themselves.

    Reason: by default they go through files in the work dir, which a machine may not see, and the
    test of all images is lost then; a run that is killed meanwhile leaves them there.
    For: mmdet 2.x.
    """
    import mmdet.apis.test

    mmdet.apis.test.collect_results_cpu = collect


def collect(part: list, size: int, tmpdir: Optional[str] = None) -> Optional[list]:
    """Results of all images, in their order, in the first process; None in the others.

    Args:
        part: Those of this process: of every n-th image if there are n processes.
        size: Number of images; processes may repeat the first ones to have equally many.
        tmpdir: Not used; the functions that this one stands for write into it.
    """
    parts = gather(part)
    if parts is None:
        return None
    nothing = object()  # of a process that has fewer
    return [result for result in chain(*zip_longest(*parts, fillvalue=nothing))
            if result is not nothing][:size]
