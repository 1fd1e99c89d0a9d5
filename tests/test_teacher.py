"""The teacher in other precisions: close to the exact one, out of the way when it overflows."""

import copy
import logging
from functools import partial

import pytest
import torch
from helpers import distillers
from helpers import small_detectors as small
from helpers.devices import half_on_cpu
from helpers.distillers import build_distiller, losses_of
from mmdet.models.dense_heads import RetinaHead, RPNHead
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from test_every_method import METHODS, build, own_losses

from gkd.detectors import fast_copy, roi_heads
from gkd.detectors.step import recorded
from gkd.detectors.teacher import INTERVAL, Teacher
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


def with_layers_before_pooling():
    """A detector whose RoI extractor has weights, as GRoIE's."""
    detector = small.faster_rcnn(64)
    convolution = dict(type='ConvModule', in_channels=64, out_channels=64, kernel_size=1,
                       inplace=False)
    detector['roi_head']['bbox_roi_extractor'].update(
        type='GenericRoIExtractor', aggregation='sum', pre_cfg=convolution)
    return detector


def with_layers_after_pooling():
    """A detector with a stage of the backbone between pooling and head, as those on C4."""
    detector = small.faster_rcnn(64)
    detector['roi_head']['shared_head'] = dict(type='ResLayer', depth=18, stage=1)
    detector['roi_head']['bbox_head'].update(in_channels=128, roi_feat_size=4)
    return detector


def with_features_of_the_whole_image():
    """A cascade whose stages add features of a semantic segmentation, as HTC's."""
    detector = small.faster_rcnn(64)
    roi_head = detector['roi_head']
    extractor = roi_head['bbox_roi_extractor']
    head = dict(roi_head['bbox_head'], reg_class_agnostic=True)
    detector['train_cfg']['rcnn'] = [detector['train_cfg']['rcnn']]
    roi_head.update(
        type='HybridTaskCascadeRoIHead', num_stages=1, stage_loss_weights=[1], bbox_head=[head],
        semantic_roi_extractor=dict(
            extractor, featmap_strides=[8],
            roi_layer=dict(extractor['roi_layer'], output_size=14)),
        semantic_head=dict(type='FusedSemanticHead', num_ins=5, fusion_level=1, num_convs=1,
                           in_channels=64, conv_out_channels=64, num_classes=3))
    return detector


def test_layers_that_cannot_be_folded_compute_in_another_precision(monkeypatch):
    """In NAS-FCOS, normalisation does not follow its convolution in the order of the layers."""
    def fold(detector):
        raise RuntimeError("shape '[32, 1, 1, 1]' is invalid for input of size 64")

    monkeypatch.setattr(fast_copy, 'fuse_conv_bn', fold)
    assert Teacher(distillers.build(small.retinanet()), 'bfloat16').dtype == torch.bfloat16


def test_layers_are_folded_only_where_maps_stay_the_same(monkeypatch):
    """As in NAS-FCOS, where folding may also go through and change the maps."""
    def fold(change, detector):
        with torch.no_grad():
            detector.neck.fpn_convs[0].conv.weight.mul_(1 + change)
        return detector

    detector = distillers.build(small.retinanet()).eval()
    image = torch.rand(1, 3, 128, 128)
    exact = detector.extract_feat(image)[0]
    for change, folds in ((1e-2, False), (1e-5, True)):
        monkeypatch.setattr(fast_copy, 'fuse_conv_bn', partial(fold, change))
        copied = fast_copy.folded(detector, image).extract_feat(image)[0]
        assert torch.equal(copied, exact) != folds


def test_maps_of_any_magnitude_may_differ_by_rounding_alone():
    feature = torch.rand(1, 2, 3, 3)
    for scale in (1e-6, 1, 1e6):
        assert fast_copy.same(scale * feature, scale * feature * (1 + 1e-4))
        assert not fast_copy.same(scale * feature, scale * feature * (1 + 1e-2))


def test_maps_in_double_precision_stay_as_they_are():
    for dtype, wide in ((torch.half, torch.float), (torch.double, torch.double)):
        assert fast_copy.widened(torch.zeros(1, 1, 1, 1, dtype=dtype)).dtype == wide


def test_a_copy_draws_no_random_numbers():
    detector = distillers.build(small.retinanet())
    before = torch.get_rng_state()
    assert Teacher(detector, 'bfloat16').dtype == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), before)


def test_standardised_weights_compute_in_another_precision_channels_first():
    """They are flattened, which weights with channels last cannot be."""
    detector = small.retinanet()
    detector['neck']['conv_cfg'] = dict(type='ConvWS')
    frozen = Teacher(distillers.build(detector), 'bfloat16')
    assert frozen.dtype == torch.bfloat16
    assert frozen.running.extract_feat(small.batch()['img'])[0].is_contiguous()


