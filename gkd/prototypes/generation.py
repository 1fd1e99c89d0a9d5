"""The Prototype Generation Module: from a data set to a bank of prototypes."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn

from gkd.argument_types import check_types
from gkd.bank import PrototypeBank
from gkd.collectives import all_gather
from gkd.detectors.entries import name_of
from gkd.detectors.modes import eval_mode
from gkd.errors import ConfigError, DataError, require_count, why_not_built
from gkd.frameworks import (
    BaseDetector,
    Dataset,
    classes_of,
    description,
    get_dist_info,
    image_info,
    image_settings,
    logger,
    source_of,
)
from gkd.knowledge.settings import require_positive
from gkd.progress import progress
from gkd.prototypes.features import (
    CandidateImage,
    batch_features,
    choose_candidates,
    group_by_size,
    join_levels,
    load_batches,
)
from gkd.prototypes.selection import SELECTIONS, choose_instances
from gkd.prototypes.shares import (
    Features,
    Share,
    is_cached,
    join_shares,
    remove_shares,
    save_share,
)

MOST_NAMES = 8  # of classes without prototypes


@dataclass
class Generation:
    """Prototypes, and the instances that they were chosen from.

    Attributes:
        bank: The prototypes, on the CPU. Its metadata name the image and box of each.
        rows: Instance of every prototype on every level, in the bank's order, ``(P_l,)`` int64.
        images: The instances' images with their boxes, in the order of the features.
        teacher: The teacher's features of all instances, ``(N, D_T)``, one tensor per level. With
            several processes, objects that return the features of given rows take their place.
        student: The student's, ``(N, D_S)``.
    """

    bank: PrototypeBank
    rows: list[Tensor]
    images: list[CandidateImage]
    teacher: list[Features]
    student: list[Features]


class PrototypeGenerationModule:
    """PGM: find, for every class and FPN level, real instances that span both feature spaces.

    Every image is run once, however many classes it was chosen for. Processes share the images and
    read each other's features from disk. The teacher does not change, so its features are computed
    once; they are kept on disk, also for a resumed run (the paper's PGM; method section 1).

    Args:
        num_prototypes: Prototypes per class and level, K.
        alpha: Weight of the disagreement between both spaces' coefficients.
        max_images: Maximum number of images per class.
        min_size: Width and height that a box must exceed, in pixels of the annotation.
        interval: Epochs between two generations.
        bandwidth: Width of the density kernel, in cosine distance.
        density_quantile: Instances whose density is not above this quantile are no candidates.
        seed: Seed of the choice of images.
        batch_size: Images per forward pass.
        workers: Processes that load images ahead; 0 loads in the main process. By default as many
            as the training's loader has.
        selection: How prototypes are chosen. ``'joint'`` is the method's; ``'random'``,
            ``'kmeans'``, ``'teacher'`` and ``'student'`` are controls to measure it against
            (:func:`~gkd.prototypes.selection.choose_instances`).

    Raises:
        ConfigError: A value is out of range, or ``selection`` is unknown.

    Example:
        >>> PrototypeGenerationModule(num_prototypes=5, min_size=16).min_size
        16
        >>> PrototypeGenerationModule(interval=0)
        Traceback (most recent call last):
        gkd.errors.ConfigError: model.prototypes.interval = 0: must be a whole number from 1 on.
    """

    def __init__(self, num_prototypes: int = 10, alpha: float = 10.0, max_images: int = 800,
                 min_size: float = 30, interval: int = 1, bandwidth: float = 0.1,
                 density_quantile: float = 0.4, seed: int = 0, batch_size: int = 8,
                 workers: Optional[int] = None, selection: str = 'joint'):
        if selection not in SELECTIONS:
            raise ConfigError(f'model.prototypes.selection = {selection!r}: must be one of '
                              f'{", ".join(SELECTIONS)}.')
        for name, value in (('num_prototypes', num_prototypes), ('max_images', max_images),
                            ('interval', interval), ('batch_size', batch_size)):
            require_count(value, f'model.prototypes.{name}')
        for name, value in (('alpha', alpha), ('min_size', min_size), ('workers', workers or 0)):
            if not value >= 0:
                raise ConfigError(f'model.prototypes.{name} = {value!r}: must be at least 0.')
        require_positive(bandwidth, 'model.prototypes.bandwidth')
        if not 0 <= density_quantile < 1:
            raise ConfigError(f'model.prototypes.density_quantile = {density_quantile!r}: must be '
                              f'at least 0 and below 1.')
        self.pursuit = dict(num_prototypes=num_prototypes, alpha=alpha, bandwidth=bandwidth,
                            density_quantile=density_quantile)
        self.selection = selection
        self.max_images = max_images
        self.min_size = min_size
        self.interval = interval
        self.seed = seed
        self.batch_size = batch_size
        self.workers = workers
        self.candidates: Optional[list[CandidateImage]] = None
        self.teacher_features: Optional[list[Features]] = None

    def generate(self, teacher: BaseDetector, student: BaseDetector,
                 teacher_levels: Sequence[int], student_levels: Sequence[int],
                 datasets: Sequence[Dataset], cache_dir: str,
                 class_layers: Optional[nn.Module] = None) -> Generation:
        """Build the bank from the student's current weights.

        All processes call this together and all get the same bank.

        Args:
            teacher: The frozen teacher.
            student: The student; left in the mode it came in.
            teacher_levels: The teacher's pyramid levels to use.
            student_levels: The student's, paired with the teacher's.
            datasets: Data sets with annotations and the test pipeline.
            cache_dir: Where the teacher's features are kept for a resumed run.
            class_layers: Layers of the teacher's head, to read the prototypes' classes with.

        Returns:
            The bank, and what it was chosen from.

        Raises:
            DataError: No instance is large enough to become a prototype.
            ValueError: A feature is not finite.
        """
        if self.candidates is None:
            self.candidates = self.choose(datasets)
        batches = group_by_size(self.candidates, self.batch_size)
        if self.teacher_features is None:
            fingerprint = self.fingerprint(teacher, teacher_levels, batches,
                                           class_layers is not None)
            if not is_cached(cache_dir, 'teacher', fingerprint):
                share = self.run(teacher, teacher_levels, batches, 'teacher', class_layers)
                save_share(cache_dir, 'teacher', fingerprint, share)
                del share
            self.teacher_features = join_shares(cache_dir, 'teacher', fingerprint,
                                                self.counts(batches))
        with eval_mode(student):
            student_features = self.run(student, student_levels, batches, 'student')
        if get_dist_info()[1] > 1:
            [key, *_] = all_gather(secrets.token_hex())
            save_share(cache_dir, 'student', key, student_features)
            student_features = join_shares(cache_dir, 'student', key, self.counts(batches))
            remove_shares(cache_dir, 'student')
        device = next(student.parameters()).device
        images = [self.candidates[position] for batch in batches for position in batch]
        rows, offsets = self.pursue(student_features, images, len(classes_of(datasets[0])), device)
        bank = PrototypeBank(
            student=[feature[row] for feature, row in zip(student_features, rows)],
            teacher=[feature[row] for feature, row in zip(self.teacher_features, rows)],
            offsets=[offsets] * len(rows),
            metadata=dict(origins=json.dumps(origins(rows, images))))
        pooled = self.teacher_features[:len(rows)]
        if class_layers is not None:
            bank.class_features = [self.teacher_features[-1][row] for row in rows]
        return Generation(bank, rows, images, pooled, student_features)

    def choose(self, datasets: Sequence[Dataset]) -> list[CandidateImage]:
        """Choose the candidates once, and name the classes that have none.

        Raises:
            DataError: There is no candidate at all.
        """
        candidates = choose_candidates(datasets, self.max_images, self.min_size, self.seed)
        if not candidates:
            raise self.no_candidate(datasets)
        seen = np.unique(np.concatenate([candidate.labels for candidate in candidates]))
        classes = classes_of(datasets[0])
        missing = [name for label, name in enumerate(classes) if label not in seen]
        if missing:
            logger().warning(
                f'{len(missing)} of {len(classes)} classes have no instance larger than '
                f'{self.min_size} pixels and get no prototype: {", ".join(missing[:MOST_NAMES])}'
                + (f' and {len(missing) - MOST_NAMES} more' if len(missing) > MOST_NAMES else ''))
        logger().info(f'Prototypes: {sum(len(c.labels) for c in candidates)} instances of '
                      f'{len(seen)} classes in {len(candidates)} images.')
        return candidates

    def no_candidate(self, datasets: Sequence[Dataset]) -> DataError:
        """The error of data without a box that is large enough."""
        return DataError(
            f'no prototype can be chosen: no box in {source_of(datasets[0])} is wider and higher '
            f'than model.prototypes.min_size = {self.min_size} pixels.')

    def counts(self, batches: list[list[int]]) -> list[int]:
        """Instances of every batch."""
        return [sum(len(self.candidates[position].labels) for position in batch)
                for batch in batches]

    def run(self, detector: BaseDetector, levels: Sequence[int], batches: list[list[int]],
            role: str, class_layers: Optional[nn.Module] = None) -> Share:
        """Features of this process's share of the batches, one tensor per level."""
        rank, world_size = get_dist_info()
        share = batches[rank::world_size]
        device = next(detector.parameters()).device
        loader = load_batches(self.candidates, share, self.workers or 0)
        return join_levels(batch_features(detector, levels, stacks, device, class_layers)
                           for stacks in progress(loader, f'prototypes, {role}', unit='batch'))

    def pursue(self, student_features: list[Features], images: list[CandidateImage],
               num_classes: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Select every class's prototypes on every level; processes share the classes.

        Returns:
            Their instances ``(P_l,)``, class after class, one tensor per level; and the offsets of
            the classes, which are those of every level.
        """
        labels = torch.from_numpy(np.concatenate([image.labels for image in images]))
        members = [torch.nonzero(labels == label).squeeze(1) for label in range(num_classes)]
        rank, world_size = get_dist_info()
        jobs = [(level, label) for level in range(len(student_features))
                for label in range(num_classes) if len(members[label])]
        mine = {}
        for level, label in progress(jobs[rank::world_size], 'prototypes, search', unit='class'):
            rows = members[label]
            chosen = choose_instances(
                self.selection, self.teacher_features[level][rows].to(device),
                student_features[level][rows].to(device), seed=self.seed + level, **self.pursuit)
            mine[level, label] = rows[chosen.cpu()]
        chosen = {job: rows for part in all_gather(mine) for job, rows in part.items()}

        rows = [torch.cat([chosen[job] for job in jobs if job[0] == level])
                for level in range(len(student_features))]
        sizes = torch.tensor([len(chosen.get((0, label), ())) for label in range(num_classes)])
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return rows, offsets

    def fingerprint(self, teacher: BaseDetector, levels: Sequence[int],
                    batches: list[list[int]], reads_classes: bool) -> str:
        """Hash of all that the teacher's features depend on."""
        digest = hashlib.sha256(repr(levels).encode())
        if reads_classes:
            digest.update(b'class_layers')
        for images in (getattr(teacher, 'test_images', None), image_settings(teacher)):
            if images is not None:
                digest.update(repr(images).encode())
        for name, tensor in teacher.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
        for batch in batches:
            for position in batch:
                candidate = self.candidates[position]
                info = image_info(candidate.dataset, candidate.index)
                digest.update(f'{info["folder"]} {candidate.filename} {candidate.size}'.encode())
                digest.update(candidate.boxes.tobytes())
        digest.update(description(self.candidates[0].dataset).encode())
        return digest.hexdigest()


def origins(rows: list[Tensor], images: Sequence[CandidateImage]) -> list[list]:
    """Image, box and label of every prototype, level by level."""
    instances = [(image.filename, box.tolist(), int(label))
                 for image in images for box, label in zip(image.boxes, image.labels)]
    return [[instances[row] for row in level.tolist()] for level in rows]


def build_generation(config: dict) -> PrototypeGenerationModule:
    """Build the prototype generation from its config, with errors for people.

    Raises:
        ConfigError: The type or a setting is unknown, or a value is out of range.
    """
    config = dict(config)
    kind = config.pop('type', 'PrototypeGenerationModule')
    if name_of(kind) != 'PrototypeGenerationModule':
        raise ConfigError(f'model.prototypes.type = {kind!r} is unknown; '
                          f'it must be "PrototypeGenerationModule".')
    check_types(PrototypeGenerationModule.__init__, config, 'model.prototypes')
    try:
        return PrototypeGenerationModule(**config)
    except TypeError as error:
        raise ConfigError(
            f'model.prototypes: {why_not_built(error, PrototypeGenerationModule)}') from None
