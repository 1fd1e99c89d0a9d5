"""Failures of the machine are told from those of the settings."""

import pytest
import torch

from gkd.commands.explain import describe
from gkd.commands.machine import advice_on
from gkd.commands.trial import trying
from gkd.errors import ConfigError

OUT_OF_MEMORY = torch.cuda.OutOfMemoryError(
    'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB')


def describe_raised(error):
    try:
        raise error
    except Exception as raised:
        return describe(raised)


@pytest.mark.parametrize('error, says', [
    (OUT_OF_MEMORY, 'The GPU has too little free memory'),
    (RuntimeError('CUDA error: out of memory\nCUDA kernel errors might be asynchronously'),
     'The GPU has too little free memory'),
    (RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'), 'The GPU has too little free memory'),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                  'allocate memory: you tried to allocate 2359296 bytes.'),
     'The machine has too little free memory'),
    (MemoryError(), 'The machine has too little free memory'),
    (OSError(12, 'Cannot allocate memory'), 'The machine has too little free memory'),
    (RuntimeError('DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that '
                  "dataloader's workers are out of shared memory."), '/dev/shm'),
    (RuntimeError('Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to '
                  'allocate shared memory(shm) for file </torch_7_8_0>: No space left on device '
                  '(28)'), '/dev/shm'),
    (RuntimeError('unable to write to file </torch_7_8_0>: No space left on device (28)'),
     '/dev/shm'),
    (RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly'), 'ended from outside'),
    (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.'), 'ended from outside'),
    (OSError(24, 'Too many open files'), 'ulimit -n'),
    (RuntimeError('received 0 items of ancdata'), 'ulimit -n'),
    (RuntimeError('CUDA error: no kernel image is available for execution on the device'),
     'not built for this GPU'),
    (RuntimeError('The NVIDIA driver on your system is too old (found version 11040).'),
     'update the driver'),
    (RuntimeError('CUDA error: CUDA-capable device(s) is/are busy or unavailable'), 'nvidia-smi'),
    (RuntimeError('CUDA error: device-side assert triggered'), 'CUDA_LAUNCH_BLOCKING=1'),
    (RuntimeError('CUDA error: an illegal memory access was encountered'),
     'CUDA_LAUNCH_BLOCKING=1'),
], ids=lambda value: None if isinstance(value, str) else str(value)[:40])
def test_what_is_wrong_with_the_machine_is_said(error, says):
    assert says in advice_on(error)
    said = describe_raised(error)
    assert says in said and 'defect' not in said


def test_other_errors_are_not_put_down_to_the_machine():
    for error in (RuntimeError('The size of tensor a (3) must match the size of tensor b (4)'),
                  KeyError('memory'), OSError(2, 'No such file or directory')):
        assert advice_on(error) is None
        assert 'this is a defect' in describe_raised(error)


def test_a_trial_that_lacks_memory_does_not_send_to_the_model():
    with pytest.raises(ConfigError) as raised, trying('model', 'detecting', 'Look at `model`.'):
        raise OUT_OF_MEMORY
    said = str(raised.value)
    assert 'CUDA out of memory' in said and 'fewer images per step' in said
    assert 'Look at' not in said
