"""Comparing methods of distillation, from trainings of small detectors to table and plot."""

import argparse
import csv
import fcntl
import json
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_data
from helpers.running import run_tool
from helpers.terminals import lines_left, terminal
from mmcv import Config

from gkd.commands import processes as tool_processes
from gkd.commands import run as run_command
from gkd.commands.settings import DictAction, add_settings_option
from gkd.comparison import compare, mmdet2, stages
from gkd.comparison.data import data_name, move_to_strip, strip_of
from gkd.comparison.degrees import degree_column, degree_columns
from gkd.comparison.methods import choose_methods, variant
from gkd.comparison.mmdet2 import Detection, Training
from gkd.comparison.plan import check_methods
from gkd.comparison.run import run_stage
from gkd.datasets.coco_eval import evaluate, metrics_of
from gkd.datasets.degrees import DIGIT_SCENES_DEGREES
from gkd.errors import CheckpointError, ConfigError, DataError
from gkd.knowledge import Knowledge
from gkd.locks import file_lock
from gkd.quickstart import run as quickstart
from gkd.registry import KNOWLEDGE
from gkd.report.comparison import Row, comparison_figure, draw_comparison, format_comparison
from gkd.report.results import Result, append_result, read_results
from gkd.running.config import load_config
from gkd.work_dir import DETECTIONS


@KNOWLEDGE.register_module(force=True)
class MeanOfMaps(Knowledge):
    """Teach the mean of each map."""

    def __init__(self, pair, weight=1.0):
        super().__init__(pair)
        self.weight = weight

    def forward(self, step):
        return dict(loss_mean=self.weight * sum(
            (own.mean() - other.mean()) ** 2
            for own, other in zip(step.student.maps, step.teacher.maps)))


METRICS = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'bbox_mAP_s', 'bbox_mAP_m', 'bbox_mAP_l')


def write_experiment(folder, methods=None):
    """A distillation config whose teacher and student are still to be trained."""
    # One step per epoch: what is logged are the losses of untouched weights.
    tiny_data.write_data(folder, sizes=((128, 96),) * 4)
    student, distiller = tiny_data.write_pair(folder, 'one_stage', epochs=1, batch_size=4)
    config = load_config(distiller)
    config.model.teacher.checkpoint = str(folder / 'nowhere' / 'teacher.pth')
    config.model.student.checkpoint = str(folder / 'nowhere' / 'seed0.pth')
    config.methods = dict(mean=[dict(type='MeanOfMaps')], **(methods or {}))
    Path(distiller).write_text(config.pretty_text)
    return distiller


def add_degrees(folder):
    path = folder / 'annotations.json'
    coco = json.loads(path.read_text())
    for annotation in coco['annotations']:
        annotation.update(blur=0, occlusion=0, size=1000)
    path.write_text(json.dumps(coco))


def what(command):
    """Tool and stage of a command."""
    if command[0] == 'train.py':
        return 'train ' + Path(command[command.index('--work-dir') + 1]).name
    return 'test ' + Path(command[-1].split('=')[1]).parent.name


@pytest.fixture
def processes(monkeypatch):
    """Commands that would be run; nothing is trained, but every result is there.

    The metrics of a training are those that ``outcome`` says, which may raise, too; they are of
    the epoch, or iteration, ``end``.
    """
    def run(command, environment=None, log=None, lock=None):
        commands.append((what(command), environment, log))
        metrics = run.outcome(what(command))
        if metrics is None:
            return 1, 0.0
        if command[0] == 'train.py':
            folder = Path(command[command.index('--work-dir') + 1])
            (folder / 'latest.pth').write_text(what(command))
            (folder / 'evaluation.json').write_text(json.dumps({run.end: metrics}))
        else:
            Path(command[-1].split('=')[1] + '.bbox.json').write_text('[]')
        return 0, 500.0

    commands = []
    run.commands, run.end = commands, '1'
    run.outcome = lambda name: dict.fromkeys(METRICS, 0.25)
    for module in (stages, mmdet2):
        monkeypatch.setattr(module, 'run_tool', run)
    return run


def run_compare(*args):
    """Run the command; returns its exit status and all that it prints."""
    status, out, err = run_tool('compare', *args)
    return status, out + err


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    """Folder of a comparison that was interrupted, and then run with one more seed.

    Also the commands of both times.
    """
    folder = tmp_path_factory.mktemp('compared')
    config = write_experiment(folder)
    add_degrees(folder)
    commands = []

    def run(command, environment=None, log=None, lock=None):
        if len(commands) == 4:
            commands.append('interrupted')
            raise KeyboardInterrupt
        commands.append(what(command))
        status, out, err = run_tool(command[0][:-3], *command[1:])
        assert status == 0, err
        return status, 500.0

    arguments = [config, '--methods', 'gkd', 'mean', 'gkd+mean', '--work-dir', folder / 'work']
    with pytest.MonkeyPatch.context() as patch:
        for module in (stages, mmdet2):
            patch.setattr(module, 'run_tool', run)
        status, printed = run_compare(*arguments, '--seeds', 1)
        assert status == 130 and 'resumes' in printed
        status, printed = run_compare(*arguments, '--seeds', 2)
        assert status == 0, printed
    return folder, commands, printed


def evaluation(folder, name):
    return json.loads((folder / 'work' / name / 'evaluation.json').read_text())['1']


def table_of(path):
    """Rows of a CSV by method."""
    return {row['method']: row for row in csv.DictReader(path.read_text().splitlines())}


@pytest.mark.slow
def test_goes_on_where_it_was_interrupted_one_seed_after_the_other(compared):
    _, commands, _ = compared
    stop = commands.index('interrupted')
    assert commands[:stop] == ['train teacher', 'train student_seed0', 'test teacher',
                               'train plain_seed0']
    methods = ('plain', 'gkd', 'mean', 'gkd+mean')
    by_seed = [[f'{tool} {method}_seed{seed}' for method in methods for tool in ('train', 'test')]
               for seed in (0, 1)]
    assert sorted(commands[stop + 1:]) == sorted(
        ['train student_seed1', *by_seed[0][1:], *by_seed[1]])
    runs = [command for command in commands[stop + 1:] if 'student' not in command]
    assert runs == by_seed[0][1:] + by_seed[1]


