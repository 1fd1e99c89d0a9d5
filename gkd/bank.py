"""PrototypeBank: the prototypes of every class and FPN level, and the file they are kept in."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gkd.errors import CheckpointError
from gkd.files import CHECKSUM, load_tensors, save_tensors

FORMAT = 'gkd.PrototypeBank'
FORMAT_VERSION = '2'
WITHOUT_CHECKSUM = '1'
ADVICE = 'Generate the prototypes again or point to the right file.'


@dataclass(eq=False)
class PrototypeBank:
    """Prototypes of every class on every FPN level, of teacher and student.

    Class c of level l owns rows ``offsets[l][c]:offsets[l][c + 1]`` of ``student[l]`` and
    ``teacher[l]``; the range is empty where the class had no instance. Row i of both holds the
    raw (not normalised) features of one instance.

    Source: method section 1.4.

    Args:
        student: Per level the student's prototypes, float of shape ``(P_l, D_S)``.
        teacher: Per level the teacher's prototypes, float of shape ``(P_l, D_T)``.
        offsets: Per level where the classes' rows begin and end, LongTensor of shape
            ``(num_classes + 1,)``, from 0 to ``P_l``, never decreasing.
        metadata: Strings kept with the bank, such as class names or the epoch.
        class_features: Per level features of the same instances in the teacher's class space,
            float of shape ``(P_l, D)``; empty unless a kind of knowledge needs them.

    Raises:
        ValueError: Levels, shapes, tensor types or offsets do not fit together.
        TypeError: The metadata holds anything but strings.

    Example:
        >>> bank = PrototypeBank(
        ...     student=[torch.rand(3, 8)], teacher=[torch.rand(3, 16)],
        ...     offsets=[torch.tensor([0, 2, 2, 3])])
        >>> bank.num_levels, bank.num_classes
        (1, 3)
    """

    student: list[Tensor]
    teacher: list[Tensor]
    offsets: list[Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    class_features: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.student) == len(self.teacher) == len(self.offsets) > 0:
            raise ValueError(
                'a bank needs the same number of levels, at least one, of student, teacher and '
                f'offsets, got {len(self.student)}, {len(self.teacher)} and {len(self.offsets)}'
            )
        for level in range(self.num_levels):
            self._check_level(level)
        if self.class_features and \
                [*map(len, self.class_features)] != [*map(len, self.teacher)]:
            raise ValueError('class_features must hold a row for every prototype of every '
                             'level, or nothing')
        for key, value in self.metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError(f'metadata must map str to str, got {key!r}: {value!r}')
            if key in ('format', 'format_version', CHECKSUM):
                raise ValueError(f'metadata key {key!r} is reserved for the file format')

    def _check_level(self, level: int) -> None:
        offsets = self.offsets[level]
        if offsets.dtype != torch.long or offsets.dim() != 1 or len(offsets) < 2:
            raise ValueError(
                f'offsets[{level}] must be a LongTensor of shape (num_classes + 1,), got '
                f'{offsets.dtype} of shape {tuple(offsets.shape)}'
            )
        if len(offsets) != len(self.offsets[0]):
            raise ValueError(
                f'offsets[{level}] has {len(offsets) - 1} classes, level 0 has {self.num_classes}'
            )
        bounds = offsets.tolist()
        if bounds[0] != 0 or bounds != sorted(bounds):
            raise ValueError(f'offsets[{level}] must start at 0 and never fall, got {bounds}')
        for name in ('student', 'teacher'):
            prototypes = getattr(self, name)[level]
            if not prototypes.is_floating_point() or prototypes.dim() != 2:
                raise ValueError(
                    f'{name}[{level}] must be a float tensor of shape (P, D), got '
                    f'{prototypes.dtype} of shape {tuple(prototypes.shape)}'
                )
            if len(prototypes) != bounds[-1]:
                raise ValueError(
                    f'{name}[{level}] has {len(prototypes)} prototypes, but offsets[{level}] '
                    f'ends at {bounds[-1]}'
                )

    @property
    def num_levels(self) -> int:
        """Number of FPN levels."""
        return len(self.offsets)

    @property
    def num_classes(self) -> int:
        """Number of classes, those without a prototype included."""
        return len(self.offsets[0]) - 1

    def to(self, device: str | torch.device) -> PrototypeBank:
        """A bank with the same content on ``device``."""
        moved = copy.copy(self)
        moved.student = [prototypes.to(device) for prototypes in self.student]
        moved.teacher = [prototypes.to(device) for prototypes in self.teacher]
        moved.offsets = [offsets.to(device) for offsets in self.offsets]
        moved.class_features = [features.to(device) for features in self.class_features]
        return moved

    def state_dict(self) -> dict[str, list[Tensor] | dict[str, str]]:
        """What a checkpoint holds of the bank: its content on the CPU, by name."""
        return vars(self.to('cpu'))

    @classmethod
    def from_state_dict(cls, state: dict[str, list[Tensor] | dict[str, str]]) -> PrototypeBank:
        """The bank of a checkpoint.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            ValueError: As for a new bank.
            TypeError: Likewise.
        """
        return cls(**state)

    def save(self, path: str | os.PathLike) -> None:
        """Write the bank to a safetensors file, whole or not at all.

        Args:
            path: The file to write; an existing one is replaced, missing folders are made.

        Raises:
            StorageError: It cannot be written.
        """
        tensors = {
            # Levels may share one tensor of offsets, which the format does not allow.
            f'{name}.{level}': tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name in ('student', 'teacher', 'offsets', 'class_features')
            for level, tensor in enumerate(getattr(self, name))
        }
        save_tensors(path, tensors,
                     {**self.metadata, 'format': FORMAT, 'format_version': FORMAT_VERSION})

    @classmethod
    def load(cls, path: str | os.PathLike) -> PrototypeBank:
        """Read a bank that :meth:`save` wrote, to the CPU. Runs no code from the file.

        Args:
            path: The file to read.

        Returns:
            The bank, its metadata included.

        Raises:
            CheckpointError: The file is missing, damaged, not a prototype bank, or of a format
                version that this release does not read.
        """
        tensors, header = load_tensors(path, ADVICE)
        if header.pop('format', None) != FORMAT:
            raise CheckpointError(
                f'{path}: a safetensors file, but not a prototype bank. '
                'Point to a file that PrototypeBank.save wrote.'
            )
        version = header.pop('format_version', None)
        if version not in (FORMAT_VERSION, WITHOUT_CHECKSUM):
            raise CheckpointError(
                f'{path}: prototype bank of format version {version}, this release reads version '
                f'{FORMAT_VERSION}. Generate the prototypes again.'
            )
        if header.pop(CHECKSUM, None) is None and version != WITHOUT_CHECKSUM:
            raise CheckpointError(f'{path} is damaged: its checksum is missing. {ADVICE}')
        levels = range(sum(not name.startswith('class_features.') for name in tensors) // 3)
        try:
            return cls(
                student=[tensors[f'student.{level}'] for level in levels],
                teacher=[tensors[f'teacher.{level}'] for level in levels],
                offsets=[tensors[f'offsets.{level}'] for level in levels],
                metadata=header,
                class_features=[tensors[f'class_features.{level}'] for level in levels
                                if 'class_features.0' in tensors],
            )
        except (KeyError, ValueError) as error:
            raise CheckpointError(f'{path}: broken prototype bank: {error}') from error
