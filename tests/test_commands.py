"""Training, testing and exporting from the command line, end to end on a tiny data set."""

import json
import logging
import shutil
from pathlib import Path
from unittest import mock

import mmcv
import numpy as np
import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.refusals import refuse
from helpers.running import succeed
from mmcv import Config
from mmdet.models import build_detector
from yapf.yapflib.yapf_api import FormatCode

from gkd import running as apis
from gkd.running import load_config, student_config, train


@pytest.fixture(scope='module', params=small.FAMILIES)
def trained(request, tmp_path_factory):
    """A folder with configs and a distiller trained in ``work``; and what was printed."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_data.write_pair(folder, request.param)
    # Here configs are laid out, as users get them.
    with mock.patch('mmcv.utils.config.FormatCode', FormatCode):
        printed = succeed('train', folder / 'distiller.py', '--work-dir', folder / 'work')
    assert '\n        ' in (folder / 'work' / 'distiller.py').read_text()
    return folder, printed


@pytest.fixture
def pair(tmp_path):
    """Folder with an untrained pair of one-stage detectors."""
    tiny_data.write_pair(tmp_path, 'one_stage')
    return tmp_path


def log_of(work_dir):
    """Lines of the JSON logs of all runs in a work dir, oldest first."""
    return [json.loads(line) for path in sorted(Path(work_dir).glob('*.log.json'))
            for line in path.read_text().splitlines()]


def test_training_leaves_what_it_should(trained):
    folder, (_, stderr) = trained
    work = folder / 'work'
    names = {path.name for path in work.iterdir() if not path.name.startswith('20')}
    assert names == {'epoch_1.pth', 'epoch_2.pth', 'latest.pth', 'evaluation.json', 'distiller.py',
                     'prototypes', 'record.json', 'detections.bbox.json', 'report.html'}
    logs = [path for path in work.iterdir() if path.name.startswith('20')]
    assert sorted(path.suffix for path in logs) == ['.json', '.log']
    text = next(path for path in logs if path.suffix == '.log').read_text()
    assert 'gkd 0.' in text and 'Epoch [2]' in text and 'loss_global' in text

    checkpoint = torch.load(work / 'latest.pth')
    assert {name.split('.')[0] for name in checkpoint['state_dict']} == {'student', 'knowledge'}
    assert not any('teacher' in name for name in checkpoint['state_dict'])
    assert checkpoint['meta']['epoch'] == 2 and 'optimizer' in checkpoint
    losses = [line for line in log_of(work) if line.get('mode') == 'train']
    assert [line['epoch'] for line in losses] == [1, 2]
    for line in losses:
        for term in ('loss_global', 'loss_local_fg', 'loss_local_bg', 'loss_soft', 'loss_cls'):
            assert line[term] > 0
    # Progress 0, then 1/2: the decay halves a weight that cannot shrink so fast by learning.
    assert losses[1]['loss_local_bg'] < 0.7 * losses[0]['loss_local_bg']
    evaluations = json.loads((work / 'evaluation.json').read_text())
    assert list(evaluations) == ['1', '2'] and 'bbox_mAP_50' in evaluations['2']
    # The config that is kept can be trained again.
    assert load_config(str(work / 'distiller.py')).model.type == 'Distiller'


def test_terminal_shows_what_matters(trained):
    _, (stdout, stderr) = trained
    for noise in ('KaimingInit', 'init_weights', 'Hooks will be executed', 'Warning'):
        assert noise not in stdout + stderr
    for news in ('Prototypes: ', 'Epoch [1]', 'loss_global', 'bbox_mAP_50'):
        assert news in stderr


def test_student_moves_and_teacher_does_not(trained):
    folder, _ = trained
    first, second = (torch.load(folder / 'work' / f'epoch_{epoch}.pth')['state_dict']
                     for epoch in (1, 2))
    moved = [name for name in first if not torch.equal(first[name], second[name])]
    assert any('adaptation' in name for name in moved)
    assert any('student.backbone' in name for name in moved)


def test_full_and_exported_checkpoints_give_the_same_detections(trained):
    folder, _ = trained
    checkpoint = folder / 'work' / 'latest.pth'
    printed, _ = succeed('export_student', folder / 'distiller.py', checkpoint)
    assert str(folder / 'work' / 'student.pth') in printed
    # The work dir stays as the training left it.
    exported = (folder / 'work' / 'student.pth').rename(folder / 'student.pth')

    full, _ = succeed('test', folder / 'distiller.py', checkpoint, '--eval', 'bbox', '--out',
                      folder / 'full.pkl')
    own, _ = succeed('test', folder / 'student.py', exported, '--eval', 'bbox', '--out',
                     folder / 'own.pkl')
    evaluation = json.loads((folder / 'work' / 'evaluation.json').read_text())['2']
    for output in (full, own):
        assert f'maxDets=100 ] = {evaluation["bbox_mAP"]:.3f}' in output
        assert f'area=   all | maxDets=1000 ] = {evaluation["bbox_mAP_50"]:.3f}' in output
    detections = mmcv.load(folder / 'full.pkl')
    assert len(detections) == len(tiny_data.SIZES)
    assert all(len(image) == small.NUM_CLASSES for image in detections)
    assert sum(len(boxes) for image in detections for boxes in image) > 10
    for image, same in zip(detections, mmcv.load(folder / 'own.pkl')):
        for boxes, others in zip(image, same):
            np.testing.assert_array_equal(boxes, others)
    # Other combinations: any config with any of the checkpoints.
    crossed, _ = succeed('test', folder / 'student.py', checkpoint)
    assert f'maxDets=100 ] = {evaluation["bbox_mAP"]:.3f}' in crossed


def test_export_loads_strictly_in_plain_mmdetection(trained, monkeypatch):
    folder, _ = trained
    printed, _ = succeed('export_student', folder / 'distiller.py',
                         folder / 'work' / 'epoch_1.pth', folder / 'out' / 'small.pth')
    exported = torch.load(folder / 'out' / 'small.pth')
    plain = build_detector(Config.fromfile(str(folder / 'student.py')).model)
    plain.load_state_dict(exported['state_dict'], strict=True)
    trained_weights = torch.load(folder / 'work' / 'epoch_1.pth')['state_dict']
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, trained_weights[f'student.{name}'], rtol=0, atol=0)
    assert tuple(exported['meta']['CLASSES']) == tiny_data.CLASSES
    # Where MMDetection 3 looks for them.
    assert exported['meta']['dataset_meta']['classes'] == tiny_data.CLASSES
    assert 'optimizer' not in exported
    assert not list((folder / 'out').glob('*.part'))
    # The printed lines work as they stand.
    lines = [line[4:] for line in printed.splitlines() if line.startswith('    ')]
    monkeypatch.chdir(folder / 'images')
    shutil.copy('image_0.png', 'image.png')
    scope = {}
    exec('\n'.join(lines), scope)
    assert len(scope['inference_detector'](scope['model'], 'image.png')) == small.NUM_CLASSES
    assert tuple(scope['model'].CLASSES) == tiny_data.CLASSES


def test_results_are_formatted_and_drawn(trained):
    folder, _ = trained
    checkpoint = shutil.copy(folder / 'work' / 'latest.pth', folder / 'copied.pth')
    printed, _ = succeed('test', folder / 'distiller.py', checkpoint, '--format-only')
    assert str(folder / 'results.bbox.json') in printed and 'Average Precision' not in printed
    found = json.loads((folder / 'results.bbox.json').read_text())
    assert {entry['image_id'] for entry in found} <= {1, 2, 3, 4} and len(found) > 10
    assert set(found[0]) == {'image_id', 'bbox', 'score', 'category_id'}
    succeed('test', folder / 'distiller.py', checkpoint, '--format-only', '--eval-options',
            f'jsonfile_prefix={folder}/mine')
    assert json.loads((folder / 'mine.bbox.json').read_text()) == found

    # Some pipelines of MMDetection, such as CornerNet's, do not collect the names of images.
    collected = "('filename','ori_shape','img_shape','scale_factor','flip','img_norm_cfg')"
    succeed('test', folder / 'student.py', checkpoint, '--show-dir', folder / 'shown',
            '--show-score-thr', '0', '--cfg-options',
            f'data.test.pipeline.1.transforms.5.meta_keys={collected}')
    for number, (width, height) in enumerate(tiny_data.SIZES):
        assert mmcv.imread(folder / 'shown' / f'image_{number}.png').shape == (height, width, 3)
    before = mmcv.imread(folder / 'images' / 'image_0.png').astype(int)
    after = mmcv.imread(folder / 'shown' / 'image_0.png').astype(int)
    assert (abs(after - before) > 40).mean() > 0.01


def test_same_command_goes_on_after_an_interruption(pair):
    work = pair / 'work'
    succeed('train', pair / 'distiller.py', '--work-dir', work, '--epochs', 1)
    features = next((work / 'prototypes').glob('teacher*'))
    written = features.stat().st_mtime_ns
    first = torch.load(work / 'epoch_1.pth')
    _, stderr = succeed('train', pair / 'distiller.py', '--work-dir', work)
    assert 'resumed epoch 1,' in stderr and 'Epoch [1]' not in stderr and 'Epoch [2]' in stderr
    assert [line['epoch'] for line in log_of(work) if line.get('mode') == 'train'] == [1, 2]
    assert features.stat().st_mtime_ns == written
    second = torch.load(work / 'epoch_2.pth')
    steps = first['meta']['iter']
    assert second['meta']['iter'] == 2 * steps
    # The optimiser's momentum goes on too: nothing is left to train for a third call.
    assert second['optimizer']['state'].keys() == first['optimizer']['state'].keys()
    _, stderr = succeed('train', pair / 'distiller.py', '--work-dir', work)
    assert 'nothing is left to train' in stderr and 'Epoch [' not in stderr
    # Evaluations of both runs are kept, those of a run thrown away are not.
    evaluations = work / 'evaluation.json'
    assert list(json.loads(evaluations.read_text())) == ['1', '2']
    _, stderr = succeed('train', pair / 'distiller.py', '--work-dir', work, '--resume', 'never',
                        '--epochs', 1)
    assert 'Epoch [1]' in stderr
    assert list(json.loads(evaluations.read_text())) == ['1']


def test_an_image_whose_name_has_no_ending_is_drawn(pair):
    (pair / 'images' / 'image_3.png').rename(pair / 'images' / 'image_3')
    content = (pair / 'annotations.json').read_text()
    (pair / 'annotations.json').write_text(content.replace('image_3.png', 'image_3'))
    weights = tiny_data.write_weights(pair / 'student.pth', small.retinanet())
    succeed('test', pair / 'student.py', weights, '--show-dir', pair / 'shown')
    assert sorted(path.name for path in (pair / 'shown').iterdir()) == [
        f'image_{number}.png' for number in range(4)]


def test_drawings_replace_neither_images_nor_each_other(pair):
    """Names may be absolute paths, and the images of several data sets may have the same ones."""
    image = pair / 'images' / 'image_3.png'
    content = (pair / 'annotations.json').read_text()
    (pair / 'absolute.json').write_text(content.replace('image_3.png', str(image)))
    before = image.read_bytes()
    weights = tiny_data.write_weights(pair / 'student.pth', small.retinanet())
    succeed('test', pair / 'student.py', weights, '--show-dir', pair / 'shown', '--cfg-options',
            f'data.test.ann_file=[{pair}/absolute.json,{pair}/annotations.json]')
    assert image.read_bytes() == before
    drawn = [path.relative_to(pair / 'shown') for path in (pair / 'shown').rglob('*.png')]
    assert sorted(map(str, drawn)) == sorted(
        ['image_3.png', str(image).lstrip('/'),
         *(f'image_{number}{copy}.png' for number in range(3) for copy in ('', '_2'))])


def test_resuming_from_a_named_checkpoint(pair):
    succeed('train', pair / 'distiller.py', '--work-dir', pair / 'one', '--epochs', 1)
    _, stderr = succeed('train', pair / 'distiller.py', '--work-dir', pair / 'two', '--resume',
                        pair / 'one' / 'epoch_1.pth')
    assert 'resumed epoch 1,' in stderr and (pair / 'two' / 'epoch_2.pth').exists()
    # Only the run's own work dir is evaluated where that was interrupted.
    assert list(json.loads((pair / 'two' / 'evaluation.json').read_text())) == ['2']
    # The checkpoint holds the prototypes; they are not made anew before it is time.
    _, stderr = succeed('train', pair / 'distiller.py', '--work-dir', pair / 'three',
                        '--resume', pair / 'one' / 'epoch_1.pth', '--cfg-options',
                        'model.prototypes.interval=2')
    assert 'Epoch [2]' in stderr and not (pair / 'three' / 'prototypes').exists()


def test_plain_detector_trains_with_the_same_command(pair):
    _, stderr = succeed('train', pair / 'student.py', '--work-dir', pair / 'work', '--epochs', 1)
    assert 'Prototypes' not in stderr and 'loss_global' not in stderr
    state = torch.load(pair / 'work' / 'latest.pth')['state_dict']
    assert not any(name.startswith(('student.', 'knowledge.')) for name in state)
    printed, _ = succeed('test', pair / 'student.py', pair / 'work' / 'latest.pth')
    assert 'Average Precision' in printed
    # A plain detector's checkpoint starts a distilled student.
    student = f'model.student.checkpoint={pair}/work/latest.pth'
    work = pair / 'distilled'
    succeed('train', pair / 'distiller.py', '--work-dir', work, '--epochs', 1, '--cfg-options',
            student, 'optimizer.lr=0.')
    started = torch.load(work / 'latest.pth')['state_dict']
    for name, tensor in state.items():
        if 'running' not in name and 'num_batches' not in name:
            torch.testing.assert_close(started[f'student.{name}'], tensor, rtol=0, atol=0)


def test_load_from_starts_from_given_weights(pair):
    weights = tiny_data.write_weights(pair / 'start.pth', small.retinanet(), seed=5)
    succeed('train', pair / 'student.py', '--work-dir', pair / 'work', '--no-validate', '--epochs',
            1, '--cfg-options', f'load_from={weights}', 'optimizer.lr=0.')
    started = torch.load(pair / 'work' / 'latest.pth')
    expected = torch.load(weights)['state_dict']
    for name in ('bbox_head.retina_cls.weight', 'backbone.conv1.weight'):
        torch.testing.assert_close(started['state_dict'][name], expected[name], rtol=0, atol=0)
    assert started['meta']['epoch'] == 1
    assert not (pair / 'work' / 'evaluation.json').exists()
    # Once there is a checkpoint, the run goes on from it instead.
    _, stderr = succeed('train', pair / 'student.py', '--work-dir', pair / 'work', '--no-validate',
                        '--cfg-options', f'load_from={weights}')
    assert 'resumed epoch 1,' in stderr


def test_config_without_optional_settings_trains(pair):
    config = tiny_data.experiment(small.retinanet(), pair / 'annotations.json', epochs=1)
    for name in ('log_level', 'seed', 'workflow', 'evaluation', 'checkpoint_config', 'log_config'):
        del config[name]
    path = tiny_data.write_config(pair / 'bare.py', config)
    config = load_config(path)
    config.work_dir = str(pair / 'bare')
    metrics = train(config)
    assert 'bbox_mAP' in metrics


def test_inline_student_is_exported_with_a_config(pair):
    config = tiny_data.experiment(
        dict(type='Distiller',
             teacher=dict(config=str(pair / 'teacher.py'), checkpoint=str(pair / 'teacher.pth')),
             student=dict(config=small.retinanet()), knowledge=[]), pair / 'annotations.json')
    path = tiny_data.write_config(pair / 'inline.py', config)
    student = build_detector(student_config(load_config(path)).model)
    torch.save(dict(state_dict={f'student.{name}': tensor
                                for name, tensor in student.state_dict().items()}),
               pair / 'full.pth')
    printed, _ = succeed('export_student', path, pair / 'full.pth', pair / 'small.pth')
    assert str(pair / 'small.py') in printed
    own = Config.fromfile(str(pair / 'small.py'))
    build_detector(own.model).load_state_dict(torch.load(pair / 'small.pth')['state_dict'])
    printed, _ = succeed('test', pair / 'small.py', pair / 'small.pth')
    assert 'maxDets' in printed


def test_overridden_student_is_exported_with_its_own_config(pair):
    with open(pair / 'distiller.py', 'a') as file:
        file.write('model["student"]["overrides"] = {"bbox_head.stacked_convs": 2}\n')
    config = load_config(str(pair / 'distiller.py'))
    student = build_detector(student_config(config).model)
    torch.save(dict(state_dict={f'student.{name}': tensor
                                for name, tensor in student.state_dict().items()}),
               pair / 'full.pth')
    succeed('export_student', pair / 'distiller.py', pair / 'full.pth', pair / 'small.pth')
    own = Config.fromfile(str(pair / 'small.py'))
    build_detector(own.model).load_state_dict(torch.load(pair / 'small.pth')['state_dict'])

    # What an earlier export has written is replaced, a file of the user's is not.
    succeed('export_student', pair / 'distiller.py', pair / 'full.pth', pair / 'small.pth')
    before = (pair / 'student.py').read_text()
    refuse(pair, 'export_student', pair / 'distiller.py', pair / 'full.pth', pair / 'student.pth',
           says=[f'{pair}/student.py is there already', 'name another file'])
    assert (pair / 'student.py').read_text() == before
    again = f'{pair}/../{pair.name}/full.pth'  # the same file by another name
    refuse(pair, 'export_student', pair / 'distiller.py', pair / 'full.pth', again,
           says=[f'{again} is the checkpoint to export from', 'name another file'])


def test_a_second_run_in_one_process_writes_its_own_log(pair):
    for name in ('one', 'two'):
        config = load_config(str(pair / 'student.py'), {'runner.max_epochs': 1})
        config.work_dir = str(pair / name)
        train(config, validate=False)
    for name in ('one', 'two'):
        text = next((pair / name).glob('*.log')).read_text()
        assert text.count('Epoch [1]') == 1 and str(pair / name) in text
    assert not [handler for handler in logging.getLogger('mmdet').handlers
                if isinstance(handler, logging.FileHandler)]


def test_learning_rate_scales_with_the_batch(pair):
    with open(pair / 'student.py', 'a') as file:
        file.write('auto_scale_lr = dict(enable=True, base_batch_size=16)\n')
    succeed('train', pair / 'student.py', '--work-dir', pair / 'work', '--no-validate',
            '--epochs', 1)
    assert log_of(pair / 'work')[-1]['lr'] == pytest.approx(0.01 * 2 / 16, rel=1e-2)


def test_nothing_detected_is_an_average_precision_of_zero(pair):
    _, stderr = succeed('train', pair / 'student.py', '--work-dir', pair / 'work', '--epochs', 1,
                        '--cfg-options', 'model.test_cfg.score_thr=0.99')
    assert json.loads((pair / 'work' / 'evaluation.json').read_text()) == \
        {'1': dict(bbox_mAP=0.0, bbox_mAP_50=0.0, bbox_mAP_75=0.0)}


def test_kept_config_trains_again_and_is_never_written_over_the_users(trained, tmp_path):
    folder, _ = trained
    config = shutil.copy(folder / 'work' / 'distiller.py', tmp_path / 'again.py')
    text = Path(config).read_text()
    succeed('train', config, '--work-dir', tmp_path, '--epochs', 1)
    assert (tmp_path / 'epoch_1.pth').exists() and Path(config).read_text() == text
    assert [line['loss_global'] for line in log_of(tmp_path) if line.get('mode') == 'train'] == \
        [line['loss_global'] for line in log_of(folder / 'work') if line.get('epoch') == 1
         and line.get('mode') == 'train']


def test_python_functions_do_what_the_commands_do(trained):
    folder, _ = trained
    metrics = apis.test(load_config(str(folder / 'distiller.py')),
                        str(folder / 'work' / 'latest.pth'), metrics=['bbox'])
    recorded = json.loads((folder / 'work' / 'evaluation.json').read_text())['2']
    for name in ('bbox_mAP', 'bbox_mAP_50'):
        assert metrics[name] == pytest.approx(recorded[name], abs=1e-3)
    # A finished run has its metrics still.
    config = load_config(str(folder / 'distiller.py'))
    config.work_dir = str(folder / 'work')
    assert train(config) == recorded
