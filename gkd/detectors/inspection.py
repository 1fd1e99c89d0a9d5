"""Find out what a detector is by running it: its maps, what it predicts, and one training step."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn

from gkd.detectors import one_stage, two_stage
from gkd.detectors.dense import (
    class_layers,
    dense_head,
    main_head,
    predicted_maps,
    scores_apart,
)
from gkd.detectors.modes import eval_mode
from gkd.detectors.pair import ONE_STAGE, TWO_STAGE, DetectorInfo, DetectorPair
from gkd.detectors.places import place_labels, recorded_targets
from gkd.detectors.roi_heads import RoIClassLayers, classify, first
from gkd.detectors.step import Needs, recorded
from gkd.errors import ConfigError
from gkd.frameworks import (
    RPN,
    BaseDetector,
    Batch,
    DeltaXYWHBBoxCoder,
    bbox2roi,
    logger,
    revert_sync_batchnorm,
    student_losses,
    synthetic_batch,
)

# A multiple of every stride in use (NAS-FPN needs 128), small enough to cost little.
PROBE_SIZE = 256
# Batch normalisation of a map with a single cell needs two images.
PROBE_IMAGES = 2
# Boxes of every image, as fractions of its side.
PROBE_BOXES = ((0.1, 0.1, 0.4, 0.5), (0.35, 0.3, 0.95, 0.9))


def inspect_pair(teacher: BaseDetector, student: BaseDetector) -> DetectorPair:
    """Inspect both detectors and pair their levels by stride.

    Raises:
        ConfigError: A detector cannot be distilled, class counts differ, or no stride is shared.
    """
    teacher_info = inspect_detector(teacher, 'teacher')
    student_info = inspect_detector(student, 'student')
    named = len(getattr(teacher, 'CLASSES', None) or ()) == teacher_info.num_classes
    if teacher_info.num_classes < student_info.num_classes or (
            teacher_info.num_classes > student_info.num_classes and not named):
        raise ConfigError(
            f'teacher {teacher_info.name} has {teacher_info.num_classes} classes, student '
            f'{student_info.name} has {student_info.num_classes}; set `num_classes` of both '
            f'heads to the classes of the data set. A teacher may have more classes if its '
            f'checkpoint names them.')
    if teacher_info.image_channels != student_info.image_channels:
        raise ConfigError(
            f'teacher {teacher_info.name} reads images of {teacher_info.image_channels} channels, '
            f'student {student_info.name} of {student_info.image_channels}; both see the same '
            f'images, so `backbone.in_channels` must agree.')
    shared = tuple(sorted(set(teacher_info.strides) & set(student_info.strides)))
    if not shared:
        raise ConfigError(
            f'no pyramid level can be paired: the teacher\'s strides are '
            f'{teacher_info.strides}, the student\'s {student_info.strides}. '
            f'Choose necks whose strides overlap.')
    return DetectorPair(teacher_info, student_info, shared)


def inspect_detector(detector: BaseDetector, role: str) -> DetectorInfo:
    """Measure the traits of a detector.

    Its maps and predictions come from one pass over blank images. A copy of a student also takes
    one training step and is thrown away. This step shows whether what is recorded of a step is
    what the student trains on.

    Args:
        detector: A detector built by MMDetection.
        role: ``'teacher'`` or ``'student'``, for messages.

    Raises:
        ConfigError: Its parts do not fit together, or it is neither one-stage nor two-stage.
    """
    name = type(detector).__name__
    family = family_of(detector)
    if family is None:
        raise ConfigError(
            f'{role} {name} has no head that classifies objects (`roi_head`, `bbox_head`, '
            f'`mask_head` or `panoptic_head`); an RPN alone is a part of a detector.')
    view = look(detector, role)
    info = DetectorInfo(
        name, family, tuple(level.shape[1] for level in view.maps), view.strides,
        image_channels=view.images.shape[1],
        **(two_stage_traits if family == TWO_STAGE else one_stage_traits)(detector, view))
    return observe_training(detector, info, view) if role == 'student' else info


def family_of(detector: BaseDetector) -> Optional[str]:
    """``'one-stage'``, ``'two-stage'``, or None for a detector that classifies no objects."""
    if isinstance(detector, RPN):
        return None
    if getattr(getattr(detector, 'roi_head', None), 'bbox_head', None) is not None:
        return TWO_STAGE
    return ONE_STAGE if main_head(detector) is not None else None


@dataclass
class View:
    """What a detector computes from blank images in eval mode.

    Attributes:
        images: The images ``(B, C, S, S)``.
        maps: Its maps ``(B, C, H_l, W_l)``, as its head gets them.
        strides: Stride of every map in pixels.
        dense: Class scores and regressions of its dense head, level by level; None if it has no
            such head or predicts otherwise.
        boxes: A box of every image, ``(B, 5)`` as image, x1, y1, x2, y2 in pixels.
        rois: What its RoI head computes for these; None likewise.
        reads_classes: Whether the class layers of the dense head read every map once, in order.
        scores_apart: Whether its class scores do not depend on the layers that regress boxes.
    """

    images: Tensor
    maps: tuple[Tensor, ...]
    strides: tuple[int, ...]
    dense: Optional[tuple[list[Tensor], ...]]
    boxes: Tensor
    rois: Optional[dict]
    reads_classes: bool
    scores_apart: bool


def image_size(detector: BaseDetector) -> int:
    """Height and width of the images to probe a detector with, in pixels.

    SSD's last maps exist only at the image size that SSD is made for.
    """
    generator = getattr(dense_head(detector), 'prior_generator', None)
    return int(getattr(generator, 'input_size', PROBE_SIZE))


@torch.no_grad()
def look(detector: BaseDetector, role: str, size: Optional[int] = None) -> View:
    """Run a detector on blank images.

    Args:
        detector: The detector.
        role: ``'teacher'`` or ``'student'``, for messages.
        size: Height and width of the images in pixels, if not the detector's own.

    Raises:
        ConfigError: Its parts do not fit together.
    """
    head = dense_head(detector)
    size = size or image_size(detector)
    parameter = next(detector.parameters())
    images = parameter.new_zeros(PROBE_IMAGES, image_channels(detector.backbone), size, size)
    try:
        with eval_mode(detector):
            maps = tuple(detector.extract_feat(images))
            dense, reads_classes = watched_predictions(head, maps)
            apart = scores_apart(head, maps)
            boxes = bbox2roi([parameter.new_tensor([[0, 0, size / 2, size / 2]])] * PROBE_IMAGES)
            rois = classified_boxes(detector, maps, boxes)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(
            f'the parts of {role} {type(detector).__name__} do not fit together: {error}. Check '
            f'the channels: `neck.in_channels` are the backbone\'s, the head\'s `in_channels` '
            f'the neck\'s `out_channels`.') from error
    strides = tuple(nominal_stride(size / level.shape[-1]) for level in maps)
    return View(images, maps, strides, dense, boxes, rois, reads_classes, apart)


def watched_predictions(head: Optional[nn.Module], maps: tuple[Tensor, ...]
                        ) -> tuple[Optional[tuple[list[Tensor], ...]], bool]:
    """What a dense head predicts, and whether its class layers read every map once, in order."""
    layers = class_layers(head)
    if layers is None:
        return predicted_maps(head, maps), False
    with recorded(layers[-1], 'forward') as read:
        dense = predicted_maps(head, maps)
    sizes = [call.result.shape[-2:] for call in read]
    return dense, dense is not None and sizes == [level.shape[-2:] for level in maps]


def image_channels(backbone: nn.Module) -> int:
    """Channels of the images that a backbone reads."""
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        return 3
    # YOLOX first folds each square of 2 x 2 pixels into one cell.
    folded = type(getattr(backbone, 'stem', None)).__name__ == 'Focus'
    return first.in_channels // 4 if folded else first.in_channels


def nominal_stride(measured: float) -> int:
    """A map's stride: the nearest power of two if it is within 10 %, else as measured.

    Example:
        >>> [nominal_stride(300 / cells) for cells in (38, 10, 3, 1)]
        [8, 32, 100, 300]
    """
    power = 2 ** round(float(np.log2(measured)))
    return power if abs(measured / power - 1) < 0.1 else round(measured)


def classified_boxes(detector: BaseDetector, maps: tuple[Tensor, ...],
                     boxes: Tensor) -> Optional[dict]:
    """What a RoI head computes for boxes ``(k, 5)``; None if it cannot classify given boxes.

    Heads that keep features of their proposals (Sparse R-CNN) or need more than maps (HTC with
    semantic segmentation) cannot.
    """
    roi_head = getattr(detector, 'roi_head', None)
    if roi_head is None or not callable(getattr(roi_head, '_bbox_forward', None)):
        return None
    try:
        outputs = classify(roi_head, maps, boxes)
    except (RuntimeError, AssertionError):
        if isinstance(roi_head.bbox_head, nn.ModuleList):
            return None  # a cascade that needs more than maps
        raise
    except Exception:
        return None
    fits = isinstance(outputs, dict) and 'cls_score' in outputs
    return outputs if fits and len(outputs['cls_score']) == len(boxes) else None


def two_stage_traits(detector: BaseDetector, view: View) -> dict:
    """Traits of a RoI head, and of the RPN before it."""
    head = first(detector.roi_head.bbox_head)
    sigmoid = bool(getattr(head.loss_cls, 'use_sigmoid', False))
    classes = head.num_classes
    classifies = pools_maps = False
    if view.rois is not None:
        classifies = view.rois['cls_score'].shape[1] == classes + (not sigmoid)
        # The features of a shared head (C4) are not in the space of a map; HTC returns none.
        widths = {level.shape[1] for level in view.maps}
        pools_maps = 'bbox_feats' in view.rois and \
            widths == {view.rois['bbox_feats'].shape[1]} and \
            hasattr(first(detector.roi_head.bbox_roi_extractor), 'map_roi_levels')
    strides = class_strides(detector.roi_head, view) if classifies else ()
    return dict(num_classes=classes, sigmoid=sigmoid, samples_positives=classifies,
                classifies_boxes=classifies, pools_maps=pools_maps, roi_strides=strides,
                has_class_layers=bool(strides),
                **dense_traits(getattr(detector, 'rpn_head', None), view))


@torch.no_grad()
def class_strides(roi_head: nn.Module, view: View) -> tuple[int, ...]:
    """Strides of the maps from which a RoI head's class layers read boxes; empty if none can.

    Its class scores must follow from maps and boxes by these layers alone: with a shared head, or
    with features of the whole image, they do not.
    """
    if any(getattr(roi_head, name, False)
           for name in ('with_shared_head', 'with_semantic', 'with_glbctx')):
        return ()
    try:
        layers = RoIClassLayers(roi_head)
        scores = layers.bbox_head.fc_cls(layers(view.maps, view.boxes))
    except Exception:
        return ()  # heads differ: two branches (Double-Head), features of proposals (Sparse R-CNN)
    fits = view.strides[:len(layers.strides)] == layers.strides
    return layers.strides if fits and torch.allclose(scores, view.rois['cls_score']) else ()


def one_stage_traits(detector: BaseDetector, view: View) -> dict:
    """Traits of a dense head."""
    head = main_head(detector)
    traits = dense_traits(head, view)
    # Panoptic heads also have classes of regions; only the other classes have boxes.
    return dict(num_classes=getattr(head, 'num_things_classes', head.num_classes),
                has_class_layers=view.reads_classes, scores_apart=view.scores_apart,
                sigmoid=bool(getattr(head, 'use_sigmoid_cls', True)),
                # For a student, its training step confirms or corrects this.
                samples_positives=traits['predicts_densely'] and hasattr(head, 'sampler'),
                classifies_boxes=traits['predicts_densely'], **traits)


def dense_traits(head: Optional[nn.Module], view: View) -> dict:
    """Traits of what is predicted at every place of the maps."""
    scores = view.dense and torch.cat([level.flatten() for level in view.dense[0]])
    return dict(anchors=base_anchors(head), box_coding=box_coding(head),
                predicts_densely=view.dense is not None,
                # TOOD scores by probabilities; the logits of all others are below 0 somewhere.
                probabilities=scores is not None and bool(((scores >= 0) & (scores <= 1)).all()))


def base_anchors(head: Optional[nn.Module]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Anchors of one cell of every level; none if there is no head or it has no anchors."""
    levels = getattr(getattr(head, 'prior_generator', None), 'base_anchors', ())
    return tuple(tuple(map(tuple, level.tolist())) for level in levels)


