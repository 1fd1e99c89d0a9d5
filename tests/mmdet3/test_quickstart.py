"""The quickstart's stages: in which order, from what, and what is not trained again."""

import runpy
import sys

import pytest
from small_experiments import TOOLS

from gkd.commands.processes import StageFailed
from gkd.comparison import compare, stages
from gkd.quickstart import run
from gkd.report.results import read_results
from gkd.repository import REPOSITORY

APS = dict(teacher=0.5, student_seed0=0.2, student_seed2=0.3, plain_seed0=0.25, plain_seed2=0.35,
           gkd_seed0=0.28, gkd_seed2=0.36)


@pytest.fixture
def quickstart(commands, monkeypatch):
    """The quickstart without its data; its trainings only leave metrics and a checkpoint."""
    commands.aps.update(APS)
    monkeypatch.setattr(compare, 'prepare_embedded', lambda path: None)
    monkeypatch.setattr(run, 'prepare_efficientnet_lite0', lambda: None)
    monkeypatch.setattr(run, 'write_report', lambda *folders: commands.drawn.append(folders))
    monkeypatch.setattr(run, 'draw_pictures', lambda *stages: commands.drawn.append(stages))
    commands.drawn = []
    monkeypatch.chdir(REPOSITORY)
    return run.quickstart


def options(command):
    """Settings that a command replaces."""
    return dict(option.split('=') for option in command[command.index('--cfg-options') + 1:])


def test_students_of_every_seed_go_on_alone_and_taught(quickstart, commands, tmp_path, capsys,
                                                       monkeypatch):
    quickstart('digit-scenes', 'retinanet', [0, 2], work_dir=tmp_path)
    folder = tmp_path / 'retinanet_digit-scenes'
    assert set(commands.commands[:3]) == {
        'train teacher', 'train student_seed0', 'train student_seed2'}
    assert len(commands.commands) == 7
    whole = {name.split()[1]: command for name, command in
             zip(commands.commands, commands.whole)}
    for seed in ('0', '2'):
        student = {'model.student.checkpoint': f'{folder}/student_seed{seed}/epoch_8.pth'}
        teacher = {'model.teacher.checkpoint': f'{folder}/teacher/epoch_3.pth'}
        assert options(whole[f'plain_seed{seed}']) == student
        assert options(whole[f'gkd_seed{seed}']) == {**student, **teacher}
        for name in ('student', 'plain', 'gkd'):
            command = whole[f'{name}_seed{seed}']
            assert command[command.index('--seed') + 1] == seed
    printed = capsys.readouterr().out
    table = (folder / 'table.md').read_text()
    assert table in printed and '50.0' in table and '+2.0' in table  # of +3.0 and +1.0
    for name in ('detections.png', 'prototypes.png', 'report.html'):
        assert name in printed
    names = ['teacher', 'plain_seed2', 'gkd_seed2']
    (*drawn, _), (reported, others, _) = commands.drawn
    assert [stage.work_dir for stage in drawn] == [str(folder / name) for name in names]
    assert [reported, *others] == [drawn[2].work_dir, drawn[1].work_dir]
    rows = {(row.data, row.family, row.method, row.teacher_seed, row.student_seed): row.AP
            for row in read_results(folder / 'results.csv')}
    assert rows == {('digit-scenes', 'RetinaNet', *key): ap for key, ap in {
        ('teacher', '0', ''): '50', ('student', '', '0'): '20', ('student', '', '2'): '30',
        ('plain', '', '0'): '25', ('plain', '', '2'): '35', ('gkd', '0', '0'): '28',
        ('gkd', '0', '2'): '36'}.items()}

    before = (folder / 'results.csv').read_text()
    monkeypatch.setattr(stages, 'version', lambda: 'later')
    quickstart('digit-scenes', 'retinanet', [0, 2], work_dir=tmp_path)
    assert len(commands.commands) == 7  # what is finished is not trained again
    assert before == (folder / 'results.csv').read_text()  # nor said to be of other code


def test_a_stage_that_failed_is_named_and_the_same_command_goes_on(quickstart, commands, tmp_path,
                                                                   capsys):
    commands.aps['student_seed0'] = None
    with pytest.raises(StageFailed, match='The same command resumes'):
        quickstart('tree-crowns', 'faster_rcnn', [0], 3, 1, tmp_path)
    assert 'student.py failed, see ' in capsys.readouterr().out
    commands.aps['student_seed0'] = 0.2
    quickstart('tree-crowns', 'faster_rcnn', [0], 3, 1, tmp_path)
    assert commands.commands.count('train student_seed0') == 2
    assert commands.commands.count('train teacher3') == 1
    assert set(commands.commands[-2:]) == {'train plain_seed0', 'train gkd_teacher3_seed0'}
    rows = read_results(tmp_path / 'faster_rcnn_tree-crowns' / 'results.csv')
    assert {(row.data, row.family, row.strip) for row in rows} == {
        ('tree-crowns', 'FasterRCNN', 'right')}
    assert {row.method: row.teacher_seed for row in rows} == dict(
        teacher='3', student='', plain='', gkd='3')
    printed = capsys.readouterr().out
    assert 'faster_rcnn on tree-crowns, MMDetection 3, validation, seeds 0' in printed
    assert 'configs/mmdet3/quickstart/gkd_faster_rcnn_' in printed


def test_the_command_passes_its_options_on(monkeypatch):
    given = []
    monkeypatch.setattr(run, 'quickstart', lambda *arguments: given.append(arguments))
    for options in ((), ('--data', 'tree-crowns', '--family', 'faster_rcnn', '--seeds', '1', '2',
                         '--teacher-seed', '3', '--epochs', '4', '--work-dir', 'there')):
        monkeypatch.setattr(sys, 'argv', ['train.py', *options])
        runpy.run_path(str(TOOLS / 'train.py'))['main']()
    assert given == [('digit-scenes', 'retinanet', [0], 0, None, None),
                     ('tree-crowns', 'faster_rcnn', [1, 2], 3, 4, 'there')]
