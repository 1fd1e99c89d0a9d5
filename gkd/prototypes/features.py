"""Instance features of a detector over a data set: what prototypes are chosen from."""

from __future__ import annotations

import os.path as osp
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data

from gkd.detectors.dense import main_head, predicted_maps
from gkd.detectors.fast_copy import widened
from gkd.detectors.roi_heads import RoIClassLayers
from gkd.frameworks import (
    BaseDetector,
    Dataset,
    annotation,
    bbox2roi,
    image_info,
    network_input,
    test_view,
)
from gkd.knowledge.class_space import cell_confidence
from gkd.knowledge.instances import Instances, mean_windows, pool_instances


@dataclass
class CandidateImage:
    """An image and those of its boxes that may become prototypes.

    Attributes:
        dataset: The data set that holds the image.
        index: Its index there.
        boxes: ``(n, 4)`` float32, ``x1, y1, x2, y2`` in pixels of the annotation.
        labels: ``(n,)`` int64.
    """

    dataset: Dataset
    index: int
    boxes: np.ndarray
    labels: np.ndarray

    @property
    def filename(self) -> str:
        """File name of the image as the annotation gives it."""
        return image_info(self.dataset, self.index)['filename']

    @property
    def path(self) -> str:
        """File of the image."""
        info = image_info(self.dataset, self.index)
        return osp.join(info['folder'] or '', info['filename'])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the annotation."""
        info = image_info(self.dataset, self.index)
        return info['width'], info['height']


def choose_candidates(datasets: Sequence[Dataset], max_images: int, min_size: float,
                      seed: int) -> list[CandidateImage]:
    """Choose the instances of every class (method section 1.1).

    For each class, the images that hold a large enough box of it are shuffled, and the first
    ``max_images`` are taken. An image may be chosen for several classes; it is then listed once,
    with the boxes of just those classes.

    Args:
        datasets: Data sets with annotations.
        max_images: Maximum number of images per class.
        min_size: Width and height that a box must exceed, in pixels of the annotation.
        seed: Seed of the shuffling; each class has a generator of its own, so that one class's
            images do not depend on another's.

    Returns:
        The chosen images, in the order of the data sets.
    """
    annotations = []
    holders = defaultdict(list)
    for dataset in datasets:
        for index in range(len(dataset)):
            boxes, labels = annotation(dataset, index)
            large = (boxes[:, 2:] - boxes[:, :2] > min_size).all(axis=1)
            boxes, labels = boxes[large], labels[large]
            for label in np.unique(labels):
                holders[int(label)].append(len(annotations))
            annotations.append((dataset, index, boxes, labels))

    chosen = defaultdict(set)
    for label, images in holders.items():
        shuffled = np.random.default_rng([seed, label]).permutation(images)
        for image in shuffled[:max_images]:
            chosen[int(image)].add(label)

    candidates = []
    for image in sorted(chosen):
        dataset, index, boxes, labels = annotations[image]
        wanted = np.isin(labels, list(chosen[image]))
        candidates.append(CandidateImage(dataset, index, boxes[wanted].astype(np.float32),
                                         labels[wanted].astype(np.int64)))
    return candidates


def group_by_size(candidates: Sequence[CandidateImage], batch_size: int) -> list[list[int]]:
    """Batch images of one size, so that none is padded to fit another.

    The batches depend on the images alone, not on how many processes share them: features stay
    bit-equal whatever the number of ranks.

    Args:
        candidates: The chosen images.
        batch_size: Images a batch at most.

    Returns:
        Positions in ``candidates``, batch by batch.

    Example:
        >>> from types import SimpleNamespace
        >>> images = [SimpleNamespace(size=size) for size in ((640, 480), (640, 360), (640, 480))]
        >>> group_by_size(images, batch_size=2)
        [[0, 2], [1]]
    """
    groups = defaultdict(list)
    for position, candidate in enumerate(candidates):
        groups[candidate.size].append(position)
    return [positions[start:start + batch_size] for positions in groups.values()
            for start in range(0, len(positions), batch_size)]


class CandidateImages(data.Dataset):
    """The chosen images as the test pipeline makes them, with their boxes scaled alike."""

    def __init__(self, candidates: Sequence[CandidateImage]):
        self.candidates = candidates

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Image, boxes ``(n, 4)`` in its pixels, and its height and width without padding."""
        candidate = self.candidates[position]
        image, factors, offset, size = test_view(candidate.dataset, candidate.index)
        return image, torch.from_numpy(candidate.boxes * factors + offset), size


def load_batches(candidates: Sequence[CandidateImage], batches: list[list[int]],
                 workers: int) -> data.DataLoader:
    """Load batches of images.

    Yields lists of :class:`Stack`: one, unless annotations are wrong about the size of an image.

    Args:
        candidates: The chosen images.
        batches: Positions in ``candidates``, batch by batch.
        workers: Processes that load ahead.
    """
    # A generator of its own: otherwise the loader would draw from the training's generator.
    return data.DataLoader(CandidateImages(candidates), batch_sampler=batches, num_workers=workers,
                           collate_fn=stack_images, generator=torch.Generator())


@dataclass
class Stack:
    """Images of one size, with their boxes.

    Attributes:
        rows: Their places in the batch.
        images: ``(B, 3, H, W)``.
        boxes: Boxes of every image, ``(n_b, 4)`` in pixels of ``images``.
        sizes: Height and width of every image without its padding.
    """

    rows: list[int]
    images: Tensor
    boxes: list[Tensor]
    sizes: list[tuple[int, int]]


