"""What MMEngine's runner leaves in a work dir is read for the report."""

import json
from types import SimpleNamespace

from gkd.engine.evaluation import keep_metrics
from gkd.report.runs import read_run
from gkd.report.summary import format_summary
from gkd.resume import evaluations


def start(folder, *lines):
    """Write what a start of a training leaves."""
    (folder / 'vis_data').mkdir(parents=True)
    text = ''.join(f'{json.dumps(line)}\n' for line in lines)
    (folder / 'vis_data' / 'scalars.json').write_text(text + '{"cut sho')
    (folder / 'vis_data' / 'config.py').write_text(
        "model = dict(type='RetinaNet')\n"
        'train_cfg = dict(max_epochs=3)\n'
        "train_dataloader = dict(dataset=dict(ann_file='train.json'))\n"
        "val_dataloader = dict(dataset=dict(data_prefix=dict(img='images')))\n"
        f'seed = {folder.name!r}\n')


def step(epoch, count, loss):
    return dict(loss=loss, lr=0.1, epoch=epoch, iter=count, step=count, time=0.5, data_time=0.1)


def test_a_later_start_replaces_what_it_repeats(tmp_path):
    start(tmp_path / '20260101_000000', step(1, 2, 4.0), step(1, 4, 3.0),
          {'coco/bbox_mAP': 0.2, 'step': 1}, step(2, 6, 9.0))
    start(tmp_path / '20260101_000001', step(2, 6, 2.0), step(2, 8, 1.0),
          {'coco/bbox_mAP': 0.3, 'step': 2})
    (tmp_path / '20260101_000002' / 'vis_data').mkdir(parents=True)  # ended before it trained
    run = read_run(str(tmp_path))
    assert run.curves()['loss'] == [(0.5, 4.0), (1.0, 3.0), (1.5, 2.0), (2.0, 1.0)]
    assert {epoch: metrics['bbox_mAP'] for epoch, metrics in run.evaluations.items()} == {
        1: 0.2, 2: 0.3}
    assert (run.trained, run.length, run.config.seed) == (2, 3, '20260101_000001')
    assert run.config.data.val.img_prefix == 'images'


def test_metrics_of_two_data_sets_are_kept_apart(tmp_path):
    metrics = {'day/coco/bbox_mAP': 0.2, 'night/coco/bbox_mAP': 0.1, 'night/coco/AR': 0.5}
    start(tmp_path / '20260101_000000', step(1, 2, 4.0), {**metrics, 'step': 1})
    line = read_run(str(tmp_path)).lines[-1]
    kept = {'day/coco/bbox_mAP': 0.2, 'night/coco/bbox_mAP': 0.1, 'AR': 0.5}
    assert kept.items() <= line.items() and 'bbox_mAP' not in line
    keep_metrics(SimpleNamespace(rank=0, work_dir=str(tmp_path), train_loop=SimpleNamespace(
        epoch=1, max_epochs=1)), metrics)
    assert evaluations(str(tmp_path), 1) == {'1': kept}


def test_a_training_that_counts_iterations(tmp_path):
    steps = [{name: value for name, value in step(1, count, 1 / count).items() if name != 'epoch'}
             for count in (2, 4, 6)]
    start(tmp_path / '20260101_000000', *steps[:2], {'coco/bbox_mAP': 0.2, 'step': 4}, steps[2])
    config = tmp_path / '20260101_000000' / 'vis_data' / 'config.py'
    config.write_text(config.read_text().replace('max_epochs', 'max_iters'))
    run = read_run(str(tmp_path))
    assert (run.by_epoch, run.trained) == (False, 6)
    assert run.curves()['loss'] == [(2, 0.5), (4, 0.25), (6, 1 / 6)]
    assert run.evaluations[4]['bbox_mAP'] == 0.2


def test_the_summary_names_the_report_or_the_command_that_writes_it(tmp_path):
    start(tmp_path / '20260101_000000', step(1, 2, 4.0))
    (tmp_path / '20260101_000000' / 'vis_data' / 'config.py').write_text(
        "model = dict(type='RetinaNet', backbone=dict(type='ResNet'))\n"
        'train_cfg = dict(max_epochs=3)\ntrain_dataloader = dict(dataset=dict())\n')
    (tmp_path / 'epoch_1.pth').touch()
    summary = format_summary(str(tmp_path), 'a.py')
    assert f'report:     python tools/report.py {tmp_path}\n' in summary
    (tmp_path / 'report.html').touch()
    assert f'report:     {tmp_path}/report.html\n' in format_summary(str(tmp_path), 'a.py')
