"""Training in several processes, with or without GPUs."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import timedelta

import mmcv.engine.test
import mmdet.apis.test
import mmdet.apis.train
import mmdet.utils.util_distribution
import torch
import torch.distributed as dist
from mmcv.parallel import MMDistributedDataParallel
from mmcv.runner import dist_utils

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
        ConfigError: for an unknown launcher, or more processes on this node than it has GPUs.
        EnvironmentMismatchError: if the launcher's variables are not set.
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
    def mended(launcher, init_with_gpus):
        def init(backend, *args, **kwargs):
            if torch.cuda.is_available():
                init_with_gpus(backend, *args, **kwargs)
            else:
                init_distributed(launcher)
        return init

    dist_utils._init_dist_pytorch = mended('pytorch', dist_utils._init_dist_pytorch)
    dist_utils._init_dist_slurm = mended('slurm', dist_utils._init_dist_slurm)


def wrap_models_without_gpus() -> None:
    """Let mmdet's ``build_ddp`` wrap a model on the CPU.

    Reason: it allows accelerators only; torch wants no ``device_ids`` for a model on the CPU.
    For: mmdet 2.x.
    """
    build_on_accelerator = mmdet.utils.build_ddp

    def build_ddp(model, device='cuda', *args, **kwargs):
        if device != 'cpu':
            return build_on_accelerator(model, device, *args, **kwargs)
        kwargs.pop('device_ids', None)
        return MMDistributedDataParallel(model, *args, **kwargs)

    for module in (mmdet.utils.util_distribution, mmdet.utils, mmdet.apis.train):
        module.build_ddp = build_ddp


def collect_results_without_gpus() -> None:
    """Gather the detections of all processes where there are no GPUs.

    Reason: mmcv and mmdet send them, or the name of a folder for them, through tensors on 'cuda'.
    For: mmcv 1.x, mmdet 2.x.
    """
    def mended(collect_with_gpus):
        def collect(result_part, size, *args, **kwargs):
            if dist.get_backend() != 'gloo':
                return collect_with_gpus(result_part, size, *args, **kwargs)
            first = dist.get_rank() == 0
            parts = [None] * dist.get_world_size() if first else None
            dist.gather_object(result_part, parts)
            if not first:
                return None
            # The sampler deals the images out in turn, and starts over to deal evenly.
            return [result for turn in zip(*parts) for result in turn][:size]
        return collect

    for module in (mmcv.engine.test, mmdet.apis.test):
        module.collect_results_cpu = mended(module.collect_results_cpu)
        module.collect_results_gpu = mended(module.collect_results_gpu)
