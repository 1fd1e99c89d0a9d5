"""Draw trust: instances by their robust weight, and the mask of local knowledge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.colors import Normalize
from torch import Tensor

from gkd.datasets.images import read_image
from gkd.detectors.modes import steps_without_traces
from gkd.detectors.trial_step import further_ground_truth
from gkd.errors import ConfigError
from gkd.frameworks import classes_of, network_input, source_of, synthetic_batch, test_view
from gkd.knowledge.instances import Instances, map_levels
from gkd.knowledge.robust import RobustDistillingModule
from gkd.knowledge.similarities import robust_weights
from gkd.looking.agreement import coordinates, typicality
from gkd.looking.trained import TrainedPair
from gkd.prototypes import PrototypeBank
from gkd.prototypes.features import CandidateImage, CandidateImages
from gkd.report.drawing import as_text, crop, end_of, plt, rectangle, save

COLOURS = matplotlib.colormaps['viridis']


@dataclass
class Trust:
    """Instances and how far they are trusted, each on its own level.

    Attributes:
        images: Number of the image of every instance, ``(n,)`` int64.
        boxes: ``(n, 4)`` in pixels of the image file.
        labels: ``(n,)`` int64.
        weights: Robust weights, ``(n,)``.
        teacher: Typicality in the teacher's space, ``(n,)``; NaN without prototypes.
        student: In the student's.
    """

    images: Tensor
    boxes: np.ndarray
    labels: Tensor
    weights: Tensor
    teacher: Tensor
    student: Tensor


def judge(trained: TrainedPair, bank: PrototypeBank, images: Sequence[CandidateImage]) -> Trust:
    """Weigh the ground-truth instances of images.

    Args:
        trained: Teacher and student.
        bank: Their prototypes.
        images: Images with their boxes.
    """
    trained.distiller.choose_classes(classes_of(images[0].dataset), source_of(images[0].dataset))
    found = []
    for number, (image, boxes, size) in enumerate(CandidateImages(images)):
        labels = torch.from_numpy(images[number].labels)
        features = trained.features(image[None], [boxes], [size])
        own = map_levels(boxes, bank.num_levels)[None]
        levels = [judge_level(bank, level, labels, *parts)
                  for level, parts in enumerate(zip(*features))]
        weights, teacher, student = (torch.stack(values).gather(0, own)[0]
                                     for values in zip(*levels))
        found.append((torch.full_like(labels, number), labels, weights, teacher, student))
    numbers, labels, *values = map(torch.cat, zip(*found))
    return Trust(numbers, np.concatenate([image.boxes for image in images]), labels, *values)


def judge_level(bank: PrototypeBank, level: int, labels: Tensor, teacher: Tensor,
                student: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Robust weights and both typicalities ``(n,)`` of features ``(n, D)`` on a level."""
    prototypes = bank.student[level], bank.teacher[level]
    offsets = bank.offsets[level]
    return (robust_weights(student, teacher, *prototypes, labels, offsets),
            typicality(coordinates(teacher, prototypes[1]), labels, offsets),
            typicality(coordinates(student, prototypes[0]), labels, offsets))


@torch.no_grad()
def local_masks(trained: TrainedPair, bank: PrototypeBank,
                image: CandidateImage) -> tuple[list[Tensor], tuple[int, int]]:
    """The mask of local knowledge that a training step would draw for an image.

    The student's own sampler chooses the instances, as in training (or the ground truth is taken,
    if the config says so); only the image is not flipped.

    Args:
        trained: Teacher and student.
        bank: Their prototypes.
        image: The image with all its boxes.

    Returns:
        The masks ``(H_l, W_l)``, and width and height of the padded image in pixels of the file.

    Raises:
        ConfigError: The config has no RobustDistillingModule.
    """
    distiller = trained.distiller
    module = next((kind for kind in distiller.knowledge
                   if isinstance(kind, RobustDistillingModule)), None)
    if module is None:
        raise ConfigError(f'{trained.config.filename} has no RobustDistillingModule in '
                          f'`model.knowledge`, which draws the mask of local knowledge.')
    pixels, scale, offset, size = test_view(image.dataset, image.index)
    pixels = network_input(distiller.student, pixels[None].to(trained.device), [size])
    boxes, labels = (torch.from_numpy(part).to(trained.device)
                     for part in (image.boxes * scale + offset, image.labels))
    further = further_ground_truth(distiller.student, boxes, *pixels.shape[-2:])
    batch = synthetic_batch(pixels, boxes, labels, size=size, **further)
    with steps_without_traces(distiller.student):
        _, step = distiller.observe(batch)
    step.bank = bank.to(trained.device)
    boxes, labels = module.taught_instances(step)
    instances = Instances.of(boxes)
    masks = module.masks(step, instances, map_levels(instances.boxes, len(step.strides)),
                         module.weigh_boxes(step, boxes, labels))
    height, width = pixels.shape[-2:]
    return [mask[0].cpu() for mask in masks], (width / scale[0], height / scale[1])