def stack_images(samples: list[tuple[Tensor, Tensor, tuple[int, int]]]) -> list[Stack]:
    """Collate images by their size: annotations may not know that a camera has turned one.

    Example:
        >>> samples = [(torch.zeros(3, *size), torch.zeros(1, 4), size)
        ...            for size in ((32, 64), (64, 32), (32, 64))]
        >>> [(stack.rows, tuple(stack.images.shape)) for stack in stack_images(samples)]
        [([0, 2], (2, 3, 32, 64)), ([1], (1, 3, 64, 32))]
    """
    rows = defaultdict(list)
    for row, (image, *_) in enumerate(samples):
        rows[image.shape].append(row)
    stacks = []
    for members in rows.values():
        images, boxes, sizes = zip(*(samples[row] for row in members))
        stacks.append(Stack(members, torch.stack(images), list(boxes), list(sizes)))
    return stacks


@torch.no_grad()
def instance_features(detector: BaseDetector, levels: Sequence[int], images: Tensor,
                      boxes: list[Tensor],
                      sizes: Optional[list[tuple[int, int]]] = None,
                      class_layers: Optional[nn.Module] = None) -> list[Tensor]:
    """Pool every instance on every level (method section 1.1).

    Args:
        detector: Teacher or student, in eval mode.
        levels: Levels of its pyramid to pool on.
        images: ``(B, 3, H, W)``.
        boxes: Boxes of every image, ``(n_b, 4)`` in pixels of ``images``.
        sizes: Height and width of every image without its padding; by default it has none.
        class_layers: Layers of the detector's head, to read the instances' classes with.

    Returns:
        Features of all instances, ``(sum n_b, C)`` float32 on the CPU, one tensor per level; and
        one more of the instances as the ``class_layers`` read them, if there are any: of boxes,
        or else by :func:`class_features`.
    """
    images = network_input(detector, images, sizes)
    maps = detector.extract_feat(images)
    height, width = images.shape[-2:]
    scales = [(maps[level].shape[-1] / width, maps[level].shape[-2] / height) for level in levels]
    features = [pool_instances(maps[level], boxes, scale)
                for level, scale in zip(levels, scales)]
    if isinstance(class_layers, RoIClassLayers):
        features.append(class_layers(tuple(map(widened, maps)), bbox2roi(boxes)))
    elif class_layers is not None:
        head = main_head(detector)
        scores = predicted_maps(head, maps)[0]
        confidences = [cell_confidence(scores[level:level + 1], head.cls_out_channels,
                                       getattr(head, 'use_sigmoid_cls', True))
                       for level in levels]
        features.append(class_features([maps[level] for level in levels], confidences, scales,
                                       boxes, class_layers))
    # One copy to the CPU, for which the host waits once.
    channels = [level.shape[1] for level in features]
    return list(torch.cat(features, dim=1).cpu().split(channels, dim=1))


def class_features(maps: Sequence[Tensor], confidences: Sequence[Tensor],
                   scales: Sequence[tuple[float, float]], boxes: list[Tensor],
                   class_layers: nn.Module) -> Tensor:
    """Read the class of every instance at its most confident cell, of all levels.

    Args:
        maps: The teacher's maps ``(B, C, H_l, W_l)``.
        confidences: Its largest class score at every cell, ``(B, H_l * W_l)``
            (:func:`~gkd.knowledge.class_space.cell_confidence`).
        scales: Cells per pixel of every level, of x and y.
        boxes: Boxes of every image, ``(n_b, 4)`` in pixels.
        class_layers: The head's layers between a map and its class scores.

    Returns:
        ``(sum n_b, D)`` float32.
    """
    instances = Instances.of(boxes)
    images = instances.rows // instances.padded.shape[1]
    windows = mean_windows(instances, [level.shape[-2:] for level in maps], scales)
    best, found = instances.boxes.new_full((len(instances.boxes),), -torch.inf), None
    for level, scores, window in zip(maps, confidences, windows):
        height, width = level.shape[-2:]
        read = class_layers(level.float())
        columns, rows = (window > 0).flatten(1, 2)[:, instances.rows]
        inside = (rows[:, :height, None] & columns[:, None, :width]).flatten(1)
        highest, cell = scores[images].masked_fill(~inside, -torch.inf).max(dim=1)
        here = read.flatten(2)[images, :, cell]
        found = here if found is None else torch.where((highest > best)[:, None], here, found)
        best = torch.maximum(best, highest)
    return found


def batch_features(detector: BaseDetector, levels: Sequence[int], stacks: list[Stack],
                   device: torch.device,
                   class_layers: Optional[nn.Module] = None) -> list[Tensor]:
    """Pool every instance of a batch, in the order of its images.

    Args:
        detector: Teacher or student, in eval mode.
        levels: Levels of its pyramid to pool on.
        stacks: The batch.
        device: Where the detector is.
        class_layers: As for :func:`instance_features`.

    Returns:
        Features of all instances, one tensor per level, as :func:`instance_features` returns them.
    """
    by_row: dict[int, list[Tensor]] = {}
    for stack in stacks:
        features = instance_features(detector, levels, stack.images.to(device),
                                     [box.to(device) for box in stack.boxes], stack.sizes,
                                     class_layers)
        if len(stacks) == 1:
            return features
        counts = [len(box) for box in stack.boxes]
        by_row.update(zip(stack.rows, zip(*(level.split(counts) for level in features))))
    return join_levels(by_row[row] for row in sorted(by_row))


def join_levels(batches: Iterable[list[Tensor]]) -> list[Tensor]:
    """Concatenate per-batch lists of levels into one tensor per level.

    Example:
        >>> batches = [[torch.zeros(n, 8), torch.zeros(n, 16)] for n in (2, 3)]
        >>> [tuple(level.shape) for level in join_levels(batches)]
        [(5, 8), (5, 16)]
    """
    return [torch.cat(parts) for parts in zip(*batches)]
