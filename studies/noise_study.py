"""The noise study: how the robust weight of an instance changes when it is corrupted."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.datasets.images import read_image
from gkd.files import write_atomically
from gkd.knowledge.instances import map_levels
from gkd.knowledge.similarities import robust_weights
from gkd.looking.agreement import coordinates, mean_with_band, typicality
from gkd.looking.trained import TrainedPair
from gkd.progress import progress
from gkd.prototypes import PrototypeBank
from gkd.prototypes.features import CandidateImage, CandidateImages
from gkd.report.drawing import plt, save
from studies.corruptions import CORRUPTIONS, corrupt
from studies.pixels import Pixels

MEASURES = ('distance, teacher', 'distance, student', 'discrepancy', 'weight',
            'typicality, teacher', 'typicality, student')
OWN, ALL = 'own level', 'mean of all levels'
# What is drawn: title, and colour and legend of each measure.
PANELS = (
    ('feature distance', (('distance, teacher', '#6f5bb8'), ('distance, student', '#d98a1f'))),
    ('discrepancy', (('discrepancy', '#2f6fa5'),)),
    ('robust weight', (('weight', '#2e8b62'),)))


@dataclass
class Study:
    """What was measured.

    Attributes:
        degrees: Degrees of corruption, ascending from 0.
        values: ``(n, 2, measures, kinds, degrees)``: for every instance on its own level and as
            the mean of all levels.
        groups: Image of every instance, ``(n,)`` int64.
    """

    degrees: tuple[float, ...]
    values: Tensor
    groups: Tensor

    def band(self, kind: str, measure: str, where: str = OWN) -> tuple[Tensor, Tensor]:
        """Mean and half width of its confidence band at every degree, ``(degrees,)`` each."""
        return mean_with_band(self.of(kind, measure, where), self.groups)

    def change(self, kind: str, measure: str, where: str = OWN) -> tuple[Tensor, Tensor]:
        """The same of the change since degree 0, instance by instance."""
        values = self.of(kind, measure, where)
        return mean_with_band(values - values[:, :1], self.groups)

    def of(self, kind: str, measure: str, where: str) -> Tensor:
        """A measure of every instance at every degree, ``(n, degrees)``."""
        return self.values[:, (OWN, ALL).index(where), MEASURES.index(measure),
                           list(CORRUPTIONS).index(kind)]

    def verdict(self, kind: str, measure: str, where: str = OWN) -> str:
        """Whether a measure has risen or fallen at the highest degree, for all that is known."""
        mean, half = (values[-1] for values in self.change(kind, measure, where))
        if abs(mean) <= half:
            return 'no clear change'
        return 'rises' if mean > 0 else 'falls'


def choose_instances(images: Sequence[CandidateImage], count: int,
                     seed: int) -> list[CandidateImage]:
    """Choose instances at random, in the order of the images.

    Args:
        images: Images with their boxes.
        count: Instances at most.
        seed: Seed of the choice.

    Returns:
        The images that hold one, with the chosen boxes alone.
    """
    places = [(number, box) for number, image in enumerate(images)
              for box in range(len(image.labels))]
    chosen = np.random.default_rng(seed).permutation(len(places))[:count]
    kept: dict[int, list[int]] = {}
    for number, box in (places[place] for place in sorted(chosen)):
        kept.setdefault(number, []).append(box)
    return [replace(images[number], boxes=images[number].boxes[boxes],
                    labels=images[number].labels[boxes]) for number, boxes in kept.items()]


def run_study(trained: TrainedPair, bank: PrototypeBank, images: Sequence[CandidateImage],
              degrees: Sequence[float], seed: int, batch_size: int = 8) -> Study:
    """Corrupt one instance at a time, in every way and degree, and measure.

    Args:
        trained: Teacher and student.
        bank: Their prototypes.
        images: Images with the instances to corrupt.
        degrees: Degrees above 0, ascending.
        seed: Seed of directions of motion and places of occlusion.
        batch_size: Versions of an image a forward pass.
    """
    values, groups = [], []
    pixels = Pixels.of_validation(trained)
    total = sum(len(image.labels) for image in images)
    with progress(None, 'noise study', total, 'instance') as bar:
        for number, (image, boxes, size) in enumerate(CandidateImages(images)):
            for box, label in zip(boxes, torch.from_numpy(images[number].labels)):
                own = seed + len(values)
                versions = versions_of(image, box, size, pixels, degrees, own)
                teacher, student = features_of(trained, versions, box, size, batch_size)
                values.append(measure(teacher, student, bank, label, box))
                groups.append(number)
                bar.update()
    values = torch.stack(values).unflatten(-1, (len(CORRUPTIONS), -1))
    return Study((0.0, *degrees), values, torch.tensor(groups))


def versions_of(image: Tensor, box: Tensor, size: tuple[int, int], pixels: Pixels,
                degrees: Sequence[float], seed: int) -> Tensor:
    """An image as it is, and with an instance corrupted in every way and degree.

    Args:
        image: ``(3, H, W)`` as the pipeline makes it.
        box: The instance's, ``(4,)`` in pixels of the image.
        size: Height and width of the image without padding, which shows nothing to be blurred in.
        pixels: Tells the image's pixels.
        degrees: Degrees above 0.
        seed: Of this instance.

    Returns:
        ``(1 + kinds * degrees, 3, H, W)``, as the pipeline would make them.
    """
    height, width = size
    shown = pixels.of(image[:, :height, :width])
    changed = [shown] + [corrupt(shown, box, kind, degree, seed)
                         for kind in CORRUPTIONS for degree in degrees]
    versions = image.float().repeat(len(changed), 1, 1, 1)
    versions[:, :, :height, :width] = pixels.back(torch.stack(changed))
    return versions


def features_of(trained: TrainedPair, versions: Tensor, box: Tensor,
                size: tuple[int, int], batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
    """The teacher's and the student's features ``(versions, C)`` of a box, one tensor a level."""
    parts = []
    for images in versions.split(batch_size):
        parts.append(trained.features(images, [box[None]] * len(images), [size] * len(images)))
    return tuple([torch.cat(level) for level in zip(*detector)] for detector in zip(*parts))


def measure(teacher: list[Tensor], student: list[Tensor], bank: PrototypeBank, label: Tensor,
            box: Tensor) -> Tensor:
    """Everything that is measured of one instance.

    Args:
        teacher: The teacher's features of its versions, ``(1 + kinds * degrees, D_T)`` a level,
            the clean one first.
        student: The student's.
        bank: The prototypes.
        label: Its class.
        box: Its box, ``(4,)`` in pixels of the image.

    Returns:
        ``(2, measures, kinds * (1 + degrees))`` on its own level and as the mean of all; every
        kind begins with the clean version.
    """
    levels = []
    for level, (of_teacher, of_student) in enumerate(zip(teacher, student)):
        offsets = bank.offsets[level]
        labels = label.expand(len(of_teacher))
        in_teacher = coordinates(of_teacher, bank.teacher[level])
        in_student = coordinates(of_student, bank.student[level])
        levels.append(torch.stack([
            (1 - F.cosine_similarity(of_teacher, of_teacher[:1])).clamp(min=0),
            (1 - F.cosine_similarity(of_student, of_student[:1])).clamp(min=0),
            (in_student - in_teacher).abs().mean(dim=1),
            robust_weights(of_student, of_teacher, bank.student[level], bank.teacher[level],
                           labels, offsets),
            typicality(in_teacher, labels, offsets),
            typicality(in_student, labels, offsets)]))
    values = torch.stack(levels)
    own = map_levels(box[None], len(levels))
    values = torch.stack([values[own[0]], values.mean(dim=0)])
    clean, corrupted = values[..., :1], values[..., 1:].unflatten(-1, (len(CORRUPTIONS), -1))
    clean = clean[..., None, :].expand(*corrupted.shape[:-1], 1)
    return torch.cat([clean, corrupted], dim=-1).flatten(-2)


def report(study: Study) -> str:
    """The result in Markdown: the claim's verdicts, then every mean with its half band."""
    images = len(study.groups.unique())
    weights = study.of(next(iter(CORRUPTIONS)), 'weight', OWN)[:, 0]
    lines = [f'{len(study.groups)} instances in {images} images. Mean and half width of the 95% '
             f'confidence band; changes are from degree 0 to {study.degrees[-1]:g}, instance by '
             f'instance. Robust weights of uncorrupted instances: mean {weights.mean():.3f}, '
             f'standard deviation {weights.std():.3f}.', '']
    lines += ['| on | corruption | discrepancy | | robust weight | | the claim |',
              '| --- | --- | ---: | --- | ---: | --- | --- |']
    for where in (OWN, ALL):
        for kind in CORRUPTIONS:
            cells, holds = [], True
            for name, wanted in (('discrepancy', 'rises'), ('weight', 'falls')):
                verdict = study.verdict(kind, name, where)
                mean, half = (values[-1].item() for values in study.change(kind, name, where))
                cells += [f'{mean:+.4f} ± {half:.4f}', verdict]
                holds &= verdict == wanted
            lines.append(f'| {where} | {kind} | ' + ' | '.join(cells)
                         + f' | {"holds" if holds else "does not hold"} |')
    head = ' | '.join(f'{degree:g}' for degree in study.degrees)
    lines += ['', f'| on its own level | corruption | {head} |',
              '| --- | --- |' + ' ---: |' * len(study.degrees)]
    for name in MEASURES:
        for kind in CORRUPTIONS:
            cells = ' | '.join(f'{mean:.4f} ± {half:.4f}'
                               for mean, half in zip(*study.band(kind, name)))
            lines.append(f'| {name} | {kind} | {cells} |')
    return '\n'.join(lines)


