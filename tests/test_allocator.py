"""Freed memory is kept for the next tensors, where the C library can."""

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = '''
from resource import RUSAGE_SELF, getrusage
import torch
from gkd.apis.allocator import keep_freed_memory

def faults_of_second_step():
    for _ in range(2):
        before = getrusage(RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2 ** 24) for _ in range(3)]
        del tensors
    return getrusage(RUSAGE_SELF).ru_minflt - before

print(faults_of_second_step(), keep_freed_memory(), faults_of_second_step())
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is a function of glibc')
def test_second_step_uses_the_memory_of_the_first():
    printed = subprocess.run([sys.executable, '-c', COUNT_FAULTS], check=True,
                             capture_output=True, text=True).stdout
    before, kept, after = printed.split()
    assert kept == 'True'
    assert int(after) < int(before) / 4
