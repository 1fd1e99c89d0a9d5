"""What detectors count outside of their weights goes on where a run is resumed."""

import numpy as np
import pytest
import torch
from helpers import small_detectors as small
from helpers.distillers import assert_same_state, build
from helpers.refusals import append, train
from torch import nn

from gkd.detectors.view import probe
from gkd.module_state import counting_parts, module_state, restore_module_state, state_of
from studies import coverage, small_models
from studies.door import losses, training_batch


class Sizes(nn.Module):
    """Like a part of a detector whose class is known by its name."""

    def __init__(self):
        super().__init__()
        self._input_size = None
        self._interval = 10


class Derived(type('BatchSyncRandomResize', (Sizes,), {})):
    """A class of the user's own."""


def test_attributes_are_found_by_the_names_of_classes_and_of_their_bases():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(Derived(), Sizes()))
    assert module_state(model) == {'1.0': dict(_input_size=None)}
    restore_module_state(model, {'1.0': dict(_input_size=(64, 96), _interval=1),
                                 'gone': dict(_input_size=(1, 1))})
    assert model[1][0]._input_size == (64, 96) and model[1][0]._interval == 10
    assert model[1][1]._input_size is None
    model[1][0]._input_size = np.int64(32), 96
    assert all(type(side) is int for side in module_state(model)['1.0']['_input_size'])


def test_an_attribute_that_a_class_lacks_is_left_out():
    """As MMDetection 3's YOLOX, whose name and sizes are those of MMDetection 2."""
    model = type('YOLOX', (Sizes,), {})()
    assert module_state(model) == {'': dict(_input_size=None)}
    restore_module_state(model, {'': dict(_input_size=(64, 96), _progress_in_iter=3)})
    assert model._input_size == (64, 96) and not hasattr(model, '_progress_in_iter')


def test_what_a_hook_has_switched_on_is_of_a_kept_step_and_not_of_a_checkpoint():
    """The hook itself switches it on again where a run is resumed."""
    model = type('YOLOXHead', (nn.Identity,), dict(use_l1=True))()
    assert module_state(model) == {}
    state = state_of(counting_parts(model, scheduled=True))
    model.use_l1 = False
    restore_module_state(model, state)
    assert model.use_l1


def test_state_is_a_copy_of_plain_numbers_all_of_which_come_back():
    one, other = build(small.dynamic_rcnn()), build(small.dynamic_rcnn())
    head = one.roi_head
    head.iou_history.append(np.float64(0.25))
    thresholds = 'pos_iou_thr', 'neg_iou_thr', 'min_pos_iou'
    for threshold, value in zip(thresholds, (np.mean([0.25, 0.5]), 0.25, 0.125)):
        setattr(head.bbox_assigner, threshold, value)
    head.bbox_head.loss_bbox.beta = 0.125
    state = module_state(one)
    head.iou_history.append(0.75)
    assert state['roi_head']['iou_history'] == [0.25]
    assert type(state['roi_head']['iou_history'][0]) is float
    restore_module_state(other, state)
    other.roi_head.iou_history.append(0.5)
    assert state['roi_head']['iou_history'] == [0.25]
    assert [getattr(other.roi_head.bbox_assigner, threshold) for threshold in thresholds] == [
        0.375, 0.25, 0.125]
    assert other.roi_head.bbox_head.loss_bbox.beta == 0.125


@pytest.mark.parametrize('name, attributes', [
    ('yolox/yolox_tiny_8x8_300e_coco', {'_input_size', '_progress_in_iter'}),
    ('ddod/ddod_r50_fpn_1x_coco', {'cls_num_pos_samples_per_level'}),
])
def test_detectors_of_mmdetection_keep_what_they_count(name, attributes):
    model = coverage.build(small_models.small_config(name))
    before, = module_state(model).values()
    assert before.keys() == attributes
    batch = training_batch(model, probe(model, 'student'), 80)
    losses(model, batch)
    after, = module_state(model).values()
    assert after != before


def test_samplers_keep_what_they_count_in_every_stage():
    model = build(small.libra_rcnn())
    several = nn.Module()
    several.bbox_sampler = [build(small.libra_rcnn()).roi_head.bbox_sampler for _ in range(2)]
    several.bbox_sampler[1].neg_sampler.floor_thr = 0
    state = module_state(several)
    assert list(state.values()) == [dict(floor_thr=-1), dict(floor_thr=0)]

    assert list(module_state(model).values()) == [dict(floor_thr=-1)]
    coverage.losses(model, coverage.training_batch(model, probe(model, 'student'), 3))
    assert list(module_state(model).values()) == [dict(floor_thr=0)]
    other = build(small.libra_rcnn())
    restore_module_state(other, module_state(model))
    assert other.roi_head.bbox_sampler.neg_sampler.floor_thr == 0


@pytest.mark.slow
@pytest.mark.parametrize('student', [small.dynamic_rcnn, small.libra_rcnn])
def test_a_run_whose_heads_count_goes_on_exactly(folder, student):
    append('distiller.py', f'model["student"] = dict(config={student()!r})')
    train('--epochs', '2')
    whole = torch.load('work/epoch_2.pth')['state_dict']
    (folder / 'work').rename(folder / 'before')
    train('--epochs', '1')
    train('--epochs', '2')
    assert_same_state(torch.load('work/epoch_2.pth')['state_dict'], whole)
