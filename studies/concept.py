"""Figures that explain the method: prototypes in both spaces, and coordinates of instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from gkd.errors import DataError
from gkd.frameworks import classes_of
from gkd.knowledge.instances import map_levels
from gkd.looking.agreement import coordinates
from gkd.looking.trained import ChosenInstances, TrainedPair
from gkd.prototypes import PrototypeBank
from gkd.prototypes.contributions import align, principal_plane
from gkd.prototypes.features import CandidateImage, CandidateImages
from gkd.report.drawing import crop, plt, save
from gkd.report.figures import DISTILLED, GREY, SHADES
from gkd.report.names import PLAIN_STUDENT, TEACHER

COLOURS = {'teacher': SHADES[TEACHER][0], 'student': SHADES[PLAIN_STUDENT][0],
           'distilled student': SHADES[DISTILLED][0]}
MARKED = '#c2402e'


def draw_spaces(basis: ChosenInstances, label: int, level: int, path: str) -> None:
    """Draw a class's instances and prototypes in both feature spaces, and the prototypes' crops.

    Args:
        basis: Prototypes and the instances that they were chosen from.
        label: The class.
        level: The pyramid level.
        path: Picture file to write.
    """
    members = (basis.labels == label).nonzero().flatten()
    # An instance may be chosen again; it is drawn once, at its first place.
    rows = list(dict.fromkeys(basis.rows(level, label).tolist()))
    places = torch.searchsorted(members, torch.tensor(rows))
    of_teacher, shares = principal_plane(basis.teacher[level][members])
    of_student, other_shares = principal_plane(basis.student[level][members])
    figure = plt.figure(figsize=(8, 5), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=(3.6, 1))
    maps = (('teacher', of_teacher, shares), ('student', align(of_student, of_teacher),
                                              other_shares))
    for axis, (role, points, share) in zip(above.subplots(1, 2), maps):
        axis.scatter(*points.T, s=9, color=COLOURS[role], alpha=0.45, linewidths=0)
        axis.scatter(*points[places].T, s=110, color=MARKED, edgecolors='white', zorder=2)
        for number, point in enumerate(points[places].tolist(), start=1):
            axis.annotate(str(number), point, ha='center', va='center', fontsize=7.5,
                          color='white', weight='bold')
        axis.set_title(f'{role}\'s features; this plane shows {100 * share.sum():.0f} % of their '
                       f'variance', fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        for side in axis.spines.values():
            side.set_color(GREY)
    for number, (axis, row) in enumerate(zip(below.subplots(1, len(rows), squeeze=False)[0],
                                             rows), start=1):
        axis.imshow(crop(basis.paths[row], basis.boxes[row].tolist()))
        axis.set_title(str(number), fontsize=9, color=MARKED, weight='bold', pad=3)
        axis.axis('off')
    save(figure, path)


@dataclass
class Located:
    """Instances and their coordinates in the basis, each on its own level.

    Attributes:
        paths: Image file of every instance.
        boxes: ``(n, 4)`` in pixels of the image file.
        teacher: Similarity to every prototype of the instance's class, ``(K,)`` each.
        student: The student's.
    """

    paths: list[str]
    boxes: np.ndarray
    teacher: list[Tensor]
    student: list[Tensor]

    def discrepancies(self) -> Tensor:
        """Mean absolute difference of both spaces' coordinates, ``(n,)``."""
        return torch.stack([(teacher - student).abs().mean()
                            for teacher, student in zip(self.teacher, self.student)])


