"""Match detections to objects, and draw both on an image."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gkd.datasets.images import read_image
from gkd.frameworks import Dataset, annotation, bbox_overlaps, classes_of, image_info
from gkd.report.drawing import as_text, plt, rectangle

FOUND, WRONG, MISSED = '#2ca02c', '#d62728', '#ffd92f'
MATCH_IOU = 0.5


def results_figure(dataset: Dataset, results: Sequence, num_images: int) -> plt.Figure:
    """Draw what a detector has found on validation images with a typical number of objects.

    On every image the boxes with the highest scores are drawn, as many as there are objects. Green
    boxes match an object (IoU above 0.5), red ones none; missed objects are yellow.

    Args:
        dataset: The validation data.
        results: What MMDetection returns for each of its images.
        num_images: How many to draw.
    """
    images = typical_images(dataset, num_images)
    figure, axes = plt.subplots(1, len(images), squeeze=False,
                                figsize=(3.6 * len(images), 3.9))
    for axis, index in zip(axes[0], images):
        boxes = results[index][0] if isinstance(results[index], tuple) else results[index]
        draw_image(axis, dataset, index, best_first(boxes),
                   osp.basename(image_info(dataset, index)['filename']))
    figure.tight_layout()
    return figure


def typical_images(dataset: Dataset, num_images: int) -> list[int]:
    """Images whose number of objects is closest to the median."""
    counts = np.array([len(annotation(dataset, index)[1]) for index in range(len(dataset))])
    typical = np.abs(counts - np.median(counts[counts > 0]))
    return sorted(np.argsort(typical, kind='stable')[:num_images].tolist())


def best_first(result: Sequence[np.ndarray]) -> Tensor:
    """Detections of all classes, best first: ``(n, 6)`` of box, score, label.

    Args:
        result: ``(n, 5)`` of box and score, one array per class.
    """
    boxes = np.concatenate([np.insert(found, 5, label, axis=1)
                            for label, found in enumerate(result)])
    return torch.from_numpy(boxes[np.argsort(-boxes[:, 4])])


def match(detections: Tensor, boxes: Tensor, labels: Tensor) -> tuple[list[bool], list[bool]]:
    """Match detections to objects greedily, the best scored first.

    Args:
        detections: ``(n, 6)`` of box, score and label, best first.
        boxes: ``(g, 4)`` objects.
        labels: ``(g,)`` their classes.

    Returns:
        For every detection whether it matched, for every object whether it was matched.

    Example:
        >>> detections = torch.tensor([[0., 0, 10, 10, 0.9, 0], [1, 1, 10, 10, 0.8, 0]])
        >>> match(detections, torch.tensor([[0., 0, 10, 10]]), torch.tensor([0]))
        ([True, False], [True])
    """
    overlaps = bbox_overlaps(detections[:, :4], boxes)
    overlaps[detections[:, 5:] != labels] = 0
    matched = [False] * len(boxes)
    right = []
    for row in overlaps:
        free = row * torch.tensor([not taken for taken in matched])
        best = int(free.argmax()) if len(boxes) else 0
        right.append(len(boxes) > 0 and bool(free[best] > MATCH_IOU))
        if right[-1]:
            matched[best] = True
    return right, matched


def draw_image(axis: plt.Axes, dataset: Dataset, index: int, detections: Tensor,
               title: str) -> None:
    """Draw one image with one detector's boxes, and their classes if there are several."""
    boxes, labels = map(torch.from_numpy, annotation(dataset, index))
    info, classes = image_info(dataset, index), classes_of(dataset)
    detections = detections[:len(boxes)]
    right, matched = match(detections, boxes, labels)
    axis.imshow(read_image(osp.join(info['folder'] or '', info['filename'])))
    for box, taken in zip(boxes, matched):
        if not taken:
            axis.add_patch(rectangle(box, MISSED, linestyle='--'))
    # Wrong boxes first: another class at the same place must not hide a match.
    for good, detection in sorted(zip(right, detections), key=lambda pair: pair[0]):
        colour = FOUND if good else WRONG
        axis.add_patch(rectangle(detection[:4], colour))
        if len(classes) > 1:
            left, top = detection[:2].tolist()
            axis.text(left, top, as_text(classes[int(detection[5])]), color='white', fontsize=7,
                      va='bottom', clip_on=True,
                      bbox=dict(facecolor=colour, edgecolor='none', pad=0.8))
    axis.set_title(f'{title}: {sum(right)} of {len(boxes)} found', fontsize=11)
    axis.axis('off')
