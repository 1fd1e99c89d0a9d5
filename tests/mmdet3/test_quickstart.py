"""The quickstart's stages: in which order, from what, and what is not trained again."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from gkd.commands.processes import StageFailed
from gkd.quickstart import mmdet3 as module
from gkd.report.results import read_results


@pytest.fixture
def quickstart(monkeypatch, tmp_path):
    """The module; its trainings only write a checkpoint, and ``commands`` lists them."""
    def run_tool(command, environment, log):
        config, folder, seed, epochs = command[1], *(
            command[command.index(f'--{name}') + 1] for name in ('work-dir', 'seed', 'epochs'))
        options = dict(option.split('=') for option in command[command.index('--epochs') + 2:][1:])
        assert all(Path(value).is_file() for value in options.values() if value.endswith('.pth'))
        module.commands.append((Path(folder).name, seed, config, options))
        if Path(folder).name == module.failing:
            return 1, 0.0
        Path(folder).mkdir()
        Path(folder, f'epoch_{epochs}.pth').touch()
        return 0, 500.0

    def read_run(folder):
        ap = dict(teacher=0.5, student_seed0=0.2, student_seed2=0.3, plain_seed0=0.25,
                  plain_seed2=0.35, gkd_seed0=0.28, gkd_seed2=0.36)[Path(folder).name]
        return SimpleNamespace(evaluations={
            epochs: dict(bbox_mAP=ap, bbox_mAP_50=ap, bbox_mAP_75=ap) for epochs in (1, 2, 3, 8)})

    module.commands, module.failing = [], None
    for name, value in dict(run_tool=run_tool, read_run=read_run, at_once=lambda: 2,
                            prepare_embedded=lambda path: None,
                            prepare_efficientnet_lite0=lambda: None).items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.chdir(tmp_path)
    return module


def test_students_of_every_seed_go_on_alone_and_taught(quickstart, tmp_path, capsys, monkeypatch):
    quickstart.quickstart('retinanet', [0, 2], work_dir=tmp_path)
    folder = tmp_path / 'retinanet'
    assert {name for name, *_ in quickstart.commands[:3]} == {
        'teacher', 'student_seed0', 'student_seed2'}
    runs = {name: (seed, config, options) for name, seed, config, options in quickstart.commands}
    assert len(runs) == len(quickstart.commands) == 7
    for seed in ('0', '2'):
        starts = {'model.teacher.checkpoint': f'{folder}/teacher/epoch_3.pth',
                  'model.student.checkpoint': f'{folder}/student_seed{seed}/epoch_8.pth'}
        _, config, options = runs[f'gkd_seed{seed}']
        assert options == starts and runs[f'plain_seed{seed}'] == (
            seed, config, {**starts, 'model.knowledge': '[]'})
    printed = capsys.readouterr().out
    table = (folder / 'table.md').read_text()
    assert table in printed and '50.0' in table and '+2.0' in table  # of +3.0 and +1.0
    rows = {(row.method, row.teacher_seed, row.student_seed): row.AP
            for row in read_results(folder / 'results.csv')}
    assert rows == {
        ('teacher', '0', ''): '50', ('student', '', '0'): '20', ('student', '', '2'): '30',
        ('plain', '', '0'): '25', ('plain', '', '2'): '35', ('gkd', '0', '0'): '28',
        ('gkd', '0', '2'): '36'}

    before = (folder / 'results.csv').read_text()
    monkeypatch.setattr(quickstart, 'version', lambda: 'later')
    quickstart.quickstart('retinanet', [0, 2], work_dir=tmp_path)
    assert len(quickstart.commands) == 7  # what is finished is not trained again
    assert before == (folder / 'results.csv').read_text()  # nor said to be of other code


def test_a_stage_that_failed_is_named_and_the_same_command_goes_on(quickstart, tmp_path):
    quickstart.failing = 'student_seed0'
    with pytest.raises(StageFailed, match=r'student_seed0: the training failed, see .*\.log'):
        quickstart.quickstart('retinanet', [0], epochs=1, work_dir=tmp_path)
    quickstart.failing = None
    quickstart.quickstart('retinanet', [0], epochs=1, work_dir=tmp_path)
    assert [name for name, *_ in quickstart.commands].count('student_seed0') == 2
    assert {name for name, *_ in quickstart.commands[-2:]} == {'plain_seed0', 'gkd_seed0'}
