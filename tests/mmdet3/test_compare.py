"""The comparison of methods: its stages, what they start from, and a real one."""

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from small_experiments import TOOLS, counting_iterations, detector, experiment

from gkd.commands.processes import StageFailed
from gkd.comparison import compare
from gkd.errors import ConfigError, DataError

TREES = 'configs/mmdet3/quickstart/gkd_retinanet_efficientnet-lite0_r18-w8_fpn_tree-crowns.py'


@pytest.fixture
def config(annotations, tmp_path):
    """A distillation config whose teacher and student are still to be trained."""
    for name, channels in (('student', 16), ('teacher', 24)):
        own = experiment(annotations, tmp_path / 'own')
        own.model = detector('one_stage', channels)
        own.custom_hooks = []
        own.dump(tmp_path / f'{name}.py')
    whole = experiment(annotations, tmp_path / 'own', methods=dict(
        pair=[dict(type='PKD'), dict(type='CWD')], odd=[dict(type='CWD', levels=[9])]))
    for name in ('student', 'teacher'):
        whole.model[name] = dict(config=str(tmp_path / f'{name}.py'),
                                 checkpoint=str(tmp_path / f'{name}_seed0.pth'))
    path = tmp_path / 'distil.py'
    whole.dump(path)
    return str(path)


def with_degrees(config, annotations, blur):
    """Let the validation's annotations carry degrees; ``blur`` tells that of every id."""
    content = json.loads(annotations.read_text())
    for annotation in content['annotations']:
        annotation.update(blur=blur(annotation['id']), occlusion=0, size=1000)
    path = Path(config).with_name('degrees.json')
    path.write_text(json.dumps(content))
    whole = Config.fromfile(config)
    whole.val_evaluator.ann_file = str(path)
    whole.dump(config)
    return content['annotations']


def rows_of(path):
    """Rows of a CSV by method."""
    return {row['method']: row for row in csv.DictReader(path.read_text().splitlines())}


def test_stages_start_from_what_was_trained_before(commands, config, tmp_path, capsys):
    work = tmp_path / 'work'
    commands.aps['teacher'] = 0.5
    compare.compare(config, ['gkd', 'no-global', 'odd', 'pair'], seeds=[0, 2],
                   work_dir=str(work))
    assert commands.commands[:3] == ['train teacher', 'train student_seed0', 'train student_seed2']
    assert commands.commands[3] == 'test teacher'
    assert commands.commands[4:] == [f'train {method}_seed{seed}' for seed in (0, 2)
                                     for method in ('plain', 'gkd', 'no-global', 'pair')]
    plain, without, pair = (Config.fromfile(work / 'configs' / f'{name}.py').model
                            for name in ('plain', 'no-global', 'pair'))
    assert plain.knowledge == [] and plain.teacher.checkpoint is None
    assert without.knowledge[0].global_knowledge is None
    assert [kind.type for kind in pair.knowledge] == ['PKD', 'CWD']
    table = (work / 'comparison.md').read_text()
    assert '50.0' in table and '25.0' in table
    printed = capsys.readouterr().out
    assert table.splitlines()[0] in printed and 'odd: refused: ' in printed
    rows = list(csv.DictReader((work / 'results.csv').read_text().splitlines()))
    assert [(row['method'], row['teacher_seed'], row['student_seed']) for row in rows[-4:]] == [
        ('plain', '', '2'), ('gkd', '0', '2'), ('no-global', '0', '2'), ('pair', '0', '2')]
    assert {row['family'] for row in rows} == {'RetinaNet'}

    # What is finished stays so, until what it depends on is another.
    before = len(commands.commands)
    compare.compare(config, ['gkd', 'pair'], seeds=[0, 2], work_dir=str(work))
    assert len(commands.commands) == before
    compare.compare(config, ['gkd', 'pair'], seeds=[0], epochs=5, work_dir=str(work))
    assert commands.commands[before:] == [
        'train teacher', 'train student_seed0', 'test teacher', 'train plain_seed0',
        'train gkd_seed0', 'train pair_seed0']


