"""What a training records; its report shows it, and its teacher, wherever that was trained."""

import json
import logging
import re
import runpy
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from mmdet.evaluation import MultiDatasetsEvaluator
from mmengine.evaluator import Evaluator
from small_experiments import TOOLS, detector, experiment, train

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.engine.report import ReportHook, keep_detections
from gkd.looking.missing import detect_missing
from gkd.report.page import write_report
from gkd.report.runs import read_runs
from gkd.work_dir import BINS

RECORDED = [dict(type='ReportHook')]


@pytest.fixture(scope='module')
def trained(annotations, tmp_path_factory):
    """A folder with a teacher's training and that of its student; both keep what they detect."""
    folder = tmp_path_factory.mktemp('trained')
    teacher = experiment(annotations, folder / 'teacher')
    teacher.model, teacher.custom_hooks = detector('one_stage', 24), RECORDED
    teacher.train_cfg.max_epochs = 1
    with pytest.MonkeyPatch.context() as patch:
        make_no_page(patch)
        train(teacher)
    train(distillation(annotations, folder, 'distilled', hooks=RECORDED))
    return folder


def make_no_page(patch):
    """Let trainings record only; a page takes seconds."""
    patch.setattr('gkd.engine.report.subprocess', SimpleNamespace(
        run=lambda *command, **settings: SimpleNamespace(returncode=0)))


def distillation(annotations, folder, name, **settings):
    """The config that trains the student for an epoch."""
    config = experiment(annotations, folder / name, **settings)
    config.model.teacher.checkpoint = str(folder / 'teacher' / 'epoch_1.pth')
    config.train_cfg.max_epochs = 1
    return config


def record_of(work_dir):
    return json.loads((work_dir / 'record.json').read_text())


def with_teacher(trained, folder):
    """Copy the student's training, and the teacher's checkpoint alone, to a folder."""
    teacher = folder / 'teacher' / 'epoch_1.pth'
    teacher.parent.mkdir()
    shutil.copy(trained / 'teacher' / 'epoch_1.pth', teacher)
    shutil.copytree(trained / 'distilled', folder / 'distilled')
    for path in (folder / 'distilled' / 'record.json',
                 *(folder / 'distilled').rglob('config.py')):
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
def test_a_teacher_that_cannot_detect_in_the_data_is_left_out_and_a_student_is_not(
        trained, tmp_path, monkeypatch, capsys):
    def needs_texts(*_):
        raise AttributeError("'DetDataSample' object has no attribute 'text'")

    monkeypatch.setattr('gkd.looking.missing.save_detections', needs_texts)
    with_teacher(trained, tmp_path)
    detect_missing(str(tmp_path / 'distilled'))
    assert re.search("teacher: what it detects is left out, .* attribute 'text'",
                     capsys.readouterr().out)
    (tmp_path / 'distilled' / 'detections.bbox.json').unlink()
    with pytest.raises(AttributeError):
        detect_missing(str(tmp_path / 'distilled'))


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


@pytest.mark.slow
def test_training_records_its_steps(trained, tmp_path):
    record = record_of(trained / 'distilled')
    [epoch] = record['epochs'].values()
    # Six images, two a step.
    steps, seconds = zip(*(epoch['time'][part] for part in (
        'student', 'teacher', 'knowledge', 'backward')))
    assert set(steps) == {3} and epoch['steps'] == 3 and epoch['time']['data'][0] == 2
    assert all(part > 0 for part in seconds)
    assert sum(seconds) <= epoch['time']['step'][1] < sum(seconds) + 1
    counts = torch.tensor(epoch['robust_weights'])
    # The same instances are weighed on every level.
    assert counts.shape == (5, BINS) and len(counts.sum(dim=1).unique()) == 1
    assert counts[0].sum() >= 3
    assert record['weights']['teacher'] > record['weights']['student'] > 0
    assert (record['seed'], record['processes']) == (0, 1) and record['peak'] > 10
    assert record['versions']['mmengine'] and 'Distiller' in record['config']
    page = (trained / 'distilled' / 'report.html').read_text(encoding='utf-8')
    figures = [json.loads(text) for text in re.findall(
        r'<script type="application/json">(.*?)</script>', page)]
    names = [[trace.get('name') for trace in figure['data']] for figure in figures]
    assert sum('mean' in each for each in names) == 5  # robust weights, a figure for each level
    bars = {bar['name']: bar['x'] for figure in figures for bar in figure['data']
            if bar['type'] == 'bar' and bar.get('orientation') == 'h'}
    distilled, alone = bars['teacher, forward']
    assert distilled == pytest.approx(1000 * seconds[1] / 3) and not alone


