"""Draw the prototypes of a bank as crops of the images that they come from."""

from __future__ import annotations

import json
import os.path as osp
from collections.abc import Sequence

from gkd.prototypes import PrototypeBank
from gkd.report.drawing import as_text, crop, plt, save


def draw_prototypes(bank: PrototypeBank, folder: str, classes: Sequence[str], label: int,
                    path: str) -> None:
    """Draw a class's prototypes: one row per level, in order of choice.

    Args:
        bank: A bank that the :class:`gkd.prototypes.PrototypeGenerationModule` made.
        folder: Folder of the images.
        classes: Names of the classes.
        label: The class to draw.
        path: PNG file to write.
    """
    save(prototype_figure(bank, [folder], classes, label), path)


def prototype_figure(bank: PrototypeBank, folders: Sequence[str], classes: Sequence[str],
                     label: int) -> plt.Figure:
    """The same as a figure.

    Args:
        bank: The bank.
        folders: Folders of the images; a file's is the first that has it.
        classes: Names of the classes.
        label: The class to draw.
    """
    levels = [[origin for origin in level if origin[2] == label]
              for level in json.loads(bank.metadata['origins'])]
    most = max(map(len, levels))
    figure, axes = plt.subplots(len(levels), most, squeeze=False,
                                figsize=(0.9 * most + 0.8, 0.95 * len(levels) + 0.5))
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for number, level in enumerate(levels):
        axes[number, 0].set_ylabel(f'level {number}', fontsize=9)
        for place, (filename, box, _) in enumerate(level):
            paths = [osp.join(folder, filename) for folder in folders]
            path = next(filter(osp.isfile, paths), paths[0])
            axes[number, place].imshow(crop(path, box))
    for place in range(most):
        axes[0, place].set_title(str(place + 1), fontsize=9)
    figure.suptitle(f'prototypes of "{as_text(classes[label])}", in order of choice',
                    fontsize=10, wrap=True)
    figure.tight_layout(pad=0.4)
    return figure
