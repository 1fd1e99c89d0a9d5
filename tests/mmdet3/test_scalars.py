"""What MMEngine's runner leaves in a work dir is read for the report."""

import json

from gkd.report.runs import read_run


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