def test_what_failed_is_named_and_the_same_command_goes_on(commands, config, tmp_path, capsys):
    commands.aps['gkd_seed0'] = None
    with pytest.raises(StageFailed, match='1 stages failed'):
        compare.compare(config, ['gkd', 'pkd'], 1, work_dir=str(tmp_path / 'work'))
    assert 'failed with seed 0' in (tmp_path / 'work' / 'comparison.md').read_text()
    commands.aps.clear()
    before = len(commands.commands)
    compare.compare(config, ['gkd', 'pkd'], 1, work_dir=str(tmp_path / 'work'))
    assert commands.commands[before:] == ['train gkd_seed0']
    # Metrics alone are not enough for what starts from a checkpoint.
    (tmp_path / 'work' / 'plain_seed0' / 'epoch_2.pth').unlink()
    compare.compare(config, ['gkd', 'pkd'], 1, work_dir=str(tmp_path / 'work'), only_list=True)
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1].rpartition('/')[2] for line in listed
            if line.startswith('to do')] == ['plain_seed0']


def test_a_config_that_cannot_be_compared_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match='trains a RetinaNet; a comparison needs'):
        compare.compare(str(tmp_path / 'student.py'))
    whole = Config.fromfile(config)
    whole.val_dataloader = whole.val_cfg = whole.val_evaluator = None
    whole.dump(tmp_path / 'blind.py')
    with pytest.raises(ConfigError, match='val_dataloader'):
        compare.compare(str(tmp_path / 'blind.py'))


@pytest.mark.parametrize('settings, says', [
    (dict(default_hooks=dict(checkpoint=dict(by_epoch=False))),
     'default_hooks.checkpoint.by_epoch = False.*Set by_epoch to True'),
    (dict(default_hooks=dict(checkpoint=dict(out_dir='elsewhere'))),
     "default_hooks.checkpoint.out_dir = 'elsewhere'"),
    (dict(default_hooks=dict(checkpoint=dict(filename_tmpl='{}.pth'))),
     "default_hooks.checkpoint.filename_tmpl = '{}.pth'"),
    (dict(default_hooks=dict(checkpoint=dict(save_last=False))),
     'default_hooks.checkpoint.save_last = False'),
    (dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP')]),
     'custom_hooks has an EarlyStoppingHook, which ends each training at another epoch'),
    (dict(train_cfg=dict(val_begin=3)),
     'train_cfg.val_begin = 3, and epoch 2 is the last')])
def test_a_training_without_its_last_checkpoint_is_refused_before_any(
        config, tmp_path, settings, says):
    own = Config.fromfile(tmp_path / 'student.py')
    own.merge_from_dict(settings)
    own.dump(tmp_path / 'student.py')
    with pytest.raises(ConfigError, match=f'student.py: {says}'):
        compare.compare(config, ['gkd'], work_dir=str(tmp_path / 'work'))
    assert not (tmp_path / 'work').exists()


def test_a_training_by_iterations_with_checkpoints_by_epoch_is_refused(config, tmp_path):
    own = counting_iterations(Config.fromfile(tmp_path / 'student.py'), max_iters=5)
    del own.default_hooks.checkpoint['by_epoch']  # True unless given
    own.dump(tmp_path / 'student.py')
    with pytest.raises(ConfigError, match='checkpoint.by_epoch = True.*Set by_epoch to False'):
        compare.compare(config, ['gkd'], work_dir=str(tmp_path / 'work'))


