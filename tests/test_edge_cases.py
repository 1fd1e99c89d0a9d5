"""What data and features can be like: the losses and their gradients stay finite."""

import json

import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.running import run_tool
from helpers.synthetic_steps import info, pair_of, synthetic_step
from mmcv import Config
from mmdet.models import build_detector

from gkd.knowledge import RobustDistillingModule
from gkd.prototypes import PrototypeBank


def build(family, **knowledge):
    torch.manual_seed(0)
    model = build_detector(Config(dict(model=small.distiller(
        small.FAMILIES[family](24), small.FAMILIES[family](),
        knowledge=[dict(type='RobustDistillingModule', **knowledge)]))).model)
    model.init_weights()
    model.bank = small.random_bank(model.pair)
    return model.train()


def step(model, data):
    """Losses of a step; the gradients must be finite too."""
    outputs = model.train_step(data, None)
    outputs['loss'].backward()
    assert all(torch.tensor(value).isfinite() for value in outputs['log_vars'].values())
    gradients = [parameter.grad for parameter in model.parameters()
                 if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    return outputs['log_vars']


@pytest.mark.parametrize('family', small.FAMILIES)
def test_features_and_prototypes_without_length(family):
    model = build(family)
    for convolution in model.student.neck.modules():
        if isinstance(convolution, torch.nn.Conv2d):
            torch.nn.init.zeros_(convolution.weight)
            torch.nn.init.zeros_(convolution.bias)
    for prototypes in (*model.bank.student, *model.bank.teacher):
        prototypes[0] = 0
    assert step(model, small.batch())['loss_global'] > 0


@pytest.mark.parametrize('family', small.FAMILIES)
def test_class_that_is_seen_first_after_the_bank_was_built(family):
    model = build(family)
    # Of three classes the last has no prototype, and all boxes are of that class.
    full = model.bank
    model.bank = PrototypeBank([level[:4] for level in full.student],
                               [level[:4] for level in full.teacher],
                               [torch.tensor([0, 2, 4, 4]) for _ in full.offsets])
    data = small.batch()
    data['gt_labels'] = [torch.full_like(labels, 2) for labels in data['gt_labels']]
    losses = step(model, data)
    assert losses['loss_global'] > 0 and losses['loss_local_fg'] > 0
    # No class at all has one.
    model = build(family)
    model.bank = PrototypeBank([level[:0] for level in full.student],
                               [level[:0] for level in full.teacher],
                               [torch.zeros(4, dtype=torch.long) for _ in full.offsets])
    losses = step(model, data)
    assert losses['loss_global'] == 0 and losses['loss_local_fg'] > 0


@pytest.mark.parametrize('family', small.FAMILIES)
@pytest.mark.parametrize('instances', ['positives', 'gt'])
def test_batch_without_boxes(family, instances):
    losses = step(build(family, instances=instances), small.batch(boxes=()))
    assert losses['loss_global'] == losses['loss_local_fg'] == losses['loss_soft'] == 0
    assert losses['loss_local_bg'] > 0


@pytest.mark.parametrize('family', small.FAMILIES)
@pytest.mark.parametrize('instances', ['positives', 'gt'])
def test_boxes_outside_of_the_image(family, instances):
    boxes = ((-40, -30, 20, 25), (100, 90, 190, 160), (200, 200, 260, 250), (-90, -80, -10, -5))
    step(build(family, instances=instances), small.batch(boxes=boxes))


def test_data_set_with_everything_odd(tmp_path):
    """Crowds, boxes across and beyond the border, a class of one instance, an image without."""
    sizes = tiny_data.SIZES + ((128, 96),) * 2
    annotations = tiny_data.write_data(tmp_path, sizes=sizes, empty_images=1)
    content = json.loads(annotations.read_text())
    found = content['annotations']
    blue = [box for box in found if box['category_id'] == 3]
    content['annotations'] = [box for box in found if box not in blue[1:]]

    def add(**settings):
        content['annotations'].append(dict(dict(
            id=len(content['annotations']) + 100, image_id=1, category_id=1, iscrowd=0,
            area=1600), **settings))

    add(bbox=[0, 0, 126, 94], iscrowd=1)
    add(bbox=[110, 70, 60, 50])      # across the border
    add(bbox=[300, 300, 50, 50])     # beyond it
    add(bbox=[10, 10, 0, 40])        # without area
    annotations.write_text(json.dumps(content))
    _, config = tiny_data.write_pair(tmp_path, 'one_stage', epochs=1, batch_size=1)
    status, _, stderr = run_tool('train', config, '--work-dir', tmp_path / 'work',
                                 '--no-validate', '--cfg-options',
                                 'data.train.filter_empty_gt=False')
    assert status == 0, stderr
    bank = PrototypeBank.load(tmp_path / 'work' / 'prototypes' / 'epoch_1.safetensors')
    origins = json.loads(bank.metadata['origins'])
    for level in range(bank.num_levels):
        boxes = [box for _, box, _ in origins[level]]
        assert [0, 0, 126, 94] not in boxes and [300, 300, 350, 350] not in boxes
        begin, end = bank.offsets[level][2:4].tolist()
        assert end - begin == 3
        # The one instance of its class is chosen every time.
        x, y, width, height = blue[0]['bbox']
        assert boxes[begin:end] == [[x, y, x + width, y + height]] * 3
        assert (bank.student[level][begin:end] == bank.student[level][begin]).all()
    state = torch.load(tmp_path / 'work' / 'latest.pth')['state_dict']
    assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize('role', ['teacher', 'student'])
def test_features_of_boxes_that_are_in_no_maps_space(role):
    """As those of a C4 head: the boxes are weighed as they are pooled from the maps."""
    detectors = dict(teacher=info('two-stage'), student=info('two-stage'))
    detectors[role] = info('two-stage', pools_maps=False)
    pair = pair_of(**detectors)
    step = synthetic_step('two-stage', bank=small.random_bank(pair))
    module = RobustDistillingModule(pair)
    usual = module(step)['loss_soft']
    getattr(step, role).roi_features = torch.rand(len(step.labels), 32, 7, 7)
    assert torch.equal(module(step)['loss_soft'], usual)


def test_a_place_that_no_box_of_its_class_holds_is_trusted():
    fcos = info(samples_positives=False, trains_places=True, anchors=())
    pair = pair_of(fcos, fcos)
    step = synthetic_step(bank=small.random_bank(pair))
    cells = sum(feature.shape[-2:].numel() for feature in step.student.maps)
    for part in (step.student, step.teacher):
        part.dense.logits = torch.randn(2, cells, pair.num_classes)
    step.place_labels = torch.full((2, cells), pair.num_classes)
    step.place_labels[0, -1] = 1  # the first image has no box of this class
    module = RobustDistillingModule(pair)
    torch.testing.assert_close(module(step)['loss_soft'], module.soft_label(
        step.student.dense.logits[0, -1:], step.teacher.dense.logits[0, -1:],
        torch.ones(1))['loss_soft'])