def write_csv(study: Study, path: str) -> None:
    """Write every mean, its half band, and the change since degree 0 with its own."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator='\n')
    table.writerow(['corruption', 'degree', 'measure', 'level', 'mean', 'half_band', 'change',
                    'half_band_of_change'])
    for where in (OWN, ALL):
        for name in MEASURES:
            for kind in CORRUPTIONS:
                columns = zip(study.degrees, *study.band(kind, name, where),
                              *study.change(kind, name, where))
                for degree, *numbers in columns:
                    table.writerow([kind, degree, name, where,
                                    *(f'{float(number):.6f}' for number in numbers)])
    write_atomically(path, text.getvalue())


def draw_study(study: Study, title: str, path: str) -> None:
    """Draw every measure against the degree, with its confidence band, to a picture file."""
    figure, axes = plt.subplots(len(PANELS), len(CORRUPTIONS), sharex=True, sharey='row',
                                figsize=(2.7 * len(CORRUPTIONS) + 1.6, 2.1 * len(PANELS) + 0.5))
    for row, (name, measures) in enumerate(PANELS):
        for column, kind in enumerate(CORRUPTIONS):
            axis = axes[row, column]
            for measured, colour in measures:
                for where, style in ((OWN, '-'), (ALL, '--')):
                    mean, half = study.band(kind, measured, where)
                    label = ', '.join([*measured.split(', ')[1:], where])
                    axis.plot(study.degrees, mean, style, color=colour, label=label)
                    axis.fill_between(study.degrees, mean - half, mean + half, color=colour,
                                      alpha=0.2, linewidth=0)
            axis.grid(alpha=0.3)
            if row == 0:
                axis.set_title(kind, fontsize=10)
            if row == len(PANELS) - 1:
                axis.set_xlabel('degree')
        axes[row, 0].set_ylabel(name)
        # Beside the panels: inside of them it would hide curves.
        axes[row, -1].legend(fontsize=7, loc='upper left', bbox_to_anchor=(1.02, 1),
                             borderaxespad=0)
    figure.suptitle(f'{title}; shaded: 95 % confidence band of the mean', fontsize=11)
    figure.tight_layout()
    save(figure, path)


def draw_examples(image: CandidateImage, degrees: Sequence[float], seed: int, path: str) -> None:
    """Draw one instance in every way and degree of corruption to a picture file."""
    pixels = read_image(image.path)
    box = torch.from_numpy(image.boxes[0])
    # From -1 to 1, so that occlusion fills with a middle grey.
    clean = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    margin = 0.5 * max(box[2] - box[0], box[3] - box[1])
    x1, y1, x2, y2 = (box + torch.stack([-margin, -margin, margin, margin])).round().int().tolist()
    shown = (slice(max(0, y1), y2), slice(max(0, x1), x2))
    figure, axes = plt.subplots(len(CORRUPTIONS), 1 + len(degrees), squeeze=False,
                                figsize=(1.3 * (1 + len(degrees)), 1.35 * len(CORRUPTIONS)))
    for axis, degree in zip(axes[0], (0.0, *degrees)):
        axis.set_title(f'{degree:g}', fontsize=9)
    for row, kind in zip(axes, CORRUPTIONS):
        row[0].set_ylabel(kind, fontsize=9)
        for axis, degree in zip(row, (0.0, *degrees)):
            corrupted = corrupt(clean, box, kind, degree, seed)
            axis.imshow(((corrupted + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()[shown])
            axis.set_xticks([])
            axis.set_yticks([])
    figure.tight_layout(pad=0.3)
    save(figure, path)