def test_trainings_that_count_iterations_are_compared(commands, config, tmp_path):
    whole = counting_iterations(Config.fromfile(config), max_iters=5)
    whole.dump(config)
    work = tmp_path / 'work'
    compare.compare(config, ['gkd'], 1, work_dir=str(work))
    assert commands.commands[-2:] == ['train plain_seed0', 'train gkd_seed0']
    assert (work / 'gkd_seed0' / 'iter_5.pth').exists()
    assert (work / 'teacher' / 'epoch_2.pth').exists()  # its own config counts epochs
    assert float(rows_of(work / 'comparison.csv')['gkd']['AP mean']) == 25
    before = len(commands.commands)
    compare.compare(config, ['gkd'], 1, work_dir=str(work))
    assert len(commands.commands) == before
    with pytest.raises(ConfigError, match='counts iterations, not epochs.*train_cfg.max_iters'):
        compare.compare(config, ['gkd'], 1, epochs=3, work_dir=str(work))


def test_every_student_is_tested_by_degree_if_the_data_carry_degrees(
        commands, config, annotations, tmp_path, capsys):
    objects = with_degrees(config, annotations, lambda number: number % 2)
    found = [dict(image_id=each['image_id'], category_id=each['category_id'], bbox=each['bbox'],
                  score=0.9, blur=each['blur']) for each in objects]
    commands.detections.update(gkd_seed0=found,
                               plain_seed0=[each for each in found if not each['blur']])
    work = tmp_path / 'work'
    compare.compare(config, ['gkd'], 1, work_dir=str(work))
    assert commands.commands[2:] == ['test teacher', 'train plain_seed0', 'test plain_seed0',
                                     'train gkd_seed0', 'test gkd_seed0']
    assert 'degrees.md, .csv' in capsys.readouterr().out
    rows = rows_of(work / 'degrees.csv')
    sharp, blurred, most = (f'blur {part}' for part in ('0 to 0.3', '0.3 to 1.5', 'from 1.5'))
    for method, aps in (('teacher', (0, 0)), ('plain student', (100, 0)), ('gkd', (100, 100))):
        assert [float(rows[method][f'{name} mean']) for name in (sharp, blurred)] == \
            pytest.approx(aps, abs=0.1)
        assert rows[method][f'{most} mean'] == ''
    assert float(rows['gkd'][f'{blurred} gain mean']) == pytest.approx(100, abs=0.1)
    assert float(rows_of(work / 'comparison.csv')['gkd']['AP mean']) == 25  # of the training
    assert '| blur 0 to 0.3' in (work / 'degrees.md').read_text()

    (tmp_path / 'degrees.json').write_text('{')
    with pytest.raises(DataError, match='val_evaluator.ann_file'):
        compare.compare(config, ['gkd'], 1, work_dir=str(work))


def test_annotations_of_an_embedded_data_set_are_made_before_they_are_read(
        commands, config, annotations, tmp_path, monkeypatch):
    """On a new machine there are none yet."""
    content, path = annotations.read_text(), tmp_path / 'embedded.json'
    whole = Config.fromfile(config)
    whole.val_evaluator.ann_file = str(path)
    whole.dump(config)
    with pytest.raises(DataError, match=f'val_evaluator.ann_file: .*{path.name}'):
        compare.compare(config, ['gkd'], work_dir=str(tmp_path / 'work'))
    assert not commands.commands
    monkeypatch.setattr(compare, 'prepare_embedded', lambda name: Path(name).write_text(content))
    compare.compare(config, ['gkd'], work_dir=str(tmp_path / 'work'))
    assert 'test teacher' in commands.commands


