"""Damage configs and annotation files at random, train with them, and look how that ends.

    OMP_NUM_THREADS=1 python tests/faults/fuzz.py --inputs 300

Every input is one that trains, with one to three changes drawn at random. It must end with a
message of one of the package's own error types, or, where the change does no harm, train.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import gkd  # noqa: F401  (must come before anything imports mmdet)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from mmcv.runner import EpochBasedRunner

import gkd.report.page  # noqa: F401  (trainings would import it one by one)
from gkd.errors import GKDError
from gkd.running import load_config, train

PATIENCE = 600  # seconds; a training takes two where nothing else runs
VALUES = (None, '', 'text', '/', -1, 0, 1, 3, 10 ** 12, -0.5, 1e30, float('nan'), float('inf'),
          True, [], [1], ['a', 2], {}, {'type': 'Nothing'}, (0, 0), b'bytes')


def base_config(folder: Path) -> dict:
    """A config that trains a step: everything in one file."""
    annotations = tiny_data.write_data(folder, sizes=tiny_data.SIZES[:2])
    teacher = small.retinanet(24)
    model = dict(
        type='Distiller',
        teacher=dict(config=teacher,
                     checkpoint=tiny_data.write_weights(folder / 'teacher.pth', teacher)),
        student=dict(config=small.retinanet()),
        prototypes=dict(type='PrototypeGenerationModule', num_prototypes=2, min_size=30),
        knowledge=[dict(type='RobustDistillingModule', global_knowledge=dict(loss_weight=5.0),
                        soft_label=dict(temperature=2.0))])
    return tiny_data.experiment(model, annotations, epochs=1)


def places(nest: Any, path: tuple = ()) -> list[tuple]:
    """Paths of everything inside nested dicts and lists."""
    items = nest.items() if isinstance(nest, dict) else \
        enumerate(nest) if isinstance(nest, list) else ()
    found = []
    for key, value in items:
        found += [(*path, key), *places(value, (*path, key))]
    return found


def damage(nest: Any, rng: random.Random, values: tuple = VALUES) -> str:
    """Change one place of a nest of dicts and lists; returns what was done.

    Args:
        nest: Changed in place.
        rng: Draws place and change.
        values: Values to choose from.
    """
    path = rng.choice(places(nest))
    owner = nest
    for key in path[:-1]:
        owner = owner[key]
    name, key = '.'.join(map(str, path)), path[-1]
    kind = rng.choice(['replace', 'replace', 'delete', 'rename', 'swap', 'repeat'])
    if kind == 'delete':
        del owner[key]
        return f'delete {name}'
    if kind == 'rename' and isinstance(owner, dict):
        owner[f'{key}_'] = owner.pop(key)
        return f'rename {name}'
    if kind == 'swap':
        other = rng.choice(places(nest))
        value = nest
        for step in other:
            value = value[step]
        owner[key] = copy.deepcopy(value)
        return f'{name} = {".".join(map(str, other))}'
    if kind == 'repeat' and isinstance(owner, list):
        owner.append(copy.deepcopy(owner[key]))
        return f'repeat {name}'
    owner[key] = copy.deepcopy(rng.choice(values))
    return f'{name} = {owner[key]!r}'


def damage_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Cut, flip or insert bytes; returns the content and what was done."""
    position = rng.randrange(len(content))
    kind = rng.choice(['cut', 'flip', 'insert'])
    if kind == 'cut':
        return content[:position], f'cut at {position}'
    changed = bytearray(content)
    if kind == 'flip':
        changed[position] ^= 1 << rng.randrange(8)
    else:
        changed[position:position] = rng.randbytes(rng.randint(1, 8))
    return bytes(changed), f'{kind} at {position}'


