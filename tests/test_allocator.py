"""Freed memory is kept for the next tensors, where the C library can."""

import platform
import subprocess
import sys

import pytest

from gkd.commands import allocator

# The file alone: all of gkd would take seconds to import.
COUNT_FAULTS = '''
import runpy
import sys
from resource import RUSAGE_SELF, getrusage
import torch
keep_freed_memory = runpy.run_path(sys.argv[1])['keep_freed_memory']

def faults_of_last_step():
    # Where the heap happens to begin decides in which step it has room for three neighbours:
    # mostly by the fourth, and now and then by the seventh.
    for _ in range(15):
        before = getrusage(RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2 ** 24) for _ in range(3)]
        del tensors
    return getrusage(RUSAGE_SELF).ru_minflt - before

print(faults_of_last_step(), keep_freed_memory(), faults_of_last_step())
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is a function of glibc')
def test_later_steps_use_the_memory_of_earlier_ones():
    printed = subprocess.run([sys.executable, '-c', COUNT_FAULTS, allocator.__file__],
                             check=True, capture_output=True, text=True).stdout
    before, kept, after = printed.split()
    assert kept == 'True'
    assert int(after) < int(before) / 4