@pytest.mark.parametrize('teacher', [with_layers_before_pooling, with_layers_after_pooling,
                                     with_features_of_the_whole_image])
@pytest.mark.parametrize('autocast', [False, True])
def test_layers_around_pooling_compute_beside_those_in_another_precision(teacher, autocast):
    model, logits = build_distiller(teacher(), small.faster_rcnn()), []
    for precision in ('full', 'bfloat16'):
        model.frozen = Teacher(model.frozen.exact, precision)
        torch.manual_seed(0)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            logits.append(model.observe(to_batch(**small.batch()))[1].teacher.logits.float())
        assert (model.frozen.dtype is None) == (precision == 'full')
    assert logits[0].abs().max() > 1e-3
    torch.testing.assert_close(*logits, rtol=3e-2, atol=3e-2 * logits[0].abs().max().item())


def let_compute_in_float32_only(monkeypatch, kind, name):
    compute = getattr(kind, name)

    def in_float32_only(self, features):
        if features.dtype != torch.float32:
            raise RuntimeError('not implemented for BFloat16')
        return compute(self, features)

    monkeypatch.setattr(kind, name, in_float32_only)


def test_a_head_of_boxes_that_cannot_compute_in_a_precision_keeps_the_teacher_exact(
        monkeypatch, caplog):
    let_compute_in_float32_only(monkeypatch, Shared2FCBBoxHead, 'forward')
    model = with_precision('two_stage', 'bfloat16')
    assert model.teacher is model.frozen.exact
    assert 'cannot compute in torch.bfloat16' in caplog.text
    assert losses_of(model, small.batch())['loss_soft'].isfinite()


@pytest.mark.parametrize('family, head', [('one_stage', RetinaHead), ('two_stage', RPNHead)])
def test_so_does_a_dense_head(monkeypatch, family, head):
    let_compute_in_float32_only(monkeypatch, head, 'forward_single')
    model = with_precision(family, 'bfloat16')
    assert model.teacher is model.frozen.exact


def test_boxes_are_pooled_at_their_exact_coordinates():
    model = build_distiller(with_layers_before_pooling(), small.faster_rcnn())
    model.frozen = Teacher(model.frozen.exact, 'bfloat16')
    with recorded(model.teacher.roi_head.bbox_roi_extractor.roi_layers[0], 'forward') as pooled:
        _, step = model.observe(to_batch(**small.batch()))
    assert torch.equal(pooled[0].args[1][:, 1:], torch.cat(step.boxes))


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


def test_a_value_beyond_the_range_counts_as_0():
    frozen = Teacher(distillers.build(small.retinanet()), 'bfloat16')
    maps = torch.tensor([float('inf'), -float('inf'), float('nan'), 2]).half()[None, :, None, None]
    assert frozen.watch((maps,))[0].flatten().tolist() == [0, 0, 0, 2]
    assert not frozen.sums.isfinite()


def test_a_sum_beyond_the_range_is_no_overflow():
    """Each of many values may be within it."""
    frozen = Teacher(distillers.build(small.retinanet()), 'bfloat16')
    frozen.watch((torch.full((1, 8, 16, 16), 100.0).half(),))
    assert frozen.sums.isfinite()


@pytest.mark.parametrize('before', [0, 10, 75])
def test_an_overflow_is_noticed_whenever_it_comes(before):
    frozen = Teacher(distillers.build(small.retinanet()), 'bfloat16')
    for _ in range(before):
        frozen.check()
    frozen.watch((torch.full((1, 1, 1, 1), float('inf')),))
    for _ in range(INTERVAL + 1):
        assert frozen.running is not frozen.exact
        frozen.check()
        if frozen.running is frozen.exact:
            break
    assert frozen.running is frozen.exact
    frozen.apply(lambda tensor: tensor)  # as where the model is moved: it begins anew
    assert frozen.running is not frozen.exact and frozen.sums.isfinite()


def test_a_teacher_asks_for_no_gradient_and_is_shared_by_copies():
    frozen = Teacher(distillers.build(small.retinanet()), 'bfloat16', reads_classes=True)
    for part in (frozen.exact, frozen.running, frozen.class_layers):
        assert not any(parameter.requires_grad for parameter in part.parameters())
    assert not any(module.training for module in frozen.exact.modules())
    copied, whole = (next(part.parameters()) for part in (
        frozen.class_layers, frozen.exact.bbox_head.cls_convs))
    assert torch.equal(copied, whole) and copied is not whole
    assert copy.deepcopy(dict(teacher=frozen))['teacher'] is frozen


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
