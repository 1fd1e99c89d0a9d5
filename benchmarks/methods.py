"""What every method of distillation adds to a training step: time, kernels and peak memory.

A step is forward and backward on the quickstart's data; the plain student's is that of the same
distiller with nothing to teach, which runs no teacher. Untrained detectors: their weights do not
change what is computed, only where objects are found.
"""

from __future__ import annotations

import argparse
from typing import Callable

import inputs
import measure
import step_overhead
import torch

from gkd.comparison.methods import choose_methods, variant
from gkd.report.names import PLAIN_STUDENT

CLASS_SPACE = 'class-space'


def training_step(family: str, method: str) -> Callable[[], None]:
    """Forward and backward of the quickstart's distiller when it teaches one method.

    Args:
        family: Of the detectors.
        method: Its name in ``configs/_base_/comparison.py``, combinations with ``+``;
            :data:`PLAIN_STUDENT` teaches nothing.
    """
    config = inputs.quickstart_config(family)
    settings = (dict(knowledge=[]) if method == PLAIN_STUDENT
                else choose_methods(config, [method])[method])
    distiller = step_overhead.build_distiller(variant(config, settings).model)
    data = inputs.first_batch(config)

    def step() -> None:
        torch.manual_seed(0)
        distiller.zero_grad()
        step_overhead.total(distiller.forward_train(**data)).backward()

    return step


def measure_method(family: str, method: str, rounds: int) -> dict:
    """Time and memory of one method against the plain student, as a row of the table."""
    steps = {name: training_step(family, name) for name in (PLAIN_STUDENT, method)}
    seconds = measure.interleave(steps, rounds)
    launched = {name: measure.kernels(step)[0] for name, step in steps.items()}
    ratios = [taught / plain for plain, taught in zip(seconds[PLAIN_STUDENT], seconds[method])]
    extra = [taught - plain for plain, taught in zip(seconds[PLAIN_STUDENT], seconds[method])]
    memory = {name: int(measure.in_fresh_process(
        __file__, '--families', family, '--memory', name)) for name in (PLAIN_STUDENT, method)}
    return dict(family=family, method=method, extra=measure.summary(extra), memory=memory,
                ratio=measure.summary(ratios), kernels=launched,
                seconds={name: measure.summary(times) for name, times in seconds.items()})


def added_kernels(kernels: dict, method: str, **_) -> str:
    """Kernels of the plain student's step and what a method adds; known on a GPU only."""
    if kernels[method] is None:
        return '-'
    return f'{kernels[PLAIN_STUDENT]}, {kernels[method] - kernels[PLAIN_STUDENT]}'


def measure_memory(family: str, method: str) -> int:
    """Peak memory in bytes of a step."""
    step = training_step(family, method)
    step()
    return measure.peak_memory(step)


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--families', nargs='+', choices=inputs.FAMILIES,
                        default=list(inputs.FAMILIES))
    parser.add_argument('--methods', nargs='+',
                        help=f'default: all, one by one, and {CLASS_SPACE}')
    parser.add_argument('--rounds', type=int, default=11, help='timings a method')
    measure.add_device_option(parser)
    parser.add_argument('--memory', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(measure_memory(args.families[0], args.memory))
        return
    rows = [measure_method(family, method, args.rounds) for family in args.families
            for method in args.methods or (CLASS_SPACE, *choose_methods(
                inputs.quickstart_config(family)))]
    measure.report('methods', rows, {
        'family': lambda row: row['family'],
        'method': lambda row: row['method'],
        'plain student s': lambda row: f'{row["seconds"][PLAIN_STUDENT]["median"]:.3f}',
        'added s': lambda row: measure.show(row['extra']),
        'step / student alone': lambda row: measure.show(row['ratio'], 2),
        'kernels of a plain step, added': lambda row: added_kernels(**row),
        'peak memory of a plain step, MB': lambda row: f'{row["memory"][PLAIN_STUDENT] / 1e6:.0f}',
        'added MB': lambda row: '{:.0f}'.format(
            (row['memory'][row['method']] - row['memory'][PLAIN_STUDENT]) / 1e6),
    }, 'What a method adds to the plain student\'s step (median, quartiles)')


if __name__ == '__main__':
    main()
