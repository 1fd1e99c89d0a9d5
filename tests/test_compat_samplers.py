"""A mend of MMDetection's samplers."""

import torch

from gkd.installed import mmdet_major

if mmdet_major() == 2:
    from mmdet.core import AssignResult, InstanceBalancedPosSampler
else:
    from mmdet.models.task_modules import AssignResult, InstanceBalancedPosSampler


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