def box_coding(head: Optional[nn.Module]) -> tuple[tuple[float, ...], ...]:
    """Means and standard deviations of a dense head's offsets of anchors; none without those."""
    coder = getattr(head, 'bbox_coder', None)
    if not isinstance(coder, DeltaXYWHBBoxCoder) or not base_anchors(head):
        return ()
    return tuple(coder.means), tuple(coder.stds)


def observe_training(student: BaseDetector, info: DetectorInfo, view: View) -> DetectorInfo:
    """Correct a student's traits by what one training step shows.

    Args:
        student: The detector; a copy of it takes the step.
        info: Its traits as far as they are known.
        view: What it makes of blank images.

    Raises:
        ConfigError: In training, its maps hold another number of images than it was given.
    """
    info = replace(info, ground_truth=tuple(further_ground_truth(student, view)))

    def batch() -> Batch:
        return probe_batch(student, view, info.num_classes)

    with isolated_random_numbers(), torch.no_grad():
        # SyncBN, which normalises over several processes, computes only on GPUs.
        trained = revert_sync_batchnorm(copy.deepcopy(student))
        trained.train()
        if info.samples_positives:
            try:
                if positives_are_true(trained, info, batch()):
                    return info
            except Exception:
                pass  # it cannot be observed like other heads; its own training may still work
        info = replace(info, samples_positives=False, classifies_boxes=False)
        try:
            head = dense_head(trained)
            head = trained if head is None else head
            with recorded(trained, 'extract_feat') as features, \
                    recorded(head, 'forward') as forwards, recorded_targets(head) as targets:
                probed = batch()
                student_losses(trained, probed)
        except Exception as error:
            # It may need other ground truth than this; its real training will show that.
            logger().warning(
                f'student {info.name}: a trial of a training step failed, so it is not known '
                f'which boxes it trains on, and they cannot be taught '
                f'({type(error).__name__}: {error}).')
            return info
    maps = tuple(features[-1].result)
    if any(len(level) != PROBE_IMAGES for level in maps):
        raise ConfigError(
            f'student {info.name} trains on maps that hold {len(maps[0])} images for '
            f'{PROBE_IMAGES}, one for each of its branches; a teacher has one map an image. '
            f'It can be a teacher, but no student.')
    if info.is_two_stage or not info.predicts_densely or set(info.places) != {1}:
        return info
    labels = place_labels(targets, forwards[-1].result[0], info.num_classes)
    return replace(info, trains_places=labels is not None
                   and places_are_true(labels, probed))


