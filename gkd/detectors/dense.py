"""What a dense head predicts at every place: a one-stage head, or the RPN of a two-stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkd.detectors.pair import DetectorInfo, DetectorPair
from gkd.detectors.step import DensePredictions


def dense_predictions(head: nn.Module, outputs: tuple[list[Tensor], ...], pair: DetectorPair,
                      info: DetectorInfo) -> DensePredictions:
    """Put a dense head's maps of the paired levels in one row of places an image.

    Args:
        head: The head, built by MMDetection.
        outputs: What its ``forward`` returned: class logits ``(B, A * C, H_l, W_l)`` and box
            regressions ``(B, A * R, H_l, W_l)`` of every level of the detector.
        pair: Traits of teacher and student.
        info: Traits of this detector.

    Returns:
        The predictions on the paired levels.
    """
    scores, regressions = outputs[:2]
    levels = pair.levels(info)
    num_logits = head.cls_out_channels
    logits = [per_place(scores[level], num_logits) for level in levels]
    predictions = DensePredictions(torch.cat(logits, dim=1),
                                   tuple(level.shape[1] for level in logits))
    if info.anchors:
        anchors = head.prior_generator.grid_priors(
            [level.shape[-2:] for level in scores], device=scores[0].device)
        predictions.anchors = torch.cat([anchors[level] for level in levels])
    if info.box_coding:
        deltas = torch.cat([per_place(regressions[level], 4) for level in levels], dim=1)
        predictions.deltas = deltas
        # In half precision the coordinates of large images would be off by pixels.
        predictions.boxes = head.bbox_coder.decode(
            predictions.anchors.expand_as(deltas).flatten(0, 1),
            deltas.detach().float().flatten(0, 1)).view_as(deltas)
    return predictions


def positive_places(head: nn.Module, scores: list[Tensor], pair: DetectorPair,
                    info: DetectorInfo, positions: Tensor) -> Tensor:
    """Mark the positives among a dense head's places on the paired levels.

    Args:
        head: The head, built by MMDetection.
        scores: Class logits of every level of the detector, ``(B, A * C, H_l, W_l)``.
        pair: Traits of teacher and student.
        info: Traits of this detector.
        positions: Image and anchor, among those of all levels, of every positive ``(n, 2)``.

    Returns:
        ``(B, N)`` bool.
    """
    counts = [level[0].numel() // head.cls_out_channels for level in scores]
    positives = torch.zeros(len(scores[0]), sum(counts), dtype=torch.bool, device=positions.device)
    positives[positions[:, 0], positions[:, 1]] = True
    split = positives.split(counts, dim=1)
    return torch.cat([split[level] for level in pair.levels(info)], dim=1)


def per_place(scores: Tensor, channels: int) -> Tensor:
    """Turn a map ``(B, A * channels, H, W)`` into ``(B, H * W * A, channels)``.

    Example:
        >>> per_place(torch.tensor([[[[0, 1]], [[2, 3]]]]), channels=2)
        tensor([[[0, 2],
                 [1, 3]]])
    """
    return scores.permute(0, 2, 3, 1).reshape(len(scores), -1, channels)
