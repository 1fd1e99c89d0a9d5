"""The Prototype Generation Module: from a data set to a bank of prototypes."""

from __future__ import annotations

import hashlib
import json
import os.path as osp
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gkd.bank import PrototypeBank
from gkd.detectors.modes import eval_mode
from gkd.errors import CheckpointError, ConfigError, DataError
from gkd.files import CHECKSUM, load_tensors, save_tensors
from gkd.frameworks import (
    BaseDetector,
    Dataset,
    classes_of,
    description,
    get_dist_info,
    image_info,
    logger,
    source_of,
)
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

ADVICE = 'The teacher\'s features are computed again.'
MOST_NAMES = 8  # of classes without prototypes


@dataclass
class Generation:
    """Prototypes, and the instances that they were chosen from.

    Attributes:
        bank: The prototypes, on the CPU. Its metadata tell the image and box of each.
        rows: Instance of every prototype on every level, in the bank's order, ``(P_l,)`` int64.
        images: The instances' images with their boxes, in the order of the features.
        teacher: The teacher's features of all instances, ``(N, D_T)``, one tensor a level.
        student: The student's, ``(N, D_S)``.
    """

    bank: PrototypeBank
    rows: list[Tensor]
    images: list[CandidateImage]
    teacher: list[Tensor]
    student: list[Tensor]


class PrototypeGenerationModule:
    """PGM: find, for every class and FPN level, real instances that span both feature spaces.

    Every image is run once, whatever the number of its classes; processes share the images. The
    teacher does not change, so its features are computed once, kept in memory, and written to disk
    for a resumed run (the paper's PGM; method section 1).

    Args:
        num_prototypes: Prototypes a class and level, K.
        alpha: Weight of the disagreement between both spaces' coefficients.
        max_images: Images a class at most.
        min_size: Width and height that a box must exceed, in pixels of the annotation.
        interval: Epochs between two generations.
        bandwidth: Width of the density kernel, in cosine distance.
        density_quantile: Instances below this quantile of density are no candidates.
        seed: Seed of the choice of images.
        batch_size: Images a forward pass.
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
        gkd.errors.ConfigError: model.prototypes.interval = 0: must be at least 1.
    """

    def __init__(self, num_prototypes: int = 10, alpha: float = 10.0, max_images: int = 800,
                 min_size: float = 30, interval: int = 1, bandwidth: float = 0.1,
                 density_quantile: float = 0.4, seed: int = 0, batch_size: int = 8,
                 workers: Optional[int] = None, selection: str = 'joint'):
        if selection not in SELECTIONS:
            raise ConfigError(f'model.prototypes.selection = {selection!r}: must be one of '
                              f'{", ".join(SELECTIONS)}.')
        for name, value, least in (('num_prototypes', num_prototypes, 1), ('alpha', alpha, 0),
                                   ('max_images', max_images, 1), ('min_size', min_size, 0),
                                   ('interval', interval, 1), ('batch_size', batch_size, 1)):
            if value < least:
                raise ConfigError(f'model.prototypes.{name} = {value}: must be at least {least}.')
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
        self.teacher_features: Optional[list[Tensor]] = None

    def generate(self, teacher: BaseDetector, student: BaseDetector,
                 teacher_levels: Sequence[int], student_levels: Sequence[int],
                 datasets: Sequence[Dataset], cache_dir: str) -> Generation:
        """Build the bank from the student's current weights.

        All processes call this together and all get the same bank.

        Args:
            teacher: The frozen teacher.
            student: The student; left in the mode it came in.
            teacher_levels: The teacher's pyramid levels to use.
            student_levels: The student's, paired with the teacher's.
            datasets: Data sets with annotations and the test pipeline.
            cache_dir: Where the teacher's features are kept for a resumed run.

        Returns:
            The bank, and what it was chosen from.

        Raises:
            DataError: No instance is large enough to become a prototype.
        """
        if self.candidates is None:
            self.candidates = self.choose(datasets)
        batches = group_by_size(self.candidates, self.batch_size)
        if self.teacher_features is None:
            fingerprint = self.fingerprint(teacher, teacher_levels, batches)
            share = cached_share(cache_dir, fingerprint)
            if share is None:
                share = self.run(teacher, teacher_levels, batches, 'teacher')
                save_share(cache_dir, fingerprint, share)
            self.teacher_features = gather(share, self.counts(batches))
        with eval_mode(student):
            share = self.run(student, student_levels, batches, 'student')
        student_features = gather(share, self.counts(batches))
        device = next(student.parameters()).device
        images = [self.candidates[position] for batch in batches for position in batch]
        rows, offsets = self.pursue(student_features, images, len(classes_of(datasets[0])), device)
        bank = PrototypeBank(
            student=[feature[row] for feature, row in zip(student_features, rows)],
            teacher=[feature[row] for feature, row in zip(self.teacher_features, rows)],
            offsets=[offsets.clone() for _ in rows],
            metadata=dict(origins=json.dumps(origins(rows, images))))
        return Generation(bank, rows, images, self.teacher_features, student_features)

    def choose(self, datasets: Sequence[Dataset]) -> list[CandidateImage]:
        """Choose the candidates once, and name the classes that have none."""
        candidates = choose_candidates(datasets, self.max_images, self.min_size, self.seed)
        if not candidates:
            raise DataError(
                f'no prototype can be chosen: no box in {source_of(datasets[0])} is wider and '
                f'higher than model.prototypes.min_size = {self.min_size} pixels.')
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

    def counts(self, batches: list[list[int]]) -> list[int]:
        """Instances of every batch."""
        return [sum(len(self.candidates[position].labels) for position in batch)
                for batch in batches]

    def run(self, detector: BaseDetector, levels: Sequence[int], batches: list[list[int]],
            role: str) -> list[list[Tensor]]:
        """Features of this process's share of the batches: a list of levels for every batch."""
        rank, world_size = get_dist_info()
        share = batches[rank::world_size]
        device = next(detector.parameters()).device
        loader = load_batches(self.candidates, share, self.workers or 0)
        return [batch_features(detector, levels, stacks, device)
                for stacks in progress(loader, f'prototypes, {role}', unit='batch')]

    def pursue(self, student_features: list[Tensor], images: list[CandidateImage],
               num_classes: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Select every class's prototypes on every level; processes share the classes.

        Returns:
            Their instances ``(P_l,)``, class after class, one tensor a level; and the offsets of
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
                    batches: list[list[int]]) -> str:
        """Hash of all that the teacher's features depend on."""
        digest = hashlib.sha256(repr(levels).encode())
        if getattr(teacher, 'test_images', None) is not None:
            digest.update(repr(teacher.test_images).encode())
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


