"""Run and record a step of a two-stage detector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from gkd.detectors.dense import dense_predictions
from gkd.detectors.one_stage import assigned_objects, paired_maps, start_step
from gkd.detectors.pair import DetectorPair
from gkd.detectors.step import DetectorOutputs, Needs, Step, recorded
from gkd.detectors.teacher import widened
from gkd.frameworks import (
    BaseDetector,
    Batch,
    bbox2roi,
    positive_boxes,
    sampled_boxes,
    student_losses,
)
from gkd.watching import watched


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
        if needs.dense:
            proposing = stack.enter_context(recorded(student.rpn_head, 'forward'))
        if pair.student.samples_positives:
            roi_head = student.roi_head
            samples = stack.enter_context(recorded(first(roi_head.bbox_sampler), 'sample'))
            forwards = stack.enter_context(recorded(roi_head, '_bbox_forward'))
        losses = student_losses(student, batch)

    step = start_step(pair, features[-1], batch)
    if needs.dense:
        step.student.dense = dense_predictions(student.rpn_head, proposing[-1].result,
                                               features[-1].result, pair, pair.student)
    if pair.student.samples_positives:
        if is_cascade(roi_head):
            forwards = [call for call in forwards if call.args[0] == 0]
        # Samplers that look at losses (OHEM) run the head too: the last call is the loss's own.
        add_positives(step, [sampling_result(call.result) for call in samples],
                      forwards[-1].result)
        extractor = first(roi_head.bbox_roi_extractor)
        if pair.student.pools_maps:
            step.roi_levels = roi_levels(extractor, bbox2roi(step.boxes), pair)
    return losses, step


def first(parts: object) -> object:
    """The first of a cascade's parts; a part of a plain RoI head as it is."""
    return parts[0] if isinstance(parts, (list, torch.nn.ModuleList)) else parts


def is_cascade(roi_head: torch.nn.Module) -> bool:
    """Whether a RoI head has a head a stage."""
    return isinstance(roi_head.bbox_head, torch.nn.ModuleList)


def classify(roi_head: torch.nn.Module, maps: tuple[Tensor, ...], rois: Tensor) -> dict:
    """Run a RoI head, a cascade's first, on boxes.

    Args:
        roi_head: The head, built by MMDetection.
        maps: All maps of its detector, ``(B, C, H_l, W_l)``.
        rois: ``(k, 5)`` as image, x1, y1, x2, y2 in pixels.

    Returns:
        MMDetection's results, with ``cls_score`` ``(k, num_logits)`` and ``bbox_feats``.
    """
    stage = (0,) if is_cascade(roi_head) else ()
    return roi_head._bbox_forward(*stage, maps, rois)


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
    step.student.roi_features = positive_rows(outputs['bbox_feats'], step)


@torch.no_grad()
def teacher_step(teacher: BaseDetector, pair: DetectorPair, needs: Needs, img: Tensor,
                 step: Step) -> DetectorOutputs:
    """Run a two-stage teacher on the student's images and proposals.

    The teacher makes no proposals of its own: its RoI head sees what it must judge, and its RPN
    runs only where what it predicts is taught.

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
                                       pair, pair.teacher)
    if needs.logits or needs.proposals:
        rois = bbox2roi(step.proposals if needs.proposals else step.boxes)
        # Under fp16 maps are half precision, and RoIAlign wants them in that of the RoIs.
        features = tuple(map(widened, features))
        with pooling_without_waiting(teacher.roi_head, rois.is_cuda):
            outputs = classify(teacher.roi_head, features, rois)
        logits, pooled = outputs['cls_score'], outputs['bbox_feats']
        if needs.proposals:
            part.proposal_logits = logits
            logits, pooled = positive_rows(logits, step), positive_rows(pooled, step)
        part.logits, part.roi_features = logits, pooled
    return part


@contextmanager
def pooling_without_waiting(roi_head: torch.nn.Module, on_gpu: bool) -> Iterator[None]:
    """Let a RoI head pool without a host sync while the context is open.

    MMDetection's extractor counts the RoIs of every level, for which the host waits. A frozen
    teacher's few RoIs are pooled on every level instead, and the right one is chosen.

    Args:
        roi_head: The head, built by MMDetection.
        on_gpu: Whether it computes on a GPU; elsewhere nothing waits.
    """
    extractor = getattr(roi_head, 'bbox_roi_extractor', None)
    if not on_gpu or type(extractor).__name__ != 'SingleRoIExtractor':
        yield
        return

    def pool(_, maps: tuple[Tensor, ...], rois: Tensor, *args, **kwargs) -> Tensor:
        return pool_on_all_levels(extractor, maps, rois)

    with watched(extractor, 'forward', pool):
        yield


def pool_on_all_levels(extractor: torch.nn.Module, maps: tuple[Tensor, ...],
                       rois: Tensor) -> Tensor:
    """RoI features ``(k, C, h, w)``, each from its own level, all computed on all levels."""
    levels = extractor.map_roi_levels(rois, len(maps))[:, None, None, None]
    pooled = extractor.roi_layers[0](maps[0], rois)
    for level, (layer, feature) in enumerate(zip(extractor.roi_layers[1:], maps[1:]), start=1):
        pooled = torch.where(levels == level, layer(feature, rois), pooled)
    return pooled


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
