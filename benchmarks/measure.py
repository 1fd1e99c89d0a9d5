"""What the benchmarks share: timing in turns, peak memory, tables, and where results go."""

from __future__ import annotations

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
from typing import Callable

import torch

from gkd.running.allocator import keep_freed_memory

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / 'work_dirs' / 'benchmarks'


def interleave(parts: dict[str, Callable[[], object]], rounds: int,
               warmup: int = 1) -> dict[str, list[float]]:
    """Time several functions in turn, so that a change in the machine's load hits them alike.

    Freed memory is kept, as in a training on the CPU.

    Args:
        parts: Functions by name.
        rounds: How often each is timed.
        warmup: Rounds that are run before and not counted.

    Returns:
        Seconds by name, one number a round.
    """
    keep_freed_memory()
    seconds = {name: [] for name in parts}
    for number in range(warmup + rounds):
        for name, part in parts.items():
            gc.collect()
            started = time.perf_counter()
            part()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - started)
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

    Run it once before, so that no library loads or compiles anything inside, and call it in a
    process that :func:`in_fresh_process` started.
    """
    gc.collect()
    before = memory_status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    function()
    return memory_status('VmHWM') - before


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
    name = platform.processor()
    if os.path.exists('/proc/cpuinfo'):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                name = line.split(':', 1)[1].strip()
                break
    return dict(processor=name, cores=str(os.cpu_count()), threads=str(torch.get_num_threads()),
                load=f'{os.getloadavg()[0]:.1f}', torch=torch.__version__,
                python=platform.python_version())


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