def locate(trained: TrainedPair, bank: PrototypeBank, images: Sequence[CandidateImage],
           label: int) -> Located:
    """Find the coordinates of a class's ground-truth instances.

    Args:
        trained: Teacher and student.
        bank: Their prototypes.
        images: Images with their boxes.
        label: The class.

    Raises:
        DataError: There is no such instance.
    """
    paths, boxes, of_teacher, of_student = [], [], [], []
    for image, (pixels, scaled, size) in zip(images, CandidateImages(images)):
        teacher, student = trained.features(pixels[None], [scaled], [size])
        levels = map_levels(scaled, bank.num_levels).tolist()
        for row in (image.labels == label).nonzero()[0].tolist():
            level = levels[row]
            own = slice(*bank.offsets[level][label:label + 2].tolist())
            of_teacher.append(coordinates(teacher[level][row, None], bank.teacher[level][own])[0])
            of_student.append(coordinates(student[level][row, None], bank.student[level][own])[0])
            paths.append(image.path)
            boxes.append(image.boxes[row])
    if not paths:
        name = classes_of(images[0].dataset)[label]
        raise DataError(f'no image has an instance of class {name}.')
    return Located(paths, np.stack(boxes), of_teacher, of_student)


def same_prototypes(basis: ChosenInstances, later: ChosenInstances) -> PrototypeBank:
    """A basis's prototypes as another student sees the same instances.

    Args:
        basis: Whose prototypes to take.
        later: Features of the same instances.
    """
    rows = [torch.cat([basis.rows(level, label) for label in range(len(basis.classes))])
            for level in range(basis.bank.num_levels)]
    return PrototypeBank([level[row] for level, row in zip(later.student, rows)],
                         basis.bank.teacher, basis.bank.offsets)


def draw_coordinates(located: Located, count: int, path: str,
                     after: Optional[Located] = None) -> None:
    """Draw the instances on which both spaces agree most and least, with their coordinates.

    Args:
        located: Instances with their coordinates.
        count: Instances of each of the two sorts.
        path: Picture file to write.
        after: The same with the student after distillation.
    """
    order = located.discrepancies().argsort().tolist()
    count = min(count, (len(order) + 1) // 2)
    chosen = order[:count] + order[::-1][:count][::-1]
    figure, axes = plt.subplots(len(chosen), 2, squeeze=False, layout='constrained',
                                figsize=(8, 1.6 * len(chosen) + 0.3),
                                gridspec_kw=dict(width_ratios=(1, 5.2)))
    for row, index in zip(axes, chosen):
        row[0].imshow(crop(located.paths[index], located.boxes[index].tolist()))
        row[0].axis('off')
        values = dict(teacher=located.teacher[index], student=located.student[index])
        if after is not None:
            values['distilled student'] = after.student[index]
        draw_bars(row[1], values)
    lowest = min(axis.get_ylim()[0] for axis in axes[:, 1])
    for axis in axes[:, 1]:
        axis.set_ylim(lowest, 1)
    figure.legend(*axes[0, 1].get_legend_handles_labels(), fontsize=8.5, ncols=3, frameon=False,
                  loc='outside upper right')
    axes[-1, 1].set_xlabel('prototype, in order of choice', fontsize=9)
    save(figure, path)


def draw_bars(axis: plt.Axes, values: dict[str, Tensor]) -> None:
    """Draw an instance's coordinates in the spaces, and say what trust makes of them.

    Args:
        axis: Where to draw.
        values: Coordinates ``(K,)`` by the detector's name, the teacher's first.
    """
    teacher, student = values['teacher'], values['student']
    places = np.arange(1, len(teacher) + 1)
    width = 0.84 / len(values)
    for number, (name, heights) in enumerate(values.items()):
        axis.bar(places + (number - (len(values) - 1) / 2) * width, heights.numpy(), width=width,
                 color=COLOURS[name], label=name)
    weight = 1 - abs(float(teacher.max()) - float(student.max()))
    axis.set_title(f'teacher and student differ by {(teacher - student).abs().mean():.2f} on '
                   f'average; largest {teacher.max():.2f} and {student.max():.2f}: robust weight '
                   f'{weight:.2f}', fontsize=8.5, loc='left')
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set_xticks(places)
    axis.set_yticks([-0.5, 0, 0.5, 1])
    axis.tick_params(labelsize=8)
    for side in ('top', 'right', 'bottom'):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis='x', length=0)
