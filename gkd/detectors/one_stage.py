"""Run and record a step of a one-stage detector."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from typing import Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.detectors.dense import (
    class_layers,
    class_logits,
    dense_predictions,
    main_head,
    without_regression,
)
from gkd.detectors.pair import DetectorInfo, DetectorPair
from gkd.detectors.places import place_labels, recorded_targets
from gkd.detectors.step import Call, DetectorOutputs, Needs, Step, recorded
from gkd.device import on_device
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
    head = main_head(student)
    info = pair.student
    with ExitStack() as stack:
        features = stack.enter_context(recorded(student, 'extract_feat'))
        forwards = stack.enter_context(recorded(head, 'forward'))
        if info.samples_positives:
            anchors = stack.enter_context(recorded(head, 'get_anchors'))
            samples = stack.enter_context(recorded(head.sampler, 'sample'))
            reassigned = stack.enter_context(recorded(head, 'paa_reassign')) \
                if hasattr(head, 'paa_reassign') else []
        elif info.trains_places and needs.dense:
            targets = stack.enter_context(recorded_targets(head))
        losses = student_losses(student, batch)

    step = start_step(pair, features[-1], batch)
    outputs = forwards[-1].result
    if needs.dense or needs.anchors:
        step.student.dense = dense_predictions(head, outputs, features[-1].result, pair, info,
                                               needs)
    if needs.score_maps:
        step.student.score_maps = score_maps(outputs[0], pair, info)
    if needs.dense and info.trains_places:
        step.place_labels = place_labels(targets, outputs[0], head.num_classes)
    if info.samples_positives:
        # Heads that assign boxes and classes separately sample for the classes first.
        sampled = [call.result for call in samples[:len(batch.metas)]]
        add_positives(step, head, sampled, anchors[-1], batch)
        if reassigned:
            keep_reassigned(step, reassigned, head.num_classes)
        scores = class_logits(outputs[0], info)
        step.student.logits = logits_at(scores, step.positions, head.cls_out_channels)
    return losses, step


@torch.no_grad()
def teacher_step(teacher: BaseDetector, pair: DetectorPair, needs: Needs, img: Tensor,
                 step: Step) -> DetectorOutputs:
    """Run a one-stage teacher on the student's images, its head only as far as needed.

    Args:
        teacher: The frozen teacher.
        pair: Traits of teacher and student.
        needs: What the kinds of knowledge want to see.
        img: Images ``(B, 3, H, W)``.
        step: The step with the student's part.

    Returns:
        The teacher's part.
    """
    head = main_head(teacher)
    features = teacher.extract_feat(img)
    part = DetectorOutputs(paired_maps(features, pair, pair.teacher))
    dense = needs.dense and pair.teacher.predicts_densely
    if needs.logits or needs.score_maps or dense:
        with ExitStack() as stack:
            if needs.class_layers:
                read = stack.enter_context(recorded(class_layers(head)[-1], 'forward'))
            if pair.teacher.scores_apart and not needs.boxes:
                stack.enter_context(without_regression(head))
            outputs = head(features)
    if needs.class_layers:
        part.class_maps = tuple(read[level].result for level in pair.levels(pair.teacher))
    if needs.logits:
        part.logits = logits_at(class_logits(outputs[0], pair.teacher), step.positions,
                                head.cls_out_channels)
    if needs.score_maps:
        part.score_maps = score_maps(outputs[0], pair, pair.teacher)
    if dense:
        part.dense = dense_predictions(head, outputs, features, pair, pair.teacher, needs)
    return part


def add_positives(step: Step, head: nn.Module, sampled: list, anchors: Call,
                  batch: Batch) -> None:
    """Add to a step the positives that the student's sampler chose.

    Args:
        step: The step.
        head: The student's head, built by MMDetection.
        sampled: MMDetection's ``SamplingResult`` of every image.
        anchors: The recorded call of the head's ``get_anchors``.
        batch: Images and ground truth.
    """
    step.positions = positive_positions(sampled, anchors, batch.metas,
                                        head.train_cfg.allowed_border)
    step.boxes = [positive_boxes(result) for result in sampled]
    step.labels = torch.cat([labels[result.pos_assigned_gt_inds]
                             for labels, result in zip(batch.gt_labels, sampled)])
    step.objects = assigned_objects(sampled, batch.gt_labels)


def keep_reassigned(step: Step, reassigned: list[Call], num_classes: int) -> None:
    """Keep those of a step's positives that PAA trains: it chooses them by their losses.

    Args:
        step: The step with all positives that were sampled.
        reassigned: The recorded call of ``paa_reassign`` for every image.
        num_classes: Label of the background.
    """
    places = step.positions[:, 1].split([len(boxes) for boxes in step.boxes])
    trained = [call.result[0][own] < num_classes for call, own in zip(reassigned, places)]
    step.boxes = [boxes[kept] for boxes, kept in zip(step.boxes, trained)]
    kept = torch.cat(trained)
    step.positions, step.labels, step.objects = (
        values[kept] for values in (step.positions, step.labels, step.objects))


def start_step(pair: DetectorPair, features: Call, batch: Batch) -> Step:
    """A step of a student of either family: images, ground truth and the student's maps.

    Args:
        pair: Traits of teacher and student.
        features: The recorded call of the student's ``extract_feat``. Its argument is the batch as
            the student saw it: YOLOX resizes the images itself, and the boxes in place.
        batch: Images and ground truth.
    """
    seen = features.args[0]
    factors = [new / old for new, old in zip(seen.shape[-2:], batch.images.shape[-2:])]
    return Step(
        images=seen,
        image_sizes=[tuple(round(side * factor) for side, factor in
                           zip(meta['img_shape'][:2], factors)) for meta in batch.metas],
        strides=pair.strides, gt_boxes=batch.gt_boxes, gt_labels=batch.gt_labels,
        student=DetectorOutputs(paired_maps(features.result, pair, pair.student)))


def paired_maps(features: tuple[Tensor, ...], pair: DetectorPair,
                info: DetectorInfo) -> tuple[Tensor, ...]:
    """The maps of a pyramid whose strides both detectors have."""
    return tuple(features[level] for level in pair.levels(info))


def score_maps(scores: list[Tensor], pair: DetectorPair, info: DetectorInfo) -> tuple[Tensor, ...]:
    """A dense head's class logits on the levels whose strides both detectors have."""
    scores = class_logits(scores, info)
    return tuple(scores[level] for level in pair.levels(info))


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
    which the running count of inside anchors reaches k + 1. All images are counted in one go.

    Args:
        sampled: MMDetection's ``SamplingResult`` of every image.
        anchors: The recorded call of the head's ``get_anchors``.
        img_metas: Description of every image.
        allowed_border: How far anchors may leave the image; negative for any distance.

    Returns:
        ``(n, 2)`` int64: image and anchor index of every positive.
    """
    inside = torch.stack([
        joined(valid) if allowed_border < 0 else anchor_inside_flags(
            joined(boxes), joined(valid), meta['img_shape'][:2], allowed_border)
        for boxes, valid, meta in zip(*anchors.result, img_metas)])
    counted = inside.flatten().cumsum(0)  # over all images
    before = F.pad(counted.view_as(inside)[:-1, -1], (1, 0))
    counts = [len(result.pos_inds) for result in sampled]
    image = torch.arange(len(sampled)).repeat_interleave(
        torch.tensor(counts), output_size=sum(counts)).to(counted.device, non_blocking=True)
    wanted = torch.cat([result.pos_inds for result in sampled]) + before.index_select(0, image) + 1
    place = torch.searchsorted(counted, wanted)
    return torch.stack([image, place - image * inside.shape[1]], dim=1)


def joined(levels: Union[list[Tensor], Tensor]) -> Tensor:
    """All levels in one tensor; heads that assign like ATSS have already joined them."""
    return levels if torch.is_tensor(levels) else torch.cat(levels)


def logits_at(class_scores: list[Tensor], positions: Tensor, num_logits: int) -> Tensor:
    """Read a dense head's class logits at given anchors.

    Only the ``n`` rows asked for are gathered from each level, so no map is permuted or copied.
    Where they lie is computed for all levels together, and the gradient of what is gathered by a
    single index needs no sort.

    Args:
        class_scores: Logits of every level, ``(B, A_l * C, H_l, W_l)``.
        positions: ``(n, 2)`` int64: image and anchor, anchors numbered over levels, rows, columns
            and the ``A_l`` anchors of a cell, in this order.
        num_logits: ``C``.

    Returns:
        ``(n, C)`` logits.
    """
    image, anchor = positions.mT.contiguous()
    flat, steps = zip(*map(in_memory, class_scores))
    counts = [scores.shape[1:].numel() // num_logits for scores in class_scores]
    starts = [0, *itertools.accumulate(counts[:-1])]
    numbers = on_device(
        [starts, [count - 1 for count in counts],
         [scores.shape[1] // num_logits for scores in class_scores], *zip(*steps)],
        anchor.device)
    start, last, anchors, per_image, per_channel, per_cell = numbers.unsqueeze(2)
    inside = (anchor - start).clamp(min=0).minimum(last)  # any anchor, where it is not the level's
    offset = (image * per_image).addcmul(inside // anchors, per_cell).addcmul(
        inside % anchors, per_channel * num_logits)
    channels = torch.arange(num_logits, device=anchor.device) * per_channel
    offset = offset.unsqueeze(2) + channels.unsqueeze(1)
    # Unlike gather, index_select keeps no logits for the gradient, only where they were.
    read = torch.stack([level.index_select(0, here.flatten())
                        for level, here in zip(flat, offset)])
    level = torch.bucketize(anchor, numbers[0, 1:], right=True)
    return read.view_as(offset).gather(0, level[None, :, None].expand(1, -1, num_logits))[0]


def in_memory(scores: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """The values of a map ``(B, N, H, W)`` as they lie in memory, and the steps between them.

    Returns:
        ``(B * N * H * W,)``, and how far the next image, channel and cell are there.
    """
    channels, cells = scores.shape[1], scores.shape[2:].numel()
    if scores.is_contiguous():
        return scores.flatten(), (channels * cells, cells, 1)
    return scores.permute(0, 2, 3, 1).flatten(), (channels * cells, 1, channels)  # channels last
