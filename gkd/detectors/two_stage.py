"""Run and record a step of a two-stage detector."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import torch
from mmdet.core import bbox2roi
from mmdet.models.detectors import BaseDetector
from torch import Tensor

from gkd.detectors.dense import dense_predictions
from gkd.detectors.one_stage import assigned_objects, paired_maps
from gkd.detectors.pair import DetectorPair
from gkd.detectors.step import Needs, StepRecord, recorded


def student_step(student: BaseDetector, pair: DetectorPair, needs: Needs, img: Tensor,
                 img_metas: list[dict], gt_bboxes: list[Tensor], gt_labels: list[Tensor],
                 **kwargs) -> tuple[dict, StepRecord]:
    """Compute a two-stage student's detection losses and keep what they were computed from.

    Args:
        student: The student.
        pair: Traits of teacher and student.
        needs: What the kinds of knowledge want to see.
        img: Images ``(B, 3, H, W)``.
        img_metas: MMDetection's description of every image.
        gt_bboxes: Boxes of every image, ``(g_b, 4)`` in pixels of ``img``.
        gt_labels: Classes of every image's boxes, ``(g_b,)``.
        **kwargs: What else the data pipeline collects, handed to the student as it is.

    Returns:
        The detection losses and the record.
    """
    with ExitStack() as stack:
        features = stack.enter_context(recorded(student, 'extract_feat'))
        if needs.dense:
            proposing = stack.enter_context(recorded(student.rpn_head, 'forward'))
        if pair.student.samples_positives:
            roi_head = student.roi_head
            samples = stack.enter_context(recorded(roi_head.bbox_sampler, 'sample'))
            forwards = stack.enter_context(recorded(roi_head, '_bbox_forward'))
        losses = student.forward_train(img, img_metas, gt_bboxes, gt_labels, **kwargs)

    record = StepRecord(paired_maps(features[-1].result, pair, pair.student), pair.strides,
                        gt_bboxes, gt_labels)
    if needs.dense:
        record.dense = dense_predictions(student.rpn_head, proposing[-1].result, pair,
                                         pair.student)
    if pair.student.samples_positives:
        # Samplers that look at losses (OHEM) run the head too: the last call is the loss's own.
        record_positives(record, [call.result for call in samples], forwards[-1].result)
        record.roi_levels = roi_levels(roi_head.bbox_roi_extractor, bbox2roi(record.boxes), pair)
    return losses, record


def record_positives(record: StepRecord, sampled: list, outputs: dict) -> None:
    """Add to a record what the RoI head saw.

    Args:
        record: The student's record.
        sampled: MMDetection's ``SamplingResult`` of every image.
        outputs: What the RoI head computed for all sampled proposals.
    """
    record.boxes = [result.pos_bboxes for result in sampled]
    record.labels = torch.cat([result.pos_gt_labels for result in sampled])
    record.objects = assigned_objects(sampled, record.gt_labels)
    record.proposals = [result.bboxes for result in sampled]
    record.proposal_logits = outputs['cls_score']
    record.proposal_positives = torch.cat([
        torch.arange(len(proposals), device=proposals.device) < len(boxes)
        for proposals, boxes in zip(record.proposals, record.boxes)])
    record.logits = positive_rows(outputs['cls_score'], record)
    record.roi_features = positive_rows(outputs['bbox_feats'], record)


@torch.no_grad()
def teacher_step(teacher: BaseDetector, pair: DetectorPair, needs: Needs, img: Tensor,
                 student: StepRecord) -> StepRecord:
    """Run a two-stage teacher on the student's images and proposals.

    The teacher makes no proposals of its own: its RoI head sees what it must judge, and its RPN
    runs only where what it predicts is taught.

    Args:
        teacher: The frozen teacher.
        pair: Traits of teacher and student.
        needs: What the kinds of knowledge want to see.
        img: Images ``(B, 3, H, W)``.
        student: The student's record of the same step.

    Returns:
        The teacher's record, with the student's boxes and labels.
    """
    features = teacher.extract_feat(img)
    record = replace(student, maps=paired_maps(features, pair, pair.teacher), logits=None,
                     roi_features=None, proposal_logits=None, dense=None)
    if needs.dense:
        record.dense = dense_predictions(teacher.rpn_head, teacher.rpn_head(features), pair,
                                         pair.teacher)
    if needs.logits or needs.proposals:
        boxes = student.proposals if needs.proposals else student.boxes
        rois = bbox2roi(boxes)
        # Under fp16 maps are half precision, and RoIAlign wants them in that of the RoIs.
        features = tuple(feature.to(rois.dtype) for feature in features)
        outputs = teacher.roi_head._bbox_forward(features, rois)
        logits, pooled = outputs['cls_score'], outputs['bbox_feats']
        if needs.proposals:
            record.proposal_logits = logits
            logits, pooled = positive_rows(logits, student), positive_rows(pooled, student)
        record.logits, record.roi_features = logits, pooled
    return record


def positive_rows(values: Tensor, student: StepRecord) -> Tensor:
    """The rows of the positives; each image's rows are its positives, then its negatives.

    Example:
        >>> from types import SimpleNamespace
        >>> record = SimpleNamespace(boxes=[torch.zeros(1, 4), torch.zeros(2, 4)],
        ...                          proposals=[torch.zeros(3, 4), torch.zeros(2, 4)])
        >>> positive_rows(torch.arange(5), record)
        tensor([0, 3, 4])
    """
    per_image = values.split([len(proposals) for proposals in student.proposals])
    return torch.cat([rows[:len(boxes)] for rows, boxes in zip(per_image, student.boxes)])


def roi_levels(extractor: torch.nn.Module, rois: Tensor, pair: DetectorPair) -> Tensor:
    """Paired level whose stride is nearest to that of the level an RoI was pooled from."""
    strides = extractor.featmap_strides
    levels = extractor.map_roi_levels(rois, len(strides))
    distance = (torch.tensor(strides, dtype=torch.float).log2()[:, None]
                - torch.tensor(pair.strides, dtype=torch.float).log2()).abs()
    return distance.argmin(dim=1).to(levels.device, non_blocking=True)[levels]
