"""The teacher in other precisions: close to the exact one, out of the way when it overflows."""

import copy
import logging

import pytest
import torch
from helpers import distillers
from helpers import small_detectors as small
from helpers.devices import half_on_cpu
from helpers.distillers import build_distiller, losses_of
from test_every_method import METHODS, build, own_losses

from gkd.detectors import roi_heads
from gkd.detectors.step import recorded
from gkd.detectors.teacher import Teacher
from gkd.errors import ConfigError
from gkd.frameworks import to_batch
from gkd.watching import watched

TAUGHT = ('loss_global', 'loss_local_fg', 'loss_local_bg', 'loss_soft')


def with_precision(family, precision):
    """A distiller whose teacher computes in a precision."""
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector())
    model.frozen = Teacher(model.frozen.exact, precision)
    return model


@pytest.mark.parametrize('family', small.FAMILIES)
@pytest.mark.parametrize(('precision', 'dtype', 'tolerance'), [
    pytest.param('half', torch.float16, 5e-3, marks=half_on_cpu),
    ('bfloat16', torch.bfloat16, 3e-2)])
def test_losses_differ_by_the_precision(family, precision, dtype, tolerance):
    exact = losses_of(with_precision(family, 'full'), small.batch())
    model = with_precision(family, precision)
    assert model.frozen.dtype == dtype and model.teacher is not model.frozen.exact
    batch = small.batch()
    maps = model.teacher.extract_feat(batch['img'])
    assert {feature.dtype for feature in maps} == {dtype}
    losses = losses_of(model, batch)
    for name in TAUGHT:
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], exact[name], rtol=tolerance, atol=1e-4)
    assert not torch.equal(losses['loss_local_bg'], exact['loss_local_bg'])


@half_on_cpu
@pytest.mark.parametrize('family', small.FAMILIES)
@pytest.mark.parametrize('method', METHODS)
def test_every_method_reads_maps_in_the_teachers_layout(method, family):
    exact, losses = {}, {}
    for precision, found in (('full', exact), ('half', losses)):
        model = build(method, family)
        model.frozen = Teacher(model.frozen.exact, precision)
        found.update(own_losses(model, small.batch()))
    assert losses and losses.keys() == exact.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], rtol=2e-2, atol=1e-4)


@half_on_cpu
def test_maps_of_a_one_stage_teacher_keep_their_layout():
    _, step = with_precision('one_stage', 'half').observe(to_batch(**small.batch()))
    for feature in step.teacher.maps:
        assert feature.dtype == torch.float32
        assert feature.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(('precision', 'converted'), [
    pytest.param('half', True, marks=half_on_cpu), ('full', False)])
def test_maps_that_boxes_are_pooled_from_are_converted_once(precision, converted):
    model = with_precision('two_stage', precision)
    with recorded(model.teacher.roi_head.bbox_roi_extractor, 'forward') as pooled, \
            recorded(model.teacher, 'extract_feat') as computed:
        _, step = model.observe(to_batch(**small.batch()))
    source = pooled[0].args[0] if converted else computed[0].result
    for feature, taught in zip(source, step.teacher.maps):
        assert feature.dtype == torch.float32 and taught is feature


def test_the_cpu_computes_in_full_precision_by_default():
    model = with_precision('one_stage', None)
    assert model.frozen.dtype is None and model.teacher is model.frozen.exact
    assert next(model.teacher.parameters()).dtype == torch.float32


def test_an_unknown_precision_is_named():
    with pytest.raises(ConfigError, match="precision = 'fp16': must be one of 'full', 'half'"):
        with_precision('one_stage', 'fp16')


@half_on_cpu
def test_an_overflow_counts_as_0_and_brings_the_exact_teacher_back(caplog):
    model = with_precision('one_stage', 'half')
    exact = losses_of(with_precision('one_stage', 'full'), small.batch())
    neck = model.teacher.neck
    caplog.set_level(logging.WARNING)

    def overflowing(method, *args):
        maps = list(method(*args))
        maps[0] = maps[0].clone()
        maps[0][0, 0, 0, :2] = torch.tensor([float('inf'), float('nan')])
        return tuple(maps)

    with watched(neck, 'forward', overflowing):
        losses = losses_of(model, small.batch())
        assert all(losses[name].isfinite() for name in TAUGHT)
        assert model.frozen.dtype == torch.float16
        losses_of(model, small.batch())
    assert model.frozen.dtype is None and model.teacher is model.frozen.exact
    assert caplog.text.count('left the range of torch.float16') == 1
    again = losses_of(model, small.batch())
    assert all(torch.equal(again[name], exact[name]) for name in TAUGHT)


def test_a_teacher_is_no_part_of_the_model_and_moves_with_it():
    model = with_precision('two_stage', 'half')
    assert not any('teacher' in name or 'frozen' in name for name in model.state_dict())
    model.double()
    assert model.teacher is model.frozen.exact
    assert next(model.teacher.parameters()).dtype == torch.float64


def test_whatever_is_done_to_a_model_leaves_its_teacher_on_its_device():
    """While a copy computes on a GPU, here 'meta', the exact weights lie on the CPU."""
    frozen = with_precision('one_stage', 'full').frozen
    frozen.running = copy.deepcopy(frozen.exact).to('meta')
    frozen.apply(lambda tensor: tensor)
    assert next(frozen.running.parameters()).device.type == 'meta'


def test_a_teacher_of_grey_images_computes_in_another_precision():
    config = small.retinanet()
    config['backbone']['in_channels'] = 1
    assert Teacher(distillers.build(config), 'bfloat16').dtype == torch.bfloat16


def test_pooling_on_all_levels_chooses_the_right_one():
    model = with_precision('two_stage', 'full')
    extractor = model.teacher.roi_head.bbox_roi_extractor
    maps = model.teacher.extract_feat(small.batch()['img'])[:len(extractor.featmap_strides)]
    corners = (torch.rand(30, 2, 2) * torch.linspace(8, 600, 30)[:, None, None]).sort(dim=1)
    rois = torch.cat([torch.zeros(30, 1), corners.values.flatten(1)], dim=1)
    assert len(extractor.map_roi_levels(rois, len(maps)).unique()) > 1
    assert torch.equal(roi_heads.pool_on_all_levels(extractor, maps, rois), extractor(maps, rois))
