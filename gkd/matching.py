"""Whether detectors and the data that they are trained or tested on go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Optional

import torch
from torch import nn

from gkd.datasets.checks import first_difference
from gkd.detectors.dense import main_head, object_classes
from gkd.detectors.roi_heads import first
from gkd.detectors.trial_step import further_ground_truth
from gkd.distiller import Distiller
from gkd.errors import CheckpointError, ConfigError, shorten
from gkd.frameworks import CLASSES_SETTING, logger

# How what a student trains on besides boxes and labels is loaded.
LOADED_BY = {'text': '`text` in `meta_keys` of PackDetInputs, and `return_classes=True` of the '
                     'data set',
             'pairwise_masks': 'model.data_preprocessor of type BoxInstDataPreprocessor',
             'gt_masks': 'LoadAnnotations(with_mask=True)',
             'gt_semantic_seg': 'LoadAnnotations(with_seg=True)',
             'proposals': 'LoadProposals, and `proposal_file` of the data set'}


def check_num_classes(model: nn.Module, classes: Sequence[str], key: str) -> None:
    """Raise ConfigError if a head and the data set count classes differently.

    Args:
        model: A detector; for a distiller, its student is checked.
        classes: Names of the data set's classes.
        key: Place of the data set in the config, for messages.
    """
    detector = model.student if isinstance(model, Distiller) else model
    count = num_classes_of(detector)
    if count is None:
        return
    # Panoptic data also name the classes of regions, which have no boxes.
    regions = sum(getattr(getattr(detector, name, None), 'num_stuff_classes', 0)
                  for name in ('panoptic_head', 'semantic_head'))
    if count + regions != len(classes):
        found = f'{count} classes and {regions} of regions' if regions else f'{count} classes'
        raise ConfigError(
            f'{type(detector).__name__} detects {found}, {key} has {len(classes)} '
            f'({shorten(classes)}); set `num_classes` of the heads or `{CLASSES_SETTING}` of the '
            f'data sets so that they agree.')


def check_heads_agree(model: nn.Module) -> None:
    """Raise ConfigError if parts of a detector that is to be trained count classes differently.

    MMDetection would fail in the first step, or number what is detected wrongly. Only its own
    parts are looked at: those of others may tell other classes apart, such as colours.

    Args:
        model: A detector; for a distiller, its student is checked.
    """
    detector = model.student if isinstance(model, Distiller) else model
    count = num_classes_of(detector)
    if count is None:
        return
    name = type(detector).__name__
    for place, other in counts_of(detector).items():
        if other != count:
            raise ConfigError(f'{name}: {place} = {other}, and its head detects {count} classes; '
                              f'set {place} to {count}.')
    for place, head in parts_of_mmdetection(detector):
        loss = getattr(head, 'loss_cls', None)
        weights = getattr(loss, 'class_weight', None)
        if not isinstance(weights, Sized) or not hasattr(head, 'num_classes'):
            continue
        background = not getattr(loss, 'use_sigmoid', False)
        if len(weights) != head.num_classes + background:
            raise ConfigError(
                f'{name}: {place}.loss_cls.class_weight has {len(weights)} weights, and its head '
                f'scores {head.num_classes} classes{" and the background" * background}: give it '
                f'{head.num_classes + background}.')


def counts_of(detector: nn.Module) -> dict[str, int]:
    """How many classes of objects the parts of a detector count, by their setting.

    Proposals have no class, regions of an image other ones, and a mask may be the same for all.
    """
    counts = {}
    for place, part in parts_of_mmdetection(detector):
        if place.startswith(('backbone', 'neck', 'rpn_head')) or 'semantic_head' in place or \
                getattr(part, 'class_agnostic', False):
            continue
        for setting in ('num_things_classes', 'num_classes'):
            if isinstance(getattr(part, setting, None), int):
                counts[f'{place}.{setting}'] = getattr(part, setting)
                break
    return counts


def parts_of_mmdetection(detector: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a detector, by their places, of the classes that MMDetection defines."""
    return ((place, part) for place, part in detector.named_modules()
            if type(part).__module__.startswith('mmdet.'))


