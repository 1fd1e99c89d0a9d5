"""Run every benchmark, one after the other, and print their tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ('step_overhead', 'distilling_module', 'prototype_search', 'prototype_generation',
              'data_path', 'methods', 'operations')


def main() -> None:
    """Run them in processes of their own, so that none starts with another's memory."""
    folder = Path(__file__).resolve().parent
    for name in BENCHMARKS:
        print(f'\n=== {name}', flush=True)
        subprocess.run([sys.executable, str(folder / f'{name}.py')], check=True)


if __name__ == '__main__':
    main()
