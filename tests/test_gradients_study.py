"""The study of where each loss pulls the student."""

import pytest
import torch

from studies.gradients import contrast, gradient_norms


def test_norms_are_those_of_the_gradients_on_every_map():
    maps = tuple(torch.ones(1, 2, size, size, requires_grad=True) for size in (2, 1))
    losses = dict(loss_a=3 * maps[0].sum(), loss_b=[maps[0].sum(), 4 * maps[1].sum()],
                  acc=torch.tensor(50.0))
    norms = gradient_norms(losses, maps)
    assert set(norms) == {'loss_a', 'loss_b'}
    # 8 and 2 values a map
    assert norms['loss_a'].tolist() == pytest.approx([3 * 8 ** 0.5, 0])
    assert norms['loss_b'].tolist() == pytest.approx([8 ** 0.5, 4 * 2 ** 0.5])


def test_contrast_leaves_a_prototype_itself_out():
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    one_class, different = contrast(prototypes, torch.tensor([0, 2, 3]))
    assert one_class == pytest.approx(0.0)
    assert different == pytest.approx(0.5)
