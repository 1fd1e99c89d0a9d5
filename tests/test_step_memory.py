"""What a step of distillation keeps for the gradient, beyond what the student's own step keeps.

On a GPU it decides how many images fit. It is the same on any machine.
"""

import pytest
import torch
from helpers import small_detectors as small
from helpers.distillers import build_distiller, losses_of, total
from operations import METHODS, OURS

from gkd.detectors.one_stage import logits_at
from gkd.planning.cost import TensorMemory


def kept(model, data):
    """Bytes that exist between the losses and their gradient."""
    losses_of(model, data)  # what is made once in a training
    with TensorMemory() as memory:
        loss = total(losses_of(model, data))
        assert loss.requires_grad
        return memory.now


@pytest.mark.parametrize('detector, limit', [(small.retinanet, 1.5), (small.faster_rcnn, 1.3)])
def test_a_step_keeps_one_map_a_level(detector, limit):
    """The differences of local knowledge; the rest is of the boxes, and less at full size."""
    model = build_distiller(detector(), detector(), knowledge=[METHODS[OURS]])
    data = small.batch(size=384, boxes=[(100, 100, 150, 150)])
    with torch.no_grad():
        maps = sum(feature.nbytes for feature in model.student.extract_feat(data['img']))
    assert kept(model, data) - kept(model.student, data) < limit * maps


def test_logits_that_are_read_are_not_kept():
    scores = [torch.randn(2, 3 * 4, side, side, requires_grad=True) for side in (8, 4)]
    positions = torch.tensor([[0, 5], [1, 64]])
    seen = []

    def keep(tensor):
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits_at(scores, positions, 4)
    assert seen
    # The logits that are read at the very end are few.
    assert all(tensor.dtype == torch.long or tensor.numel() <= 2 * 4 * 2 for tensor in seen)
