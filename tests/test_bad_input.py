"""What a user can get wrong: one message with file, key or value and what to do, exit status 2.

Nothing is trained, and nothing is written.
"""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.other_training import other_training
from helpers.refusals import append, edit, files, refuse, refuse_training, train
from helpers.running import REPOSITORY, run_tool, succeed

from gkd.commands.options import replace_epochs
from gkd.running.config import load_config


@pytest.mark.parametrize('tool, args', [
    ('train', ['nowhere.py', '--work-dir', 'work']),
    ('test', ['nowhere.py', 'teacher.pth']),
    ('export_student', ['nowhere.py', 'teacher.pth']),
])
def test_no_such_config(folder, tool, args):
    refuse(folder, tool, *args, says=['no such config file: nowhere.py'])


@pytest.mark.filterwarnings('error::pytest.PytestUnraisableExceptionWarning')
def test_config_that_is_none(folder):
    (folder / 'broken.py').write_text('model = dict(')
    refuse(folder, 'train', 'broken.py', says=['cannot read config broken.py', 'SyntaxError'])
    (folder / 'empty.py').write_text('')
    refuse(folder, 'train', 'empty.py', says=['empty.py', '`model`'])
    (folder / 'variable.py').write_text('model = dict(type="${gone.key}")\ndata = dict()')
    refuse(folder, 'train', 'variable.py', says=['variable.py', 'gone'])
    (folder / 'base.py').write_text('_base_ = ["./gone.py"]')
    refuse(folder, 'train', 'base.py', says=['base.py', 'gone.py'])
    append('distiller.py', 'del data["val"]')
    refuse_training(folder, says=['distiller.py', 'val'])


@pytest.mark.parametrize('key', ['optimizer', 'lr_config'])
def test_config_that_lacks_what_training_needs(folder, key):
    append('distiller.py', f'del {key}')
    refuse_training(folder, says=['distiller.py', key])


@pytest.mark.parametrize('option, says', [
    # At the end of the first epoch, mmcv would end in a TypeError, or train two epochs for 1.5.
    ('checkpoint_config.interval=often', "checkpoint_config.interval = 'often': must be a whole"),
    ('checkpoint_config.max_keep_ckpts=1.5', 'checkpoint_config.max_keep_ckpts = 1.5: must be a'),
    ('runner.max_epochs=1.5', 'runner.max_epochs = 1.5: must be a whole number from 1 on'),
    ('runner.max_epochs=None', 'runner.max_epochs = None: must be at least 1'),
    ('log_config.interval=5s', "log_config.interval = '5s': must be a whole number"),
    ('data.workers_per_gpu=-1', 'data.train_dataloader.workers_per_gpu = -1: must be a whole'),
    ('optimizer_config.grad_clip=35', 'optimizer_config.grad_clip = 35: must be a dict'),
    ('runner=12', 'runner = 12: must be a dict'),
    ('evaluation=None', 'evaluation = None: must be a dict. Without any evaluation: --no-val'),
    ('evaluation.metric=None', 'evaluation.metric None: RetinaNet'),
    ('auto_scale_lr.enable=True', 'Add auto_scale_lr = dict(enable=True, base_batch_size=16)'),
    ('workflow=train', 'workflow = train: '),
    ('log_level=loud', "log_level: ValueError: Unknown level: 'loud'"),
    ('data.val=None', 'data.val = None; leave it out, or give'),
    ('data.train=[]', 'data.train = [] names no data set'),
    ('data.train.pipeline.2.type=Resise', "data.train.pipeline.2: KeyError: 'Resise is not in"),
    ('data.train.pipeline.3.flip=1',
     "data.train.pipeline.3: RandomFlip has no setting 'flip'; it takes flip_ratio, direction. "),
    ('data.val.pipeline.1.flip_ratio=1',
     "data.val.pipeline.1: MultiScaleFlipAug has no setting 'flip_ratio' (did you mean "
     'flip_direction?); it takes transforms, img_scale, '),
    ('data.sample_per_gpu=1', 'nothing reads a setting `sample_per_gpu` of `data`'),
    ('auto_scale_lr.enabled=True', 'of `auto_scale_lr`, so that it would have no effect. It takes '
                                   'enable, base_batch_size. Did you mean enable?'),
    ('model.prototype.interval=2',
     "Distiller has no setting 'prototype' (did you mean prototypes?)"),
    ('model.prototypes.intervals=2', "no setting 'intervals' (did you mean interval?)"),
    ('model.knowledge.0.instance=gt', "no setting 'instance' (did you mean instances?)"),
    ('runner.max_epoch=2', "no setting 'max_epoch' (did you mean max_epochs"),
    ('data.train.times=2', 'data.train.times: CocoDataset has no such setting'),
    ('model.student=student.py', "model.student = 'student.py': must be a dict with `config`")])
