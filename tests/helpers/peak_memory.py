"""Print the bytes that a training step takes on top of what its process holds, for each config.

``python tests/helpers/peak_memory.py WIDTH HEIGHT IMAGES CONFIG ...``
"""

import gc
import re
import sys
from pathlib import Path

import torch

from gkd.planning.cost import MeasuredStep
from gkd.running import load_config


def resident(key):
    """A line of Linux's account of this process, in bytes."""
    return int(re.search(rf'{key}:\s*(\d+)', Path('/proc/self/status').read_text())[1]) * 1024


def peak(step, width, height, images):
    """Run a step three times and measure the last."""
    def run():
        loss = step.loss(step.model, width, height, images)
        step.optimizer.zero_grad()
        loss.backward()
        step.optimizer.step()

    for _ in range(2):
        run()
    step.optimizer.zero_grad()
    gc.collect()
    before = resident('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    run()
    return resident('VmHWM') - before


if __name__ == '__main__':
    torch.set_num_threads(1)
    width, height, images = map(int, sys.argv[1:4])
    for path in sys.argv[4:]:
        print('peak', peak(MeasuredStep(load_config(path)), width, height, images))
