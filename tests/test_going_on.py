"""Going on with other settings, and what else can be typed at the command line."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.refusals import append, refuse_training, train
from helpers.running import run_tool, succeed
from mmcv import Config
from mmcv.runner import EpochBasedRunner

from gkd.commands import run
from gkd.resume import KEY
from gkd.running import load_config, start
from gkd.running.changes import (
    apply_optimizer,
    flat,
    has_other_optimizer,
    is_from_checkpoint,
    settings_in,
)
from gkd.running.runner import IterationRunner


def rate(path='work/latest.pth'):
    return torch.load(path)['optimizer']['param_groups'][0]


def test_what_takes_effect_and_what_does_not_is_told(folder):
    train('--epochs', '1', '--no-validate')
    options = ('--epochs', '2', '--no-validate', '--cfg-options', 'optimizer.lr=0.0001',
               'lr_config.gamma=0.5', 'optimizer.momentum=0.5')
    said = train(*options)
    effect, _, none = said.partition('take no effect')
    assert 'runner.max_epochs = 2 (was 1)' in effect and 'lr_config.gamma = 0.5' in effect
    assert 'optimizer.lr = 0.0001 (was 0.01)' in none and 'optimizer.momentum = 0.5' in none
    assert '--new-optimizer' in none and 'model.' not in said.partition('settings differ')[2][:900]
    assert rate()['initial_lr'] == 0.01 and rate()['momentum'] == 0.9
    # The checkpoint has the settings of this run, so that nothing is told twice.
    assert 'differ' not in train('--epochs', '2', '--no-validate', *options[3:])


def test_new_settings_of_the_optimiser_are_applied_if_asked_for(folder):
    train('--epochs', '1', '--no-validate')
    buffers = torch.load('work/latest.pth')['optimizer']['state']
    said = train('--epochs', '2', '--no-validate', '--new-optimizer', '--cfg-options',
                 'optimizer.lr=0.0001', 'optimizer.momentum=0.5')
    assert 'take no effect' not in said and 'lr: 1.000e-04' in said
    assert rate()['initial_lr'] == 0.0001 and rate()['momentum'] == 0.5
    assert torch.load('work/latest.pth')['optimizer']['state'].keys() == buffers.keys()


def test_no_setting_of_the_former_optimiser_stays():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.param_groups[0].update(initial_lr=0.2, betas=(0.9, 0.999))  # of AdamW
    apply_optimizer(SimpleNamespace(optimizer=optimizer), [dict(lr=0.3, momentum=0.5)])
    assert optimizer.param_groups == [dict(params=[weight], lr=0.3, momentum=0.5, initial_lr=0.3)]


def test_another_optimiser_is_refused_or_begins_anew(folder):
    train('--epochs', '1', '--no-validate')
    args = '--epochs', '2', '--no-validate'
    append('distiller.py', 'optimizer = dict(type="AdamW", lr=0.001)')
    status, _, stderr = run_tool('train', 'distiller.py', '--work-dir', 'work', *args)
    assert status == 2 and 'another optimiser than optimizer.type = AdamW' in stderr
    assert '--new-optimizer' in stderr
    assert 'Epoch [2]' in train(*args, '--new-optimizer')
    assert 'betas' in rate() and rate()['initial_lr'] == 0.001


def test_config_texts_are_read_and_not_run(tmp_path):
    config = Config(dict(model=dict(a=[1, -2.5, None], b={'x.y': dict(c=('t', True))}),
                         gpu_ids=range(0, 2), list=[dict(type='A'), dict(type='B')]))
    text = config.pretty_text
    assert flat(settings_in(text)) == {
        'model.a': [1, -2.5, None], 'model.b.x.y.c': ('t', True), 'gpu_ids': range(0, 2),
        'list.0.type': 'A', 'list.1.type': 'B'}
    assert settings_in('import os\nos.mkdir("x")') is None and settings_in(None) is None
    assert settings_in('a = print(1)') is None
    assert not has_other_optimizer(None, Config(dict(optimizer=dict(type='SGD'))))
    assert is_from_checkpoint('model.backbone.init_cfg.checkpoint')
    assert not is_from_checkpoint('model.knowledge.0.alpha')


@pytest.mark.parametrize('options, says', [
    (['a=[1]', 'a.0.b=1'], ['--cfg-options']),
    (['model.knowledge.a.b=1'], ['--cfg-options']),
    (['optimizer.lr.value=1'], ['--cfg-options', 'optimizer.lr is 0.01']),
    (['optimizer_config.grad_clip.max_norm=35'],
     ['--cfg-options', 'optimizer_config.grad_clip is None',
      'optimizer_config.grad_clip._delete_=True optimizer_config.grad_clip.max_norm=35']),
    (['model=3'], ['model = 3: must be a dict']),
    (['data=[1]'], ['data = [1]: must be a dict']),
    (['seed=abc'], ["seed = 'abc'", 'integer']),
    (['seed=-1'], ['seed = -1']),
    (['seed=1.5'], ['seed = 1.5']),
    (['seed=True'], ['seed = True']),
])
def test_options_end_in_messages(folder, options, says):
    refuse_training(folder, '--cfg-options', *options, says=says)


@pytest.mark.parametrize('option, says', [
    ('lr', "'lr' is not KEY=VALUE"), ('=3', "'=3' is not KEY=VALUE"), ('a=[1,(2]', 'a=[1,(2]: ')])
def test_what_is_no_option_is_named(folder, option, says):
    status, _, stderr = run_tool('train', 'distiller.py', '--cfg-options', option)
    assert status == 2 and 'Traceback' not in stderr and f'--options: {says}' in stderr


def test_no_seed_is_seed_0(folder):
    append('distiller.py', 'seed = None')
    train('--epochs', '1', '--no-validate')
    assert torch.load('work/latest.pth')['meta']['seed'] == 0


def test_old_name_of_the_batch_size(folder):
    append('distiller.py', 'del data["samples_per_gpu"]\ndata["imgs_per_gpu"] = 1')
    said = train('--epochs', '1')
    assert 'Epoch [1][4/4]' in said and 'could not be' not in said
    assert (folder / 'work' / 'report.html').exists()
    kept = load_config('work/distiller.py') if (folder / 'work' / 'distiller.py').exists() else \
        load_config('distiller.py')
    assert kept.data.train_dataloader.samples_per_gpu == 1 and 'imgs_per_gpu' not in kept.data


def test_habits_of_mmdetections_tools(folder):
    train('--epochs', '1', '--no-validate', '--options', 'optimizer.lr=0.02')
    assert rate()['initial_lr'] == 0.02
    said = succeed('train', 'distiller.py', '--work-dir', 'next', '--resume-from',
                   'work/latest.pth', '--epochs', '2', '--no-validate')[1]
    assert 'Epoch [2]' in said and 'Epoch [1]' not in said
    refuse_training(folder, '--auto-scale-lr', says=['--auto-scale-lr', 'base_batch_size'])
    append('distiller.py', 'auto_scale_lr = dict(enable=False, base_batch_size=4)')
    train('--epochs', '1', '--no-validate', '--resume', 'never', '--auto-scale-lr')
    assert rate()['initial_lr'] == 0.005  # two images per step


def test_synchronised_normalisation_on_the_cpu(folder):
    student = small.retinanet()
    student['backbone']['norm_cfg'] = dict(type='SyncBN', requires_grad=True)
    append('distiller.py', f'model["student"] = dict(config={student!r})')
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    assert 'SyncBN needs GPUs' in train('--epochs', '1', '--no-validate')
    weights = torch.load('work/latest.pth')['state_dict']
    assert 'student.backbone.bn1.running_mean' in weights


def test_the_gallery_copes_with_a_class_without_prototypes(folder):
    import json
    path = folder / 'annotations.json'
    content = json.loads(path.read_text())
    content['annotations'] = [entry for entry in content['annotations']
                              if entry['category_id'] != 2]
    path.write_text(json.dumps(content))
    weights = tiny_data.write_weights('student.pth', small.retinanet())
    status, _, stderr = run_tool('gallery', 'distiller.py', weights, '--out', 'gallery')
    assert status == 0, stderr
    assert list((folder / 'gallery').glob('*.html'))


def test_many_classes_without_prototypes_are_a_short_line(folder):
    names = [*tiny_data.CLASSES, *(f'class {number}' for number in range(1200))]
    path = folder / 'annotations.json'
    import json
    content = json.loads(path.read_text())
    content['categories'] = [dict(id=number, name=name)
                             for number, name in enumerate(names, start=1)]
    path.write_text(json.dumps(content))
    for role, detector in (('student', small.retinanet(num_classes=len(names))),
                           ('teacher', small.retinanet(24, num_classes=len(names)))):
        weights = tiny_data.write_weights(f'{role}.pth', detector)
        append('distiller.py', f'model["{role}"] = dict(config={detector!r}, '
                               f'checkpoint={weights!r})')
    checkpoint = torch.load('teacher.pth')
    checkpoint['meta']['CLASSES'] = names
    torch.save(checkpoint, 'teacher.pth')
    append('distiller.py', f'for part in ("train", "val", "test"):\n'
                           f'    data[part]["classes"] = {names!r}')
    said = train('--epochs', '1', '--no-validate')
    line = next(line for line in said.splitlines() if 'get no prototype' in line)
    assert '1200 of 1203 classes' in line and 'and 1192 more' in line and len(line) < 400


def test_what_no_tool_foresaw_is_a_message_and_a_file(capsys):
    def main():
        {}['gone']

    with pytest.raises(SystemExit) as end:
        run(main)
    printed = capsys.readouterr().err
    assert end.value.code == 1 and "error: KeyError: 'gone'" in printed
    assert 'Traceback' not in printed and 'test_going_on.py' in printed
    kept = Path(re.search(r'traceback is in (\S+\.log)', printed)[1])
    assert kept.read_text().startswith('Traceback') and "KeyError: 'gone'" in kept.read_text()
    kept.unlink()


def test_a_work_dir_of_another_detector_is_named(folder, tmp_path):
    train('--epochs', '1', '--no-validate')
    append('distiller.py', 'model["student"]["config"] = "other.py"')
    other = tiny_data.experiment(small.retinanet(8), tmp_path / 'annotations.json')
    tiny_data.write_config('other.py', other)
    says = ['does not fit', 'in the work dir', 'another --work-dir', '--resume never']
    status, _, stderr = run_tool('train', 'distiller.py', '--work-dir', 'work', '--epochs', '1')
    assert status == 2 and all(text in stderr for text in says)
    # A file that the user has named is no surprise.
    status, _, stderr = run_tool('train', 'distiller.py', '--work-dir', 'new', '--resume',
                                 'work/latest.pth')
    assert status == 2 and says[0] in stderr and says[1] not in stderr


def test_a_work_dir_that_cannot_be_made_is_named(folder, tmp_path):
    (tmp_path / 'file').write_text('')
    status, _, stderr = run_tool('train', 'distiller.py', '--work-dir', 'file/work')
    assert status == 2
    assert re.search(r'error: .*file/work cannot be written: Not a directory. Make room or name '
                     'another folder', stderr) and 'defect' not in stderr


def test_a_training_whose_checkpoints_lie_elsewhere_is_gone_on_with(folder):
    elsewhere = '--cfg-options', 'checkpoint_config.out_dir=store', '--no-validate'
    train('--epochs', '1', *elsewhere)
    said = train('--epochs', '2', *elsewhere)
    assert 'Epoch [2][' in said and 'Epoch [1][' not in said
    assert sorted(path.name for path in (folder / 'store' / 'work').iterdir()) == [
        'epoch_1.pth', 'epoch_2.pth', 'latest.pth']
    assert 'store/work/epoch_2.pth' in said  # in the summary


def test_a_training_whose_checkpoints_are_moved_elsewhere_and_back_is_gone_on_with(folder):
    """The work dir names the last one, wherever it lies."""
    elsewhere = '--cfg-options', 'checkpoint_config.out_dir=store'
    for epoch, place in enumerate([(), elsewhere, elsewhere, (), ()], start=1):
        said = train('--epochs', str(epoch), '--no-validate', *place)
        assert [int(line) for line in re.findall(r'Epoch \[(\d)\]\[2/2\]', said)] == [epoch]


def test_an_interrupted_evaluation_is_made_up_for_where_checkpoints_lie_elsewhere(folder):
    elsewhere = '--epochs', '1', '--cfg-options', 'checkpoint_config.out_dir=store'
    train(*elsewhere)
    kept = folder / 'work' / 'evaluation.json'
    measured = kept.read_text()
    kept.unlink()
    assert 'Evaluating epoch 1, which was interrupted' in train(*elsewhere)
    assert kept.read_text() == measured


@pytest.mark.parametrize('kind, batches, expected', [
    (EpochBasedRunner, 0, True), (EpochBasedRunner, 3, False), (IterationRunner, 3, True)])
def test_an_evaluation_is_made_up_for_where_one_may_have_been_due(
        tmp_path, monkeypatch, kind, batches, expected):
    """At the end of an epoch, not inside; at any iteration where these are counted."""
    monkeypatch.setattr(start, 'resume', lambda *settings: None)
    runner = mock.Mock(spec=kind, work_dir=str(tmp_path), meta={KEY: dict(batches=batches)},
                       iter=1, epoch=1, max_iters=9, max_epochs=9)
    start.load_or_resume(runner, Config(), str(tmp_path / 'any.pth'), mock.Mock(), 'cpu')
    assert runner.register_hook.called == expected


def test_the_checkpoint_of_another_training_is_not_evaluated(folder):
    train('--epochs', '1', '--no-validate')
    said = ''.join(succeed('train', 'distiller.py', '--work-dir', 'next', '--epochs', '2',
                           '--resume', 'work/epoch_1.pth'))
    assert 'Epoch [2][2/2]' in said and 'which was interrupted' not in said
    assert [*json.loads((folder / 'next' / 'evaluation.json').read_text())] == ['2']


def test_a_place_of_checkpoints_that_cannot_be_written_to(folder):
    """The first one would be written at the end of an epoch."""
    refuse_training(folder, '--cfg-options', 'checkpoint_config.out_dir=annotations.json',
                    logged=True, says=['annotations.json/work cannot be written', 'name another'])
    assert 'Epoch [1]' not in next(folder.glob('work/*.log')).read_text()
