"""The report of a distillation shows its teacher, wherever that was trained."""

import json
import re
import runpy
import shutil
import sys

import pytest
from small_experiments import TOOLS, detector, experiment, train

from gkd.report.page import write_report
from gkd.report.runs import read_runs


@pytest.fixture(scope='module')
def trained(annotations, tmp_path_factory):
    """A folder with a teacher's training and that of its student; both keep what they detect."""
    folder = tmp_path_factory.mktemp('trained')
    for name in ('teacher', 'distilled'):
        config = experiment(annotations, folder / name)
        config.val_evaluator.outfile_prefix = str(folder / name / 'detections')
        config.train_cfg.max_epochs = 1
        if name == 'teacher':
            config.model, config.custom_hooks = detector('one_stage', 24), []
        else:
            config.model.teacher.checkpoint = str(folder / 'teacher' / 'epoch_1.pth')
        train(config)
    return folder


def with_teacher(trained, folder):
    """Copy the student's training, and the teacher's checkpoint alone, to a folder."""
    teacher = folder / 'teacher' / 'epoch_1.pth'
    teacher.parent.mkdir()
    shutil.copy(trained / 'teacher' / 'epoch_1.pth', teacher)
    shutil.copytree(trained / 'distilled', folder / 'distilled')
    for path in (folder / 'distilled').rglob('config.py'):
        path.write_text(path.read_text().replace(
            str(trained / 'teacher' / 'epoch_1.pth'), str(teacher)))


def row_of(page, name):
    """Cells of a detector's row in the table of APs."""
    row = re.search(rf'<tr>(?:(?!<tr>).)*?{name}.*?</tr>', page.read_text(encoding='utf-8'),
                    re.DOTALL)[0]
    return [re.sub(r'<[^>]*>', '', cell).strip()
            for cell in re.findall(r'<t[dh].*?</t[dh]>', row, re.DOTALL)]


@pytest.mark.slow
def test_a_teacher_is_shown_by_what_its_training_left(trained, tmp_path):
    main, runs = read_runs(str(trained / 'distilled'))
    assert [run.role for run in runs] == ['teacher', 'distilled student']
    teacher = runs[0]
    assert teacher.work_dir == str(trained / 'teacher') and list(teacher.evaluations) == [1]
    assert teacher.curves()['loss_cls'] and teacher.config.model.neck.out_channels == 24
    write_report(main.work_dir, [], str(tmp_path / 'report.html'))
    assert 'No detections' not in (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert row_of(tmp_path / 'report.html', 'teacher')[1] == '1'


@pytest.mark.slow
def test_a_teacher_without_its_training_is_run_once(trained, tmp_path, monkeypatch, capsys):
    with_teacher(trained, tmp_path)
    page, found = tmp_path / 'report.html', tmp_path / 'distilled' / 'teacher.bbox.json'

    def report(*options):
        monkeypatch.setattr(sys, 'argv', ['report.py', str(tmp_path / 'distilled'),
                                          '--output', str(page), *options])
        runpy.run_path(str(TOOLS.parent / 'report.py'))['main']()
        return capsys.readouterr().out

    assert 'detecting' not in report('--no-detect') and not found.exists()
    assert 'No detections are saved of: teacher. To run them' in page.read_text(encoding='utf-8')
    assert report().count('teacher: detecting with') == 1
    # As its own training has evaluated it.
    assert found.read_text() == (trained / 'teacher' / 'detections.bbox.json').read_text()
    assert 'No detections' not in page.read_text(encoding='utf-8')
    assert 'detecting' not in report()
    assert not list((tmp_path / 'distilled').glob('.detections*'))


@pytest.mark.slow
def test_a_teacher_that_mmdetection_2_has_trained_is_run_by_its_own_config(trained, tmp_path):
    with_teacher(trained, tmp_path)
    data = read_runs(str(tmp_path / 'distilled'))[0].config.data.val
    text = (f"model = dict(type='RetinaNet')\nrunner = dict(max_epochs=1)\n"
            f'data = dict(train=dict(), test=dict(), val=dict(ann_file={data.ann_file!r}))\n')
    (tmp_path / 'teacher' / '1.log.json').write_text(json.dumps(dict(config=text)))
    detections = tmp_path / 'teacher' / 'detections.bbox.json'
    teacher = read_runs(str(tmp_path / 'distilled'))[1][0]
    assert (teacher.work_dir, teacher.config.model.neck.out_channels) == (None, 24)
    assert teacher.detections == str(tmp_path / 'distilled' / 'teacher.bbox.json')
    # What its training has saved needs not be run again.
    detections.write_text('[]')
    teacher = read_runs(str(tmp_path / 'distilled'))[1][0]
    assert teacher.work_dir == str(tmp_path / 'teacher')
    assert teacher.detections == str(detections)