def test_values_that_would_be_met_late_or_never(folder, option, says):
    status, _, stderr = run_tool('train', 'distiller.py', '--work-dir', 'work', '--cfg-options',
                                 option)
    assert status == 2 and says in stderr, stderr
    assert not (folder / 'work').exists()


def test_a_data_set_whose_package_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lvis', None)
    refuse_training(folder, '--cfg-options', 'data.train.type=LVISV1Dataset',
                    says=['error: data.train: LVISV1Dataset: Package lvis is not installed'])


def test_a_step_of_a_pipeline_whose_package_is_missing(folder, monkeypatch):
    monkeypatch.setattr('mmdet.datasets.pipelines.transforms.Compose', None)  # of albumentations
    append('distiller.py', 'data["train"]["pipeline"].insert(2, dict(type="Albu", transforms=[]))')
    refuse_training(folder, says=['data.train.pipeline.2: RuntimeError: Albu: albumentations is '
                                  'not installed. Mend this step, or leave it out.'])


def test_a_misspelt_setting_of_checkpoints(folder):
    """mmcv meets it at the end of the first epoch."""
    refuse_training(folder, '--cfg-options', 'checkpoint_config.intervall=3',
                    says=['checkpoint_config has unknown settings intervall', 'interval, '])


@pytest.mark.parametrize('role', ['teacher', 'student'])
def test_no_such_detector_config(folder, role):
    refuse_training(folder, '--cfg-options', f'model.{role}.config=gone.py',
                    says=[f'model.{role}.config', 'gone.py'])
    refuse_training(folder, '--cfg-options', f'model.{role}.config=mmdet::retinanet/gone.py',
                    says=[f'model.{role}.config', 'gone.py', 'looked in'])


@pytest.mark.parametrize('role', ['teacher', 'student'])
def test_no_such_checkpoint(folder, role):
    refuse_training(folder, '--cfg-options', f'model.{role}.checkpoint=gone.pth',
                    says=[f'model.{role}.checkpoint', 'gone.pth'])


def test_no_checkpoint_to_resume_test_or_export(folder):
    refuse_training(folder, '--resume', 'gone.pth', says=['--resume', 'gone.pth'])
    refuse_training(folder, '--cfg-options', 'resume_from=gone.pth',
                    says=['resume_from', 'gone.pth'])
    refuse_training(folder, '--cfg-options', 'load_from=gone.pth', says=['load_from', 'gone.pth'])
    refuse(folder, 'test', 'distiller.py', 'gone.pth', says=['gone.pth'])
    refuse(folder, 'export_student', 'distiller.py', 'gone.pth', says=['gone.pth'])


