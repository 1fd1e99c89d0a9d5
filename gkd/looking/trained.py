"""A trained teacher and student, and the prototypes that a training would choose for them."""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch
from torch import Tensor

from gkd.commands.export import load_student
from gkd.distiller import Distiller
from gkd.errors import ConfigError, DataError
from gkd.frameworks import Config, classes_of, source_of
from gkd.looking.door import build_model, prototype_datasets, validation_datasets
from gkd.prototypes.features import (
    CandidateImage,
    choose_candidates,
    instance_features,
)
from gkd.prototypes.generation import Generation, build_generation


class TrainedPair:
    """A distillation config's teacher and student, in eval mode.

    Args:
        config: The distillation config.
        checkpoint: Checkpoint of its training, or of a plain detector of the student's kind. By
            default the student is the one that the config starts from.
        device: Where to run them.

    Raises:
        ConfigError: The config distils nothing, or without prototypes.
        CheckpointError: A checkpoint cannot be read or does not fit.
    """

    def __init__(self, config: Config, checkpoint: Optional[str] = None, device: str = 'cpu'):
        if config.model.type != Distiller.__name__ or not config.model.get('prototypes'):
            raise ConfigError(f'{config.filename} has no prototypes: give a config whose `model` '
                              f'is a Distiller with `prototypes`.')
        if checkpoint is None and config.model.student.get('checkpoint') is None:
            raise ConfigError(f'the student of {config.filename} is untrained: '
                              f'model.student.checkpoint names no file. Give a checkpoint.')
        self.config = config
        self.distiller = build_model(config)
        self.pair = self.distiller.pair
        if checkpoint is None:
            self.distiller.init_weights()
        else:
            load_student(self.distiller.student, checkpoint)
        self.device = torch.device(device)
        self.distiller.to(self.device).eval()
        self.generation = build_generation(config.model.prototypes)

    def features(self, images: Tensor, boxes: list[Tensor],
                 sizes: Optional[list[tuple[int, int]]] = None,
                 ) -> tuple[list[Tensor], list[Tensor]]:
        """Features of instances on every paired level.

        Args:
            images: ``(B, 3, H, W)``.
            boxes: Boxes of every image, ``(n_b, 4)`` in pixels of ``images``.
            sizes: Height and width of every image without its padding; by default it has none.

        Returns:
            The teacher's and the student's, ``(sum n_b, C)`` on the CPU, one tensor per level.
        """
        images, boxes = images.to(self.device), [box.to(self.device) for box in boxes]
        return tuple(instance_features(detector, self.pair.levels(info), images, boxes, sizes)
                     for detector, info in ((self.distiller.teacher, self.pair.teacher),
                                            (self.distiller.student, self.pair.student)))

    def generate(self, cache_dir: str) -> ChosenInstances:
        """Choose prototypes with these very weights, as the training does at an epoch's start.

        Args:
            cache_dir: Where the teacher's features are kept for the next time.

        Raises:
            DataError: The data are not there, or no instance is large enough.
        """
        datasets = prototype_datasets(self.config)
        levels = [self.pair.levels(info) for info in (self.pair.teacher, self.pair.student)]
        return ChosenInstances(self.generation.generate(
            self.distiller.teacher, self.distiller.student, *levels, datasets, cache_dir))


class ChosenInstances:
    """Prototypes, and the instances that they were chosen from.

    Attributes:
        bank: The prototypes.
        classes: Names of the classes.
        paths: Image file of every instance.
        boxes: ``(n, 4)`` in pixels of the image file.
        labels: ``(n,)`` int64.
        teacher: The teacher's features ``(n, D_T)``, one tensor per level.
        student: The student's, ``(n, D_S)``.

    Args:
        generation: What a generation of prototypes returned.
    """

    def __init__(self, generation: Generation):
        self.bank = generation.bank
        images = generation.images
        self.classes = classes_of(images[0].dataset)
        self.paths = [image.path for image in images for _ in image.labels]
        self.boxes = np.concatenate([image.boxes for image in images])
        self.labels = torch.from_numpy(np.concatenate([image.labels for image in images]))
        self.teacher, self.student = generation.teacher, generation.student
        self.chosen = generation.rows

    def rows(self, level: int, label: int) -> Tensor:
        """Which instances are a class's prototypes on a level, in order of choice ``(K,)``."""
        first, last = self.bank.offsets[level][label:label + 2].tolist()
        return self.chosen[level][first:last]


def validation_images(config: Config, min_size: float) -> list[CandidateImage]:
    """The validation images with their boxes, as the test pipeline makes them.

    Args:
        config: A config.
        min_size: Width and height that a box must exceed, in pixels of the annotation.

    Raises:
        DataError: The data are not there, or no box is large enough.
    """
    datasets = validation_datasets(config)
    images = choose_candidates(datasets, max_images=sum(map(len, datasets)), min_size=min_size,
                               seed=0)
    if not images:
        raise DataError(f'validation data: no box of {", ".join(map(source_of, datasets))} is '
                        f'wider and higher than {min_size} pixels.')
    return images
