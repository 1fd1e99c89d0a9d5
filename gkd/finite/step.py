"""A training step in a file, to be run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from gkd.errors import CheckpointError, StorageError
from gkd.files import load_tensors, save_tensors
from gkd.frameworks import BATCH_PARTS

FORMAT = dict(format='gkd training step', format_version='1')
TYPES = {kind.__name__: kind for kind in BATCH_PARTS}
ADVICE = 'Name a file not_finite_*.safetensors of a run.'


@dataclass
class KeptStep:
    """All that the losses of a step depend on, besides the config and its teacher.

    Attributes:
        weights: State dict of the model.
        batch: What the model was called with.
        random: What :func:`gkd.randomness.random_state` returned before.
        losses: By name, ``loss`` is their sum.
        bank: State dict of the prototypes; None without.
        progress: Epochs done / epochs in all; None for a plain detector.
        teacher_columns: The student's classes among those of the teacher; None if both have the
            same.
        counts: What heads and samplers had counted before, as
            :func:`gkd.module_state.state_of` returns it; earlier releases did not keep it.
        epoch: Epochs done; earlier releases did not keep it.
    """

    weights: dict[str, Tensor]
    batch: Any
    random: dict
    losses: dict[str, float]
    bank: Optional[dict] = None
    progress: Optional[float] = None
    teacher_columns: Optional[Tensor] = None
    counts: Optional[dict] = None
    epoch: int = 0

    def save(self, path: str) -> None:
        """Write the step to a safetensors file, whole or not at all.

        Args:
            path: The file.

        Raises:
            StorageError: The file cannot be written, or the batch holds what it cannot hold.
        """
        tensors: dict[str, Tensor] = {}
        content = packed(vars(self), 'step', tensors)
        save_tensors(path, tensors, {**FORMAT, 'content': json.dumps(content)})

    def broken(self) -> list[str]:
        """Places of the tensors that are not finite, such as ``batch/img``."""
        tensors: dict[str, Tensor] = {}
        for name, value in vars(self).items():
            packed(value, name, tensors)
        return [place for place, tensor in tensors.items() if not tensor.isfinite().all()]

    @classmethod
    def load(cls, path: str) -> KeptStep:
        """Read a step that :meth:`save` wrote, to the CPU. Runs no code from the file.

        Args:
            path: The file.

        Raises:
            CheckpointError: It is missing, damaged or no such file.
        """
        tensors, header = load_tensors(path, ADVICE)
        if FORMAT.items() - header.items():
            raise CheckpointError(f'{path} holds no step that this release reads. {ADVICE}')
        try:
            return cls(**unpacked(json.loads(header['content']), tensors))
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise CheckpointError(f'{path} is a broken step ({type(error).__name__}: {error}). '
                                  f'{ADVICE}') from error


def packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON can hold it, without its tensors and arrays.

    Args:
        value: Plain Python, tensors, arrays, and what MMDetection puts into a batch.
        place: Where it is, which names its tensors.
        tensors: Gets the tensors and arrays.

    Raises:
        StorageError: It is of another type.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        # The format allows neither gaps nor shared memory.
        tensors[place] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return dict(tensor=place)
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        tensors[place] = torch.from_numpy(value.copy())
        return dict(array=place)
    if isinstance(value, (list, tuple)):
        kind = 'tuple' if isinstance(value, tuple) else 'list'
        return {kind: [packed(part, f'{place}/{number}', tensors)
                       for number, part in enumerate(value)]}
    if isinstance(value, Mapping):
        return dict(dict=[[name, packed(part, f'{place}/{name}', tensors)]
                          for name, part in value.items()])
    if type(value) in BATCH_PARTS:
        parts = packed(BATCH_PARTS[type(value)](value), place, tensors)
        return dict(object=type(value).__name__, parts=parts)
    raise StorageError(f'{place} is a {type(value).__name__}')


def unpacked(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that :func:`packed` made this of.

    Args:
        content: What it returned.
        tensors: What it has put there.

    Example:
        >>> tensors = {}
        >>> content = packed(dict(size=(2, 3), boxes=[torch.ones(1)]), 'batch', tensors)
        >>> list(tensors), unpacked(content, tensors)
        (['batch/boxes/0'], {'size': (2, 3), 'boxes': [tensor([1.])]})
    """
    if not isinstance(content, dict):
        return content
    if 'tensor' in content:
        return tensors[content['tensor']]
    if 'array' in content:
        return tensors[content['array']].numpy()
    if 'object' in content:
        return TYPES[content['object']](**unpacked(content['parts'], tensors))
    if 'dict' in content:
        return {name: unpacked(part, tensors) for name, part in content['dict']}
    parts = [unpacked(part, tensors) for part in content.get('tuple', content.get('list'))]
    return tuple(parts) if 'tuple' in content else parts