@pytest.mark.slow
def test_all_runs_of_a_seed_have_the_same_start_and_data(compared):
    folder, _, _ = compared

    def losses(name):
        log, = (folder / 'work' / name).glob('*.log.json')
        line, = (line for line in map(json.loads, log.read_text().splitlines())
                 if line.get('mode') == 'train')
        return {key: line[key] for key in line if key.startswith('loss_')}

    def detection(name):
        found = losses(name)
        return found['loss_cls'], found['loss_bbox']

    for seed in (0, 1):
        assert losses(f'plain_seed{seed}').keys() == {'loss_cls', 'loss_bbox'}
        for method in ('gkd', 'mean', 'gkd+mean'):
            assert detection(f'{method}_seed{seed}') == detection(f'plain_seed{seed}')
        both = losses(f'gkd+mean_seed{seed}')
        assert both.keys() == {*losses(f'gkd_seed{seed}'), *losses(f'mean_seed{seed}')}
        assert len(both) > len(losses(f'gkd_seed{seed}')) > 2
    assert detection('plain_seed0') != detection('plain_seed1')
    # They start from the student of their seed, which learned alone.
    start = torch.load(folder / 'work' / 'student_seed1' / 'latest.pth')['state_dict']
    frozen = load_config(str(folder / 'work' / 'plain_seed1' / 'plain.py')).model.student
    assert frozen.checkpoint == str(folder / 'work' / 'student_seed1' / 'latest.pth')
    assert 'bbox_head.retina_cls.weight' in start