def test_a_folder_is_no_checkpoint(folder):
    (folder / 'run').mkdir()
    (folder / 'run' / 'epoch_3.pth').touch()
    says = ['run is a folder', 'such as run/epoch_3.pth']
    for key in ('model.teacher.checkpoint', 'resume_from', 'load_from'):
        refuse_training(folder, '--cfg-options', f'{key}=run', says=[f'{key}: ', *says])
    refuse_training(folder, '--resume', 'run', says=['--resume: ', *says])
    refuse(folder, 'test', 'distiller.py', 'run', says=says)
    refuse(folder, 'export_student', 'distiller.py', 'run', says=says)


@pytest.mark.parametrize('role', ['teacher', 'student'])
def test_checkpoint_of_another_detector(folder, role):
    tiny_data.write_weights('other.pth', small.retinanet(32))
    refuse_training(folder, '--cfg-options', f'model.{role}.checkpoint=other.pth',
                    says=['other.pth', 'neck.fpn_convs.0.conv.weight', '32', 'widths'])
    tiny_data.write_weights('family.pth', small.faster_rcnn())
    refuse_training(folder, '--cfg-options', f'model.{role}.checkpoint=family.pth',
                    says=['family.pth', 'rpn_head', 'bbox_head'])


def test_checkpoint_of_another_detector_to_test_export_or_resume(folder):
    tiny_data.write_weights('other.pth', small.retinanet(32))
    refuse(folder, 'test', 'distiller.py', 'other.pth', says=['other.pth', 'neck'])
    refuse(folder, 'export_student', 'distiller.py', 'other.pth', 'out.pth',
           says=['other.pth', 'neck'])
    refuse(folder, 'export_student', 'student.py', 'teacher.pth', 'teacher.pth',
           says=['teacher.pth', 'another file'])


@pytest.mark.parametrize('role', ['teacher', 'student'])
def test_weights_that_are_not_finite(folder, role):
    small_detector = small.retinanet(24 if role == 'teacher' else 16)
    weights = torch.load(tiny_data.write_weights('diverged.pth', small_detector))
    weights['state_dict']['bbox_head.retina_cls.weight'][0] = float('nan')
    torch.save(weights, 'diverged.pth')
    refuse_training(folder, '--cfg-options', f'model.{role}.checkpoint=diverged.pth',
                    says=[f'model.{role}.checkpoint: 1 weights of diverged.pth',
                          'bbox_head.retina_cls.weight'])


