"""Run and record a step of a two-stage detector."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from gkd.detectors.dense import dense_predictions
from gkd.detectors.fast_copy import widened
from gkd.detectors.one_stage import assigned_objects, paired_maps, start_step
from gkd.detectors.pair import DetectorPair
from gkd.detectors.roi_heads import (
    class_inputs,
    classify,
    first,
    is_cascade,
    pooling_without_waiting,
)
from gkd.detectors.step import DetectorOutputs, Needs, Stage, Step, recorded
from gkd.frameworks import (
    BaseDetector,
    Batch,
    bbox2roi,
    positive_boxes,
    sampled_boxes,
    student_losses,
)


def student_step(student: BaseDetector, pair: DetectorPair, needs: Needs,
                 batch: Batch) -> tuple[dict, Step]:
    """Compute a two-stage student's detection losses and keep what they were computed from.

    Args:
        student: The student.
        pair: Traits of teacher and student.
        needs: What the kinds of knowledge want to see.
        batch: Images and ground truth.

    Returns:
        The detection losses, and the step with the student's part.
    """
    with ExitStack() as stack:
        features = stack.enter_context(recorded(student, 'extract_feat'))
        if needs.dense or needs.anchors:
            proposing = stack.enter_context(recorded(student.rpn_head, 'forward'))
        if pair.student.samples_positives:
            roi_head = student.roi_head
            stages = roi_head.bbox_sampler if is_cascade(roi_head) and needs.logits \
                else [first(roi_head.bbox_sampler)]
            samples = [stack.enter_context(recorded(sampler, 'sample')) for sampler in stages]
            forwards = stack.enter_context(recorded(roi_head, '_bbox_forward'))
        losses = student_losses(student, batch)

    step = start_step(pair, features[-1], batch)
    if needs.dense or needs.anchors:
        step.student.dense = dense_predictions(student.rpn_head, proposing[-1].result,
                                               features[-1].result, pair, pair.student, needs)
    if pair.student.samples_positives:
        # HTC samples a stage's boxes once more, for masks.
        samples = [[sampling_result(call.result) for call in calls[:len(batch.metas)]]
                   for calls in samples]
        # Samplers that use losses (OHEM) run the head too: the last call is that of the loss.
        outputs = [[call for call in forwards if call.args[0] == stage][-1].result
                   for stage in range(len(samples))] if is_cascade(roi_head) \
            else [forwards[-1].result]
        add_positives(step, samples[0], outputs[0])
        if is_cascade(roi_head):
            for later in zip(samples[1:], outputs[1:], roi_head.stage_loss_weights[1:]):
                add_stage(step, *later)
        extractor = first(roi_head.bbox_roi_extractor)
        if pair.student.pools_maps:
            step.roi_levels = roi_levels(extractor, bbox2roi(step.boxes), pair)
    return losses, step


def sampling_result(result: object) -> object:
    """A sampler's result; some return weights of the negatives with it (PISA)."""
    return result[0] if isinstance(result, tuple) else result


def add_positives(step: Step, sampled: list, outputs: dict) -> None:
    """Add to a step what the student's RoI head saw.

    Args:
        step: The step with the student's part.
        sampled: MMDetection's ``SamplingResult`` of every image.
        outputs: What the RoI head computed for all sampled proposals.
    """
    step.boxes = [positive_boxes(result) for result in sampled]
    step.labels = torch.cat([result.pos_gt_labels for result in sampled])
    step.objects = assigned_objects(sampled, step.gt_labels)
    step.proposals = [sampled_boxes(result) for result in sampled]
    step.proposal_positives = torch.cat([
        torch.arange(len(proposals), device=proposals.device) < len(boxes)
        for proposals, boxes in zip(step.proposals, step.boxes)])
    step.student.proposal_logits = outputs['cls_score']
    step.student.logits = positive_rows(outputs['cls_score'], step)
    if 'bbox_feats' in outputs:
        step.student.roi_features = positive_rows(outputs['bbox_feats'], step)


def add_stage(step: Step, sampled: list, outputs: dict, loss_weight: float) -> None:
    """Add to a step what a later stage saw; arguments as above, and the factor of its losses."""
    counts = [len(sampled_boxes(result)) for result in sampled]
    boxes = [positive_boxes(result) for result in sampled]
    labels = torch.cat([result.pos_gt_labels for result in sampled])
    step.stages.append(Stage(boxes, labels, loss_weight))
    step.student.stage_logits.append(torch.cat([
        rows[:len(positives)] for rows, positives in
        zip(outputs['cls_score'].split(counts), boxes)]))


@torch.no_grad()
def teacher_step(teacher: BaseDetector, pair: DetectorPair, needs: Needs, img: Tensor,
                 step: Step) -> DetectorOutputs:
    """Run a two-stage teacher on the student's images and proposals.

    The teacher makes no proposals of its own: its RoI head classifies the student's, and its RPN
    runs only if the RPN's predictions are taught.

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
    if needs.dense and pair.teacher.predicts_densely:
        part.dense = dense_predictions(teacher.rpn_head, teacher.rpn_head(features), features,
                                       pair, pair.teacher, needs)
    if needs.logits or needs.proposals:
        # Under fp16 the maps are in half precision, but RoIAlign needs the RoIs' precision, and
        # channels first.
        full = tuple(widened(feature, torch.contiguous_format) for feature in features)
        if full[0].dtype != features[0].dtype:
            part.maps = paired_maps(full, pair, pair.teacher)  # converted once for all
        rois = bbox2roi(step.proposals if needs.proposals else step.boxes)
        with ExitStack() as stack:
            stack.enter_context(pooling_without_waiting(teacher.roi_head, rois.device))
            if needs.class_layers:
                read = stack.enter_context(class_inputs(first(teacher.roi_head.bbox_head)))
            outputs = classify(teacher.roi_head, full, rois)
            part.stage_logits = [
                classify(teacher.roi_head, full, bbox2roi(stage.boxes), number)['cls_score']
                for number, stage in enumerate(step.stages, start=1)]
        if needs.class_layers:
            part.class_features = read[0].args[0]
        logits, pooled = outputs['cls_score'], outputs.get('bbox_feats')
        if needs.proposals:
            part.proposal_logits = logits
            logits = positive_rows(logits, step)
            pooled = None if pooled is None else positive_rows(pooled, step)
        part.logits, part.roi_features = logits, pooled
    return part


def positive_rows(values: Tensor, step: Step) -> Tensor:
    """The rows of the positives; each image's rows are its positives, then its negatives.

    Example:
        >>> from types import SimpleNamespace
        >>> step = SimpleNamespace(boxes=[torch.zeros(1, 4), torch.zeros(2, 4)],
        ...                        proposals=[torch.zeros(3, 4), torch.zeros(2, 4)])
        >>> positive_rows(torch.arange(5), step)
        tensor([0, 3, 4])
    """
    per_image = values.split([len(proposals) for proposals in step.proposals])
    return torch.cat([rows[:len(boxes)] for rows, boxes in zip(per_image, step.boxes)])


def roi_levels(extractor: torch.nn.Module, rois: Tensor, pair: DetectorPair) -> Tensor:
    """Paired level whose stride is nearest to that of the level an RoI was pooled from."""
    strides = extractor.featmap_strides
    levels = extractor.map_roi_levels(rois, len(strides))
    distance = (torch.tensor(strides, dtype=torch.float).log2()[:, None]
                - torch.tensor(pair.strides, dtype=torch.float).log2()).abs()
    return distance.argmin(dim=1).to(levels.device, non_blocking=True)[levels]