def num_classes_of(detector: nn.Module) -> Optional[int]:
    """Classes whose boxes a detector tells apart; None if its head does not say."""
    head = getattr(getattr(detector, 'roi_head', None), 'bbox_head', None)
    head = main_head(detector) if head is None else first(head)
    return object_classes(head) if hasattr(head, 'num_classes') else None


def trained_on(model: nn.Module) -> tuple[str, tuple[str, ...]]:
    """Name of the detector that is trained, and what its training needs besides boxes and labels.

    Args:
        model: A detector; for a distiller, its student is described.

    Returns:
        The name for messages, and some of the keys of ``LOADED_BY``.
    """
    if isinstance(model, Distiller):
        return f'student {model.pair.student.name}', model.pair.student.ground_truth
    return type(model).__name__, tuple(further_ground_truth(model, torch.zeros(1, 4), 1, 1))


def check_teacher_classes(model: nn.Module, classes: Sequence[str], key: str) -> None:
    """Raise ConfigError if the teacher's checkpoint numbers the data set's classes differently.

    Classes of the teacher that the data set does not name are allowed, as they may have been
    renamed; the log tells of them.
    A teacher with more classes than the student must know all of the data set's, in any order.

    Args:
        model: A detector; only a distiller is looked at.
        classes: Names of the data set's classes.
        key: Place of the data set in the config, for messages.
    """
    if not isinstance(model, Distiller):
        return
    taught = getattr(model.teacher, 'CLASSES', None) or ()
    if model.pair.teacher.num_classes > model.pair.num_classes:
        model.choose_classes(classes, key)
        return
    if numbered_otherwise(taught, classes):
        raise ConfigError(
            f'model.teacher.checkpoint: the teacher knows {shorten(taught)}, in this order, '
            f'{key} has {shorten(classes)}: it would teach one class as another. Put '
            f'`{CLASSES_SETTING}` of the data sets and "categories" of their files into the '
            f'teacher\'s order, or take another teacher.')
    if taught and list(taught) != list(classes):
        logger().warning(
            f'model.teacher.checkpoint: the teacher knows {shorten(taught)}, {key} has '
            f'{shorten(classes)}: it teaches each as the one of the same number. If classes were '
            f'not just renamed, take another teacher.')


def numbered_otherwise(known: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether classes have the same names in another order.

    Example:
        >>> numbered_otherwise(('bolt', 'nut'), ['nut', 'bolt'])
        True
        >>> numbered_otherwise(('bolt', 'nut'), ['bolt', 'screw'])
        False
    """
    return any(name in classes and list(classes).index(name) != number
               for number, name in enumerate(known))


def check_tested_classes(known: Optional[Sequence[str]], classes: Sequence[str], checkpoint: str,
                         key: str) -> None:
    """Compare the classes that a checkpoint was trained on with those that it is tested on.

    The log tells of other names, which may have been given since; what is tested may also be
    another detector than was meant.

    Args:
        known: Names of the checkpoint's classes; None if it does not say.
        classes: Names of the data set's classes; it has as many as the detector.
        checkpoint: The file, for messages.
        key: Place of the data set in the config, likewise.

    Raises:
        CheckpointError: They have the same names in another order, so that one class would be
            measured as another.
    """
    if not known or list(known) == list(classes):
        return
    differ = (f'{checkpoint} was trained on {shorten(known)}, {key} has {shorten(classes)}; class '
              f'{first_difference(known, classes)} is the first that differs')
    if numbered_otherwise(known, classes):
        raise CheckpointError(
            f'{differ}. One class would be measured as another: put `{CLASSES_SETTING}` and '
            f'"categories" of the file into the checkpoint\'s order, or test another one.')
    logger().warning(f'{differ}: detections of one are measured as those of the other. If classes '
                     f'were not just renamed, checkpoint and data do not belong together.')
