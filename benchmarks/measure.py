"""What the benchmarks share: the device, timing in turns, memory, tables, where results go."""

from __future__ import annotations

import functools
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Optional

import torch
from torch.profiler import ProfilerActivity, profile

from gkd.commands.allocator import keep_freed_memory
from gkd.commands.device import add_device_option
from gkd.report.results import processor

__all__ = ['REPOSITORY', 'RESULTS', 'add_device_option', 'device', 'device_name',
           'in_fresh_process', 'interleave', 'kernels', 'machine', 'memory_of_process',
           'memory_status', 'on_device', 'peak_memory', 'report', 'show', 'summary', 'synchronise']

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / 'work_dirs' / 'benchmarks'


@functools.cache
def device() -> torch.device:
    """Where everything is measured: a GPU if one is to be seen, see ``--device``."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def device_name() -> str:
    """What the numbers are measured on."""
    return torch.cuda.get_device_name() if device().type == 'cuda' else 'CPU'


def on_device(value):
    """The same list, tuple or dict with its tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device())
    if isinstance(value, dict):
        return {name: on_device(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(on_device, value))
    return value


def synchronise() -> None:
    """Wait for everything that was launched on a GPU."""
    if device().type == 'cuda':
        torch.cuda.synchronize()


def seconds_of(part: Callable[[], object]) -> float:
    """Seconds that a function takes; on a GPU between two of its events."""
    if device().type == 'cpu':
        started = time.perf_counter()
        part()
        return time.perf_counter() - started
    synchronise()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    part()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def interleave(parts: dict[str, Callable[[], object]], rounds: int,
               warmup: int = 1) -> dict[str, list[float]]:
    """Time several functions in turn, so that a change in the machine's load hits them alike.

    On the CPU freed memory is kept, as in a training.

    Args:
        parts: Functions by name.
        rounds: How often each is timed.
        warmup: Rounds that are run before and not counted.

    Returns:
        Seconds by name, one number a round.
    """
    if device().type == 'cpu':
        keep_freed_memory()
    seconds = {name: [] for name in parts}
    for number in range(warmup + rounds):
        for name, part in parts.items():
            gc.collect()
            taken = seconds_of(part)
            if number >= warmup:
                seconds[name].append(taken)
    return seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    values = values if len(values) > 1 else list(values) * 2
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return dict(median=middle, low=low, high=high)


def show(numbers: dict[str, float], digits: int = 3) -> str:
    """Median with quartiles, as tables print it."""
    return (f'{numbers["median"]:.{digits}f} '
            f'({numbers["low"]:.{digits}f} to {numbers["high"]:.{digits}f})')


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes of memory that ``function`` needs on top of what the process holds, at its peak.

    On a GPU these are bytes that torch's allocator has handed out. Run the function once before,
    so that no library loads or compiles anything inside, and call this in a process that
    :func:`in_fresh_process` started.
    """
    gc.collect()
    if device().type == 'cuda':
        synchronise()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        synchronise()
        return torch.cuda.max_memory_allocated() - before
    before = memory_status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    function()
    return memory_status('VmHWM') - before


def memory_of_process() -> int:
    """Bytes of the process at its peak; on a GPU those that torch had allocated."""
    if device().type == 'cuda':
        return torch.cuda.max_memory_allocated()
    return memory_status('VmHWM')


def kernels(function: Callable[[], object]) -> tuple[Optional[int], Optional[float]]:
    """How many kernels a function launches on a GPU, and the seconds that they run.

    Nothing is known of a CPU.
    """
    if device().type == 'cpu':
        return None, None
    function()
    synchronise()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        function()
        synchronise()
    found = [event for event in seen.events()
             if event.device_type == torch.autograd.DeviceType.CUDA
             and not event.name.lower().startswith(('memcpy', 'memset'))]
    return len(found), sum(event.device_time for event in found) / 1e6


def memory_status(key: str) -> int:
    """A line of Linux's ``/proc/self/status``, in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no {key}: memory is measured on Linux only')


def in_fresh_process(script: str, *arguments: str) -> str:
    """Run a benchmark's script in a new process and return the last line that it prints."""
    # Freed tensors go back to the system at once, so that the peak is what was in use.
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_='131072', MALLOC_TRIM_THRESHOLD_='0')
    done = subprocess.run([sys.executable, script, *arguments], env=environment, check=True,
                          stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    return dict(device=device_name(), processor=processor(), cores=str(os.cpu_count()),
                threads=str(torch.get_num_threads()), load=f'{os.getloadavg()[0]:.1f}',
                torch=torch.__version__, python=platform.python_version())


def report(name: str, rows: list[dict], columns: dict[str, Callable[[dict], str]],
           title: str) -> None:
    """Write the results as JSON and print them as a Markdown table.

    Args:
        name: Name of the benchmark; the file is ``work_dirs/benchmarks/NAME.json``.
        rows: The measurements, ready for JSON.
        columns: For every column of the table how a row is shown.
        title: Printed above the table.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f'{name}.json'
    path.write_text(json.dumps(dict(machine=machine(), rows=rows), indent=2) + '\n')
    print(f'\n{title}\n')
    print('| ' + ' | '.join(columns) + ' |')
    print('| ' + ' | '.join('---' for _ in columns) + ' |')
    for row in rows:
        print('| ' + ' | '.join(cell(row) for cell in columns.values()) + ' |')
    print('\n' + ', '.join(f'{key} {value}' for key, value in machine().items()))
    print(f'written to {path.relative_to(REPOSITORY)}', flush=True)
