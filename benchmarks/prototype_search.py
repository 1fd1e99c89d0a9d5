"""Time and peak memory of the prototype search against the number of instances.

The yardstick is the search as the formulas say it: every candidate reconstructs every instance
in both spaces. Its ``(candidates, D, N)`` tensors are made in small blocks of candidates, which is
faster than all at once, and fits into memory. It must choose the same instances.

Each size runs in a process of its own, which measures its memory too. Features are random clusters
with noise, 256 channels in float32.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.prototypes import select_prototypes

CHANNELS = 256
PROTOTYPES = 10
YARDSTICK_INSTANCES = 2000
CHUNKED_INSTANCES = 5000
SIZES = (500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


def features(count: int) -> tuple[Tensor, Tensor]:
    """Teacher's and student's features ``(count, CHANNELS)`` of instances in 20 clusters."""
    generator = torch.Generator().manual_seed(count)
    cluster = torch.randint(20, (count,), generator=generator)
    noise = torch.rand(count, 1, generator=generator)
    teacher, student = (
        torch.randn(20, CHANNELS, generator=generator)[cluster]
        + noise * torch.randn(count, CHANNELS, generator=generator) for _ in range(2))
    return teacher.to(measure.device()), student.to(measure.device())


def select_explicitly(teacher: Tensor, student: Tensor, alpha: float = 10.0,
                      block: int = 4) -> tuple[Tensor, int]:
    """The yardstick: the chosen instances, and among how many candidates."""
    spaces = [F.normalize(feature, dim=1) for feature in (teacher, student)]
    dense = torch.ones(len(teacher), dtype=torch.bool, device=teacher.device)
    for feature in spaces:
        density = torch.exp(-((1 - feature @ feature.T) / 0.1) ** 2).sum(dim=1)
        dense &= density > density.sort().values[int(0.4 * len(density))]
    candidates = dense.nonzero().flatten()
    residuals, chosen = [feature.T for feature in spaces], []
    for _ in range(PROTOTYPES):
        errors = []
        for rows in candidates.split(block):
            atoms = [feature[rows] for feature in spaces]
            inner = [atom @ residual for atom, residual in zip(atoms, residuals)]
            weights = [((1 + alpha) * own + alpha * other) / (1 + 2 * alpha)
                       for own, other in (inner, inner[::-1])]
            error = alpha * (weights[0] - weights[1]).square().sum(dim=1)
            for atom, residual, weight in zip(atoms, residuals, weights):
                left = residual - atom[:, :, None] * weight[:, None, :]  # (block, D, N)
                error += left.square().sum(dim=(1, 2))
            errors.append(error)
        best = candidates[torch.cat(errors).argmin()]
        chosen.append(best)
        inner = [feature[best] @ residual for feature, residual in zip(spaces, residuals)]
        residuals = [
            residual - torch.outer(feature[best],
                                   ((1 + alpha) * own + alpha * other) / (1 + 2 * alpha))
            for feature, residual, own, other in zip(spaces, residuals, inner, inner[::-1])]
    return torch.stack(chosen), len(candidates)


def against_yardstick(rounds: int) -> dict:
    """Both forms in turn on the same features; the choices must be equal."""
    select_prototypes(*features(100), PROTOTYPES)  # the first call of all loads libraries
    pair, chosen = features(YARDSTICK_INSTANCES), {}
    seconds = measure.interleave(
        dict(search=lambda: chosen.update(search=select_prototypes(*pair, PROTOTYPES)),
             explicit=lambda: chosen.update(explicit=select_explicitly(*pair))), rounds, warmup=0)
    expected, candidates = chosen['explicit']
    if not torch.equal(chosen['search'], expected):
        raise RuntimeError('select_prototypes does not choose what the explicit form chooses')
    ratios = [slow / fast for slow, fast in zip(seconds['explicit'], seconds['search'])]
    return dict(instances=YARDSTICK_INSTANCES, candidates=candidates,
                explicit=measure.summary(seconds['explicit']),
                search=measure.summary(seconds['search']), ratio=measure.summary(ratios))


def against_chunks() -> list[dict]:
    """The same search under different bounds on memory; the choices must be equal."""
    pair = features(CHUNKED_INSTANCES)
    expected = select_prototypes(*pair, PROTOTYPES)
    rows = []
    for max_pairs in (CHUNKED_INSTANCES, 10**5, 10**6, 2**24, CHUNKED_INSTANCES**2):
        measure.synchronise()
        started = time.perf_counter()
        chosen = select_prototypes(*pair, PROTOTYPES, max_pairs=max_pairs)
        measure.synchronise()
        seconds = time.perf_counter() - started
        if not torch.equal(chosen, expected):
            raise RuntimeError(f'max_pairs={max_pairs} changes the choice')
        rows.append(dict(max_pairs=max_pairs, seconds=seconds,
                         chosen=chosen.tolist()))
    return rows


def measure_size(count: int, rounds: int) -> dict:
    """Time and peak memory of one size, in this process."""
    select_prototypes(*features(100), PROTOTYPES)
    pair = features(count)
    extra = measure.peak_memory(lambda: select_prototypes(*pair, PROTOTYPES))
    process = measure.memory_of_process()
    # The sizes that take minutes vary little, and are timed once.
    repeats = rounds if count <= 10_000 else 1
    search = measure.interleave(dict(search=lambda: select_prototypes(*pair, PROTOTYPES)), repeats,
                                warmup=0)['search']
    return dict(instances=count, search=measure.summary(search), extra_bytes=extra,
                process_bytes=process)


def table(title: str, rows: list[dict], columns: dict) -> None:
    """Print a Markdown table."""
    print(f'\n{title}\n\n| ' + ' | '.join(columns) + ' |')
    print('| ' + ' | '.join('---' for _ in columns) + ' |')
    for row in rows:
        print('| ' + ' | '.join(cell(row) for cell in columns.values()) + ' |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', type=int, nargs='+', default=SIZES,
                        help='numbers of instances to time (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='repeats of what takes seconds')
    parser.add_argument('--output', type=Path, default=measure.RESULTS / 'prototype_search.json',
                        help='the JSON file to write (default: %(default)s)')
    measure.add_device_option(parser)
    parser.add_argument('--measure', type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure_size(arguments.measure, arguments.rounds)))
        return

    yardstick = against_yardstick(arguments.rounds)
    table(f'Explicit form and search, {YARDSTICK_INSTANCES} instances, same choice', [yardstick], {
        'candidates': lambda row: str(row['candidates']),
        'explicit (s)': lambda row: measure.show(row['explicit'], 1),
        'search (s)': lambda row: measure.show(row['search']),
        'ratio': lambda row: measure.show(row['ratio'], 0)})
    chunks = against_chunks()
    table(f'Bound on pairs held, {CHUNKED_INSTANCES} instances, same choice', chunks, {
        'max_pairs': lambda row: str(row['max_pairs']),
        'search (s)': lambda row: f'{row["seconds"]:.2f}'})
    sizes = [json.loads(measure.in_fresh_process(
        __file__, '--measure', str(count), '--rounds', str(arguments.rounds)))
        for count in arguments.sizes]
    table(f'Search for {PROTOTYPES} prototypes, {CHANNELS} channels', sizes, {
        'instances': lambda row: str(row['instances']),
        'time (s)': lambda row: measure.show(row['search'], 2),
        'memory on top of the features (MiB)': lambda row: f'{row["extra_bytes"] / 2**20:.0f}',
        'memory of the process (MiB)': lambda row: f'{row["process_bytes"] / 2**20:.0f}'})

    machine = measure.machine()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(
        dict(machine=machine, yardstick=yardstick, chunks=chunks, sizes=sizes), indent=2) + '\n')
    print('\n' + ', '.join(f'{key} {value}' for key, value in machine.items()))
    print(f'written to {arguments.output}')


if __name__ == '__main__':
    main()
