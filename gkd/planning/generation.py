"""Estimate what the generation of prototypes needs before it is run.

Only annotations and configs are read; neither images nor checkpoints need to be there.
"""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Optional

import numpy as np

from gkd.distiller import Distiller
from gkd.errors import ConfigError, DataError
from gkd.frameworks import Config, Dataset
from gkd.planning.door import (
    ANNOTATIONS,
    annotation_files,
    prototype_configs,
    prototype_datasets,
    untrained_model,
)
from gkd.prototypes.features import CandidateImage, choose_candidates, group_by_size
from gkd.prototypes.generation import build_generation

FLOAT32 = 4  # bytes; features and prototypes
FLOAT64 = 8  # bytes; the search


@dataclass(frozen=True)
class GenerationPlan:
    """Counts of a prototype generation.

    Attributes:
        images: Images to run.
        batches: Batches they make, each of images of one size; None if the sizes are not known.
        instances: For every class its instances among them.
        teacher_channels: Channels of the teacher on every level.
        student_channels: Channels of the student on every level.
        num_prototypes: Prototypes a class and level.
        max_pairs: Similarities that the search holds at a time.
        exact: Whether images and instances were counted; else they are upper bounds.
        class_channels: Channels of the class space; 0 if the bank needs none.

    Example:
        >>> plan = GenerationPlan(
        ...     images=20, batches=3, instances=(100, 0, 50),
        ...     teacher_channels=(256,), student_channels=(256,), num_prototypes=10,
        ...     max_pairs=2**24, exact=True)
        >>> plan.feature_bytes == 150 * (256 + 256) * 4
        True
    """

    images: int
    batches: Optional[int]
    instances: tuple[int, ...]
    teacher_channels: tuple[int, ...]
    student_channels: tuple[int, ...]
    num_prototypes: int
    max_pairs: int
    exact: bool
    class_channels: int = 0

    @classmethod
    def of(cls, candidates: Sequence[CandidateImage], num_classes: int, batch_size: int,
           **settings) -> GenerationPlan:
        """Count what has been chosen.

        Args:
            candidates: The chosen images.
            num_classes: Number of classes.
            batch_size: Images a forward pass.
            **settings: The other attributes.
        """
        labels = np.concatenate([np.zeros(0, np.int64)] + [image.labels for image in candidates])
        return cls(images=len(candidates), batches=len(group_by_size(candidates, batch_size)),
                   instances=tuple(np.bincount(labels, minlength=num_classes).tolist()),
                   exact=True, **settings)

    @classmethod
    def bound(cls, images: int, boxes: int, num_classes: int, max_images: int,
              **settings) -> GenerationPlan:
        """Bound what can be chosen from a data set of which only the totals are known.

        Every box may lie in a chosen image. Boxes are assumed to spread evenly over classes; only
        :attr:`operations` depends on this.

        Args:
            images: Images with boxes.
            boxes: Boxes in all of them.
            num_classes: Number of classes.
            max_images: Images a class at most.
            **settings: The other attributes.
        """
        return cls(images=min(images, num_classes * max_images), batches=None,
                   instances=tuple(np.bincount(np.arange(boxes) % num_classes).tolist()),
                   exact=False, **settings)

    @property
    def channels(self) -> int:
        """Channels of both detectors, summed over levels."""
        return sum(self.teacher_channels) + sum(self.student_channels)

    @property
    def teacher_bytes(self) -> int:
        """The teacher's features, kept on disk and mapped into memory."""
        channels = sum(self.teacher_channels) + self.class_channels
        return sum(self.instances) * channels * FLOAT32

    @property
    def student_bytes(self) -> int:
        """The student's features; a single process holds them while a bank is made.

        With several processes, each holds its share at first. Then every process of a node maps
        all shares from disk.
        """
        return sum(self.instances) * sum(self.student_channels) * FLOAT32

    @property
    def feature_bytes(self) -> int:
        """Features of teacher and student, in the memory of a node at most once."""
        return self.teacher_bytes + self.student_bytes

    @property
    def bank_bytes(self) -> int:
        """One bank."""
        classes = sum(count > 0 for count in self.instances)
        channels = self.channels + self.class_channels * len(self.teacher_channels)
        return classes * self.num_prototypes * channels * FLOAT32

    @property
    def search_bytes(self) -> int:
        """Memory of the largest search, in double precision.

        It holds the features, scaled and side by side, and once more for the candidates; the
        second moments and their weights; and a block of similarities.
        """
        count = max(self.instances)
        width = max(map(sum, zip(self.teacher_channels, self.student_channels)))
        block = min(count ** 2, max(self.max_pairs, count))
        return FLOAT64 * (5 * count * width + 4 * width ** 2 + 2 * block)

    @property
    def operations(self) -> int:
        """Multiplications and additions of all searches of one generation, at most.

        Counted per class and level: similarities for the densities, the second moments, and in
        every round the gain of all candidates. All instances are counted as candidates.
        """
        total = 0
        for teacher, student in zip(self.teacher_channels, self.student_channels):
            width = teacher + student
            for count in self.instances:
                total += 2 * count ** 2 * width
                total += 2 * count * width ** 2 * (1 + self.num_prototypes)
        return total

    def lines(self, generations: int, processes: int = 1) -> list[str]:
        """The plan in words.

        Args:
            generations: How often a bank is made in the whole training.
            processes: Processes that share the images.
        """
        most = '' if self.exact else 'at most '
        found = [count for count in self.instances if count]
        batches = '' if self.batches is None else f' in {self.batches:,} batches'
        each = (f'{min(found):,} to {max(found):,} a class' if self.exact
                else f'about {max(found):,} a class if they spread evenly')
        mapped = self.teacher_bytes if processes == 1 else self.feature_bytes
        rows = [
            ('images to run', f'{most}{self.images:,}{batches}: by the teacher once, by the '
                              f'student in every generation'),
            ('generations', f'{generations}, so {most}{self.images * (generations + 1):,} images '
                            f'run in all'),
            ('a process', f'{most}{ceil(self.images / processes):,} images a pass, of '
                          f'{processes} processes'),
            ('instances', f'{most}{sum(self.instances):,}, of {len(found)} of '
                          f'{len(self.instances)} classes, {each}'),
            ('kept on disk', f'{most}{with_prefix(self.teacher_bytes)}B of teacher\'s features, '
                             f'and {with_prefix(self.bank_bytes)}B for every bank'
                             + ('' if processes == 1 else
                                f'; {with_prefix(self.student_bytes)}B of the student\'s features '
                                f'while a bank is made')),
            ('in memory', f'{most}{with_prefix(self.feature_bytes)}B of features, once a node '
                          f'however many processes it has; {with_prefix(mapped)}B of it mapped '
                          f'from disk, which the system may drop'),
            ('search', f'{len(found) * len(self.teacher_channels)} searches '
                       f'({len(found)} classes on {len(self.teacher_channels)} levels), '
                       f'{self.operations / 1e12:,.2f} TFLOP in double precision, the largest in '
                       f'{with_prefix(self.search_bytes)}B'),
        ]
        if processes == 1:
            rows = [row for row in rows if row[0] != 'a process']
        return [f'{name + ":":16}{text}' for name, text in rows]


