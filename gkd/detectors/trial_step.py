"""A trial of a student's training step, which shows at which boxes it trains."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from gkd.detectors import one_stage, two_stage
from gkd.detectors.dense import dense_head, main_head, object_classes
from gkd.detectors.pair import DetectorInfo, DetectorPair
from gkd.detectors.places import place_labels, recorded_targets
from gkd.detectors.step import Needs, recorded
from gkd.detectors.view import PROBE_IMAGES, View
from gkd.errors import ConfigError
from gkd.frameworks import (
    BaseDetector,
    Batch,
    logger,
    revert_sync_batchnorm,
    student_losses,
    synthetic_batch,
)
from gkd.progress import without_details
from gkd.randomness import isolated_random_numbers

# Boxes of every image, as fractions of its side.
PROBE_BOXES = ((0.1, 0.1, 0.4, 0.5), (0.35, 0.3, 0.95, 0.9))
NO_WEIGHT = 1e6  # what is larger has not been set


def observe_training(student: BaseDetector, info: DetectorInfo, view: View) -> DetectorInfo:
    """Correct a student's traits by what one training step shows.

    Args:
        student: The detector; a copy of it takes the step.
        info: Its traits as far as they are known.
        view: What it makes of blank images.

    Raises:
        ConfigError: In training, its maps hold another number of images than it was given.
    """
    boxes = view.images.new_tensor(PROBE_BOXES)
    needed = further_ground_truth(student, boxes, *view.images.shape[-2:])
    info = replace(info, ground_truth=tuple(needed))

    with isolated_random_numbers(), torch.no_grad():
        # SyncBN, which normalises over several processes, computes only on GPUs.
        trained = revert_sync_batchnorm(copy.deepcopy(student))
        trained.train()
        start_weights(trained)
        if info.samples_positives:
            try:
                if positives_are_true(trained, info, probe_batch(trained, view, info.num_classes)):
                    return info
            except Exception:
                pass  # it cannot be observed like other heads; its own training may still work
        info = replace(info, samples_positives=False, classifies_boxes=False)
        return observe_places(trained, info, view)


def observe_places(student: BaseDetector, info: DetectorInfo, view: View) -> DetectorInfo:
    """Correct the traits of a student that samples nothing by the places that its step trains.

    Args:
        student: A copy of the detector, in training mode; it takes the step.
        info: Its traits as far as they are known.
        view: What it makes of blank images.

    Raises:
        ConfigError: In training, its maps hold another number of images than it was given.
    """
    head = dense_head(student)
    head = student if head is None else head
    try:
        with recorded(student, 'extract_feat') as features, \
                recorded(head, 'forward') as forwards, recorded_targets(head) as targets:
            batch = probe_batch(student, view, info.num_classes)
            student_losses(student, batch)
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
    return replace(info, trains_places=labels is not None and places_are_true(labels, batch))


@torch.no_grad()
def start_weights(detector: BaseDetector) -> None:
    """Set what a detector is built with and no step can be taken with, as a training starts.

    Proposals that it learns have random sizes, below 0 too, of which nothing can be pooled; they
    start as whole images. Weights that it is built without values for (Deformable DETR's
    `level_embed`) are whatever was in their memory, also no numbers; those become 0.
    """
    head = getattr(detector, 'rpn_head', None)
    if hasattr(head, 'init_proposal_bboxes'):
        with without_details():
            head.init_weights()
    for weight in detector.parameters():
        weight.masked_fill_(~(weight.abs() < NO_WEIGHT), 0)


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
    boxes = view.images.new_tensor(PROBE_BOXES) * size
    return synthetic_batch(torch.randn_like(view.images), boxes,
                           torch.arange(len(PROBE_BOXES)) % num_classes,
                           **further_ground_truth(detector, boxes, size, size))


def further_ground_truth(detector: BaseDetector, boxes: Tensor, height: int, width: int) -> dict:
    """What a detector's training needs besides boxes and labels, as pipelines collect it.

    Args:
        detector: The detector.
        boxes: ``(n, 4)`` in pixels; proposals lie there.
        height: Of the images with their padding, in pixels.
        width: Likewise.

    Returns:
        Those of the following arguments of ``synthetic_batch`` that the detector needs:
        ``text``, ``pairwise_masks``, ``gt_masks``, ``gt_semantic_seg`` and ``proposals``.
    """
    roi_head = getattr(detector, 'roi_head', None)
    extra = {}
    if hasattr(detector, 'language_model'):  # Grounding DINO and GLIP, of MMDetection 3
        extra['text'] = ('object', ) * object_classes(main_head(detector))
    mask_head = getattr(detector, 'mask_head', None)
    if hasattr(mask_head, 'pairwise_size'):  # BoxInst's, of MMDetection 3
        stride = mask_head.mask_out_stride
        extra['pairwise_masks'] = boxes.new_ones(
            mask_head.pairwise_size ** 2 - 1, height // stride, width // stride)
    # The head of MMDetection 3's RTMDet-Ins predicts masks without being a mask head.
    if any(getattr(part, name, False) for part in (detector, roi_head, main_head(detector))
           for name in ('with_mask', 'panoptic_head', 'loss_mask')):
        extra['gt_masks'] = True
    with_semantic = getattr(roi_head, 'with_semantic', False)
    if with_semantic or getattr(detector, 'with_semantic_head', False):
        # MMDetection 2's pipelines make it as small as the map that it is predicted from.
        stride = roi_head.semantic_roi_extractor.featmap_strides[0] if with_semantic and \
            not hasattr(roi_head.semantic_head, 'seg_scale_factor') else 1
        extra['gt_semantic_seg'] = boxes.new_zeros(
            -(-height // stride), -(-width // stride), dtype=torch.long)
    if roi_head is not None and not getattr(detector, 'with_rpn', False):
        extra['proposals'] = torch.cat([boxes, boxes / 2])
    return extra
