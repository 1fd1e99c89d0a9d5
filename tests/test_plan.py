"""What a plan tells is what a training then takes."""

import copy
import os
import platform
import re
import subprocess
import sys
from dataclasses import astuple, replace

import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.running import REPOSITORY, run_tool
from helpers.small_plans import COSTS, HEIGHT, IMAGES, PROBES, WIDTH
from mmcv.runner import save_checkpoint
from mmdet.datasets import build_dataset
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gkd.errors import ConfigError
from gkd.frameworks import build_detector
from gkd.planning.cost import MeasuredStep, TensorMemory, noise
from gkd.planning.door import image_size, schedule_of
from gkd.planning.plan import make_plan
from gkd.running import load_config
from studies import small_models


@pytest.fixture(scope='module')
def plans(tmp_path_factory):
    """For both families a distillation config, its images larger than the probes, and its plan."""
    found = {}
    for family in small.FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        _, path = tiny_data.write_pair(folder, family, batch_size=IMAGES)
        (folder / 'teacher.pth').unlink()  # not needed
        config = load_config(path, {'data.train.pipeline.2.img_scale': (WIDTH, HEIGHT - 6)})
        found[family] = config, make_plan(config, probes=PROBES)
    return found


@pytest.fixture(params=small.FAMILIES)
def planned(request, plans):
    """A config and its plan."""
    return plans[request.param]


@pytest.fixture
def config(tmp_path):
    """A distillation config of the test's own."""
    return load_config(tiny_data.write_pair(tmp_path, 'one_stage')[1])


def test_parameters_and_operations(planned):
    config, plan = planned
    # Padded to a multiple of 32.
    assert (plan.width, plan.height, plan.schedule.images) == (WIDTH, HEIGHT, IMAGES)
    step = MeasuredStep(config)
    student, teacher, knowledge = (
        sum(tensor.numel() for tensor in part.parameters())
        for part in (step.model.student, step.model.teacher, step.model.knowledge))
    assert plan.parameters == dict(student=student, teacher=teacher, extra=knowledge)
    assert plan.trained == student + knowledge

    data = noise(WIDTH, HEIGHT, IMAGES, step.student)
    step.model.train_step(data.native, step.optimizer)
    with FlopCounterMode(display=False) as whole:
        step.model.train_step(data.native, step.optimizer)['loss'].backward()
    with FlopCounterMode(display=False) as alone:
        step.student._parse_losses(step.student.forward_train(**data.native))[0].backward()
    with FlopCounterMode(display=False) as teacher, torch.no_grad():
        step.model.teacher.extract_feat(data.images)
    with FlopCounterMode(display=False) as adaptation:
        for stride, layer in zip(step.model.pair.strides,
                                 step.model.knowledge[0].local_knowledge.adaptation):
            layer(torch.zeros(IMAGES, 16, HEIGHT // stride, WIDTH // stride,
                              requires_grad=True)).sum().backward()
    cost = plan.cost
    assert cost.student == pytest.approx(alone.get_total_flops(), rel=0.03)
    assert cost.student + cost.teacher + cost.extra == \
        pytest.approx(whole.get_total_flops(), rel=0.03)
    # Their heads and the instances come on top.
    assert cost.teacher > 0.97 * teacher.get_total_flops()
    assert cost.extra > 0.97 * adaptation.get_total_flops()


def test_costs_are_those_of_mmdetection_3(plans):
    """Which has the same test."""
    for family, (_, plan) in plans.items():
        assert astuple(plan.cost) == pytest.approx(COSTS[family], rel=0.02)


def test_a_student_that_trains_on_masks_gets_them(plans):
    """What its mask head computes comes on top."""
    config, plan = plans['two_stage']
    config = copy.deepcopy(config)
    config.model.student.config = small.mask_rcnn()
    cost = make_plan(config, probes=PROBES).cost
    assert cost.student > 1.02 * plan.cost.student and cost.teacher < 1.1 * plan.cost.teacher


def test_learned_proposals_are_those_that_a_training_starts_with(plans):
    """As they are built, some have a width below 0, and the step of QueryInst fails."""
    config = copy.deepcopy(plans['two_stage'][0])
    config.model = small_models.small_config('queryinst/queryinst_r50_fpn_1x_coco')
    boxes = MeasuredStep(config).student.rpn_head.init_proposal_bboxes.weight
    assert torch.equal(boxes, torch.tensor([0.5, 0.5, 1, 1]).expand_as(boxes))


def test_classes_of_noise_are_those_of_a_detector_without_a_head_of_boxes():
    detector = build_detector(
        small_models.small_config('mask2former/mask2former_r50_lsj_8x2_50e_coco'))
    labels = torch.cat(noise(64, 64, 8, detector).native['gt_labels'])
    assert labels.max() > 40 and labels.max() < 80


