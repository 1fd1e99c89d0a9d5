"""Mends of the samplers of Libra R-CNN."""

import torch

from gkd.installed import mmdet_major

if mmdet_major() == 2:
    from mmdet.core import AssignResult, InstanceBalancedPosSampler, IoUBalancedNegSampler
else:
    from mmdet.models.task_modules import (
        AssignResult,
        InstanceBalancedPosSampler,
        IoUBalancedNegSampler,
    )


def test_positives_follow_from_random_numbers_alone():
    # 40 positives of the first object and one of the second are fewer than 30 of two objects.
    objects = torch.tensor([1] * 40 + [2] + [0] * 9)
    assigned = AssignResult(2, objects, torch.zeros(50), torch.zeros(50, dtype=torch.long))
    sampler = InstanceBalancedPosSampler(num=30, pos_fraction=1)
    kept, chosen = [], []
    for _ in range(4):
        torch.manual_seed(0)
        chosen.append(sampler._sample_pos(assigned, 30))
        kept.append([torch.zeros(number) for number in range(20)])  # takes places in memory
    assert len(chosen[0]) == 30 and all(torch.equal(chosen[0], other) for other in chosen[1:])
    assert set(objects[chosen[0]].tolist()) == {1, 2}
    torch.manual_seed(1)
    assert not torch.equal(chosen[0], sampler._sample_pos(assigned, 30))


def test_negatives_of_the_first_image_are_chosen_as_later_ones():
    overlaps = torch.cat([torch.zeros(40), torch.linspace(0.1, 0.45, 40)])
    assigned = AssignResult(1, torch.zeros(80, dtype=torch.long), overlaps,
                            torch.zeros(80, dtype=torch.long))
    sampler = IoUBalancedNegSampler(num=30, pos_fraction=0)
    chosen = []
    for _ in range(3):
        torch.manual_seed(0)
        chosen.append(sampler._sample_neg(assigned, 30))
    assert torch.equal(chosen[0], chosen[1]) and torch.equal(chosen[1], chosen[2])
    # As MMDetection does from the second image on: none without overlap while others are left.
    assert overlaps[chosen[0]].min() > 0 and len(chosen[0].unique()) == 30
