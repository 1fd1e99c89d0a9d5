"""Run and record a step of a one-stage detector."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Union

import torch
from torch import Tensor

from gkd.detectors.dense import dense_predictions, positive_places
from gkd.detectors.pair import DetectorInfo, DetectorPair
from gkd.detectors.step import Call, DetectorOutputs, Needs, Step, recorded
from gkd.frameworks import BaseDetector, Batch, anchor_inside_flags, positive_boxes, student_losses


def student_step(student: BaseDetector, pair: DetectorPair, needs: Needs,
                 batch: Batch) -> tuple[dict, Step]:
    """Compute a one-stage student's detection losses and keep what they were computed from.

    Args:
        student: The student.
        pair: Traits of teacher and student.
        needs: What the kinds of knowledge want to see.
        batch: Images and ground truth.

    Returns:
        The detection losses, and the step with the student's part.
    """
    head = student.bbox_head
    info = pair.student
    with ExitStack() as stack:
        features = stack.enter_context(recorded(student, 'extract_feat'))
        forwards = stack.enter_context(recorded(head, 'forward'))
        if info.samples_positives:
            anchors = stack.enter_context(recorded(head, 'get_anchors'))
            samples = stack.enter_context(recorded(head.sampler, 'sample'))
        losses = student_losses(student, batch)

    step = start_step(pair, features[-1].result, batch)
    outputs = forwards[-1].result
    if needs.dense:
        step.student.dense = dense_predictions(head, outputs, pair, info)
    if info.samples_positives:
        sampled = [call.result for call in samples]
        step.positions = positive_positions(sampled, anchors[-1], batch.metas,
                                            head.train_cfg.allowed_border)
        step.boxes = [positive_boxes(result) for result in sampled]
        step.labels = torch.cat([labels[result.pos_assigned_gt_inds]
                                 for labels, result in zip(batch.gt_labels, sampled)])
        step.objects = assigned_objects(sampled, batch.gt_labels)
        step.student.logits = logits_at(outputs[0], step.positions, info)
        if needs.dense:
            step.dense_positives = positive_places(head, outputs[0], pair, info, step.positions)
    return losses, step


@torch.no_grad()
def teacher_step(teacher: BaseDetector, pair: DetectorPair, needs: Needs, img: Tensor,
                 step: Step) -> DetectorOutputs:
    """Run a one-stage teacher on the student's images.

    Args:
        teacher: The frozen teacher.
        pair: Traits of teacher and student.
        needs: What the kinds of knowledge want to see.
        img: Images ``(B, 3, H, W)``.
        step: The step with the student's part.

    Returns:
        The teacher's part.
    """
    features = teacher.extract_feat(img)
    part = DetectorOutputs(paired_maps(features, pair, pair.teacher))
    if needs.logits or needs.dense:
        outputs = teacher.bbox_head(features)
    if needs.logits:
        part.logits = logits_at(outputs[0], step.positions, pair.teacher)
    if needs.dense:
        part.dense = dense_predictions(teacher.bbox_head, outputs, pair, pair.teacher)
    return part


def start_step(pair: DetectorPair, features: tuple[Tensor, ...], batch: Batch) -> Step:
    """A step of a student of either family: images, ground truth and the student's maps.

    Args:
        pair: Traits of teacher and student.
        features: All maps of the student's pyramid.
        batch: Images and ground truth.
    """
    return Step(
        padded_size=tuple(batch.images.shape[-2:]),
        image_sizes=[tuple(meta['img_shape'][:2]) for meta in batch.metas],
        strides=pair.strides, gt_boxes=batch.gt_boxes, gt_labels=batch.gt_labels,
        student=DetectorOutputs(paired_maps(features, pair, pair.student)))


def paired_maps(features: tuple[Tensor, ...], pair: DetectorPair,
                info: DetectorInfo) -> tuple[Tensor, ...]:
    """The maps of a pyramid whose strides both detectors have."""
    return tuple(features[level] for level in pair.levels(info))


def assigned_objects(sampled: list, gt_labels: list[Tensor]) -> Tensor:
    """Ground truth of every positive ``(n,)``, counted over the batch."""
    before = 0
    objects = []
    for result, labels in zip(sampled, gt_labels):
        objects.append(result.pos_assigned_gt_inds + before)
        before += len(labels)
    return torch.cat(objects)


def positive_positions(sampled: list, anchors: Call, img_metas: list[dict],
                       allowed_border: int) -> Tensor:
    """Find the sampled positives among all anchors of the batch, without a host sync.

    A head samples among the anchors inside the image only, so the k-th of those is the anchor at
    which the running count of inside anchors reaches k + 1.

    Args:
        sampled: MMDetection's ``SamplingResult`` of every image.
        anchors: The recorded call of the head's ``get_anchors``.
        img_metas: Description of every image.
        allowed_border: How far anchors may leave the image; negative for any distance.

    Returns:
        ``(n, 2)`` int64: image and anchor index of every positive.
    """
    positions = []
    for image, (result, boxes, valid, meta) in enumerate(
            zip(sampled, *anchors.result, img_metas)):
        inside = anchor_inside_flags(joined(boxes), joined(valid), meta['img_shape'][:2],
                                     allowed_border)
        anchor = torch.searchsorted(inside.cumsum(0), result.pos_inds + 1)
        positions.append(torch.stack([torch.full_like(anchor, image), anchor], dim=1))
    return torch.cat(positions)


def joined(levels: Union[list[Tensor], Tensor]) -> Tensor:
    """All levels in one tensor; heads that assign as ATSS does have joined them in place."""
    return levels if torch.is_tensor(levels) else torch.cat(levels)


def logits_at(class_scores: list[Tensor], positions: Tensor, info: DetectorInfo) -> Tensor:
    """Read a dense head's class logits at given anchors.

    Only the ``n`` rows asked for are gathered from each level, so no map is permuted or copied.

    Args:
        class_scores: Logits of every level, ``(B, A * C, H_l, W_l)``.
        positions: ``(n, 2)`` int64: image and anchor, anchors numbered over levels, rows, columns
            and the ``A`` anchors of a cell, in this order.
        info: Traits of the detector.

    Returns:
        ``(n, C)`` logits.
    """
    image, anchor = positions.unbind(dim=1)
    num_logits = class_scores[0].shape[1] // info.num_anchors
    logits = class_scores[0].new_zeros(len(positions), num_logits)
    for scores in class_scores:
        height, width = scores.shape[-2:]
        count = height * width * info.num_anchors
        cell = anchor.clamp(0, count - 1)
        row = cell // (width * info.num_anchors)
        column = cell // info.num_anchors % width
        scores = scores.unflatten(1, (info.num_anchors, -1))
        here = scores[image, cell % info.num_anchors, :, row, column]
        on_level = ((anchor >= 0) & (anchor < count)).unsqueeze(1)
        logits = torch.where(on_level, here, logits)
        anchor = anchor - count
    return logits