def test_another_strip_validates_for_all_and_another_teacher_is_trained(
        commands, annotations, tmp_path, monkeypatch):
    def prepare(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(annotations.read_text())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, 'prepare_embedded', prepare)
    for start in ('student_seed0/epoch_6', 'teacher/epoch_5'):  # they have seen the strip
        path = tmp_path / f'work_dirs/quickstart/mmdet3/retinanet_tree-crowns/{start}.pth'
        path.parent.mkdir(parents=True)
        path.touch()
    compare.compare(TREES, ['gkd'], 1, teacher_seed=2, strip='left')
    assert commands.commands == ['train teacher2', 'train student_seed0', 'test teacher2',
                                 'train plain_seed0', 'train gkd_teacher2_seed0']
    teacher = commands.whole[0]
    assert teacher[teacher.index('--seed') + 1] == '2'
    work = tmp_path / 'work_dirs' / 'compare' / f'{Path(TREES).stem}_left'
    written = sorted((work / 'configs').iterdir())
    assert [path.stem for path in written] == ['gkd', 'plain', 'student', 'teacher',
                                               'test_teacher2']
    for path in written:
        config = Config.fromfile(path)
        for split in ('train', 'val', 'test'):
            data = config[f'{split}_dataloader'].dataset
            assert (data.data_root, data.data_prefix.img) == ('data/tree_crowns_left/', 'images/')
        for evaluator in (config.val_evaluator, config.test_evaluator):
            assert evaluator.ann_file == 'data/tree_crowns_left/val.json'
    rows = rows_of(work / 'results.csv')
    assert {(row['data'], row['strip']) for row in rows.values()} == {('tree-crowns', 'left')}
    assert {method: row['teacher_seed'] for method, row in rows.items()} == dict(
        teacher='2', student='', plain='', gkd='2')


def test_strips_are_of_the_tree_crowns_alone(config):
    with pytest.raises(ConfigError, match="'top' is unknown; known are right, middle, left"):
        compare.compare(TREES, strip='top')
    with pytest.raises(ConfigError, match='distil.py: only the tree crowns have strips; its data '
                                          'are .*annotations.json'):
        compare.compare(config, strip='left')


def test_a_run_of_a_study_is_a_row(commands, config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run_one(*options):
        commands.commands.clear()
        monkeypatch.setattr(sys, 'argv', [
            'run_one.py', '--config', config, '--results', 'rows.csv', '--work-dir', 'work',
            '--seed', '1', *options])
        runpy.run_path(str(TOOLS.parents[1] / 'studies' / 'run_one.py'))['main']()
        return commands.commands

    assert run_one('--method', 'gkd') == ['train teacher', 'train student_seed1',
                                          'train gkd_seed1']
    assert run_one('--method', 'gkd') == []
    assert 'in rows.csv already' in capsys.readouterr().out
    assert run_one('--method', 'pkd', '--teacher-seed', '2') == ['train teacher2',
                                                                 'train pkd_teacher2_seed1']
    assert [(row['method'], row['teacher_seed'], row['student_seed']) for row in csv.DictReader(
        (tmp_path / 'rows.csv').read_text().splitlines())] == [
            ('teacher', '0', ''), ('student', '', '1'), ('gkd', '0', '1'), ('teacher', '2', ''),
            ('pkd', '2', '1')]


@pytest.mark.slow
def test_the_command_trains_and_compares(config, annotations, tmp_path):
    with_degrees(config, annotations, lambda number: 0)

    def run():
        ended = subprocess.run(
            [sys.executable, TOOLS.parent / 'compare.py', config, '--methods', 'gkd', '--seeds',
             '1', '--epochs', '1', '--jobs', '2', '--work-dir', tmp_path / 'work'],
            capture_output=True, text=True, cwd=tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    printed = run()
    assert 'files:  work/comparison.md, .csv, .png, degrees.md, .csv' in printed
    rows = rows_of(tmp_path / 'work' / 'results.csv')
    assert rows.keys() == {'teacher', 'student', 'plain', 'gkd'}
    # The teacher that was tested is the one that was trained.
    compared = rows_of(tmp_path / 'work' / 'comparison.csv')
    assert float(compared['teacher']['AP mean']) == pytest.approx(float(rows['teacher']['AP']),
                                                                  abs=0.06)
    # All objects are of the first degree.
    for method, row in rows_of(tmp_path / 'work' / 'degrees.csv').items():
        assert float(row['blur 0 to 0.3 mean']) == pytest.approx(
            float(compared[method]['AP mean']), abs=0.06)
    assert run().count('finished before') == 7
