"""A pair without a config: what is made of it, said about it, and trained."""

import re
import runpy
import sys

import pytest
import torch
from mmengine.config import Config
from small_experiments import CLASSES, TOOLS, detector, experiment

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.engine.config import load_config
from gkd.engine.distill import distillation_config
from gkd.errors import ConfigError
from gkd.frameworks import build_detector
from gkd.planning.door import schedule_of


@pytest.fixture
def pair(annotations, tmp_path):
    """A student's own config, and a teacher's with its checkpoint."""
    config = experiment(annotations, tmp_path / 'own')
    config.custom_hooks = [dict(type='NumClassCheckHook')]
    config.default_hooks.checkpoint.pop('type')
    config.default_hooks.checkpoint.pop('inside_epoch')
    config.auto_scale_lr = dict(enable=False, base_batch_size=4)
    config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
    config.test_cfg = dict(type='TestLoop')
    for name, channels in (('student', 16), ('teacher', 24)):
        config.model = detector('one_stage', channels)
        config.dump(tmp_path / f'{name}.py')
    weights = build_detector(config.model).state_dict()
    torch.save(dict(meta=dict(dataset_meta=dict(classes=CLASSES)), state_dict=weights),
               tmp_path / 'teacher.pth')
    return str(tmp_path / 'student.py'), f'{tmp_path}/teacher.py:{tmp_path}/teacher.pth'


def write(pair, folder, monkeypatch, capsys, *options):
    """Run the command; returns the config that it wrote and what it said."""
    monkeypatch.setattr(sys, 'argv', ['distill.py', *pair, '--work-dir', str(folder), *options])
    runpy.run_path(str(TOOLS.parent / 'distill.py'))['main']()
    path, said = capsys.readouterr()
    assert path.strip() == str(folder / f'{folder.name}.py')
    return load_config(path.strip()), said


def test_config_is_the_students_own_with_a_distiller_and_its_hooks(
        pair, tmp_path, monkeypatch, capsys):
    config, said = write(pair, tmp_path / 'work', monkeypatch, capsys, '--method', 'gkd+pkd',
                         '--epochs', '1', '--cfg-options', 'optim_wrapper.optimizer.lr=0.01')
    own = load_config(pair[0])
    assert [kind.type for kind in config.model.knowledge] == ['RobustDistillingModule', 'PKD']
    assert config.train_dataloader == own.train_dataloader
    assert [hook.type for hook in config.custom_hooks] == [
        'PrototypeHook', 'FiniteLossHook', 'ReportHook', 'NumClassCheckHook']
    assert config.default_hooks.checkpoint == dict(interval=1, type='ResumableCheckpointHook')
    assert config.custom_imports.imports == ['gkd']
    assert config.work_dir == str(tmp_path / 'work')
    for line in ('teaches    global knowledge, local knowledge, soft labels at the positives',
                 'teaches    PKD', '16 channels of the student, 24 of the teacher',
                 '3, to the teacher red, green, blue', 'images     as the teacher was trained on',
                 'schedule   1 epoch, 2 images per step, learning rate 0.005 (0.01 is for '):
        assert line in said
    costs = re.search(r'costs +([\d.]+) times the operations of training the student alone; '
                      r'0.0 GiB of each GPU', said)
    assert 1.4 < float(costs[1]) < 2.4


@pytest.mark.parametrize('named', ['math', ['math', 'gkd']])
def test_what_the_student_imports_is_imported(pair, named):
    with open(pair[0], 'a') as file:
        file.write(f'custom_imports = dict(imports={named!r}, allow_failed_imports=True)\n')
    imports = distillation_config(*pair).custom_imports
    assert imports.imports == ['gkd', 'math'] and imports.allow_failed_imports


def test_why_costs_are_not_known(pair, tmp_path, monkeypatch, capsys):
    student = load_config(pair[0])
    for loader in (student.train_dataloader, student.val_dataloader, student.test_dataloader):
        del loader.dataset.pipeline[2]  # the one that scales
    student.dump(pair[0])
    _, said = write(pair, tmp_path / 'work', monkeypatch, capsys)
    assert 'schedule   2 epochs' in said
    assert 'costs      not known: neither train_dataloader nor test_dataloader' in said