@pytest.mark.slow
def test_table_holds_what_was_measured(compared):
    folder, _, printed = compared
    text = (folder / 'work' / 'comparison.md').read_text()
    assert text in printed
    assert [line.split()[1] for line in text.splitlines()[2:7]] == [
        'teacher', 'plain', 'gkd', 'mean', 'gkd+mean']
    table = table_of(folder / 'work' / 'comparison.csv')
    assert float(table['teacher']['AP mean']) == pytest.approx(
        100 * evaluation(folder, 'teacher')['bbox_mAP'], abs=0.06)  # it is rounded there
    for method in ('plain', 'gkd', 'mean', 'gkd+mean'):
        row = table['plain student' if method == 'plain' else method]
        for name, key in (('AP', 'bbox_mAP'), ('AP50', 'bbox_mAP_50'),
                          ('AP medium', 'bbox_mAP_m')):
            first, second = (100 * evaluation(folder, f'{method}_seed{seed}')[key]
                             for seed in (0, 1))
            assert float(row[f'{name} mean']) == pytest.approx((first + second) / 2, abs=1e-4)
            assert float(row[f'{name} std']) == pytest.approx(
                abs(first - second) / 2 ** 0.5, abs=1e-4)
        assert row['AP small mean'] == ''  # there are no small objects
        assert row['seeds'] == '2' and float(row['time mean']) > 0
        assert float(row['memory mean']) == 500
    assert (folder / 'work' / 'comparison.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_average_precision_by_degree(compared):
    folder, _, _ = compared
    overall = table_of(folder / 'work' / 'comparison.csv')
    for method, row in table_of(folder / 'work' / 'degrees.csv').items():
        for degree, ranges in DIGIT_SCENES_DEGREES.items():
            first, *others = (degree_column(degree, low, high) for low, high in ranges)
            # All objects are of the first degree.
            assert float(row[f'{first} mean']) == pytest.approx(
                float(overall[method]['AP mean']), abs=0.06)
            assert [row[f'{other} mean'] for other in others] == [''] * len(others)
    assert '| size from ' in (folder / 'work' / 'degrees.md').read_text()


@pytest.mark.slow
def test_finished_stages_are_reused_and_others_redone(compared, processes, tmp_path):
    folder, _, _ = compared
    config = load_config(str(folder / 'distiller.py'))
    arguments = ['--methods', 'gkd', 'mean', '--seeds', 1, '--work-dir', folder / 'work']
    before = (folder / 'work' / 'gkd_seed0' / 'latest.pth').read_bytes()
    # Further methods change nothing; another weight changes its own method.
    config.methods = dict(mine=[dict(type='Mine')], mean=[dict(type='MeanOfMaps', weight=2.0)])
    (tmp_path / 'changed.py').write_text(config.pretty_text)
    processes.outcome = lambda name: None
    status, printed = run_compare(tmp_path / 'changed.py', *arguments)
    assert [name for name, *_ in processes.commands] == ['train mean_seed0']
    assert status == 2 and '2 stages failed or could not start' in printed
    text = (folder / 'work' / 'comparison.md').read_text()
    assert '- mean: failed with seed 0' in text and '- gkd' not in text
    assert not (folder / 'work' / 'mean_seed0' / 'latest.pth').exists()
    assert (folder / 'work' / 'gkd_seed0' / 'latest.pth').read_bytes() == before


def test_checkpoints_that_are_there_are_used(processes, tmp_path):
    config = write_experiment(tmp_path)
    with open(config, 'a') as file:
        file.write('data["test"]["ann_file"] = "of_a_challenge.json"\n')
    (tmp_path / 'nowhere').mkdir()
    for name in ('teacher', 'seed1'):
        (tmp_path / 'nowhere' / f'{name}.pth').write_text(name)
    status, printed = run_compare(config, '--methods', 'gkd', '--seeds', 2, '--epochs', 1,
                                  '--work-dir', tmp_path / 'work')
    assert status == 0, printed
    assert 'teacher.pth is there' in printed and 'seed1.pth is there' in printed
    assert [name for name, *_ in processes.commands] == [
        'train student_seed0', 'test teacher', 'train plain_seed0', 'train gkd_seed0',
        'train plain_seed1', 'train gkd_seed1']
    assert table_of(tmp_path / 'work' / 'comparison.csv')['teacher']['seeds'] == '1'
    tested = load_config(str(tmp_path / 'work' / 'configs' / 'test_teacher.py')).data
    assert tested.test == tested.val
    assert {path.name for path in (tmp_path / 'work' / 'detections' / 'teacher').iterdir()} == {
        'stage.txt', DETECTIONS}
    # Another teacher at the same place makes another comparison.
    (tmp_path / 'nowhere' / 'teacher.pth').write_text('better')
    processes.commands.clear()
    run_compare(config, '--methods', 'gkd', '--seeds', 1, '--work-dir', tmp_path / 'work')
    assert [name for name, *_ in processes.commands] == ['test teacher', 'train gkd_seed0']
    # Another teacher is trained; another student is another start for all.
    with open(tmp_path / 'student.py', 'a') as file:
        file.write('note = "better"\n')
    processes.commands.clear()
    run_compare(config, '--methods', 'gkd', '--seeds', 2, '--teacher-seed', 1, '--epochs', 1,
                '--work-dir', tmp_path / 'work')
    assert [name for name, *_ in processes.commands] == [
        'train teacher1', 'train student_seed0', 'test teacher1', 'train plain_seed0',
        'train gkd_teacher1_seed0', 'train plain_seed1', 'train gkd_teacher1_seed1']


def test_a_teacher_with_more_classes_is_not_tested(processes, tmp_path):
    path = write_experiment(tmp_path)
    config = load_config(path)
    config.model.teacher.checkpoint = str(tmp_path / 'teacher.pth')  # of three classes
    for part in ('train', 'val', 'test'):
        config.data[part].classes = ['red', 'blue']
    config.model.student.overrides = {'bbox_head.num_classes': 2}
    Path(path).write_text(config.pretty_text)
    status, printed = run_compare(path, '--methods', 'gkd', '--seeds', 1, '--work-dir',
                                  tmp_path / 'work')
    assert status == 0, printed
    assert [name for name, *_ in processes.commands] == [
        'train student_seed0', 'train plain_seed0', 'train gkd_seed0']
    own = load_config(str(tmp_path / 'work' / 'configs' / 'student.py'))
    assert own.model.bbox_head.num_classes == 2  # it is trained with its overrides, too
    assert '- teacher: not tested: it detects 3 classes, of which the data have 2' in printed


def test_method_that_cannot_serve_is_refused_and_the_others_go_on(processes, tmp_path):
    config = write_experiment(tmp_path, dict(odd=[dict(type='CWD', levels=[9])]))
    status, printed = run_compare(config, '--methods', 'odd', 'gkd', 'gkd+odd', '--seeds', 1,
                                  '--work-dir', tmp_path / 'work')
    assert status == 0, printed
    names = [name for name, *_ in processes.commands]
    assert 'train gkd_seed0' in names and not any('odd' in name for name in names)
    rows = table_of(tmp_path / 'work' / 'comparison.csv')
    for method in ('odd', 'gkd+odd'):
        assert rows[method]['note'].startswith('refused: ')
        assert 'CWD.levels' in rows[method]['note'] and rows[method]['seeds'] == '0'
        assert f'- {method}: refused: ' in printed


@pytest.mark.parametrize('method, others, says', [
    ([dict(type='CWD', levels=[9])], [], ['nothing is left to compare', 'CWD.levels']),
    (dict(type='MeanOfMaps'), ['gkd'], ['methods.odd', 'must be a list of dicts']),
    ([dict(type='MeanOfMaps', wieght=1)], ['gkd'], ["method 'odd'", 'wieght', '--methods']),
    ([dict(type='MeanOfMap')], ['gkd'], ["method 'odd'", 'Did you mean MeanOfMaps']),
    ([dict(type='CWD', temperature=0)], ['gkd'], ["method 'odd'", 'CWD.temperature = 0'])])
def test_nothing_is_trained_if_a_method_is_wrong_or_none_is_left(
        processes, tmp_path, method, others, says):
    config = write_experiment(tmp_path, dict(odd=method))
    status, printed = run_compare(config, '--methods', *others, 'odd', '--work-dir',
                                  tmp_path / 'new' / 'work')
    assert status == 2 and not processes.commands and not (tmp_path / 'new').exists()
    assert all(text in printed for text in says), printed


def test_a_failure_stops_only_what_needs_it(processes, tmp_path):
    config = write_experiment(tmp_path)

    def outcome(name):
        if name == 'train mean_seed1':  # the table is there before the end
            assert 'failed with seed 1' in (tmp_path / 'work' / 'comparison.md').read_text()
        return None if name in ('train student_seed0', 'train gkd_seed1') else \
            dict.fromkeys(METRICS, 0.3)

    processes.outcome = outcome
    status, printed = run_compare(config, '--methods', 'gkd', 'mean', '--seeds', 2,
                                  '--work-dir', tmp_path / 'work')
    assert status == 2 and '5 stages failed or could not start' in printed
    rows = table_of(tmp_path / 'work' / 'comparison.csv')
    assert {name: row['seeds'] for name, row in rows.items()} == {
        'teacher': '1', 'plain student': '1', 'gkd': '0', 'mean': '1'}
    assert rows['mean']['note'] == 'failed with seed 0'
    assert rows['gkd']['note'] == 'failed with seed 0, 1'


def test_training_without_a_last_evaluation_has_failed(processes, tmp_path):
    config = write_experiment(tmp_path)
    status, printed = run_compare(config, '--methods', 'gkd', '--seeds', 1, '--epochs', 2,
                                  '--work-dir', tmp_path / 'work')
    assert status == 2 and 'epoch 2, the last, was not evaluated, or nothing was' in printed
    # Nothing starts from what they have left.
    assert [name for name, *_ in processes.commands] == ['train teacher', 'train student_seed0']


@pytest.mark.parametrize('measured, shown', [
    ({'mAP': 0.5, 'AP50': 0.5}, {'AP': '50.0', 'AP50': '50.0'}),  # PASCAL VOC, Open Images
    ({'bbox_AP': 0.25, 'bbox_AP50': 0.5, 'bbox_AP75': 0.125, 'bbox_APs': -1.0, 'bbox_APr': 0.0},
     {'AP': '25.0', 'AP50': '50.0', 'AP75': '12.5'}),  # LVIS
])
def test_average_precision_of_other_evaluations_is_compared(processes, tmp_path, measured, shown):
    config = write_experiment(tmp_path)
    processes.outcome = lambda name: measured
    status, printed = run_compare(config, '--methods', 'gkd', '--seeds', 1,
                                  '--work-dir', tmp_path / 'work',
                                  '--results', tmp_path / 'rows.csv')
    assert status == 0, printed
    row = table_of(tmp_path / 'work' / 'comparison.csv')['gkd']
    assert {name: f'{float(row[f"{name} mean"]):.1f}' for name in shown} == shown
    assert read_results(str(tmp_path / 'rows.csv'))[-1].AP == f'{float(shown["AP"]):g}'


def test_data_without_average_precision_end_a_comparison_at_its_first_training(processes,
                                                                              tmp_path):
    config = write_experiment(tmp_path)
    processes.outcome = lambda name: {'PQ': 40.0, 'one/coco/bbox_mAP': 0.5}
    status, printed = run_compare(config, '--methods', 'gkd', '--seeds', 1,
                                  '--work-dir', tmp_path / 'work')
    assert status == 2
    assert 'measures PQ, one/coco/bbox_mAP, and no average precision of boxes in all' in printed
    assert [name for name, *_ in processes.commands] == ['train teacher', 'train student_seed0']


def test_jobs_run_at_once_and_wait_for_what_they_need(processes, tmp_path, monkeypatch):
    config = write_experiment(tmp_path)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 6)
    together = threading.Barrier(2, timeout=600)

    def outcome(name):
        if name.startswith('train student'):
            together.wait()  # both, or neither ends
        return dict.fromkeys(METRICS, 0.25)

    processes.outcome = outcome
    status, printed = run_compare(config, '--methods', 'gkd', '--seeds', 2, '--jobs', 2,
                                  '--work-dir', tmp_path / 'work')
    assert status == 0, printed
    names = [name for name, *_ in processes.commands]
    assert len(names) == 8 and names.index('train teacher') < names.index('train plain_seed0')
    for seed in (0, 1):
        start = names.index(f'train student_seed{seed}')
        assert start < min(names.index(f'train {name}_seed{seed}') for name in ('plain', 'gkd'))
    for name, environment, log in processes.commands:
        assert environment['OMP_NUM_THREADS'] == '3'
        assert Path(log).stem == name.split()[1]


