"""Make the gallery of prototypes: one HTML file that needs no network."""

from __future__ import annotations

from typing import Any

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.looking.trained import ChosenInstances
from gkd.prototypes.contributions import align, contributions, principal_plane
from gkd.report.drawing import crop
from gkd.report.templates import write_page
from gkd.report.validation import data_uri

CROP = 64  # longer side of embedded crops, in pixels
LISTED = 24  # instances listed of those that lean on a prototype


def write_gallery(basis: ChosenInstances, alpha: float, title: str, path: str, most: int = 1000,
                  seed: int = 0) -> None:
    """Write the gallery.

    Args:
        basis: Prototypes and the instances that they were chosen from.
        alpha: Weight of disagreement that they were chosen with.
        title: Heading of the page.
        path: HTML file to write.
        most: Maximum number of instances on the maps; prototypes are always among them. All
            numbers are computed from all instances.
        seed: Seed for choosing the instances on the maps.
    """
    chosen = [[basis.rows(level, label) for label in range(len(basis.classes))]
              for level in range(basis.bank.num_levels)]
    shown = choose_shown(torch.cat([rows for level in chosen for rows in level]),
                         len(basis.labels), most, seed)
    data = dict(
        classes=list(basis.classes), total=len(basis.labels),
        labels=basis.labels[shown].tolist(),
        files=[basis.paths[row] for row in shown.tolist()],
        boxes=basis.boxes[shown.numpy()].round(1).tolist(),
        crops=[embed(basis, row) for row in shown.tolist()],
        levels=[describe_level(basis, level, rows, shown, alpha)
                for level, rows in enumerate(chosen)])
    write_page(path, 'gallery.jinja', title=title, data=data)


def choose_shown(prototypes: Tensor, total: int, most: int, seed: int) -> Tensor:
    """Rows to show, ascending: the prototypes, filled up at random to ``most`` of all.

    Example:
        >>> choose_shown(torch.tensor([7, 2, 7]), total=9, most=2, seed=0)
        tensor([2, 7])
    """
    kept = prototypes.unique()
    others = torch.ones(total, dtype=torch.bool)
    others[kept] = False
    others = others.nonzero().flatten().numpy()
    filled = np.random.default_rng(seed).permutation(others)[:max(0, most - len(kept))]
    return torch.cat([kept, torch.from_numpy(filled)]).sort().values


def embed(basis: ChosenInstances, row: int) -> str:
    """Crop of an instance as a data URI."""
    pixels = crop(basis.paths[row], basis.boxes[row].tolist())
    return data_uri(mmcv.rgb2bgr(mmcv.imrescale(pixels, (CROP, CROP))))


def describe_level(basis: ChosenInstances, level: int, chosen: list[Tensor], shown: Tensor,
                   alpha: float) -> dict[str, Any]:
    """The content of the page for a level.

    Args:
        basis: Prototypes and instances.
        level: The level.
        chosen: Rows of every class's prototypes in order of choice.
        shown: Rows of the instances on the page, ascending.
        alpha: Weight of disagreement that prototypes were chosen with.

    Returns:
        ``teacher`` and ``student``, the maps of both spaces as ``x``, ``y`` and ``shares`` of
        variance; ``leaning``, for every instance on the page which of its class's prototypes it
        leans on; and ``prototypes`` of every class.
    """
    places, shares = principal_plane(basis.teacher[level])
    others, other_shares = principal_plane(basis.student[level])
    leaning = torch.full_like(basis.labels, -1)
    prototypes = []
    for label, rows in enumerate(chosen):
        members = (basis.labels == label).nonzero().flatten()
        if not len(rows):
            prototypes.append([])
            continue
        found = contributions(basis.teacher[level][members], basis.student[level][members],
                              torch.searchsorted(members, rows), alpha)
        leaning[members] = found.leaning
        prototypes.append([
            dict(instance=position(shown, row),
                 teacher=round(float(found.teacher[number].mean()), 4),
                 student=round(float(found.student[number].mean()), 4),
                 count=int((found.leaning == number).sum()),
                 leaning=most_leaning(members, found.leaning == number,
                                      found.teacher[number] + found.student[number], shown))
            for number, row in enumerate(rows.tolist())])
    return dict(teacher=as_map(places[shown], shares),
                student=as_map(align(others, places)[shown], other_shares),
                leaning=leaning[shown].tolist(), prototypes=prototypes)


def most_leaning(members: Tensor, leans: Tensor, energy: Tensor, shown: Tensor) -> list[int]:
    """Places on the page of those that lean on a prototype, the ones it explains best first."""
    rows = members[leans][energy[leans].argsort(descending=True, stable=True)]
    return [position(shown, row) for row in rows[torch.isin(rows, shown)][:LISTED].tolist()]


def position(shown: Tensor, row: int) -> int:
    """Place of an instance on the page."""
    return int(torch.searchsorted(shown, row))


def as_map(places: Tensor, shares: Tensor) -> dict[str, list[float]]:
    """A map for the page."""
    x, y = places.T
    return dict(x=[round(value, 4) for value in x.tolist()],
                y=[round(value, 4) for value in y.tolist()],
                shares=[round(share, 4) for share in shares.tolist()])


def summary(basis: ChosenInstances, alpha: float) -> list[dict[str, Any]]:
    """How much of the instances the prototypes explain, level by level.

    Returns:
        For every level ``teacher`` and ``student``, the share of energy over all instances, and
        ``agreement``, how far both spaces agree on which instances are alike: the correlation of
        their cosine similarities over pairs of instances.
    """
    rows = []
    for level in range(basis.bank.num_levels):
        totals = torch.zeros(2, dtype=torch.double)
        for label in range(len(basis.classes)):
            members = (basis.labels == label).nonzero().flatten()
            chosen = basis.rows(level, label)
            if len(chosen):
                found = contributions(basis.teacher[level][members],
                                      basis.student[level][members],
                                      torch.searchsorted(members, chosen), alpha)
                totals += torch.stack([found.teacher.sum(), found.student.sum()])
        teacher, student = (totals / len(basis.labels)).tolist()
        rows.append(dict(teacher=teacher, student=student,
                         agreement=agreement(basis.teacher[level], basis.student[level])))
    return rows


def agreement(teacher: Tensor, student: Tensor, most: int = 2000) -> float:
    """Correlation of the cosine similarities of instances in both spaces.

    Args:
        teacher: ``(N, D_T)``.
        student: ``(N, D_S)``.
        most: Instances looked at, evenly over all.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> round(agreement(features, 3 * features.flip(1)), 6)
        1.0
    """
    step = max(1, len(teacher) // most)
    pairs = torch.triu_indices(len(teacher[::step]), len(teacher[::step]), offset=1)
    similar = []
    for features in (teacher, student):
        unit = F.normalize(features[::step].double(), dim=1)
        similar.append((unit @ unit.T)[pairs[0], pairs[1]])
    return float(torch.corrcoef(torch.stack(similar))[0, 1])