def make_input(config: dict, folder: Path, kind: str, rng: random.Random) -> str:
    """Write a damaged experiment into a folder; returns what was done to it.

    Args:
        config: One that trains.
        folder: Where the config goes.
        kind: ``'config'``, ``'annotations'`` (as JSON) or ``'bytes'`` (of either file).
        rng: Draws the changes.
    """
    folder.mkdir()
    config = copy.deepcopy(config)
    annotations = Path(config['data']['train']['ann_file'])
    content = json.loads(annotations.read_text())
    done = []
    for _ in range(rng.randint(1, 3)):
        if kind == 'config':
            done.append(damage(config, rng))
        elif kind == 'annotations':
            simple = tuple(value for value in VALUES if not isinstance(value, (bytes, tuple)))
            done.append(damage(content, rng, simple))
    data = config.get('data')
    for part in ('train', 'val', 'test') if kind != 'config' else ():
        data[part]['ann_file'] = str(folder / 'annotations.json')
    code = ''.join(f'{name} = {literal(value)}\n' for name, value in config.items()).encode()
    text = json.dumps(content).encode()
    if kind == 'bytes' and rng.random() < 0.5:
        code, what = damage_bytes(code, rng)
        done.append(f'config: {what}')
    elif kind == 'bytes':
        text, what = damage_bytes(text, rng)
        done.append(f'annotations: {what}')
    (folder / 'config.py').write_bytes(code)
    (folder / 'annotations.json').write_bytes(text)
    return '; '.join(done)


def literal(value: Any) -> str:
    """A value as Python code."""
    return repr(value).replace('nan', 'float("nan")').replace('inf', 'float("inf")') \
        if isinstance(value, float) else \
        '{' + ', '.join(f'{key!r}: {literal(item)}' for key, item in value.items()) + '}' \
        if isinstance(value, dict) else \
        '[' + ', '.join(map(literal, value)) + ']' if isinstance(value, list) else repr(value)


def outcome(folder: Path) -> tuple[str, str]:
    """Train with the config in a folder, in a process of its own.

    Returns:
        ``'trained'``, the name of an error type of the package, ``'hang'``, ``'crash'`` or, for
        any other exception, ``'traceback'``; and the message.
    """
    child = os.fork()
    if child == 0:
        try:
            run_child(folder)
        finally:
            os._exit(1)
    deadline = time.time() + PATIENCE
    while True:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            break
        if time.time() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 'hang', ''
        time.sleep(0.01)
    result = folder / 'outcome.json'
    if not result.exists():
        return 'crash', f'status {os.waitstatus_to_exitcode(status)}'
    return tuple(json.loads(result.read_text()))


def run_child(folder: Path) -> None:
    """Train a step or two and write down how that ended."""
    os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    run = EpochBasedRunner.run

    def shortened(self, *args, **kwargs):
        self._max_epochs = min(self._max_epochs, 1)
        return run(self, *args, **kwargs)

    EpochBasedRunner.run = shortened
    result = 'trained', ''
    try:
        config = load_config('config.py')
        config.work_dir = 'work'
        train(config)
    except GKDError as error:
        result = type(error).__name__, str(error)
    except BaseException:
        result = 'traceback', traceback.format_exc()
    Path('outcome.json').write_text(json.dumps(result))


def run(folder: Path, inputs: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """Try inputs.

    Args:
        folder: Empty or missing; everything is written there.
        inputs: How many.
        seed: Seed of the changes.

    Returns:
        How often every outcome was, and a description of each that must not be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = base_config(folder)
    counts, complaints = Counter(), []
    for number in range(inputs):
        rng = random.Random(f'{seed} {number}')
        kind = ('config', 'annotations', 'config', 'bytes')[number % 4]
        what = make_input(config, folder / str(number), kind, rng)
        result, message = outcome(folder / str(number))
        counts[result] += 1
        if result in ('hang', 'crash', 'traceback') or len(message) > 3000:
            complaints.append(f'{number}: {what}\n{result}: {message}')
        elif result == 'RunError':
            print(f'{number:4} {what}\n     {message.splitlines()[0]}', flush=True)
    return counts, complaints


def main() -> None:
    """Try inputs and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--inputs', type=int, default=300)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, complaints = run(Path(folder) / 'inputs', args.inputs, args.seed)
    for complaint in complaints:
        print(complaint)
    ends = ', '.join(f'{count} {name}' for name, count in counts.most_common())
    print(f'{args.inputs} inputs tried: {ends}; {len(complaints)} tracebacks, crashes or hangs')
    sys.exit(bool(complaints))


if __name__ == '__main__':
    main()