def test_methods_of_a_comparison_leave_other_trainings_as_they_are(tmp_path):
    path = write_experiment(tmp_path)
    stage = Training(path, str(tmp_path / 'work' / 'latest.pth'))
    before = stage.fingerprint()
    with open(path, 'a') as file:
        file.write("methods['further'] = [dict(type='MeanOfMaps')]\n")
    assert Training(path, stage.checkpoint).fingerprint() == before
    with open(path, 'a') as file:
        file.write("model['knowledge'] = [dict(type='MeanOfMaps')]\n")
    assert Training(path, stage.checkpoint).fingerprint() != before


def test_a_training_is_repeated_if_what_it_depends_on_has_changed(processes, tmp_path):
    """Also if nothing was trained from it before, as of detectors that are there already."""
    path, checkpoint = write_experiment(tmp_path), str(tmp_path / 'work' / 'latest.pth')
    stage = Training(path, checkpoint)
    assert not stage.prepare() and not stage.finished()  # it is begun
    stage.run()
    assert stage.finished() and not Training(path, checkpoint, seed=1).finished()
    for role in ('teacher', 'student'):
        assert Training(path, checkpoint).prepare()
        with open(tmp_path / f'{role}.py', 'a') as file:
            file.write('note = "better"\n')
        stage = Training(path, checkpoint)
        assert not stage.finished() and not stage.prepare()
        stage.run()


def test_a_folder_of_the_users_own_is_not_emptied(tmp_path):
    (tmp_path / 'notes.txt').touch()
    stages.claim(str(tmp_path), 'one')
    assert (tmp_path / 'notes.txt').exists()
    stages.claim(str(tmp_path), 'one')
    assert (tmp_path / 'notes.txt').exists()
    stages.claim(str(tmp_path), 'other')  # now it was a stage's
    assert [path.name for path in tmp_path.iterdir()] == [stages.STAMP]


