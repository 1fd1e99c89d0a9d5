"""Draw several detectors' boxes on the same images, side by side."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence

import matplotlib
import mmcv
import numpy as np
import torch
from mmcv import Config
from mmdet.core import bbox_overlaps
from mmdet.datasets import CustomDataset, build_dataset
from mmdet.models import build_detector
from torch import Tensor

from gkd.compat.checkpoint import load_checkpoint_file, load_strictly
from gkd.running.config import student_config
from gkd.running.export import student_weights

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

FOUND, WRONG, MISSED = '#2ca02c', '#d62728', '#ffd92f'
MATCH_IOU = 0.5


def draw_detections(detectors: Sequence[tuple[str, Config, str]], path: str,
                    num_images: int = 2) -> None:
    """Draw what each detector finds on validation images that hold as many objects as most do.

    On every image a detector may show as many boxes as there are objects, its best scored ones, so
    that detectors of different calibration compare: green boxes match an object (IoU above 0.5),
    red ones none; objects that nobody matched are yellow.

    Args:
        detectors: Title, config and checkpoint of each; distillation configs stand for their
            students.
        path: PNG file to write.
        num_images: Rows of the picture.
    """
    config = detectors[0][1]
    dataset = build_dataset(config.data.val, dict(test_mode=True))
    images = typical_images(dataset, num_images)
    figure, axes = plt.subplots(num_images, len(detectors), squeeze=False,
                                figsize=(3.6 * len(detectors), 3.9 * num_images))
    for column, (title, config, checkpoint) in enumerate(detectors):
        model = load_detector(config, checkpoint)
        for row, index in enumerate(images):
            draw_image(axes[row, column], dataset, index, detect(model, dataset, index), title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def results_figure(dataset: CustomDataset, results: Sequence, num_images: int) -> plt.Figure:
    """Draw what a detector has found on validation images, as :func:`draw_detections` does.

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
                   osp.basename(dataset.data_infos[index]['filename']))
    figure.tight_layout()
    return figure


def typical_images(dataset: CustomDataset, num_images: int) -> list[int]:
    """Images that hold as many objects as most do."""
    counts = np.array([len(dataset.get_ann_info(index)['labels'])
                       for index in range(len(dataset))])
    typical = np.abs(counts - np.median(counts[counts > 0]))
    return sorted(np.argsort(typical, kind='stable')[:num_images].tolist())


def load_detector(config: Config, checkpoint: str) -> torch.nn.Module:
    """Build the detector, or a distillation config's student, with its weights."""
    model = build_detector(student_config(config).model)
    load_strictly(model, student_weights(load_checkpoint_file(checkpoint), checkpoint),
                  checkpoint)
    return model.eval()


@torch.no_grad()
def detect(model: torch.nn.Module, dataset: CustomDataset, index: int) -> Tensor:
    """Detections of one image over all classes, best first: ``(n, 6)`` of box, score, label."""
    views = dataset.prepare_test_img(index)
    image, meta = views['img'][0], views['img_metas'][0].data
    return best_first(model.forward_test([image[None]], [[meta]], rescale=True)[0])


def best_first(result: Sequence[np.ndarray]) -> Tensor:
    """Detections of all classes, best first: ``(n, 6)`` of box, score, label.

    Args:
        result: ``(n, 5)`` of box and score, one array a class.
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


def draw_image(axis: plt.Axes, dataset: CustomDataset, index: int, detections: Tensor,
               title: str) -> None:
    """Draw one image with one detector's boxes."""
    annotation = dataset.get_ann_info(index)
    boxes = torch.from_numpy(annotation['bboxes'])
    detections = detections[:len(boxes)]
    right, matched = match(detections, boxes, torch.from_numpy(annotation['labels']))
    path = f'{dataset.img_prefix or ""}/{dataset.data_infos[index]["filename"]}'
    axis.imshow(mmcv.imread(path, channel_order='rgb'))
    for box, taken in zip(boxes, matched):
        if not taken:
            axis.add_patch(rectangle(box, MISSED, linestyle='--'))
    for detection, good in zip(detections, right):
        axis.add_patch(rectangle(detection[:4], FOUND if good else WRONG))
    axis.set_title(f'{title}: {sum(right)} of {len(boxes)} found', fontsize=11)
    axis.axis('off')


def rectangle(box: Tensor, color: str, **style) -> Rectangle:
    """A box as a patch."""
    x1, y1, x2, y2 = box.tolist()
    return Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.6,
                     **style)
