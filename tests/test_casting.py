"""Weights that are cast together teach the same as weights that autocast casts one by one."""

import pytest
import torch
from operations import METHODS, records
from torch import nn

from gkd.knowledge.casting import cast_frozen, cast_together, names_of_cast_weights, teach
from gkd.registry import KNOWLEDGE


def losses_and_gradients(call, kind, step):
    torch.manual_seed(0)  # MGD hides cells by chance
    with torch.autocast('cpu', torch.bfloat16):
        losses = call(kind, step)
    inputs = [feature for feature in step.student.maps if feature.requires_grad]
    inputs += kind.parameters()
    return losses, torch.autograd.grad(sum(losses.values()), inputs, allow_unused=True)


@pytest.mark.parametrize('method', METHODS)
def test_casting_together_changes_no_bit(method):
    pair, step = records('one-stage', images=2, dtype=torch.bfloat16)
    kind = KNOWLEDGE.build(dict(METHODS[method], pair=pair))
    (losses, gradients), (expected, expected_gradients) = (
        losses_and_gradients(call, kind, step)
        for call in (teach, lambda kind, step: kind(step)))
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert torch.equal(loss, expected[name])
    for own, other in zip(gradients, expected_gradients):
        assert own is None if other is None else torch.equal(own, other)


def test_without_autocast_nothing_is_cast():
    pair, step = records('one-stage', images=2)
    seen = []
    kind = KNOWLEDGE.build(dict(type='FBKD', pair=pair))
    layer = kind.levels[0].relation_adaptation
    layer.register_forward_hook(lambda layer, _, result: seen.append(layer.weight.dtype))
    teach(kind, step)
    assert seen == [torch.float]


class Halved(nn.Linear):
    """Computes something with its weights before it uses them."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight / 2, self.bias)


def test_weights_that_a_layer_changes_itself_keep_their_precision():
    layers = nn.Sequential(nn.Linear(2, 2), Halved(2, 2), nn.BatchNorm1d(2))
    assert names_of_cast_weights(layers) == ['0.weight', '0.bias']
    cast = cast_frozen(layers, torch.bfloat16)
    assert [cast[0].weight.dtype, cast[1].weight.dtype, cast[2].weight.dtype] == [
        torch.bfloat16, torch.float, torch.float]
    assert layers[0].weight.dtype == torch.float


def test_weights_keep_shape_and_layout_and_lead_gradients_back():
    layout = torch.channels_last
    weights = [torch.randn(2, 3, 4, 5).contiguous(memory_format=layout), torch.randn(3, 2),
               torch.randn(4)]
    for weight in weights:
        weight.requires_grad_()
    cast = cast_together(weights, torch.bfloat16)
    for own, weight in zip(cast, weights):
        assert torch.equal(own, weight.bfloat16())
        assert own.stride() == weight.stride()
    cast[0][1, 2, 3, 4].backward()
    expected = torch.zeros(2, 3, 4, 5)
    expected[1, 2, 3, 4] = 1
    assert torch.equal(weights[0].grad, expected)
    assert weights[0].grad.is_contiguous(memory_format=layout)
