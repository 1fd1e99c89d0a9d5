"""The knowledge never waits for the device, and computes in float32 in mixed precision."""

import copy
import functools
import importlib
from types import SimpleNamespace

import pytest
import torch
from helpers import small_detectors as small
from helpers.devices import StayOnDevice, fake_gpu, half_on_cpu, to_fake
from helpers.distillers import RDM_TERMS, build_distiller, losses_of, total
from mmcv.runner import fp16_utils
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map_only

from gkd.detectors import one_stage, two_stage
from gkd.detectors.step import recorded
from gkd.frameworks import to_batch
from gkd.knowledge import RobustDistillingModule

SETTINGS = [dict(), dict(instances='gt'), dict(robust=False),
            dict(soft_label=dict(activation='sigmoid'))]


def one_step(family):
    """A distiller and one of its steps."""
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector())
    model.progress = 0.25
    _, step = model.observe(to_batch(**small.batch()))
    return model, step


@pytest.fixture(scope='module', params=small.FAMILIES)
def step(request):
    return one_step(request.param)


@fake_gpu
@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_knowledge_does_not_wait_for_the_device(step, settings):
    model, step = step
    with FakeTensorMode() as fake, torch.device('cuda'):
        module = RobustDistillingModule(model.pair, **settings)
        step = to_fake(step, fake, 'cuda')
        with StayOnDevice():
            losses = module(step)
    assert losses.keys() == RDM_TERMS
    assert {(loss.device.type, loss.dim()) for loss in losses.values()} == {('cuda', 0)}


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_backward_needs_no_values(step, settings):
    """On the CPU, as backward on a CUDA device that is not there cannot be traced."""
    model, step = step
    with FakeTensorMode() as fake:
        module = RobustDistillingModule(model.pair, **settings)
        step = to_fake(step, fake, 'cpu')
        sum(module(step).values()).backward()
        leaves = [*module.parameters(), *step.student.maps, step.student.logits]
        assert all(leaf.grad.shape == leaf.shape for leaf in leaves)


@fake_gpu
def test_reading_a_one_stage_step_does_not_wait_for_the_device():
    model = build_distiller(small.retinanet(24), small.retinanet())
    head, data = model.student.bbox_head, small.batch()
    with recorded(head, 'get_anchors') as anchors, recorded(head, 'forward') as forwards, \
            recorded(head.sampler, 'sample') as samples:
        model.student.forward_train(**data)
    with FakeTensorMode() as fake:
        call = copy.copy(anchors[0])
        call.result = to_fake(call.result, fake, 'cuda')
        sampled = [SimpleNamespace(pos_inds=to_fake(sample.result.pos_inds, fake, 'cuda'))
                   for sample in samples]
        scores = to_fake(forwards[0].result[0], fake, 'cuda')
        with StayOnDevice():
            positions = one_stage.positive_positions(
                sampled, call, data['img_metas'], head.train_cfg.allowed_border)
            logits = one_stage.logits_at(scores, positions, small.NUM_CLASSES)
    assert logits.shape == (len(positions), small.NUM_CLASSES) and len(positions) > 4


@fake_gpu
def test_reading_a_two_stage_step_does_not_wait_for_the_device():
    model, _ = one_step('two_stage')
    extractor = model.student.roi_head.bbox_roi_extractor
    with FakeTensorMode() as fake, StayOnDevice():
        rois = fake.from_tensor(torch.zeros(6, 5)).to('cuda')
        levels = two_stage.roi_levels(extractor, rois, model.pair)
        step = SimpleNamespace(boxes=[rois[:2, 1:]] * 2, proposals=[rois[:3, 1:]] * 2)
        rows = two_stage.positive_rows(rois, step)
    assert levels.device.type == 'cuda' and len(levels) == 6 and len(rows) == 4


SYNCS = dict(item=lambda x: x.sum().item(), cpu=lambda x: x.cpu(), tolist=lambda x: x.tolist(),
             nonzero=lambda x: x.nonzero(), mask=lambda x: x[x > 0], truth=lambda x: bool(x.any()),
             numpy=lambda x: x.numpy())


@fake_gpu
@pytest.mark.parametrize('sync', SYNCS)
def test_the_proof_notices(sync):
    """What the tests above rely on: every way of waiting for the device raises."""
    with FakeTensorMode(), StayOnDevice():
        on_device = torch.empty(3, 2, device='cuda')
        with pytest.raises(Exception):  # noqa: B017  (each way has an error of its own)
            SYNCS[sync](on_device)


def widened(step):
    """The step in float32."""
    def widen(tensor):
        return tensor.float() if tensor.is_floating_point() else tensor

    step = copy.copy(step)
    for name in ('student', 'teacher'):
        part = copy.copy(getattr(step, name))
        vars(part).update(tree_map_only(torch.Tensor, widen, vars(part)))
        setattr(step, name, part)
    return step


@pytest.mark.parametrize('family', small.FAMILIES)
def test_autocast_keeps_similarities_and_losses_in_float32(family):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model, step = one_step(family)
        rdm = model.knowledge[0]
        losses = rdm(step)
    assert step.student.maps[0].dtype == step.student.logits.dtype == torch.bfloat16
    for name in RDM_TERMS:
        assert losses[name].dtype == torch.float32 and losses[name].isfinite()
    exact = rdm(widened(step))
    for name in ('loss_global', 'loss_soft'):
        torch.testing.assert_close(losses[name], exact[name], rtol=1e-6, atol=0)
    # The convolutions may run in half precision, what comes after them not.
    torch.testing.assert_close(losses['loss_local_bg'], exact['loss_local_bg'], rtol=2e-2, atol=0)
    total(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters()
               if parameter.grad is not None)


@half_on_cpu
@pytest.mark.parametrize('family', small.FAMILIES)
def test_fp16_option_of_mmcv(family, monkeypatch):
    """mmcv's fp16 works on CUDA only; its own code runs here on the CPU's autocast."""
    monkeypatch.setattr(fp16_utils, 'autocast',
                        functools.partial(torch.autocast, 'cpu', dtype=torch.float16))
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector())
    fp16_utils.wrap_fp16_model(model)
    seen = []
    roi_align = importlib.import_module('mmcv.ops.roi_align').RoIAlign
    pool = roi_align.forward

    def forward(self, maps, rois):
        seen.append((maps.dtype, rois.dtype))
        return pool(self, maps, rois)

    monkeypatch.setattr(roi_align, 'forward', forward)
    with recorded(model, 'teacher_step') as steps:
        losses = model.forward(return_loss=True, **small.batch())
    assert steps[0].args[1].student.maps[0].dtype == torch.float16
    for name in RDM_TERMS:
        assert losses[name].dtype == torch.float32 and losses[name].isfinite()
    full = losses_of(build_distiller(detector(24), detector()), small.batch())
    torch.testing.assert_close(losses['loss_local_bg'], full['loss_local_bg'], rtol=5e-2, atol=0)
    # mmcv's compiled kernel refuses maps and RoIs of two precisions.
    assert all(maps == rois for maps, rois in seen)
    assert bool(seen) == (family == 'two_stage')
    total(losses).backward()