def test_gpus_are_dealt_out_in_turn(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,5')
    assert [share['CUDA_VISIBLE_DEVICES'] for share in tool_processes.shares(3)] == ['2', '5', '2']
    assert tool_processes.shares(3)[0]['OMP_NUM_THREADS'] == '4'
    assert tool_processes.shares(1) == [{}]


@pytest.mark.parametrize('names, problem', [
    (['gkd', 'fdg'], "'fdg' unknown; known are gkd, .*fgd, .*mine.* Did you mean fgd"),
    (['gkd', 'no-globl'], "Did you mean no-global, "),
    (['GKD'], "Did you mean gkd, "),
    (['gkd+fdg'], r"--methods gkd\+fdg: 'fdg' unknown"),
])
def test_unknown_method_names_those_that_are_known(names, problem):
    config = Config(dict(model=dict(knowledge=[]), methods=dict(mine=[])))
    with pytest.raises(ConfigError, match=problem):
        choose_methods(config, names)


def test_methods_come_from_the_config_before_the_defaults():
    own, mine, other = dict(type='Own'), dict(type='Mine'), dict(type='FGD', weight=3)
    config = Config(dict(model=dict(knowledge=[own]), methods=dict(mine=[mine], fgd=[other])))
    chosen = choose_methods(config)
    taught = {name: settings['knowledge'] for name, settings in chosen.items()}
    assert taught['gkd'] == [own] and taught['mine'] == [mine] and taught['fgd'] == [other]
    assert taught['pkd'] == [dict(type='PKD')] and 'no-global' not in taught
    for name, expected in {'fgd+gkd': [other, own], 'gkd+fgd': [own, other],
                           'fgd+mine': [other, mine]}.items():
        assert choose_methods(config, [name])[name]['knowledge'] == expected
    for name in ('plain', 'a+b', '../x'):
        config.methods = {name: [mine]}
        with pytest.raises(ConfigError, match='cannot name a method'):
            choose_methods(config)


def test_config_that_cannot_be_compared_is_explained(tmp_path):
    config = write_experiment(tmp_path)
    status, printed = run_compare(tmp_path / 'student.py', '--work-dir', tmp_path / 'work')
    assert status == 2 and 'trains a RetinaNet; a comparison needs a distillation' in printed
    whole = load_config(config)
    whole.model.teacher.config = load_config(str(tmp_path / 'teacher.py')).model
    (tmp_path / 'inline.py').write_text(whole.pretty_text)
    status, printed = run_compare(tmp_path / 'inline.py', '--work-dir', tmp_path / 'work')
    assert status == 2 and 'model.teacher.config names no config file to train it' in printed
    assert 'Traceback' not in printed
    for settings, says in (
            (dict(interval=2), 'epoch 1, the last, would not be evaluated.*interval, now 2'),
            (dict(start=2), 'epoch 1, the last, would not be evaluated'),
            (dict(dynamic_intervals=[(1, 3)]), '.*evaluation.interval, now 3')):
        whole = load_config(config)
        whole.evaluation.update(settings)
        (tmp_path / 'seldom.py').write_text(whole.pretty_text)
        with pytest.raises(ConfigError, match=f'seldom.py: {says}'):
            compare.compare(str(tmp_path / 'seldom.py'), ['gkd'], work_dir=str(tmp_path / 'work'))
        # The teacher's and the student's own configs were planned already.
        assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('settings, says', [
    (None, ' = None: no checkpoint would be written'),
    (dict(interval=2, save_last=False), '.save_last = False.*Set save_last to True'),
    (dict(out_dir='elsewhere'), ".out_dir = 'elsewhere'.*Set out_dir to None"),
    (dict(create_symlink=False), '.create_symlink = False.*Set create_symlink to True')])
def test_a_training_without_its_last_checkpoint_is_refused_before_any(tmp_path, settings, says):
    config = write_experiment(tmp_path)
    own = load_config(str(tmp_path / 'student.py'))
    own.checkpoint_config = settings
    (tmp_path / 'student.py').write_text(own.pretty_text)
    with pytest.raises(ConfigError, match=f'student.py: checkpoint_config{says}'):
        compare.compare(str(config), ['gkd'], work_dir=str(tmp_path / 'work'))
    assert not (tmp_path / 'work').exists()


def test_trainings_that_count_iterations_are_compared(processes, tmp_path):
    config = load_config(write_experiment(tmp_path))
    for name in ('teacher', 'student', 'distiller'):
        own = load_config(str(tmp_path / f'{name}.py')) if name != 'distiller' else config
        own.runner = dict(type='IterBasedRunner', max_iters=5)
        own.evaluation = dict(interval=5, metric='bbox')
        (tmp_path / f'{name}.py').write_text(own.pretty_text)
    processes.end = '5'
    arguments = [tmp_path / 'distiller.py', '--methods', 'gkd', '--seeds', 1, '--work-dir',
                 tmp_path / 'work']
    status, printed = run_compare(*arguments)
    assert status == 0, printed
    assert [name for name, *_ in processes.commands] == [
        'train teacher', 'train student_seed0', 'test teacher', 'train plain_seed0',
        'train gkd_seed0']
    assert float(table_of(tmp_path / 'work' / 'comparison.csv')['gkd']['AP mean']) == 25
    assert load_config(str(tmp_path / 'work' / 'configs' / 'gkd.py')).runner.max_iters == 5
    status, printed = run_compare(*arguments)
    assert status == 0 and len(processes.commands) == 5 and printed.count('finished before') == 5
    status, printed = run_compare(*arguments, '--epochs', 2)
    assert status == 2 and 'counts iterations, not epochs' in printed
    assert 'runner.max_iters' in printed and 'Traceback' not in printed
    config.evaluation.interval = 3
    (tmp_path / 'distiller.py').write_text(config.pretty_text)
    status, printed = run_compare(*arguments)
    assert status == 2 and 'step 5, the last, would not be evaluated' in printed
    assert len(processes.commands) == 5


@pytest.mark.slow
def test_a_tool_runs_in_a_process_of_its_own(tmp_path):
    log = tmp_path / 'log'
    status, memory = tool_processes.run_tool(['compare.py', 'nowhere.py'],
                                             {'OMP_NUM_THREADS': '1'}, str(log))
    assert status == 2 and 'no such config file: nowhere.py' in log.read_text()
    assert 50 < memory < 50_000


@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_a_comparison_has_started_ends_with_it(tmp_path, number, status):
    """A signal to the comparison's own process, not to the whole group as from a terminal."""
    tool = tmp_path / 'tool.py'
    tool.write_text(f'import os, time\nopen("{tmp_path}/" + str(os.getpid()), "w")\n'
                    'time.sleep(100)\n')

    def wait_for_tools():
        with ThreadPoolExecutor(2) as pool, tool_processes.children_end_too():
            for log in ('1', '2'):
                pool.submit(tool_processes.run_tool, [str(tool)], None,
                            str(tmp_path / f'log{log}'))
            time.sleep(100)

    comparison = os.fork()
    if comparison == 0:
        # A shell's background processes, which the tests may be, are born ignoring it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run_command(wait_for_tools)
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(1)
    tools = []
    until = time.time() + 60
    while len(tools) < 2 and time.time() < until:
        tools = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
        time.sleep(0.05)
    os.kill(comparison, number)
    assert os.waitstatus_to_exitcode(os.waitpid(comparison, 0)[1]) == status
    assert len(tools) == 2
    for process in tools:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_tool_that_outlives_its_comparison_is_waited_for(tmp_path):
    """After a SIGKILL of the comparison; two trainings would write into one work dir."""
    tool, started = tmp_path / 'tool.py', tmp_path / 'started'
    tool.write_text(f'import os, time\nopen("{started}.tmp", "w").write(str(os.getpid()))\n'
                    f'os.rename("{started}.tmp", "{started}")\ntime.sleep(100)\n')
    stage = SimpleNamespace(
        output=str(tmp_path / 'run' / 'latest.pth'), prepare=lambda: False,
        run=lambda *settings: tool_processes.run_tool([str(tool)], *settings))
    comparison = os.fork()
    if comparison == 0:
        try:
            run_stage(stage)
        finally:
            os._exit(1)
    until = time.time() + 60
    while not started.exists() and time.time() < until:
        time.sleep(0.05)
    os.kill(comparison, signal.SIGKILL)
    os.waitpid(comparison, 0)
    with open(tmp_path / 'run.lock') as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(int(started.read_text()), signal.SIGKILL)
        fcntl.flock(lock, fcntl.LOCK_EX)


def test_no_tool_is_started_while_all_are_ended(tmp_path):
    with pytest.raises(KeyboardInterrupt), tool_processes.children_end_too():
        raise KeyboardInterrupt
    with pytest.raises(tool_processes.StageFailed, match='stopped'):
        tool_processes.run_tool(['compare.py', '--help'])
    with tool_processes.children_end_too():  # anew
        assert tool_processes.run_tool(['launch.sh'], log=str(tmp_path / 'log'))[0] == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize('value, read', [
    ('a, b/latest.pth', 'a, b/latest.pth'), ('latest.pth', 'latest.pth'), ('[1,2]', [1, 2]),
    ('1,2', '1,2'), (0.5, 0.5)])
def test_settings_arrive_as_they_were(value, read):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args(['--cfg-options', stages.cfg_option('key.of', value), 'other=1,2'])
    assert args.cfg_options == {'key.of': read, 'other': [1, 2]}
    if read == [1, 2]:
        args = parser.parse_args(['--cfg-options', 'key="[1,2]"'])
        assert args.cfg_options == {'key': [1, 2]}


@pytest.mark.parametrize('text, value', [
    ('my data/a (1).json', 'my data/a (1).json'), (' 3 ', 3), ('1e-3', 0.001), ('true', True),
    ('None', None), ('', ''), ('8,', [8]), ('[]', []), ('(1,)', (1,)), ('1, a b', [1, 'a b']),
    ('[(1333, 800), [a b, 0.5]]', [(1333, 800), ['a b', 0.5]]), ('"[1,2]"', [1, 2]),
    ('"a,b"', 'a,b'), ("'it'", 'it'), ('key=value', 'key=value'), ("Jo's data", "Jo's data"),
    ('(1,2),(3,4)', [(1, 2), (3, 4)])])
def test_values_are_read_as_in_mmdetection_with_their_blanks(text, value):
    parser = argparse.ArgumentParser()
    add_settings_option(parser)
    args = parser.parse_args(['--cfg-options', f'a={text}', '--cfg-options', 'b=2'])
    assert args.cfg_options == {'a': value, 'b': 2}


@pytest.mark.parametrize('option, says', [
    ('key', "'key' is not KEY=VALUE"), (' =3', "' =3' is not KEY=VALUE"),
    ('key=[1,2', 'a=1 key=[1,2: imbalanced brackets'),
    ('key=1)', 'a=1 key=1): imbalanced brackets')])
def test_settings_that_cannot_be_read_are_named(option, says, capsys):
    parser = argparse.ArgumentParser()
    add_settings_option(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--cfg-options', 'a=1', option])
    assert f'argument --cfg-options: {says}' in capsys.readouterr().err


@pytest.mark.slow
def test_stages_are_announced_with_the_time_that_is_left(compared):
    _, _, printed = compared
    lines = re.findall(r'=== (\d+)/(\d+)  (\S+)(?:   \((\S+) so far, about (\S+) to go\))?',
                       printed)
    assert len({total for _, total, *_ in lines}) == 1
    assert [int(number) for number, *_ in lines] == list(range(1, int(lines[0][1]) + 1))
    assert lines[0][3] == '' and lines[-1][3] > '00:00'


def test_several_jobs_are_shown_by_one_bar(tmp_path, processes, capsys):
    config = write_experiment(tmp_path)
    with terminal() as sent:
        compare.compare(config, ['gkd'], 1, work_dir=str(tmp_path / 'work'), jobs=2)
    assert re.search(r'\rstages: .* [01]/5, 00:\d\d so far: (teacher|student_seed0)', sent[0])
    assert not any('stages' in line for line in lines_left(sent[0]))
    printed = capsys.readouterr().out
    assert '=== 5/5' in printed and '\r' not in printed


def test_cost_is_read_from_the_logs(processes, tmp_path):
    stage = Training(write_experiment(tmp_path), str(tmp_path / 'latest.pth'))
    assert stage.cost() == {}
    lines = [dict(mode='train', time=9.0, data_time=8.5), dict(mode='val'),
             dict(mode='train', time=0.3, data_time=0.1),
             dict(mode='train', time=0.4, data_time=0)]
    (tmp_path / '1.log.json').write_text('\n'.join(map(json.dumps, lines)))
    (tmp_path / 'process.json').write_text('{"peak_memory": 800.5}')
    assert stage.cost() == dict(time=0.4, memory=800.5)
    stage.run()  # it goes on, and needs less
    assert stage.cost()['memory'] == 800.5
    line = json.dumps(dict(mode='train', time=0.1, data_time=0, memory=70))
    (tmp_path / '2.log.json').write_text(f'{line}\n{line}')
    assert stage.cost() == dict(time=pytest.approx(0.2), memory=70)  # of the GPU


def test_machine_and_version_are_known_of_a_training_that_outlived_its_comparison(
        tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, 'run_tool', killed)
    stage = Training(write_experiment(tmp_path), str(tmp_path / 'work' / 'latest.pth'))
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    made_with = stage.made_with()
    assert made_with == dict(machine=stages.machine(), version=stages.version())
    assert 'memory' not in stage.cost()


def test_detection_is_renewed_with_its_checkpoint(processes, tmp_path):
    config = write_experiment(tmp_path)
    (tmp_path / 'weights.pth').write_text('1')
    stage = Detection(config, str(tmp_path / 'weights.pth'), str(tmp_path / 'found'))
    assert not stage.prepare()
    stage.run()
    assert stage.prepare() and stage.finished() and Path(stage.output).exists()
    (tmp_path / 'weights.pth').write_text('2')
    os.utime(tmp_path / 'weights.pth', (1, 1))
    assert not stage.finished()
    assert not stage.prepare() and not Path(stage.output).exists()
    stage.run()
    with open(config, 'a') as file:
        file.write('data["test"]["test_mode"] = True\n')
    assert not stage.prepare() and not Path(stage.output).exists()


def test_degrees_that_some_annotations_lack_are_no_columns():
    whole = dict.fromkeys(DIGIT_SCENES_DEGREES, 0)
    columns = [degree_columns(SimpleNamespace(dataset=dict(annotations=annotations)))
               for annotations in ([whole], [whole, {}], [{}], [])]
    assert columns[0] and columns[1:] == [[], [], []]


def test_table_and_plot_of_few_and_odd_runs(tmp_path):
    rows = [Row('teacher', {0: {'AP': 20.0}}), Row('plain student'),
            Row('gkd', {0: {'AP': 12.0, 'time': 0.5}})]
    text = format_comparison(rows, ['AP'])
    assert '| gkd           | 1     | 12.0 | –          | 0.500 s       | –           |' in text
    draw_comparison(rows, 'title', str(tmp_path / 'plot.png'))
    draw_comparison([], 'nothing yet', str(tmp_path / 'empty.png'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['empty.png', 'plot.png']


def test_plot_shows_gains_over_the_same_seed():
    """Of APs alone, b would be the best: the student of seed 1 is better by itself."""
    rows = [Row('teacher', {0: {'AP': 30.0}}),
            Row('plain student', {0: {'AP': 10.0}, 1: {'AP': 20.0}}),
            Row('a', {0: {'AP': 12.0}, 1: {'AP': 23.0}}), Row('b', {1: {'AP': 21.0}}), Row('c')]
    axis, = comparison_figure(rows, 'title').axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ['b (1)', 'a (2)']
    drawn = [list(line.get_xdata()) for line in axis.lines]
    assert [2.0, 3.0] in drawn and [1.0] in drawn and [2.5] in drawn
    assert axis.get_title() == 'title\nteacher 30.0 AP, plain student 15.0 AP'


def test_metrics_are_those_of_mmdetection(tmp_path):
    data = load_config(write_experiment(tmp_path)).data
    dataset, _ = mmdet2.validation_data(Config(dict(data=data)))
    found = [dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'],
                  score=0.9) for a in list(dataset.coco.anns.values())[:4]]
    metrics = metrics_of(evaluate(dataset.coco, found, dataset.cat_ids, dataset.img_ids))
    assert metrics['bbox_mAP_s'] == -1
    assert 0 < metrics['bbox_mAP'] < 1 and list(metrics) == list(METRICS)
    assert metrics_of(evaluate(dataset.coco, []))['bbox_mAP'] == 0


def run_one(config, results, work_dir, *arguments):
    """Run ``studies/run_one.py``; returns its exit status and all that it prints."""
    status, out, err = run_tool('../studies/run_one', '--config', config, '--results', results,
                                '--work-dir', work_dir, *arguments)
    return status, out + err


def test_one_run_is_a_row_and_shares_teacher_and_student(processes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_experiment(tmp_path)
    (tmp_path / 'nowhere').mkdir()
    (tmp_path / 'nowhere' / 'teacher.pth').write_text('of unknown origin')
    results, work = tmp_path / 'results.csv', tmp_path / 'work'

    def trained(*arguments):
        processes.commands.clear()
        status, printed = run_one(config, results, work, *arguments)
        assert status == 0, printed
        return [name for name, *_ in processes.commands], printed

    assert trained('--method', 'no-global', '--seed', 1)[0] == [
        'train teacher', 'train student_seed1', 'train no-global_seed1']
    names, printed = trained('--method', 'no-global', '--seed', 1)
    assert names == [] and 'no-global: 25 AP, 25 AP50, in' in printed
    assert trained('--method', 'no-global', '--seed', 1, '--again')[0] == [
        'train no-global_seed1']
    assert trained('--method', 'k1', '--seed', 1)[0] == ['train k1_seed1']
    assert trained('--method', 'plain', '--seed', 1)[0] == ['train plain_seed1']
    # The student and the plain student know nothing of another teacher.
    assert trained('--method', 'gkd', '--seed', 1, '--teacher-seed', 2)[0] == [
        'train teacher2', 'train gkd_teacher2_seed1']
    assert trained('--method', 'plain', '--seed', 1, '--teacher-seed', 2)[0] == []
    processes.outcome = lambda name: dict.fromkeys(METRICS, 0.5)
    names, _ = trained('--method', 'gkd', '--seed', 1, '--cfg-options', 'optimizer.lr=0.5')
    assert len(names) == 1 and re.fullmatch(r'train gkd-\w{8}_seed1', names[0])

    rows = read_results(str(results))
    assert [(row.method, row.teacher_seed, row.student_seed, row.AP) for row in rows] == [
        ('teacher', '0', '', '25'), ('student', '', '1', '25'), ('no-global', '0', '1', '25'),
        ('k1', '0', '1', '25'), ('plain', '', '1', '25'), ('teacher', '2', '', '25'),
        ('gkd', '2', '1', '25'), ('gkd', '0', '1', '50')]
    assert rows[-1].options == 'optimizer.lr=0.5' and rows[0].family == 'RetinaNet'
    assert json.loads(rows[3].settings)['prototypes']['num_prototypes'] == 1
    assert json.loads(rows[2].settings)['knowledge'][0]['global_knowledge'] is None
    assert rows[0].machine and 'gkd' in rows[0].version and 'torch' in rows[0].version


def test_comparison_lists_what_is_left_and_writes_rows(processes, tmp_path):
    config = write_experiment(tmp_path)
    arguments = [config, '--methods', 'mean', 'no-soft', '--work-dir', tmp_path / 'work',
                 '--teacher-seed', 3]
    assert run_compare(*arguments, '--seed', 4)[0] == 0
    processes.commands.clear()
    status, printed = run_compare(*arguments, '--seed', 4, 5, '--list')
    states = {Path(line.split()[-1]).name: line.split()[0] for line in printed.splitlines()
              if line.startswith(('finished', 'to do'))}
    assert {name for name, state in states.items() if state == 'finished'} == {
        'teacher3', 'student_seed4', 'plain_seed4', 'mean_teacher3_seed4',
        'no-soft_teacher3_seed4'}
    assert {name for name, state in states.items() if state == 'to'} == {
        'student_seed5', 'plain_seed5', 'mean_teacher3_seed5', 'no-soft_teacher3_seed5'}
    assert status == 0 and processes.commands == []
    rows = read_results(str(tmp_path / 'work' / 'results.csv'))
    assert [(row.method, row.teacher_seed, row.student_seed) for row in rows] == [
        ('teacher', '3', ''), ('student', '', '4'), ('plain', '', '4'), ('mean', '3', '4'),
        ('no-soft', '3', '4')]
    assert [[*json.loads(row.settings)] for row in rows[3:]] == [
        ['knowledge'], ['knowledge', 'prototypes']]


def test_a_stage_waits_for_the_process_that_runs_it(tmp_path):
    stage = SimpleNamespace(output=str(tmp_path / 'gkd_seed0' / 'latest.pth'),
                            prepare=lambda: True)
    with ThreadPoolExecutor() as pool:
        with file_lock(str(tmp_path / 'gkd_seed0.lock')):
            waiting = pool.submit(run_stage, stage)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        assert waiting.result(timeout=10) is None


def test_another_strip_has_data_of_its_own():
    path = 'configs/quickstart/gkd_retinanet_efficientnet-lite0_r18-w8_fpn_tree-crowns.py'
    config = load_config(path)
    assert strip_of(config) == 'right'
    move_to_strip(config, 'left')
    assert config.data.train.ann_file == 'data/tree_crowns_left/train.json'
    assert config.data.val.img_prefix == 'data/tree_crowns_left/images/'
    assert strip_of(config) == 'left'
    assert data_name(config) == 'tree-crowns'
    digits = load_config(path.replace('quickstart', 'digits').replace('tree-crowns',
                                                                      'digit-scenes'))
    with pytest.raises(ConfigError, match='only the tree crowns have strips'):
        move_to_strip(digits, 'left')


def test_variants_change_the_configs_own_model():
    own = dict(type='Own', soft_label=dict(loss_weight=2))
    config = Config(dict(model=dict(knowledge=[own], prototypes=dict(alpha=3)),
                         variants={'half': {'knowledge.0.soft_label.loss_weight': 1},
                                   'odd': {'knowledge.1.weight': 1}}))
    chosen = choose_methods(config, ['half', 'k5', 'fgd+global-only'])
    assert chosen['half'] == dict(knowledge=[dict(type='Own', soft_label=dict(loss_weight=1))],
                                  prototypes=dict(alpha=3))
    assert chosen['k5'] == dict(knowledge=[own], prototypes=dict(alpha=3, num_prototypes=5))
    assert [kind['type'] for kind in chosen['fgd+global-only']['knowledge']] == ['FGD', 'Own']
    assert chosen['fgd+global-only']['knowledge'][1]['soft_label'] is None
    assert config.model.knowledge == [own]
    varied = variant(config, chosen['k5'])
    assert varied.model.prototypes.num_prototypes == 5 and 'variants' not in varied
    assert config.model.prototypes == dict(alpha=3) and 'variants' in config
    with pytest.raises(ConfigError, match='variants.odd'):
        choose_methods(config, ['odd'])


def test_rows_of_several_processes_and_of_a_repeated_run(tmp_path):
    path = str(tmp_path / 'data' / 'results.csv')
    row = Result('d', 'f', '0', '1', '', 'gkd', '', '{"a":[1,2]}', '1.5', '', '', '', '', '',
                 'cpu', 'v1')
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: append_result(path, replace(row, student_seed=str(seed))),
                      [*range(20)] * 2))
    assert sorted(int(found.student_seed) for found in read_results(path)) == [*range(20)]
    assert len(Path(path).read_text().splitlines()) == 21
    append_result(path, replace(row, AP='9', version='v2'))
    assert [found.AP for found in read_results(path) if found.student_seed == '1'] == ['9']
    with open(path, 'a') as file:
        file.write('a,b\n')
    with pytest.raises(DataError, match='line 23: 2 values for 16 columns'):
        read_results(path)
    Path(path).write_text('a,b\n')
    with pytest.raises(DataError, match='the first line must be data,family'):
        append_result(path, row)


@pytest.mark.parametrize('tool', ['train', 'compare'])
def test_a_work_dir_that_cannot_be_made_ends_before_data_are_made(tool, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(quickstart, 'prepare_efficientnet_lite0', lambda: made.append('weights'))
    monkeypatch.setattr(compare, 'prepare_embedded', made.append)
    (tmp_path / 'file').touch()
    config = ['configs/digits/gkd_retinanet_efficientnet-lite0_r18-w8_fpn_digit-scenes.py']
    status, _, error = run_tool(tool, *config[:tool == 'compare'],
                                '--work-dir', tmp_path / 'file' / 'work')
    assert status == 2 and made == []
    assert re.search('file/work.* cannot be written: Not a directory', error)


def test_a_folder_for_a_teacher_is_no_reason_to_train_one(tmp_path, processes):
    config = load_config(write_experiment(tmp_path))
    config.model.teacher.checkpoint = str(tmp_path)
    with pytest.raises(CheckpointError, match='model.teacher.checkpoint: .* is a folder'):
        compare.plan(config, 'tiny', choose_methods(config, ['gkd']), [0], None,
                     str(tmp_path / 'work'))


def test_the_plain_student_takes_nothing_from_the_teacher(tmp_path):
    config = load_config(write_experiment(tmp_path))
    config.model.teacher.config = config.model.student.config  # they are alike
    config.model.student.inherit = ['bbox_head']
    compare.plan(config, 'tiny', choose_methods(config, ['gkd']), [0], None,
                 str(tmp_path / 'work'))
    plain, taught = (load_config(str(tmp_path / 'work' / 'configs' / f'{name}.py')).model
                     for name in ('plain', 'gkd'))
    assert plain.teacher.checkpoint is None and 'inherit' not in plain.student
    assert taught.student.inherit == ['bbox_head']


def test_quickstart_pairs_the_students_of_every_seed(processes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, 'CONFIGS', {'tiny': str(write_experiment(tmp_path))})
    drawn = []
    monkeypatch.setattr(quickstart, 'prepare_efficientnet_lite0', lambda: None)
    monkeypatch.setattr(quickstart, 'write_report', lambda *_: None)
    monkeypatch.setattr(quickstart, 'draw_pictures', lambda *args: drawn.append(args))
    aps = {'train teacher': 0.5, 'train student_seed0': 0.1, 'train student_seed1': 0.2,
           'train plain_seed0': 0.2, 'train plain_seed1': 0.3,
           'train gkd_seed0': 0.3, 'train gkd_seed1': 0.45}
    processes.outcome = lambda name: dict.fromkeys(METRICS, aps[name])
    quickstart.quickstart('tiny', 'retinanet', [0, 1], work_dir=tmp_path / 'work')
    assert sorted(name for name, *_ in processes.commands) == sorted(aps)
    teacher, plain, distilled, _ = drawn[0]
    assert [Path(training.work_dir).name for training in (teacher, plain, distilled)] \
        == ['teacher', 'plain_seed1', 'gkd_seed1']
    table = (tmp_path / 'work/retinanet_tiny/table.md').read_text()
    assert table in capsys.readouterr().out
    rows = {cells[1].strip(): cells[2].strip() for cells in map(
        lambda line: line.split('|'), table.splitlines())}
    assert rows['teacher'] == '50.0' and rows['gain'].startswith('+12.5')
    assert rows['student, continued'].startswith('25.0')
    assert len(read_results(str(tmp_path / 'work/retinanet_tiny/results.csv'))) == len(aps)

    processes.outcome = lambda name: None if 'gkd' in name else dict.fromkeys(METRICS, 0.1)
    with pytest.raises(tool_processes.StageFailed, match='resumes from there'):
        quickstart.quickstart('tiny', 'retinanet', [2], work_dir=tmp_path / 'work')


@pytest.mark.parametrize('prototypes, told', [
    (None, {'knowledge', 'student'}), ('some', {'knowledge', 'prototypes', 'student'})])
def test_all_that_a_method_changes_is_told_but_prototypes_that_it_does_not_use(prototypes, told):
    recipes = dict(mine=dict(knowledge=[], prototypes=dict(alpha=3), student=dict(inherit=[])))
    taught, _ = check_methods(Config(dict(model={})), recipes,
                              lambda config: SimpleNamespace(prototypes=prototypes))
    assert taught['mine'].keys() == told