@pytest.mark.slow
def test_a_detector_alone_is_recorded(trained):
    [epoch] = record_of(trained / 'teacher')['epochs'].values()
    assert set(epoch['time']) == {'data', 'step', 'student', 'backward'}
    assert epoch['time']['student'][0] == epoch['time']['backward'][0] == 3
    assert 'robust_weights' not in epoch


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_record(annotations, trained, tmp_path, monkeypatch):
    make_no_page(monkeypatch)
    shutil.copytree(trained / 'distilled', tmp_path / 'distilled')
    before = record_of(tmp_path / 'distilled')
    config = distillation(annotations, trained, 'distilled', hooks=RECORDED)
    config.work_dir, config.train_cfg.max_epochs = str(tmp_path / 'distilled'), 2
    train(config, resume=True)
    after = record_of(tmp_path / 'distilled')
    assert list(after['epochs']) == ['1', '2'] and after['epochs']['1'] == before['epochs']['1']
    assert after['epochs']['2']['time']['step'][0] == 3 and after['seconds'] > before['seconds']
    run, _ = read_runs(str(tmp_path / 'distilled'))
    assert [place for place, _ in run.curves()['loss']] == pytest.approx(
        [step / 3 for step in range(1, 7)])


@pytest.mark.slow
def test_recording_changes_no_weight(annotations, trained, tmp_path):
    config = distillation(annotations, trained, 'distilled')
    config.work_dir = str(tmp_path)
    train(config)
    weights = [load_checkpoint_file(str(folder / 'epoch_1.pth'))['state_dict']
               for folder in (tmp_path, trained / 'distilled')]
    assert all(map(torch.equal, *(each.values() for each in weights)))
    assert not (tmp_path / 'record.json').exists()


def no_memory(*command, **settings):
    raise OSError(12, 'Cannot allocate memory')


def ends_with(code, said=''):
    return lambda *command, **settings: SimpleNamespace(returncode=code, stderr=said)


@pytest.mark.parametrize('run, said', [
    (ends_with(0), 'Report: '), (ends_with(1, 'Full.\n'), 'No report could be written. Full.'),
    (ends_with(-9), 'No report could be written. It was ended by SIGKILL'),
    (no_memory, 'Cannot allocate memory. Try again with: python -m gkd.report \'my work\'')])
def test_a_report_that_fails_is_told_and_does_not_end_the_run(monkeypatch, caplog, run, said):
    monkeypatch.setattr('gkd.engine.report.subprocess', SimpleNamespace(run=run))
    hook = ReportHook()
    hook.recorder = SimpleNamespace(close=lambda: None)
    with caplog.at_level(logging.INFO, 'of_this_test'):
        hook.after_train(SimpleNamespace(rank=0, work_dir='my work',
                                         logger=logging.getLogger('of_this_test')))
    assert caplog.text.count(said) == 1 and len(caplog.records) == 1


def test_metrics_that_keep_detections_themselves_go_on_to():
    own, usual, other = (SimpleNamespace(outfile_prefix='mine'),
                         SimpleNamespace(outfile_prefix=None), SimpleNamespace())
    keep_detections(SimpleNamespace(work_dir='work', val_loop=SimpleNamespace(
        evaluator=Evaluator([own, usual, other]))))
    assert own.outfile_prefix == 'mine' and usual.outfile_prefix == 'work/detections'
    assert not vars(other)


def test_metrics_that_divide_the_images_among_them_keep_no_detections():
    """The last one's would be taken for all."""
    metrics = [SimpleNamespace(outfile_prefix=None) for _ in range(2)]
    keep_detections(SimpleNamespace(work_dir='work', val_loop=SimpleNamespace(
        evaluator=MultiDatasetsEvaluator(metrics, ['day', 'night']))))
    assert [metric.outfile_prefix for metric in metrics] == [None, None]
