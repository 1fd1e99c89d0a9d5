"""What fails because of the machine, whatever the settings are."""

from __future__ import annotations

import re
from typing import Optional

from gkd.frameworks import BATCH_SIZE_SETTING, WORKERS_SETTING

# Signs in the text of an error, and what to do. The first that is found counts.
ADVICE = {
    r'CUDA out of memory|CUDA error: out of memory|(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED':
        f'The GPU has too little free memory; `nvidia-smi` shows what else uses it. Take fewer '
        f'images per step (`{BATCH_SIZE_SETTING}`) or mixed precision. `python tools/plan.py '
        f'CONFIG` estimates what a step takes.',
    r"can't allocate memory|Cannot allocate memory|^MemoryError":
        f'The machine has too little free memory. Take fewer images per step '
        f'(`{BATCH_SIZE_SETTING}`), fewer processes, or fewer that load images '
        f'(`{WORKERS_SETTING}`).',
    r'out of shared memory|unable to (write to|allocate shared memory).*torch_|shm_open':
        f'The processes that load images hand them over in shared memory (/dev/shm), which is '
        f'full. Give a container more of it (`docker run --shm-size=8g`, or `--ipc=host`), or '
        f'take fewer such processes (`{WORKERS_SETTING}`; 0 needs none).',
    r'DataLoader worker .*(killed by signal|exited unexpectedly)':
        f'A process that loads images was ended from outside, often by the system for lack of '
        f'memory. Take fewer of them (`{WORKERS_SETTING}`).',
    r'Too many open files|received 0 items of ancdata':
        f'The system lets a process open no more files. Raise its limit (`ulimit -n 65536`) or '
        f'take fewer processes that load images (`{WORKERS_SETTING}`).',
    r'no kernel image is available|not compatible with the current PyTorch installation':
        'The installed torch was not built for this GPU: install one that was '
        '(https://pytorch.org/get-started).',
    r'driver version is insufficient|driver on your system is too old':
        'The GPU\'s driver is older than the installed torch needs: update the driver, or install '
        'a torch for an older CUDA.',
    r'CUDA-capable device.* busy or unavailable':
        'Another process has the GPU for itself: `nvidia-smi` shows which one.',
    r'device-side assert|illegal memory access|CUDA error|CUBLAS_STATUS|CUDNN_STATUS':
        'A GPU reports its errors late, so the place may be another one: CUDA_LAUNCH_BLOCKING=1 '
        'before the command shows the right one, and CUDA_VISIBLE_DEVICES= , which runs it on the '
        'CPU, often a clearer message.',
}


def advice_on(error: BaseException) -> Optional[str]:
    """What to do about an error that is the machine's, not the settings'; None for others.

    Args:
        error: What was raised, by torch in most cases.

    Example:
        >>> advice_on(RuntimeError('CUDA error: out of memory')).partition(';')[0]
        'The GPU has too little free memory'
        >>> advice_on(KeyError('lr'))
    """
    text = f'{type(error).__name__}: {error}'
    return next((advice for sign, advice in ADVICE.items() if re.search(sign, text)), None)
