"""What a training records, and the report that is made of it."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.distillers import build_distiller
from helpers.running import run_tool, succeed
from mmcv import Config
from mmcv.runner import Hook
from mmdet.datasets import CocoDataset, CocoPanopticDataset, build_dataset

from gkd import recorder
from gkd.errors import DataError
from gkd.recorder import Stopwatch, WeightHistogram
from gkd.report import drawing, page
from gkd.report.figures import draw_ap
from gkd.report.names import NOTHING
from gkd.report.page import ap_table, columns_of
from gkd.report.runs import DETECTOR, Run, read_logs, read_run, read_runs, read_teacher
from gkd.report.summary import metrics_table
from gkd.report.validation import Validation, read_detections
from gkd.running.evaluation import EvaluationRecorder
from gkd.running.recorder import UNFINISHED, TrainingRecorder, keep_results
from gkd.watching import watched
from gkd.work_dir import BINS, DETECTIONS


class Page(HTMLParser):
    """What a page shows and what it refers to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.rows, self.headings, self.figures = [], [], [], []
        self.text = ''
        self.feed(Path(path).read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [value for name, value in attributes.items() if name in ('src', 'href')]
        self.is_figure = attributes.get('type') == 'application/json'
        self.text = ''
        if tag == 'tr':
            self.rows.append([])

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        if tag in ('td', 'th'):
            self.rows[-1].append(self.text)
        elif tag in ('h1', 'h2', 'h3'):
            self.headings.append(self.text)
        elif tag == 'script' and self.is_figure:
            self.figures.append(json.loads(self.text))

    def row(self, name):
        return next(row for row in self.rows if row and row[0] == name)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A plain and a distilled student of an untrained teacher, and what was logged."""
    folder = tmp_path_factory.mktemp('report')
    student, distiller = tiny_data.write_pair(folder, 'two_stage', epochs=2)
    succeed('train', student, '--work-dir', folder / 'plain', '--epochs', 1)
    _, stderr = succeed('train', distiller, '--work-dir', folder / 'distilled')
    return folder, stderr


def test_training_records_its_steps(runs):
    folder, stderr = runs
    record = json.loads((folder / 'distilled' / 'record.json').read_text())
    assert list(record['epochs']) == ['1', '2']
    for epoch in record['epochs'].values():
        # Four images, two a step.
        steps, seconds = zip(*(epoch['time'][part] for part in (
            'student', 'teacher', 'knowledge', 'backward')))
        assert set(steps) == {2} and epoch['steps'] == 2
        assert all(part > 0 for part in seconds)
        assert sum(seconds) <= epoch['time']['step'][1] < sum(seconds) + 1
        counts = torch.tensor(epoch['robust_weights'])
        # The same instances are weighed on every level.
        assert counts.shape == (5, BINS) and len(counts.sum(dim=1).unique()) == 1
        assert counts[0].sum() >= 2
    assert record['weights']['teacher'] > record['weights']['student'] > 0
    assert record['versions']['torch'] and record['peak'] > 10
    plain = json.loads((folder / 'plain' / 'record.json').read_text())
    assert plain['epochs']['1']['time']['student'][0] == 2
    assert 'robust_weights' not in plain['epochs']['1']
    assert f'Report: {folder}/distilled/report.html' in stderr
    assert not list((folder / 'distilled').glob('.*'))


def test_training_saves_what_it_detected(runs):
    main, _ = read_runs(str(runs[0] / 'distilled'))
    detections = read_detections(main.detections)
    assert {entry['image_id'] for entry in detections} == {1, 2, 3, 4}
    assert {entry['category_id'] for entry in detections} <= {1, 2, 3}


def test_files_beside_the_saved_detections_are_removed(tmp_path):
    """A data set writes masks, too, which may be large, and panoptic data a folder of images."""
    hook = TrainingRecorder()
    data = mock.Mock(evaluate=CocoDataset.evaluate)
    hook.evaluation = SimpleNamespace(eval_kwargs={}, dataloader=SimpleNamespace(dataset=data))
    keep_results(hook.evaluation, str(tmp_path / UNFINISHED))
    for kind in ('bbox', 'segm'):
        (tmp_path / f'{UNFINISHED}.{kind}.json').write_text('[]')
    hook.collect_detections(SimpleNamespace(work_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == [DETECTIONS]
    hook.evaluation.eval_kwargs = dict(jsonfile_prefix='mine')
    keep_results(hook.evaluation, str(tmp_path / UNFINISHED))
    assert hook.evaluation.eval_kwargs == dict(jsonfile_prefix='mine')
    panoptic = SimpleNamespace(eval_kwargs={}, dataloader=SimpleNamespace(
        dataset=CocoPanopticDataset.__new__(CocoPanopticDataset)))
    keep_results(panoptic, str(tmp_path / UNFINISHED))
    assert panoptic.eval_kwargs == {}


def test_panoptic_data_are_measured_by_their_own_metrics(tmp_path):
    """They have no file of boxes, and no AP."""
    hook = EvaluationRecorder(SimpleNamespace(
        _should_evaluate=lambda runner: True, dataloader=SimpleNamespace(
            dataset=CocoPanopticDataset.__new__(CocoPanopticDataset))))
    hook.record(SimpleNamespace(
        rank=0, work_dir=str(tmp_path), epoch=0, iter=3, _max_epochs=1, log_buffer=SimpleNamespace(
            output=dict(PQ=40.5, SQ_th=60.0, RQ=50.0, PQ_copypaste='40.5 60.0', loss=1.0))))
    assert hook.metrics == dict(PQ=40.5, SQ_th=60.0, RQ=50.0)
    table = metrics_table(SimpleNamespace(evaluations={1: hook.metrics}, unit='epoch'))
    assert '40.5' in table and 'AP' not in table
    for kind, problem in (('CocoDataset', 'not in reach'),
                          ('CocoPanopticDataset', 'not evaluated as COCO'),
                          ('LVISV1Dataset', 'LVISV1Dataset, which is not evaluated as COCO')):
        config = Config(dict(data=dict(val=dict(type=kind, ann_file='a.json'))))
        assert problem in Validation(config).problem


@pytest.mark.parametrize('measured, titles, cells', [
    (dict(PQ=40.5, mAP=0.25), ['PQ', 'mAP'], ['40.5', '25.0']),
    (dict(bbox_mAP=0.25, PQ=40.5), ['AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large'],
     ['25.0', NOTHING, NOTHING, NOTHING, NOTHING, NOTHING]),
])
def test_the_table_shows_what_was_measured(measured, titles, cells):
    run = SimpleNamespace(name='student', role='distilled student', evaluations={1: measured},
                          unit='epoch', by_epoch=True, length=1)
    metrics = dict(student=measured)
    columns = columns_of(metrics)
    (row,) = ap_table([run], metrics, columns)
    assert (list(columns), row['cells'], row['last']) == (titles, cells, 1)


def test_saved_detections_give_the_metrics_of_mmdetection(tmp_path):
    annotations = tiny_data.write_data(tmp_path, sizes=[(128, 96)] * 12)
    dataset = build_dataset(tiny_data.dataset(annotations, tiny_data.pipelines()[1]),
                            dict(test_mode=True))
    results = []
    for index in range(len(dataset)):
        truth = dataset.get_ann_info(index)
        moved = truth['bboxes'] + np.random.normal(0, 3, truth['bboxes'].shape)
        scored = np.column_stack([moved, np.random.rand(len(moved))]).astype(np.float32)
        labels = np.where(np.random.rand(len(moved)) < 0.8, truth['labels'], 0)
        results.append([scored[labels == label] for label in range(3)])
    expected = dataset.evaluate(results, jsonfile_prefix=str(tmp_path / 'results'))
    validation = Validation(Config(dict(data=dict(val=tiny_data.dataset(annotations, [])))))
    found = validation.precision(read_detections(str(tmp_path / 'results.bbox.json')))
    assert 0.1 < expected['bbox_mAP'] < 0.9
    for name, value in found.metrics.items():
        assert value == pytest.approx(expected[name], abs=6e-4)
    assert found.curves['IoU 0.5'].mean() == pytest.approx(expected['bbox_mAP_50'], abs=6e-4)
    assert found.curves['IoU 0.75'].mean() == pytest.approx(expected['bbox_mAP_75'], abs=6e-4)
    nothing = validation.precision([])
    assert nothing.metrics['bbox_mAP'] == 0 and nothing.curves['IoU 0.5'].max() == 0


def test_report_shows_the_three_detectors(runs, tmp_path):
    folder, _ = runs
    metrics = {'plain': 0.301, 'distilled': 0.345}
    for name, ap in metrics.items():
        shutil.copytree(folder / name, tmp_path / name)
        (tmp_path / name / 'evaluation.json').write_text(json.dumps({'2': dict(bbox_mAP=ap)}))
    output = tmp_path / 'compared.html'
    command = ('report', tmp_path / 'distilled', tmp_path / 'plain', '--output', output)
    status, printed, stderr = run_tool(*command)
    assert status == 0, stderr
    # Only the teacher, which was not trained here, had to be run; its detections are kept.
    assert printed.count('detecting with') == 1
    assert re.findall('wrote (.*)', printed) == [str(output)]
    assert (tmp_path / 'distilled' / 'teacher.bbox.json').exists()
    shown = Page(output)
    assert [row[0] for row in shown.rows[1:4]] == ['teacher', 'plain student',
                                                   'distilled student']
    assert shown.rows[1][-1] == '' and float(shown.rows[1][2]) >= 0
    assert shown.rows[2][1:3] == ['2', '30.1'] and shown.rows[2][-1] == ''
    assert shown.rows[3][1:3] == ['2', '34.5'] and shown.rows[3][-1] == '+4.4'
    # Nothing is fetched from anywhere.
    assert all(re.match('#|data:', link) for link in shown.links)
    assert "default-src 'none'" in output.read_text()
    names = [[trace.get('name') for trace in figure['data']] for figure in shown.figures]
    assert names.count(['teacher', 'plain student', 'distilled student']) == 4
    assert ['distilled student', 'decay'] in names and ['plain student', 'decay'] not in names
    assert sum('mean' in name for name in names) == 5
    assert 'detecting' not in run_tool(*command)[1]


def test_a_teacher_that_is_named_without_a_folder(runs, monkeypatch):
    folder, _ = runs
    monkeypatch.chdir(folder)
    run = read_run(str(folder / 'distilled'))
    run.config.model.teacher.checkpoint = 'teacher.pth'
    assert read_teacher(run).checkpoint == 'teacher.pth'


def test_an_unfinished_run(runs, tmp_path):
    work_dir = tmp_path / '<i>run'
    work_dir.mkdir()
    log = next((runs[0] / 'distilled').glob('*.log.json'))
    lines = log.read_text().splitlines()
    (work_dir / log.name).write_text('\n'.join([lines[0], lines[1], lines[1][:30]]))
    output = work_dir / 'report.html'
    page.write_report(str(work_dir), [], str(output))
    shown = Page(output)
    assert shown.headings[0] == '<i>run'
    assert shown.row('distilled student')[1:3] == ['–', '–']
    assert 'not finished: 1 of 2 epochs' in output.read_text()
    text = output.read_text()
    assert 'No detections are saved of: teacher, distilled student.' in text
    assert f"gkd.report &#39;{tmp_path}/&lt;i&gt;run&#39;" in text
    assert any(figure['data'][0]['name'] == 'distilled student' for figure in shown.figures)
    (work_dir / log.name).write_text(lines[0])
    page.write_report(str(work_dir), [], str(output))
    assert Page(output).figures == []


def test_a_folder_without_a_training_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / 'missing'):
        with pytest.raises(DataError, match=str(folder)):
            read_runs(str(folder))


def test_a_report_that_fails_does_not_fail_the_training(runs, monkeypatch):
    def fail(*args):
        raise OSError('no space')
    monkeypatch.setattr(page, 'write_report', fail)
    work_dir = runs[0] / 'plain'
    _, stderr = succeed('train', runs[0] / 'student.py', '--work-dir', work_dir, '--epochs', 1)
    assert 'no space' in stderr and f'python -m gkd.report {work_dir}' in stderr


def test_a_later_start_replaces_what_it_repeats(tmp_path):
    def line(mode, epoch, iteration, loss):
        return json.dumps(dict(mode=mode, epoch=epoch, iter=iteration, loss=loss)) + '\n'
    (tmp_path / '20200101_000000.log.json').write_text(
        line('train', 1, 50, 1) + line('train', 1, 100, 2) + line('val', 1, 4, 0)
        + line('train', 2, 50, 3))
    (tmp_path / '20200102_000000.log.json').write_text(
        line('train', 2, 50, 4) + line('train', 2, 100, 5))
    assert [entry['loss'] for entry in read_logs(str(tmp_path))] == [1, 2, 0, 4, 5]
    # Resumed before the evaluation, and started anew.
    (tmp_path / '20200103_000000.log.json').write_text(line('val', 1, 4, 6))
    assert [entry['loss'] for entry in read_logs(str(tmp_path))] == [1, 2, 6]
    (tmp_path / '20200104_000000.log.json').write_text(line('train', 1, 50, 7))
    assert [entry['loss'] for entry in read_logs(str(tmp_path))] == [7]


def test_a_resumed_run_keeps_the_record_of_epochs_that_are_done(tmp_path):
    path = tmp_path / 'record.json'
    assert recorder.earlier_record(str(path), 3, 9) == {}
    path.write_text(json.dumps(dict(epochs={'1': {'steps': 5}, '2': {}, '3': {}})))
    assert recorder.earlier_record(str(path), 2, 9) == dict(
        seconds=0.0, epochs={'1': {'steps': 5}, '2': {}})
    assert recorder.earlier_record(str(path), 2, 0) == {}
    path.write_text('{"epochs"')
    assert recorder.earlier_record(str(path), 2, 9) == {}


class Model(torch.nn.Linear):
    def forward_train(self):
        return {}


def test_where_the_time_of_steps_goes(tmp_path, monkeypatch):
    """What happens in a pause, such as an evaluation, is no waiting for data."""
    clock = [0]
    monkeypatch.setattr(recorder.time, 'perf_counter', lambda: clock[0])
    model = Model(1, 1)
    kept = recorder.Recorder(model, str(tmp_path), 0, 0, '', 0, 1)
    kept.time_calls(model, 'forward_train', 'forward', then='backward')
    for waited, pauses in ((1, False), (10, True), (100, False)):
        kept.begin_step()
        model.forward_train()
        clock[0] += 1000  # backward
        kept.end_step()
        clock[0] += waited
        if pauses:
            kept.pause()
    kept.begin_step()
    kept.update(0, 3)
    kept.close()
    time = json.loads((tmp_path / 'record.json').read_text())['epochs']['1']['time']
    assert time == dict(data=[2, 101], step=[3, 3000], backward=[3, 3000],
                        forward=[3, 0], student=[3, 0])


def test_most_memory_of_a_run_and_all_that_is_in_its_model(tmp_path, monkeypatch):
    peaks = iter([500, 300])  # MMEngine counts anew now and then
    monkeypatch.setattr(recorder, 'peak_memory', lambda device: next(peaks))
    model = Model(1, 2)
    model.register_buffer('mean', torch.zeros(5))
    kept = recorder.Recorder(model, str(tmp_path), 0, 0, '', 0, 1)
    kept.update(0, 3)
    kept.update(0, 3)
    kept.close()
    whole = (tmp_path / 'record.json').read_text()
    assert json.loads(whole)['peak'] == 500
    assert json.loads(whole)['weights'] == dict(student=4 * (2 + 2 + 5) / 2 ** 20)
    monkeypatch.setattr('os.fsync', mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        kept.save()
    assert (tmp_path / 'record.json').read_text() == whole


def test_equal_weights_are_not_counted(tmp_path):
    for robust in (True, False):
        model = build_distiller(small.retinanet(), small.retinanet(), knowledge=[
            dict(type='RobustDistillingModule', robust=robust)])
        kept = recorder.Recorder(model, str(tmp_path), 0, 0, '', 0, 1)
        assert (kept.histogram is not None) == robust
        kept.close()


def test_a_resumed_run_goes_on_with_its_time_and_adds_to_its_epoch(tmp_path):
    path = tmp_path / 'record.json'
    path.write_text(json.dumps(dict(seconds=100.0, epochs={'1': dict(steps=5)})))
    model = Model(1, 1)
    kept = recorder.Recorder(model, str(tmp_path), 1, 5, '', 0, 1)
    kept.histogram = WeightHistogram()
    for _ in range(2):
        model.forward_train()
        kept.histogram.next_step(kept.histogram.look, lambda: (torch.ones(1, 3), None))
        kept.update(1, 5)
    kept.close()
    record = json.loads(path.read_text())
    assert 100 <= record['seconds'] < 200 and record['epochs']['1'] == dict(steps=5)
    assert record['epochs']['2']['time']['student'][0] == 2
    assert record['epochs']['2']['robust_weights'] == [[0] * (BINS - 1) + [6]]
    recorder.Recorder(model, str(tmp_path), 0, 0, '', 0, 1).close()  # begins anew
    record = json.loads(path.read_text())
    assert record['seconds'] < 100 and record['epochs'] == {}


@pytest.mark.parametrize('iteration, first', [(4, 2), (5, 3)])
def test_nothing_is_forgotten_where_nothing_is_left_to_train(iteration, first):
    """The last pass is not whole, so that it is not among those that are done."""
    assert recorder.first_epoch(SimpleNamespace(
        epoch=2, iter=iteration, max_epochs=3, max_iters=5)) == first


def test_weights_of_a_step_are_counted_once():
    class Knowledge:
        def forward(self, *calls):
            return [self.weigh(call) for call in calls]

        def weigh(self, weights):
            return torch.stack([weights, 1 - weights]), None

    kind, histogram = Knowledge(), WeightHistogram()
    with watched(kind, 'forward', histogram.next_step), watched(kind, 'weigh', histogram.look):
        kind.forward(torch.tensor([0., 0.07, 1.]), torch.tensor([0.5]))
        kind.forward(torch.tensor([0.07]))
    assert vars(kind) == {}
    first, second = histogram.read([[0] * BINS, [0] * (BINS - 1) + [10]])
    assert [(bin, count) for bin, count in enumerate(first) if count] == [(0, 1), (1, 2), (19, 1)]
    assert second[0] == 1 and second[18] == 2 and second[19] == 11
    assert sum(map(sum, histogram.read(None))) == 0


def test_watching_changes_no_loss(runs, tmp_path, monkeypatch):
    folder, _ = runs
    monkeypatch.setattr(sys.modules['gkd.running.hooks'], 'TrainingRecorder', Hook)
    succeed('train', folder / 'distiller.py', '--work-dir', tmp_path, '--epochs', 1,
            '--no-validate')
    assert not (tmp_path / 'record.json').exists()
    losses = [[{name: value for name, value in line.items() if 'loss' in name}
               for line in read_logs(str(work_dir)) if 'mode' in line]
              for work_dir in (folder / 'distilled', tmp_path)]
    assert losses[0][0] == losses[1][0] and 'loss_global' in losses[0][0]


def test_several_kinds_of_knowledge_share_a_step():
    record = dict(epochs={
        '1': dict(time=dict(step=[2, 8.0], student=[2, 2.0], knowledge=[4, 3.0], data=[1, 0.5])),
        '2': dict(time=dict(step=[2, 8.0], student=[2, 2.0], knowledge=[4, 5.0], data=[1, 1.5]))})
    run = Run('run', 'detector', None, Config(), '', None, '', record=record)
    assert run.step_seconds() == dict(data=1.0, student=1.0, teacher=0.0, knowledge=2.0,
                                      backward=0.0, other=1.0)


@pytest.mark.parametrize('last, apart', [(1, 1), (10, 1), (24, None)])
def test_no_two_ticks_stand_for_one_epoch(last, apart):
    """As labels are whole numbers, ticks at 0.2 and 0.4 would both be 0."""
    config = Config(dict(runner=dict(max_epochs=last), model=dict(type='RetinaNet')))
    run = Run('student', DETECTOR, None, config, '', None, '',
              evaluations={last: dict(bbox_mAP=0.5)})
    axis = draw_ap([run]).layout.xaxis
    assert (axis.tickformat, axis.dtick) == ('d', apart)


def test_letters_that_the_font_lacks_are_taken_from_an_installed_one(monkeypatch):
    monkeypatch.setitem(drawing.plt.rcParams, 'font.family', ['sans-serif'])
    monkeypatch.setattr(drawing.font_manager.fontManager, 'ttflist', [
        SimpleNamespace(name=name) for name in ('DejaVu Sans', 'SimHei', 'Comic Sans')])
    for _ in range(2):
        drawing.use_fonts_for_all_letters()
        assert drawing.plt.rcParams['font.family'] == ['sans-serif', 'SimHei']


def test_stopwatch_sums_spans(monkeypatch):
    clock = iter([0., 1., 2., 5., 7., 8.])
    monkeypatch.setattr(recorder.time, 'perf_counter', lambda: next(clock))
    watch = Stopwatch(torch.device('cpu'))
    assert watch.timed('outer', then='after')(lambda: watch.timed('inner')(int)) == 0
    watch.stop('after')
    watch.stop('never begun')
    assert watch.read() == {'inner': [1, 1.0], 'outer': [1, 5.0], 'after': [1, 1.0]}
    assert watch.read() == {}


def test_stopwatch_waits_for_a_gpu_once_a_reading(monkeypatch):
    ticks, syncs, memory = iter(range(10, 100, 10)), [], iter([100, 400, 400, 200])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(ticks)

        def elapsed_time(self, end):
            assert syncs, 'events can be read only after they have happened'
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'synchronize', syncs.append)
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda device: next(memory) * 2 ** 20)
    watch = Stopwatch(torch.device('cuda'))
    for _ in range(2):
        watch.timed('student')(int)
    assert not syncs
    assert watch.read() == {'student': [2, 0.02]} and len(syncs) == 1
    # The second time freed more than it took.
    assert watch.kept == {'student': 300.0}
    # The host waits for data, and the GPU does not.
    assert not isinstance(watch.now('data'), Event) and isinstance(watch.now('step'), Event)


def test_images_where_detectors_differ_come_first(tmp_path):
    annotations = tiny_data.write_data(tmp_path)
    boxes = json.loads(annotations.read_text())['annotations']
    perfect = [dict(image_id=box['image_id'], category_id=box['category_id'], bbox=box['bbox'],
                    score=0.9) for box in boxes]
    # Blind on image 3, and one class is wrong on image 2.
    worse = [dict(box) for box in perfect if box['image_id'] != 3]
    wrong = next(box for box in worse if box['image_id'] == 2)
    wrong['category_id'] = wrong['category_id'] % 3 + 1
    validation = Validation(Config(dict(data=dict(val=tiny_data.dataset(annotations, [])))))
    pictures = validation.pictures([perfect, worse], most=2)
    assert [picture.filename for picture in pictures] == ['image_2.png', 'image_1.png']
    assert [pictures[0].score(number) for number in (0, 1)] == ['2 of 2 found', '0 of 2 found']
    assert [box['right'] for box in pictures[1].found[1]].count(False) == 1
    assert len(pictures[0].missed[1]) == 2 and pictures[0].missed[0] == []
    # A single detector is shown where it misses most.
    assert validation.pictures([worse], most=1)[0].filename == 'image_2.png'
    (tmp_path / 'images' / 'image_2.png').unlink()
    assert validation.pictures([worse], most=1)[0].filename == 'image_1.png'