@pytest.mark.parametrize('resume', [False, True])
def test_student_starts_as_its_own_training_does(pair, tmp_path, resume):
    with open(pair[0], 'a') as file:
        file.write(f'load_from = {str(tmp_path / "teacher.pth")!r}\nresume = {resume}\n')
    config = distillation_config(*pair)
    assert config.model.student.checkpoint == str(tmp_path / 'teacher.pth')
    assert not config.get('load_from') and not config.get('resume')


@pytest.mark.slow
def test_what_was_written_trains(pair, tmp_path, monkeypatch, capsys):
    write(pair, tmp_path / 'work', monkeypatch, capsys, '--epochs', '1')
    path = str(tmp_path / 'work' / 'work.py')
    monkeypatch.setattr(sys, 'argv', ['train.py', path])
    runpy.run_path(str(TOOLS / 'train.py'))['main']()
    checkpoint = tmp_path / 'work' / 'epoch_1.pth'
    assert (tmp_path / 'work' / 'report.html').exists()
    printed = capsys.readouterr().out
    for line in ('| last, epoch 1 |', 'model:      RetinaNet on ResNet-18, taught by RetinaNet on',
                 f'export:     python tools/export_student.py {path} {checkpoint}'):
        assert line in printed
    rates = load_checkpoint_file(checkpoint)['optimizer']['param_groups']
    assert {group['initial_lr'] for group in rates} == {0.0025}  # of 0.005: 2 of 4 images


def test_a_preprocessor_beside_the_model_is_the_students_and_not_the_distillers(
        pair, tmp_path, monkeypatch, capsys):
    """As YOLOv3 and Mask2Former have it; the models may have it from there alone."""
    for name in ('student', 'teacher'):
        config = Config.fromfile(tmp_path / f'{name}.py')
        config.data_preprocessor = config.model.pop('data_preprocessor')
        config.dump(tmp_path / f'{name}.py')
    config, said = write(pair, tmp_path / 'work', monkeypatch, capsys)
    assert 'data_preprocessor' not in config
    assert 'images     as the teacher was trained on' in said
    assert build_detector(config.model).data_preprocessor.mean.flatten().tolist() == [127.0] * 3


def test_the_loop_of_a_training_is_no_setting_of_a_detector(pair, tmp_path, monkeypatch, capsys):
    """A teacher's config may be one for tests alone, without a `train_cfg` in its model."""
    config = Config.fromfile(tmp_path / 'teacher.py')
    del config.model.train_cfg
    config.dump(tmp_path / 'teacher.py')
    config, _ = write(pair, tmp_path / 'work', monkeypatch, capsys)
    assert build_detector(config.model).teacher.bbox_head.train_cfg is None


def test_images_that_are_converted_are_told(pair, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'teacher.py'
    path.write_text(path.read_text().replace('127.0', '100.0'))
    _, said = write(pair, tmp_path / 'work', monkeypatch, capsys)
    assert 'converted for the teacher, which was trained on RGB, mean 100' in said


@pytest.mark.parametrize('change, message', [
    (lambda student, teacher: (student, teacher.partition(':')[0]), 'needs its checkpoint'),
    (lambda student, teacher: (student, teacher.replace('.py', '.yaml')), 'must be CONFIG'),
])
def test_what_is_no_pair_is_refused(pair, change, message):
    with pytest.raises(ConfigError, match=message):
        distillation_config(*change(*pair))


def test_a_distillation_is_not_distilled_again(pair, tmp_path):
    config = distillation_config(*pair)
    assert config.work_dir == 'work_dirs/distill/student_from_teacher'
    config.dump(tmp_path / 'again.py')
    with pytest.raises(ConfigError, match='distillation config already'):
        distillation_config(str(tmp_path / 'again.py'), pair[1])
    assert Config.fromfile(tmp_path / 'again.py').model == config.model


def test_what_the_schedule_does_not_say_is_left_out(pair):
    config = distillation_config(*pair, options={'train_cfg.max_epochs': 3})
    assert schedule_of(config).describe(2) == '3 epochs, 4 images per step, learning rate 0.005'
    del config.optim_wrapper.optimizer['lr']
    assert schedule_of(config).describe(2) == '3 epochs, 4 images per step'
