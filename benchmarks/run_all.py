"""Run every benchmark, one after the other, and print their tables.

With ``--brief`` each runs in its smallest setting: some minutes on a GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import measure

# Every benchmark, and what it leaves out in brief.
BENCHMARKS = {
    'operations': (),
    'tensor_memory': ('--small',),
    'gpu_step': ('--images', '2', '--rounds', '5'),
    'step_overhead': ('--rounds', '5', '--coco-rounds', '3'),
    'distilling_module': ('--base-only', '--rounds', '3'),
    'methods': ('--rounds', '3'),
    'prototype_search': ('--sizes', '500', '10000', '--rounds', '1'),
    'prototype_generation': ('--rounds', '3'),
    'data_path': ('--epochs', '2', '--steps', '3'),
}
ONLY_ON_A_GPU = ('gpu_step', )


def main() -> None:
    """Run them in processes of their own, so that none starts with another's memory."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--brief', action='store_true', help='the smallest setting of each')
    measure.add_device_option(parser)
    args = parser.parse_args()
    folder = Path(__file__).resolve().parent
    for name, brief in BENCHMARKS.items():
        if name in ONLY_ON_A_GPU and measure.device().type == 'cpu':
            continue
        print(f'\n=== {name}', flush=True)
        subprocess.run([sys.executable, str(folder / f'{name}.py'),
                        *(brief if args.brief else ())], check=True)


if __name__ == '__main__':
    main()
