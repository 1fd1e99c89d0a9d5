"""Names and shapes of the tensors in published checkpoints, written down compactly.

``checkpoints/keys.json`` holds, for each checkpoint, patterns and the shape that all names of a
pattern have: ``layer1.{0-2}.{bn1,bn2}.bias`` stands for six names.
"""

from __future__ import annotations

import itertools
import json
import os.path as osp
import re
from collections import defaultdict
from collections.abc import Mapping

from mmdet.models import build_detector
from torch import Tensor

from gkd.checkpoints import MANIFEST, published
from gkd.detectors.source import DetectorSource
from gkd.errors import CheckpointError
from gkd.files import write_atomically

KEYS = osp.join(osp.dirname(MANIFEST), 'keys.json')
Shapes = dict[str, tuple[int, ...]]


def published_shapes(name: str) -> Shapes:
    """Names and shapes of all tensors in a published checkpoint.

    Args:
        name: File name of the checkpoint.

    Raises:
        CheckpointError: They were not written down.
    """
    with open(KEYS, encoding='utf-8') as file:
        lists = json.load(file)
    if name not in lists:
        raise CheckpointError(f'{KEYS} has no list of the keys in {name}.')
    return {key: tuple(shape) for pattern, shape in lists[name].items()
            for key in expand(pattern)}


def shapes_of(state_dict: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes of the tensors of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def compare_shapes(found: Shapes, expected: Shapes, source: str) -> None:
    """Raise CheckpointError if names or shapes differ.

    Args:
        found: Those of ``source``.
        expected: Those that were written down.
        source: File or model, for messages.
    """
    wrong = [f'without {name}' for name in expected if name not in found]
    wrong += [f'with {name}' for name in found if name not in expected]
    wrong += [f'{name} is {shape} instead of {expected[name]}' for name, shape in found.items()
              if expected.get(name, shape) != shape]
    if wrong:
        raise CheckpointError(f'{source} differs from {osp.basename(KEYS)} in {len(wrong)} '
                              f'tensors, first: {"; ".join(wrong[:5])}')


def expand(pattern: str) -> list[str]:
    """All names that a pattern stands for.

    Example:
        >>> expand('layer1.{0-2}.{bn1,bn2}.bias')[:3]
        ['layer1.0.bn1.bias', 'layer1.0.bn2.bias', 'layer1.1.bn1.bias']
    """
    parts = []
    for text in re.split(r'[{}]', pattern):
        span = re.fullmatch(r'(\d+)-(\d+)', text)
        parts.append([str(number) for number in range(int(span[1]), int(span[2]) + 1)]
                     if span else text.split(','))
    return [''.join(choice) for choice in itertools.product(*parts)]


def compress(shapes: Shapes) -> dict[str, list[int]]:
    """Patterns for names of the same shape, such that :func:`expand` gives the names back.

    Example:
        >>> compress({f'fc.{i}.{kind}': (4,) for i in range(3) for kind in ('bias', 'scale')})
        {'fc.{0-2}.{bias,scale}': [4]}
    """
    groups = defaultdict(list)
    for name, shape in shapes.items():
        groups[shape].append(tuple((part,) for part in name.split('.')))
    patterns = {}
    for shape, names in groups.items():
        for position in reversed(range(max(map(len, names)))):
            names = merge(names, position)
        for name in names:
            patterns['.'.join(map(join, name))] = list(shape)
    return dict(sorted(patterns.items()))


def merge(names: list[tuple], position: int) -> list[tuple]:
    """Join names, given as the alternatives of each part, that differ in one part only."""
    alike = defaultdict(list)
    for name in names:
        part = name[position] if position < len(name) else ()
        alike[name[:position], name[position + 1:], len(name)].extend(part)
    return [before + ((tuple(parts), ) if parts else ()) + after
            for (before, after, _), parts in alike.items()]


def join(alternatives: tuple[str, ...]) -> str:
    """Write the alternatives of a part of a name, numbers in a row as a span."""
    if len(alternatives) == 1:
        return alternatives[0]
    if all(text.isdigit() for text in alternatives):
        numbers = sorted(map(int, alternatives))
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f'{{{numbers[0]}-{numbers[-1]}}}'
    return f'{{{",".join(sorted(alternatives))}}}'


def write_key_lists() -> str:
    """Write down the tensors of all published checkpoints, as their configs build them.

    Returns:
        The file that was written.
    """
    lists = {}
    for checkpoint in published().values():
        source = DetectorSource(checkpoint.config, checkpoint.name, checkpoint.name, {})
        detector = build_detector(source.model_config())
        lists[checkpoint.name] = compress(shapes_of(detector.state_dict()))
    # A line for each pattern, which the json module has no way to ask for.
    blocks = (f'{json.dumps(name)}: {{\n' + ',\n'.join(
        f'  {json.dumps(pattern)}: {json.dumps(shape)}' for pattern, shape in patterns.items())
        + '\n}' for name, patterns in lists.items())
    write_atomically(KEYS, '{\n' + ',\n'.join(blocks) + '\n}\n')
    return KEYS