def share_path(cache_dir: str) -> str:
    """File that holds this process's share of the teacher's features."""
    rank, world_size = get_dist_info()
    return osp.join(cache_dir, f'teacher_features_{rank}_of_{world_size}.safetensors')


def cached_share(cache_dir: str, fingerprint: str) -> Optional[list[list[Tensor]]]:
    """This process's share from an earlier run.

    Returns:
        None if there is none, it is of other inputs, or it is damaged; the last is logged.
    """
    path = share_path(cache_dir)
    if not osp.exists(path):
        return None
    try:
        tensors, metadata = load_tensors(path, ADVICE)
        if metadata.get('fingerprint') != fingerprint:
            return None
        if CHECKSUM not in metadata:
            raise CheckpointError(f'{path} has no checksum. {ADVICE}')
    except CheckpointError as error:
        logger().warning(str(error))
        return None
    return [[tensors[f'{batch}.{level}'] for level in range(int(metadata['levels']))]
            for batch in range(int(metadata['batches']))]


def save_share(cache_dir: str, fingerprint: str, share: list[list[Tensor]]) -> None:
    """Keep this process's share; the file appears whole or not at all."""
    tensors = {f'{batch}.{level}': feature.contiguous()
               for batch, levels in enumerate(share) for level, feature in enumerate(levels)}
    save_tensors(share_path(cache_dir), tensors,
                 dict(fingerprint=fingerprint, batches=str(len(share)),
                      levels=str(len(share[0]) if share else 0)))


def all_gather(value: object) -> list:
    """What every process has, in order of rank.

    Features lie on the CPU, and so does their exchange: NCCL would move them through GPU memory.
    """
    if not dist.is_initialized():
        return [value]
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value, group=cpu_group())
    return gathered


def cpu_group() -> dist.ProcessGroup:
    """A process group for CPU tensors, made once."""
    if dist.get_backend() == 'gloo':
        return dist.group.WORLD
    if not hasattr(cpu_group, 'group'):
        cpu_group.group = dist.new_group(backend='gloo')
    return cpu_group.group


def gather(share: list[list[Tensor]], counts: list[int]) -> list[Tensor]:
    """Put all processes' batches back into their order, one tensor a level."""
    shares = all_gather(share)
    batches = [shares[number % len(shares)][number // len(shares)]
               for number in range(len(counts))]
    features = join_levels(batches)
    assert all(len(feature) == sum(counts) for feature in features)
    return features