def test_damaged_checkpoint(folder):
    whole = (folder / 'teacher.pth').read_bytes()
    (folder / 'teacher.pth').write_bytes(whole[:len(whole) // 2])
    refuse_training(folder, says=['teacher.pth'])
    (folder / 'page.pth').write_text('<html>Not found</html>')
    refuse(folder, 'test', 'student.py', 'page.pth', says=['page.pth'])


@pytest.mark.parametrize('part', ['train', 'val'])
def test_no_such_image_folder(folder, part):
    refuse_training(folder, '--cfg-options', f'data.{part}.img_prefix=gone/',
                    says=[f'data.{part}.img_prefix', 'gone/'])


def test_image_missing(folder):
    (folder / 'images' / 'image_2.png').unlink()
    refuse_training(folder, says=['data.train', '1 of 4 images', 'image_2.png', 'remove them'])
    append('distiller.py', 'data["train"]["img_prefix"] = "."')
    refuse_training(folder, says=['4 of 4 images', 'Set `img_prefix` to their folder'])
    tiny_data.write_weights('student.pth', small.retinanet())
    refuse(folder, 'test', 'student.py', 'student.pth', says=['data.test', 'image_2.png'])


@pytest.mark.parametrize('part', ['train', 'val'])
def test_no_such_annotations(folder, part):
    refuse_training(folder, '--cfg-options', f'data.{part}.ann_file=gone.json',
                    says=[f'data.{part}.ann_file', 'gone.json'])


@pytest.mark.parametrize('content', [
    'not JSON', '[1, 2]', '{"images": []}', '{"images": [], "annotations": []}',
    '{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "red"}]}',
    '"text"', '{"images": 3, "annotations": 4, "categories": 5}', '',
])
def test_annotations_that_are_not_coco(folder, content):
    (folder / 'annotations.json').write_text(content)
    refuse_training(folder, says=['data.train', 'annotations.json'])


def test_annotations_without_any_box_of_the_classes(folder):
    edit(folder / 'annotations.json', lambda content: content['annotations'].clear())
    refuse_training(folder, says=['data.train', 'annotations.json', 'without boxes'])


@pytest.mark.parametrize('count, says', [
    (2, ['teacher RetinaNet has 2 classes', 'student RetinaNet has 3', 'num_classes']),
    (5, ['the teacher has 5 classes, data.train has 3', 'model.teacher.classes'])])
def test_teacher_and_student_count_classes_differently(folder, count, says):
    teacher = small.retinanet(num_classes=count)
    weights = tiny_data.write_weights('other.pth', teacher)  # without names of classes
    append('distiller.py', f'model["teacher"] = dict(config={teacher!r}, checkpoint={weights!r})')
    refuse_training(folder, says=says)


@pytest.mark.parametrize('part', ['train', 'val'])
def test_detector_and_data_count_classes_differently(folder, part):
    append('distiller.py', f'data["{part}"]["classes"] = ["red", "green"]')
    refuse_training(folder, says=['RetinaNet detects 3 classes', f'data.{part} has 2',
                                  'red, green', 'num_classes'])


def test_a_mask_head_that_counts_other_classes(folder):
    student = small.mask_rcnn()
    student['roi_head']['mask_head']['num_classes'] = 80
    append('distiller.py', f'model["student"] = dict(config={student!r})')
    refuse_training(folder, says=['roi_head.mask_head.num_classes = 80', 'detects 3 classes'])


def test_tested_detector_and_data_count_classes_differently(folder):
    weights = tiny_data.write_weights('student.pth', small.retinanet())
    append('student.py', 'data["test"]["classes"] = ["red", "green"]')
    refuse(folder, 'test', 'student.py', weights,
           says=['RetinaNet detects 3 classes', 'data.test has 2'])


def test_class_names_that_the_annotations_do_not_have(folder):
    # Left to MMDetection, all 80 classes of COCO would be searched for, and three found by number.
    append('distiller.py', 'data["train"]["classes"] = ["red", "grean", "blue"]')
    refuse_training(folder, says=['data.train', '1 of 3 classes', 'grean', 'red, green, blue'])


def in_another_order(folder, part):
    """Let a data set have a file with its categories in another order."""
    content = json.loads((folder / 'annotations.json').read_text())
    content['categories'].reverse()
    (folder / 'reversed.json').write_text(json.dumps(content))
    append('distiller.py', f'data["{part}"]["ann_file"] = "reversed.json"')


@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_classes_that_the_annotations_have_in_another_order(folder, part):
    # Left to MMDetection, they would be numbered as in the file, and 1 and 3 be mixed up.
    in_another_order(folder, part)
    says = [f'data.{part}', 'red, green, blue', 'reversed.json lists them as blue, green, red',
            '`classes`', '"categories"']
    if part == 'test':
        weights = tiny_data.write_weights('student.pth', small.retinanet())
        refuse(folder, 'test', 'distiller.py', weights, says=says)
    else:
        refuse_training(folder, says=says)


@pytest.mark.parametrize('part, says', [
    ('train', 'a data set in data.train has other classes than its first one: green, blue, grey'),
    ('val', 'data.val has other classes than data.train: green, blue, grey, and there red, ')])
def test_data_sets_that_number_classes_differently(folder, part, says):
    """Left to MMDetection, a label would stand for another class in each."""
    edit(folder / 'annotations.json',
         lambda content: content['categories'].append(dict(id=4, name='grey')))
    append('distiller.py', f'other = dict(data["{part}"], classes=["green", "blue", "grey"])\n'
                           f'data["{part}"] = [data["train"], other] if {part == "train"} '
                           'else other')
    refuse_training(folder, says=[says])


def test_classes_in_the_order_of_the_annotations_are_accepted(folder):
    for part in ('train', 'val'):
        in_another_order(folder, part)
        append('distiller.py', f'data["{part}"]["classes"] = ["blue", "red"]')
    # The file has one category more, between them.
    refuse_training(folder, says=['RetinaNet detects 3 classes'])


def test_two_categories_of_one_name(folder):
    edit(folder / 'annotations.json',
         lambda content: content['categories'].append(dict(id=9, name='green')))
    refuse_training(folder, says=['data.train', 'annotations.json', 'several categories', 'green'])


def test_teacher_that_has_the_classes_in_another_order(folder):
    checkpoint = torch.load('teacher.pth')
    checkpoint['meta']['CLASSES'] = ('red', 'blue', 'green')
    torch.save(checkpoint, 'teacher.pth')
    refuse_training(folder, says=['model.teacher.checkpoint', 'red, blue, green',
                                  'data.train has red, green, blue'])
    # MMDetection 3 writes them elsewhere.
    checkpoint['meta']['dataset_meta'] = dict(classes=checkpoint['meta'].pop('CLASSES'))
    torch.save(checkpoint, 'teacher.pth')
    refuse_training(folder, says=['red, blue, green', 'data.train has red, green, blue'])
    # They may have got other names since.
    del checkpoint['meta']['dataset_meta']
    checkpoint['meta']['CLASSES'] = ('red', 'vert', 'bleu')
    torch.save(checkpoint, 'teacher.pth')
    said = train('--no-validate', '--epochs', '1')
    assert 'Epoch [1]' in said and 'the teacher knows red, vert, bleu, data.train has' in said


@pytest.mark.parametrize('place', ['CLASSES', 'dataset_meta'])  # of MMDetection 2 and 3
def test_tested_detector_that_has_the_classes_in_another_order(folder, place):
    checkpoint = torch.load(tiny_data.write_weights('student.pth', small.retinanet()))

    def name_classes(*names):
        checkpoint['meta'] = {place: names if place == 'CLASSES' else dict(classes=names)}
        torch.save(checkpoint, 'student.pth')

    name_classes('red', 'blue', 'green')
    refuse(folder, 'test', 'student.py', 'student.pth', says=[
        'student.pth was trained on red, blue, green, data.test has red, green, blue; class 1 is'])
    name_classes('red', 'vert', 'bleu')  # they may have got other names since
    said = succeed('test', 'student.py', 'student.pth')[1]
    assert 'student.pth was trained on red, vert, bleu' in said and 'just renamed' in said
    checkpoint['meta'] = {}
    torch.save(checkpoint, 'student.pth')
    assert 'was trained on' not in succeed('test', 'student.py', 'student.pth')[1]


def test_strides_that_cannot_be_paired(folder):
    student = small.retinanet()
    student['neck'].update(start_level=3, num_outs=2)
    student['bbox_head']['anchor_generator']['strides'] = [32, 64]
    teacher = small.retinanet()
    teacher['neck'].update(start_level=1, end_level=2, num_outs=2, add_extra_convs=False)
    teacher['bbox_head']['anchor_generator']['strides'] = [8, 16]
    weights = tiny_data.write_weights('strides.pth', teacher)
    append('distiller.py', f'model["teacher"] = dict(config={teacher!r}, checkpoint={weights!r})\n'
                           f'model["student"] = dict(config={student!r})')
    refuse_training(folder, says=['strides', '(8, 16)', '(32, 64)'])


@pytest.mark.parametrize('part, channels', [('neck', dict(in_channels=[8, 16, 32, 128])),
                                            ('bbox_head', dict(in_channels=48))])
def test_channels_that_do_not_fit(folder, part, channels):
    student = small.retinanet()
    student[part].update(channels)
    append('distiller.py', f'model["student"] = dict(config={student!r})')
    refuse_training(folder, says=['student RetinaNet', 'channels'])


def test_no_runner(folder):
    append('distiller.py', 'del runner')
    refuse_training(folder, says=['has no `runner`', 'max_epochs'])


def test_two_numbers_of_epochs(folder):
    """The first is the former name of the second."""
    append('distiller.py', 'total_epochs = 3')
    refuse_training(folder, says=['total_epochs = 3', 'runner.max_epochs = 2', 'differ'])
    append('distiller.py', 'total_epochs = 2')
    config = load_config('distiller.py')
    replace_epochs(config, 5)
    Path('kept.py').write_text(config.pretty_text)
    assert load_config('kept.py').runner.max_epochs == 5


@pytest.mark.parametrize('option, says', [
    ('model.student.config.x=1', ['model.student']),
    ('model.knowledge.0.type=Telepathy', ['Telepathy', 'RobustDistillingModule']),
    ('model.knowledge.0.instance=gt', ['model.knowledge', 'instance']),
    ('model.knowledge.0.soft_label.heat=2', ['soft_label', 'heat', 'temperature']),
    ('model.knowledge.3.type=x', ['--cfg-options', 'model.knowledge']),
    ('model.prototypes.interval=0', ['model.prototypes.interval = 0', 'whole number from 1 on']),
    ('model.prototypes.images=5', ['model.prototypes', 'images']),
    ('model.type=Distillr', ['Distillr']),
    ('runner.type=IterBasedRunner', ['runner.max_iters = None', 'at least 1']),
    ('runner.type=Walker', ['Walker', 'EpochBasedRunner']),
    ('runner.max_epochs=0', ['runner.max_epochs = 0']),
    ('optimizer.type=SDG', ['optimizer', 'SDG']),
    ('data.samples_per_gpu=0', ['data.train_dataloader.samples_per_gpu = 0', 'from 1 on']),
    ('custom_hooks=["EMAHook"]', ['custom_hooks[0]', 'EMAHook', 'config file']),
    pytest.param('fp16.loss_scale=dynamic', ['`fp16`', 'fp16=None'], marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason='needs a machine without a GPU')),
    ('optimizer.speed=3', ['optimizer', 'speed']),
    ('lr_config.policy=stairs', ['lr_config', 'Stairs']),
    ('log_config=[1]', ['log_config']),
    ('model.teacher.checkpoint=3', ['model.teacher']),
    ('evaluation.metric=boxes', ['evaluation.metric', 'boxes', 'bbox']),
    ('evaluation.save=1', ['evaluation', 'save']),
    ('data.train.type=Coco', ['data.train', 'Coco']),
])
def test_settings(folder, option, says):
    append('distiller.py', 'model["knowledge"][0]["soft_label"] = dict()')
    refuse_training(folder, '--cfg-options', option, says=says)


META_KEYS = ('filename', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor')


@pytest.mark.parametrize('steps, says', [
    ('[]', ['data.train.pipeline', 'has no img and no img_metas', 'Collect']),
    (f'[*steps[:-1], dict(steps[-1], meta_keys={META_KEYS[:2]})]', [
        'a training step with those of data.train', "KeyError: 'pad_shape'", '`meta_keys`']),
    ('[*steps[:-1], dict(type="Collect", keys=["img"])]', [
        'a training step with those of data.train', "'gt_bboxes'", '`keys`'])])
def test_a_training_pipeline_that_does_not_give_what_a_step_needs(folder, steps, says):
    """Left alone, it would fail after the prototypes have been made."""
    append('distiller.py', 'steps = data["train"]["pipeline"]\n'
                           f'data["train"]["pipeline"] = {steps}\ndel steps')
    refuse_training(folder, says=says)


def test_prototypes_of_images_in_which_boxes_are_not_known(folder):
    append('distiller.py', 'data["test"]["pipeline"][-1]["transforms"][-1]["meta_keys"] = '
                           f'{META_KEYS[:4]}')
    refuse_training(folder, says=['annotations.json', 'does not tell scale_factor', '`meta_keys`'],
                    logged=True)


def test_prototypes_of_a_plain_detector(folder):
    append('distiller.py', 'custom_hooks = [dict(type="PrototypeHook")]\n'
           'from mmcv import Config; model = Config.fromfile("student.py").model')
    refuse_training(folder, says=['PrototypeHook, which serves a Distiller', 'RetinaNet'],
                    logged=True)


def test_no_instance_for_any_prototype(folder):
    refuse_training(folder, '--cfg-options', 'model.prototypes.min_size=900',
                    says=['model.prototypes.min_size = 900', 'annotations.json'], logged=True)


def test_options_of_the_tools(folder):
    weights = tiny_data.write_weights('student.pth', small.retinanet())

    def test(*args, says):
        refuse(folder, 'test', 'student.py', weights, *args, says=says)

    test('--eval', 'box', says=['--eval box', 'bbox'])
    test('--eval', 'segm', says=['--eval segm', 'RetinaNet'])
    test('--eval', 'bbox', '--format-only', says=['--eval and --format-only'])
    test('--out', 'found.json', says=['--out found.json', '.pkl'])
    test('--out', 'annotations.json/found.pkl', says=['found.pkl cannot be written', 'Not a dir'])
    test('--eval-options', 'speed=1', says=['--eval-options speed', 'classwise'])
    status, _, stderr = run_tool('train', 'distiller.py', '--epochs', '0')
    assert status == 2 and '--epochs' in stderr and 'at least 1' in stderr


def test_a_work_dir_in_which_another_training_writes(folder):
    with other_training('work') as holder:
        refuse_training(folder, says=['work: another training writes', f'process {holder.pid} on'])
    assert 'Epoch [1]' in train('--epochs', '1')


@pytest.mark.slow
def test_real_processes_end_with_the_message_alone(folder):
    (folder / 'images').rename('moved')
    before = files(folder)
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / 'tools' / 'train.py'), 'distiller.py'],
        capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert ended.returncode == 2
    # torch 2.1 speaks first where it finds a CUDA toolkit and no GPU.
    said = re.sub('^No CUDA runtime is found.*\n', '', ended.stderr)
    assert said.startswith('\nerror: data.train.img_prefix: no such folder')
    assert len(said.strip().splitlines()) == 1
    assert files(folder) == before


