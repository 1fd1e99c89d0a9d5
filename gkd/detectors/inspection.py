"""Find out what a detector is by running it."""

from __future__ import annotations

from typing import Optional

import torch
from torch import nn

from gkd.detectors.dense import main_head, object_classes
from gkd.detectors.pair import ONE_STAGE, TWO_STAGE, DetectorInfo, DetectorPair
from gkd.detectors.roi_heads import RoIClassLayers, first
from gkd.detectors.trial_step import observe_training
from gkd.detectors.view import View, probe
from gkd.errors import ConfigError
from gkd.frameworks import RPN, BaseDetector, DeltaXYWHBBoxCoder


def inspect_pair(teacher: BaseDetector, student: BaseDetector) -> DetectorPair:
    """Inspect both detectors and pair their levels by stride.

    Raises:
        ConfigError: A detector cannot be distilled, the teacher lacks classes, or no stride is
            shared.
    """
    teacher_info = inspect_detector(teacher, 'teacher')
    student_info = inspect_detector(student, 'student')
    if teacher_info.num_classes < student_info.num_classes:
        raise ConfigError(
            f'teacher {teacher_info.name} has {teacher_info.num_classes} classes, student '
            f'{student_info.name} has {student_info.num_classes}; set `num_classes` of both '
            f'heads to the classes of the data set. The teacher may have more of them.')
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
        raise ConfigError(f'{role} {name} {why_no_family(detector)}')
    view = probe(detector, role)
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


def why_no_family(detector: BaseDetector) -> str:
    """Why a model is neither one-stage nor two-stage, and what to do, as the end of a sentence."""
    for name, part in detector.named_children():
        if isinstance(part, BaseDetector):
            return (f'holds a detector ({type(part).__name__}, its `{name}`) and is none itself; '
                    f'it trains on more than images with boxes, such as images without labels or '
                    f'videos. Name a config whose `model` is that detector.')
    part = 'an RPN alone is a part of a detector' if isinstance(detector, RPN) else \
        'only a detector can teach or be taught'
    return (f'has no head that classifies objects (`roi_head`, `bbox_head`, `mask_head` or '
            f'`panoptic_head`); {part}.')


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
    return dict(num_classes=object_classes(head),
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
