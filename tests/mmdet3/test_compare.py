"""The comparison of methods: its stages, what they start from, and a real one."""

import csv
import subprocess
import sys

import pytest
from mmengine.config import Config
from small_experiments import TOOLS, detector, experiment

from gkd.commands.processes import StageFailed
from gkd.comparison import mmdet3
from gkd.errors import ConfigError


@pytest.fixture
def config(annotations, tmp_path):
    """A distillation config whose teacher and student are still to be trained."""
    for name, channels in (('student', 16), ('teacher', 24)):
        own = experiment(annotations, tmp_path / 'own')
        own.model = detector('one_stage', channels)
        own.custom_hooks = []
        own.dump(tmp_path / f'{name}.py')
    whole = experiment(annotations, tmp_path / 'own', methods=dict(
        pair=[dict(type='PKD'), dict(type='CWD')], unknown=[dict(type='Nothing')]))
    for name in ('student', 'teacher'):
        whole.model[name] = dict(config=str(tmp_path / f'{name}.py'),
                                 checkpoint=str(tmp_path / f'{name}_seed0.pth'))
    path = tmp_path / 'distil.py'
    whole.dump(path)
    return str(path)


def test_stages_start_from_what_was_trained_before(commands, config, tmp_path, capsys):
    work = tmp_path / 'work'
    commands.aps['teacher'] = 0.5
    mmdet3.compare(config, ['gkd', 'no-global', 'unknown', 'pair'], seeds=[0, 2],
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
    assert table.splitlines()[0] in printed and 'unknown: refused: ' in printed
    rows = list(csv.DictReader((work / 'results.csv').read_text().splitlines()))
    assert [(row['method'], row['teacher_seed'], row['student_seed']) for row in rows[-4:]] == [
        ('plain', '', '2'), ('gkd', '0', '2'), ('no-global', '0', '2'), ('pair', '0', '2')]
    assert {row['family'] for row in rows} == {'RetinaNet'}

    # What is finished stays so, until what it depends on is another.
    before = len(commands.commands)
    mmdet3.compare(config, ['gkd', 'pair'], seeds=[0, 2], work_dir=str(work))
    assert len(commands.commands) == before
    mmdet3.compare(config, ['gkd', 'pair'], seeds=[0], epochs=5, work_dir=str(work))
    assert commands.commands[before:] == [
        'train teacher', 'train student_seed0', 'test teacher', 'train plain_seed0',
        'train gkd_seed0', 'train pair_seed0']


def test_what_failed_is_named_and_the_same_command_goes_on(commands, config, tmp_path, capsys):
    commands.aps['gkd_seed0'] = None
    with pytest.raises(StageFailed, match='1 stages failed'):
        mmdet3.compare(config, ['gkd', 'pkd'], 1, work_dir=str(tmp_path / 'work'))
    assert 'failed with seed 0' in (tmp_path / 'work' / 'comparison.md').read_text()
    commands.aps.clear()
    before = len(commands.commands)
    mmdet3.compare(config, ['gkd', 'pkd'], 1, work_dir=str(tmp_path / 'work'))
    assert commands.commands[before:] == ['train gkd_seed0']
    # Metrics alone are not enough for what starts from a checkpoint.
    (tmp_path / 'work' / 'plain_seed0' / 'epoch_2.pth').unlink()
    mmdet3.compare(config, ['gkd', 'pkd'], 1, work_dir=str(tmp_path / 'work'), only_list=True)
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1].rpartition('/')[2] for line in listed
            if line.startswith('to do')] == ['plain_seed0']


def test_a_config_that_cannot_be_compared_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match='trains a RetinaNet; a comparison needs'):
        mmdet3.compare(str(tmp_path / 'student.py'))
    whole = Config.fromfile(config)
    whole.val_dataloader = whole.val_cfg = whole.val_evaluator = None
    whole.dump(tmp_path / 'blind.py')
    with pytest.raises(ConfigError, match='val_dataloader'):
        mmdet3.compare(str(tmp_path / 'blind.py'))


@pytest.mark.slow
def test_the_command_trains_and_compares(config, tmp_path):
    def run():
        ended = subprocess.run(
            [sys.executable, TOOLS / 'compare.py', config, '--methods', 'gkd', '--seeds', '1',
             '--epochs', '1', '--jobs', '2', '--work-dir', tmp_path / 'work'],
            capture_output=True, text=True, cwd=tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    printed = run()
    assert 'files:  work/comparison.md, .csv, .png' in printed
    rows = {row['method']: row for row in csv.DictReader(
        (tmp_path / 'work' / 'results.csv').read_text().splitlines())}
    assert rows.keys() == {'teacher', 'student', 'plain', 'gkd'}
    # The teacher that was tested is the one that was trained.
    [tested] = [row for row in csv.DictReader(
        (tmp_path / 'work' / 'comparison.csv').read_text().splitlines())
        if row['method'] == 'teacher']
    assert float(tested['AP mean']) == pytest.approx(float(rows['teacher']['AP']), abs=0.06)
    assert run().count('finished before') == 5