@pytest.mark.slow
def test_a_detector_for_images_of_one_size_is_measured_on_fewer_of_them(tmp_path, monkeypatch):
    """SSD's last maps, for instance, would have no cell in smaller images."""
    config = load_config(tiny_data.write_pair(tmp_path, 'one_stage', batch_size=6)[1])
    config.model.student.config = small.retinanet()
    config.model.student.config['bbox_head']['anchor_generator'] = dict(
        type='SSDAnchorGenerator', input_size=300, basesize_ratio_range=(0.15, 0.9),
        strides=[8, 16, 32, 64, 128], ratios=[[2]] * 5)
    sizes, run = [], MeasuredStep.run
    monkeypatch.setattr(MeasuredStep, 'run',
                        lambda step, *size: sizes.append(size) or run(step, *size))
    plan = make_plan(config, image=(300, 300), probes=PROBES)
    assert set(sizes) == {(300, 300, 2), (300, 300, 4)}
    exact = make_plan(config, image=(300, 300), exact=True)
    assert astuple(plan.cost) == pytest.approx(astuple(exact.cost), rel=0.05)


def test_costs_do_not_depend_on_the_learning_rate(plans):
    """Weights that a step has spoilt would give other proposals to the next."""
    config, plan = plans['two_stage']
    config = copy.deepcopy(config)
    config.optimizer.lr = 1e6
    assert make_plan(config, probes=PROBES).cost == plan.cost


def test_relations_between_all_cells_grow_with_the_pixels_too(config):
    """They would with their square, if every pair of cells were looked at."""
    config.model.knowledge = [dict(type='FBKD')]
    plan, exact = (make_plan(config, image=(WIDTH, HEIGHT), probes=PROBES, exact=whole)
                   for whole in (False, True))
    assert plan.cost.extra == pytest.approx(exact.cost.extra, rel=0.01)
    assert plan.cost.memory == pytest.approx(exact.cost.memory, rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs Linux with glibc')
def test_memory_is_what_a_step_takes(plans):
    """Against the resident memory of a process in a step on images larger than the probes."""
    # Freed tensors go back to the system at once, so that the peak is what was in use.
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='0')
    command = [sys.executable, REPOSITORY / 'tests/helpers/peak_memory.py', WIDTH, HEIGHT, IMAGES,
               *(config.filename for config, _ in plans.values())]
    printed = subprocess.run(list(map(str, command)), env=environment, check=True, timeout=900,
                             stdout=subprocess.PIPE, text=True).stdout
    measured = list(map(int, re.findall(r'^peak (\d+)$', printed, re.MULTILINE)))
    told = [plan.memory_parts['features and gradients'] for _, plan in plans.values()]
    assert told == pytest.approx(measured, rel=0.15)


def test_checkpoints_are_as_large_as_told(planned, tmp_path):
    config, plan = planned
    step = MeasuredStep(config)
    step.run(128, 128, 2)
    save_checkpoint(step.model, str(tmp_path / 'epoch_1.pth'), step.optimizer)
    assert os.path.getsize(tmp_path / 'epoch_1.pth') == \
        pytest.approx(plan.checkpoint_bytes, rel=0.15)


def test_memory_of_tensors_is_counted_once_and_until_they_are_freed():
    layer = nn.Linear(100, 50, bias=False)
    memory = TensorMemory()
    memory.add(layer.weight)
    with memory:
        inputs = torch.ones(10, 100)
        outputs = layer(inputs).view(500)
        assert memory.now == 4 * (5000 + 1000 + 500)
        outputs.sum().backward()  # holds what it needs
        del inputs, outputs
        assert memory.now == 4 * (5000 + 5000)
    assert memory.peak > memory.now


def test_memory_of_sparse_tensors_is_that_of_what_they_hold():
    with TensorMemory() as memory:
        sparse = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.ones(2), (4000,))
        assert memory.now >= 2 * 8 + 2 * 4 and memory.peak < 4000 and sparse.is_sparse


def test_several_gpus(planned):
    _, one = planned
    eight = replace(one, gpus=8)
    # DistributedDataParallel has the gradients twice.
    assert eight.memory - one.memory == 4 * one.trained
    assert '4 images of at most 384 x 256 on each of 8 GPUs, 32 a step' in eight.lines()[1]


def test_learning_rate_is_scaled_as_in_training(config):
    assert schedule_of(config).scaled_rate(gpus=16) == 0.01
    config.auto_scale_lr = dict(enable=True, base_batch_size=16)
    assert schedule_of(config).scaled_rate(gpus=16) == 0.02  # two images each
    config.auto_scale_lr.enable = False
    assert schedule_of(config).scaled_rate(gpus=16) == 0.01