def choose_images(trust: Trust, count: int) -> list[int]:
    """Numbers of the images whose instances differ most in trust, the largest difference first."""
    spread = {int(number): float(trust.weights[trust.images == number].std())
              for number in trust.images.unique() if (trust.images == number).sum() > 1}
    return sorted(spread, key=spread.get, reverse=True)[:count]


def draw_images(trained: TrainedPair, bank: PrototypeBank, images: Sequence[CandidateImage],
                trust: Trust, numbers: Sequence[int], path: str) -> None:
    """Draw images with boxes coloured by robust weight, and the masks as heat maps over them.

    Each image is drawn under the name of its file.

    Args:
        trained: Teacher and student.
        bank: Their prototypes.
        images: Images with all their boxes.
        trust: What :func:`judge` found for them.
        numbers: Which of them to draw, a row each.
        path: Picture file to write.
    """
    drawn = [local_masks(trained, bank, images[number]) for number in numbers]
    # Levels on which no image has an instance would be empty columns.
    levels = [level for level in range(bank.num_levels)
              if any(masks[level].any() for masks, _ in drawn)]
    # Relative to what is drawn: differences of trust are small next to the trust itself.
    shown = torch.cat([trust.weights[torch.isin(trust.images, torch.tensor(numbers))],
                       *(mask[mask > 0] for masks, _ in drawn for mask in masks)])
    scale = Normalize(float(shown.min()), float(shown.max()))
    figure, axes = plt.subplots(len(numbers), 1 + len(levels), squeeze=False,
                                layout='constrained',
                                figsize=(3.5 * (1 + len(levels)) + 0.6, 3.5 * len(numbers) + 0.2))
    for row, number, (masks, (width, height)) in zip(axes, numbers, drawn):
        pixels = read_image(images[number].path)
        for axis in row:
            axis.imshow(pixels)
            axis.axis('off')
        for index in (trust.images == number).nonzero().flatten().tolist():
            weight = float(trust.weights[index])
            # Of a box over the border of the image the label stays inside.
            x1, y1 = trust.boxes[index, :2].clip(min=0).tolist()
            row[0].add_patch(rectangle(trust.boxes[index], COLOURS(scale(weight)), 1.8))
            row[0].text(x1, y1, f'{weight:.2f}', fontsize=8, va='top', color='white',
                        bbox=dict(facecolor='black', alpha=0.6, pad=0.6, linewidth=0))
        for axis, level in zip(row[1:], levels):
            mask = masks[level].numpy()
            axis.imshow(np.ma.masked_equal(mask, 0), cmap=COLOURS, norm=scale, alpha=0.65,
                        extent=(0, width, height, 0), interpolation='nearest')
            axis.set_xlim(0, pixels.shape[1])
            axis.set_ylim(pixels.shape[0], 0)
            axis.set_title(f'mask of local knowledge, level {level}', fontsize=9)
        name = as_text(end_of(images[number].filename, 44))
        row[0].set_title(f'{name}\nground truth, by robust weight', fontsize=9)
    colours = plt.cm.ScalarMappable(scale, COLOURS)
    figure.colorbar(colours, ax=axes, shrink=0.6, label='robust weight')
    save(figure, path)


def draw_extremes(images: Sequence[CandidateImage], trust: Trust, label: int, count: int,
                  path: str) -> bool:
    """Draw the most and the least trusted instances of a class, each above the name of its file.

    Args:
        images: Images with all their boxes.
        trust: What :func:`judge` found for them.
        label: The class.
        count: Instances in each of the two rows.
        path: Picture file to write.

    Returns:
        Whether there was anything to draw: the class has instances and prototypes.
    """
    of_class = ((trust.labels == label) & ~trust.teacher.isnan()).nonzero().flatten()
    if not len(of_class):
        return False
    order = of_class[trust.weights[of_class].argsort(descending=True, stable=True)]
    count = min(count, (len(order) + 1) // 2)
    figure, axes = plt.subplots(2, count, squeeze=False, layout='constrained',
                                figsize=(max(1.15 * count + 0.4, 4), 4.3))
    rows = (('most trusted', order[:count]), ('least trusted', order.flip(0)[:count]))
    for row, (title, chosen) in zip(axes, rows):
        row[0].set_ylabel(title, fontsize=9)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        for axis, index in zip(row, chosen.tolist()):
            image = images[int(trust.images[index])]
            axis.imshow(crop(image.path, trust.boxes[index].tolist()))
            axis.set_title(f'{trust.weights[index]:.2f}', fontsize=10, pad=3)
            axis.set_xlabel(f'T {trust.teacher[index]:.2f}  S {trust.student[index]:.2f}\n'
                            f'{as_text(end_of(image.filename, 20))}', fontsize=6.5)
    name = as_text(classes_of(images[0].dataset)[label])
    figure.suptitle(f'"{name}": robust weight, and how typical the teacher (T) and the student '
                    f'(S) find it', fontsize=9, wrap=True)
    save(figure, path)
    return True