def test_class_without_instance_goes_on(folder):
    def drop(content):
        content['annotations'] = [annotation for annotation in content['annotations']
                                  if annotation['category_id'] != 3]
    edit(folder / 'annotations.json', drop)
    stderr = train()
    assert stderr.count('get no prototype: blue') == 1
    assert 'Epoch [2]' in stderr and 'nan' not in stderr.split('Evaluating')[0]


@pytest.mark.parametrize('filtered', [True, False])
def test_images_without_boxes_go_on(folder, filtered):
    def drop(content):
        content['annotations'] = [annotation for annotation in content['annotations']
                                  if annotation['image_id'] in (1, 2)]
    edit(folder / 'annotations.json', drop)
    stderr = train('--epochs', '1', '--cfg-options', 'data.samples_per_gpu=1',
                   f'data.train.filter_empty_gt={filtered}')
    assert f'Epoch [1][{2 if filtered else 4}/{2 if filtered else 4}]' in stderr
    checkpoint = torch.load('work/latest.pth')
    assert all(tensor.isfinite().all() for tensor in checkpoint['state_dict'].values())


def test_configuration_is_not_changed_by_reading_it(folder):
    # Guards the fixture: the pair trains as long as nothing is broken.
    assert 'Epoch [2]' in train('--no-validate')
    assert copy.copy(files(folder)).keys() > {(folder / 'work').relative_to(folder)}
