"""Run and record a step of a two-stage detector."""

from __future__ import annotations

import torch
from mmdet.core import bbox2roi
from mmdet.models.detectors import BaseDetector
from torch import Tensor

from gkd.detectors.one_stage import paired_maps
from gkd.detectors.pair import DetectorPair
from gkd.detectors.step import StepRecord, recorded


def student_step(student: BaseDetector, pair: DetectorPair, img: Tensor, img_metas: list[dict],
                 gt_bboxes: list[Tensor], gt_labels: list[Tensor],
                 **kwargs) -> tuple[dict, StepRecord]:
    """Compute a two-stage student's detection losses and keep what they were computed from.

    Args:
        student: The student.
        pair: Traits of teacher and student.
        img: Images ``(B, 3, H, W)``.
        img_metas: MMDetection's description of every image.
        gt_bboxes: Boxes of every image, ``(g_b, 4)`` in pixels of ``img``.
        gt_labels: Classes of every image's boxes, ``(g_b,)``.
        **kwargs: What else the data pipeline collects, handed to the student as it is.

    Returns:
        The detection losses and the record.
    """
    if not pair.student.samples_positives:
        with recorded(student, 'extract_feat') as features:
            losses = student.forward_train(img, img_metas, gt_bboxes, gt_labels, **kwargs)
        return losses, StepRecord(paired_maps(features[-1].result, pair, pair.student),
                                  pair.strides, gt_bboxes, gt_labels)

    roi_head = student.roi_head
    with recorded(student, 'extract_feat') as features, \
            recorded(roi_head.bbox_sampler, 'sample') as samples, \
            recorded(roi_head, '_bbox_forward') as forwards:
        losses = student.forward_train(img, img_metas, gt_bboxes, gt_labels, **kwargs)

    sampled = [call.result for call in samples]
    # Samplers that look at losses (OHEM) run the head too: the last call is the loss's own.
    outputs = forwards[-1].result
    boxes = [result.pos_bboxes for result in sampled]
    record = StepRecord(
        maps=paired_maps(features[-1].result, pair, pair.student),
        strides=pair.strides,
        gt_boxes=gt_bboxes,
        gt_labels=gt_labels,
        boxes=boxes,
        labels=torch.cat([result.pos_gt_labels for result in sampled]),
        logits=positive_rows(outputs['cls_score'], sampled),
        roi_features=positive_rows(outputs['bbox_feats'], sampled),
        roi_levels=roi_levels(roi_head.bbox_roi_extractor, bbox2roi(boxes), pair))
    return losses, record


@torch.no_grad()
def teacher_step(teacher: BaseDetector, pair: DetectorPair, img: Tensor, student: StepRecord,
                 with_logits: bool) -> StepRecord:
    """Run a two-stage teacher on the student's images and positives.

    Neither proposals nor negatives are computed: the teacher's RoI head sees what it must judge.

    Args:
        teacher: The frozen teacher.
        pair: Traits of teacher and student.
        img: Images ``(B, 3, H, W)``.
        student: The student's record of the same step.
        with_logits: Whether any knowledge wants the teacher's view of the positives.

    Returns:
        The teacher's record, with the student's boxes and labels.
    """
    features = teacher.extract_feat(img)
    record = StepRecord(paired_maps(features, pair, pair.teacher), pair.strides, student.gt_boxes,
                        student.gt_labels, student.boxes, student.labels)
    if with_logits:
        rois = bbox2roi(student.boxes)
        # Under fp16 maps are half precision, and RoIAlign wants them in that of the RoIs.
        features = tuple(feature.to(rois.dtype) for feature in features)
        outputs = teacher.roi_head._bbox_forward(features, rois)
        record.logits = outputs['cls_score']
        record.roi_features = outputs['bbox_feats']
    return record


def positive_rows(values: Tensor, sampled: list) -> Tensor:
    """The rows of the positives; each image's rows are its positives, then its negatives."""
    per_image = values.split([len(result.pos_inds) + len(result.neg_inds) for result in sampled])
    return torch.cat([rows[:len(result.pos_inds)] for rows, result in zip(per_image, sampled)])


def roi_levels(extractor: torch.nn.Module, rois: Tensor, pair: DetectorPair) -> Tensor:
    """Paired level whose stride is nearest to that of the level an RoI was pooled from."""
    strides = extractor.featmap_strides
    levels = extractor.map_roi_levels(rois, len(strides))
    distance = (torch.tensor(strides, dtype=torch.float).log2()[:, None]
                - torch.tensor(pair.strides, dtype=torch.float).log2()).abs()
    return distance.argmin(dim=1).to(levels.device, non_blocking=True)[levels]