def test_generation_of_many_images_per_pass_can_be_the_peak(planned):
    _, plan = planned
    assert plan.generation_images == 8
    # At the least, an image and the first layer's map, of half its width and height.
    assert plan.cost.generation > (3 * WIDTH * HEIGHT + 8 * WIDTH * HEIGHT / 4) * 4
    assert plan.memory == pytest.approx(sum(plan.memory_parts.values()))
    assert replace(plan, generation_images=1000).memory > 1000 * plan.cost.generation


@pytest.mark.parametrize('scales, padded, expected', [
    ((1333, 800), 32, (1344, 800)), ([(1333, 640), (1333, 800)], 32, (1344, 800)),
    ((600, 1000), 1, (1000, 600))])
def test_largest_image_of_a_pipeline(config, scales, padded, expected):
    config.data.train.pipeline[2].img_scale = scales
    config.data.train.pipeline[5].size_divisor = padded
    config.data.train = dict(type='RepeatDataset', times=2, dataset=config.data.train)
    assert image_size(config) == expected
    config.data.train = [config.data.train, config.data.train]
    assert image_size(config) == expected


def test_pipeline_without_a_size(config):
    del config.data.train.pipeline[2]
    assert image_size(config) == (128, 128)  # that of the test pipeline
    del config.data.test.pipeline[1]
    with pytest.raises(ConfigError, match='--size WIDTH HEIGHT'):
        image_size(config)


@pytest.mark.parametrize('settings, expected', [
    (None, 0), (dict(interval=5), 5), (dict(interval=5, save_last=False), 4),
    (dict(interval=1, max_keep_ckpts=2), 2), (dict(interval=-1), 1)])
def test_kept_checkpoints(config, settings, expected):
    config.checkpoint_config = settings
    config.runner.max_epochs = 24
    assert schedule_of(config).checkpoints == expected


def test_command(tmp_path):
    tiny_data.write_pair(tmp_path, 'one_stage')
    status, printed, stderr = run_tool('plan', tmp_path / 'distiller.py', '--gpus', 2)
    assert status == 0, stderr
    assert '2 images of at most 128 x 128 on each of 2 GPUs, 4 a step' in printed
    for name in ('student', 'teacher', 'extra'):
        assert re.search(rf'{name} [\d.]+ [kMG]', printed)
    assert 'images to run:' in printed and 'untrained' not in stderr
    # A plain detector, without annotations.
    (tmp_path / 'annotations.json').unlink()
    status, printed, stderr = run_tool('plan', tmp_path / 'student.py')
    assert status == 0, stderr
    assert 'teacher' not in printed and 'images to run' not in printed
    status, _, stderr = run_tool('plan', tmp_path / 'distiller.py', '--cfg-options',
                                 'optimizer.type=Nothing')
    assert status == 2 and 'optimizer' in stderr and 'Traceback' not in stderr


def test_passes_of_a_training_that_counts_iterations_are_those_of_its_wrappers(tmp_path):
    tiny_data.write_data(tmp_path)
    _, path = tiny_data.write_pair(tmp_path, 'one_stage', batch_size=1)
    config = load_config(path)
    single = len(build_dataset(config.data.train))
    config.runner = dict(type='IterBasedRunner', max_iters=6 * single)
    config.data.train = dict(type='RepeatDataset', times=3, dataset=config.data.train)
    config.dump(str(tmp_path / 'repeated.py'))
    _, printed, _ = run_tool('plan', tmp_path / 'repeated.py', '--only-prototypes')
    assert re.search(r'generations: +2, so', printed)


@pytest.mark.parametrize('option, only, says', [
    ('model.prototypes.min_size=999', 'error: no prototype can be chosen: no box in ', ' 999 '),
    ('data.train.type=LVISV1Dataset', 'error: data.train: ImportError: ', 'lvis'),
])
def test_prototypes_that_cannot_be_planned(tmp_path, monkeypatch, option, only, says):
    monkeypatch.setitem(sys.modules, 'lvis', None)
    _, path = tiny_data.write_pair(tmp_path, 'one_stage')
    status, printed, stderr = run_tool('plan', path, '--only-prototypes', '--cfg-options', option)
    assert status == 2 and only in stderr and says in stderr and 'images to run' not in printed


def test_the_class_space_can_be_planned(config):
    usual = make_plan(config, probes=PROBES)
    config.model.knowledge = [dict(type='RobustDistillingModule',
                                   global_knowledge=dict(space='classes'))]
    step = MeasuredStep(config)
    assert [rows.shape[1] for rows in step.model.bank.class_features] == [24] * 5
    assert make_plan(config, probes=PROBES).cost.extra > 1.5 * usual.cost.extra