def plan_generation(config: Config, images: Optional[int] = None,
                    boxes: Optional[int] = None) -> GenerationPlan:
    """Plan the generation of a distillation config.

    Args:
        config: The config.
        images: Images with boxes; None counts in the annotations.
        boxes: Boxes in all images; None likewise.

    Raises:
        ConfigError: The config distils nothing, or without prototypes.
        DataError: The annotations are missing, or no box is large enough.
    """
    if config.model.type != Distiller.__name__ or not config.model.get('prototypes'):
        raise ConfigError(f'{config.filename} generates no prototypes: give a config whose '
                          f'`model` is a Distiller with `prototypes`.')
    module = build_generation(config.model.prototypes)
    model = untrained_model(config)
    pair = model.pair
    settings = dict(teacher_channels=pair.channels(pair.teacher),
                    student_channels=pair.channels(pair.student),
                    num_prototypes=module.pursuit['num_prototypes'],
                    max_pairs=module.pursuit.get('max_pairs', 2 ** 24),
                    class_channels=model.frozen.class_channels)
    if images is not None:
        return GenerationPlan.bound(images, boxes, pair.num_classes, module.max_images, **settings)
    datasets = annotated_datasets(config)
    candidates = choose_candidates(datasets, module.max_images, module.min_size, module.seed)
    if not candidates:
        raise module.no_candidate(datasets)
    return GenerationPlan.of(candidates, pair.num_classes, module.batch_size, **settings)


def annotated_datasets(config: Config) -> list[Dataset]:
    """The data sets that prototypes come from; their images need not be there.

    Raises:
        DataError: Annotations are missing or do not fit the config.
    """
    for entry in prototype_configs(config):
        for path in annotation_files(entry):
            if not osp.exists(path):
                raise DataError(
                    f'{ANNOTATIONS}: no such file: {path}. Without annotations, give '
                    f'the totals: --images N --boxes N prints upper bounds.')
    return prototype_datasets(config)


def with_prefix(number: float) -> str:
    """A number for people, with the prefix of the unit that follows it.

    Example:
        >>> with_prefix(41_755_286), f'{with_prefix(3_520_000_000)}B', f'{with_prefix(512)}B'
        ('41.8 M', '3.5 GB', '512 B')
    """
    for prefix, factor in (('T', 10 ** 12), ('G', 10 ** 9), ('M', 10 ** 6), ('k', 10 ** 3)):
        if number >= factor:
            return f'{number / factor:.1f} {prefix}'
    return f'{number:.0f} '