def places_are_true(labels: Tensor, batch: Batch) -> bool:
    """Whether a step trained some places as objects, all of classes that the batch has.

    Args:
        labels: Class of every place, ``(B, N)``; background has a class that the batch lacks.
        batch: What the step trained on.
    """
    known = torch.cat(list(batch.gt_labels))
    objects = labels[(labels >= 0) & (labels <= known.max())]
    return len(objects) > 0 and bool(torch.isin(objects, known).all())


def positives_are_true(student: BaseDetector, info: DetectorInfo, batch: Batch) -> bool:
    """Whether the positives recorded of a training step are the boxes that it trained on."""
    pair = DetectorPair(info, info, tuple(sorted(set(info.strides))))
    family = two_stage if info.is_two_stage else one_stage
    _, step = family.student_step(student, pair, Needs(), batch)
    boxes, logits = torch.cat(step.boxes), step.student.logits
    if not len(boxes) == len(logits) == len(step.labels) == len(step.objects) > 0:
        return False
    if not (boxes[:, 2:] > boxes[:, :2]).all():
        return False
    if info.is_two_stage:
        return len(step.student.proposal_logits) == sum(map(len, step.proposals))
    head = main_head(student)
    sizes = [tuple(-(-side // stride) for side in step.images.shape[-2:])
             for stride in info.strides]
    anchors = torch.cat(head.prior_generator.grid_priors(sizes, device=boxes.device))
    return torch.equal(anchors[step.positions[:, 1]], boxes)


def probe_batch(detector: BaseDetector, view: View, num_classes: int) -> Batch:
    """Noise of the size of a view's images, with boxes and all other ground truth needed."""
    size = view.images.shape[-1]
    return synthetic_batch(torch.randn_like(view.images),
                           view.images.new_tensor(PROBE_BOXES) * size,
                           torch.arange(len(PROBE_BOXES)) % num_classes,
                           **further_ground_truth(detector, view))


def further_ground_truth(detector: BaseDetector, view: View) -> dict:
    """What a detector's training needs besides boxes and labels, as pipelines collect it.

    Returns:
        Those of the following that the detector needs, the same for each image: ``gt_masks``
        ``(n, S, S)`` uint8, ``gt_semantic_seg`` ``(H, W)`` int64, ``proposals`` ``(m, 4)``.
    """
    size = view.images.shape[-1]
    boxes = view.images.new_tensor(PROBE_BOXES) * size
    roi_head = getattr(detector, 'roi_head', None)
    extra = {}
    # The head of MMDetection 3's RTMDet-Ins predicts masks without being a mask head.
    if any(getattr(part, name, False) for part in (detector, roi_head, main_head(detector))
           for name in ('with_mask', 'panoptic_head', 'loss_mask')):
        masks = np.zeros((len(boxes), size, size), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        extra['gt_masks'] = masks
    with_semantic = getattr(roi_head, 'with_semantic', False)
    if with_semantic or getattr(detector, 'with_semantic_head', False):
        cells = (size, size)
        # MMDetection 2's pipelines make it as small as the map that it is predicted from.
        if with_semantic and not hasattr(roi_head.semantic_head, 'seg_scale_factor'):
            cells = view.maps[roi_head.semantic_head.fusion_level].shape[-2:]
        extra['gt_semantic_seg'] = torch.zeros(*cells, dtype=torch.long)
    if roi_head is not None and not getattr(detector, 'with_rpn', False):
        extra['proposals'] = torch.cat([boxes, boxes / 2])
    return extra


@contextmanager
def isolated_random_numbers() -> Iterator[None]:
    """Leave all random number generators of the CPU as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
