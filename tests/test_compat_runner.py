"""mmcv's runner: what it reads, how it resumes, and when it prints."""

import logging
import os

import mmcv.runner
import numpy as np
import pytest
import torch
from mmcv.fileio import FileClient
from mmcv.runner import (
    CheckpointHook,
    EpochBasedRunner,
    Fp16OptimizerHook,
    IterBasedRunner,
    TextLoggerHook,
)
from torch import nn

from gkd.errors import CheckpointError, ConfigError


class Model(nn.Module):
    """One weight, and mmcv's training step."""

    def __init__(self, size=2):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def train_step(self, batch, optimizer):
        loss = (self.weight * batch.mean()).sum()
        return dict(loss=loss, log_vars=dict(loss=loss.item()), num_samples=len(batch))


def make_runner(folder, size=2, kind=EpochBasedRunner, **limits):
    model = Model(size)
    logger = logging.getLogger('tests')
    logger.setLevel(logging.INFO)
    return kind(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
                work_dir=str(folder), logger=logger, meta={}, **(limits or dict(max_epochs=2)))


def write_checkpoint(folder, config=None, **meta):
    meta = dict(epoch=3, iter=30, hook_msgs=dict(best_score=np.float64(0.5)), **meta)
    if config is not None:
        meta['config'] = config
    runner = make_runner(folder)
    runner.model.weight.data.fill_(5.0)
    torch.save(dict(meta=meta, state_dict=runner.model.state_dict(),
                    optimizer=runner.optimizer.state_dict()), folder / 'epoch_3.pth')
    return str(folder / 'epoch_3.pth')


def test_resume_takes_up_everything(tmp_path):
    runner = make_runner(tmp_path)
    runner.resume(write_checkpoint(tmp_path))
    assert (runner.epoch, runner.iter) == (3, 30)
    assert runner.meta['hook_msgs']['best_score'] == 0.5
    assert runner.model.weight.tolist() == [5.0, 5.0]


@pytest.mark.parametrize('kind, limits', [(EpochBasedRunner, dict(max_epochs=9)),
                                          (IterBasedRunner, dict(max_iters=99))])
def test_resume_does_not_execute_the_config(tmp_path, kind, limits):
    config = f'import os\nos.mkdir({str(tmp_path / "executed")!r})\nlr = 0.1\n'
    runner = make_runner(tmp_path, kind=kind, **limits)
    runner.resume(write_checkpoint(tmp_path, config))
    assert not (tmp_path / 'executed').exists()
    assert runner.meta['config'] == config
    assert runner.iter == 30


@pytest.mark.parametrize('gpu_ids, iterations', [
    ('range(0, 4)', 120), ('range(2)', 60), ('[0, 1, 2]', 90), ('[0]', 30), ('None', 30),
    ('list(map(int, "01"))', 30)])
def test_resume_on_fewer_processes_takes_more_iterations(tmp_path, gpu_ids, iterations):
    runner = make_runner(tmp_path)
    runner.resume(write_checkpoint(tmp_path, f'lr = 0.1\ngpu_ids = {gpu_ids}\n'))
    assert runner.iter == iterations and runner.epoch == 3


def test_resume_from_weights_only_is_refused(tmp_path):
    torch.save(dict(meta=dict(CLASSES=('a',)), state_dict=Model().state_dict()),
               tmp_path / 'student.pth')
    with pytest.raises(CheckpointError, match='student.pth cannot be resumed from.*`load_from`'):
        make_runner(tmp_path).resume(str(tmp_path / 'student.pth'))


def test_training_of_mmdetection_3_is_not_resumed(tmp_path):
    torch.save(dict(meta=dict(epoch=1, iter=2), message_hub={}, state_dict=Model().state_dict()),
               tmp_path / 'epoch_1.pth')
    with pytest.raises(CheckpointError, match='MMDetection 3 wrote it.*`load_from`'):
        make_runner(tmp_path).resume(str(tmp_path / 'epoch_1.pth'))


def test_misfit_stops_load_from_and_resume(tmp_path):
    path = write_checkpoint(tmp_path)
    for load in (EpochBasedRunner.load_checkpoint, EpochBasedRunner.resume):
        runner = make_runner(tmp_path, size=3)
        with pytest.raises(CheckpointError, match=r'weight: \(2,\) in the file, \(3,\)'):
            load(runner, path)
        assert runner.model.weight.tolist() == [1.0, 1.0, 1.0]


def test_pretrained_backbones_still_pick_what_they_need(tmp_path):
    torch.save(dict(weight=torch.full((2,), 7.0), fc=torch.ones(4)), tmp_path / 'imagenet.pth')
    model = Model()
    mmcv.runner.load_checkpoint(model, str(tmp_path / 'imagenet.pth'), strict=False)
    assert model.weight.tolist() == [7.0, 7.0]


class Attack:
    def __reduce__(self):
        return os.mkdir, ('attacked',)


def test_mmcv_reads_without_executing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}, meta=Attack()), tmp_path / 'attack.pth')
    with pytest.raises(CheckpointError, match='could execute code'):
        mmcv.runner.load_checkpoint(Model(), 'attack.pth')
    # A download that is in the cache already.
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    (tmp_path / 'hub/checkpoints').mkdir(parents=True)
    (tmp_path / 'attack.pth').rename(tmp_path / 'hub/checkpoints/attack.pth')
    with pytest.raises(CheckpointError, match='could execute code'):
        mmcv.runner.load_checkpoint(Model(), 'https://example.org/attack.pth')
    assert not (tmp_path / 'attacked').exists()


def test_failed_download_is_named(tmp_path, monkeypatch):
    def fail(url, path, progress):
        assert not progress  # bars are for terminals
        raise OSError('Name or service not known')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)
    with pytest.raises(CheckpointError, match='Cannot download https://example.org/a.pth'):
        mmcv.runner.load_checkpoint(Model(), 'https://example.org/a.pth')


@pytest.mark.parametrize('batches, interval, lines', [(3, 50, 2), (5, 2, 4), (4, 4, 2)])
def test_every_epoch_is_logged(tmp_path, caplog, batches, interval, lines):
    runner = make_runner(tmp_path)
    runner.register_hook(TextLoggerHook(interval=interval), priority='VERY_LOW')
    runner.register_hook(mmcv.runner.IterTimerHook(), priority='LOW')
    loader = torch.utils.data.DataLoader(torch.ones(batches, 1))
    with caplog.at_level(logging.INFO, 'tests'):
        runner.run([loader], [('train', 1)])
    written = [record.message for record in caplog.records if 'loss: 2.0' in record.message]
    assert len(written) == lines
    assert written[0].startswith(f'Epoch [1][{min(interval, batches)}/{batches}]')


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
def test_fp16_needs_a_gpu(tmp_path):
    runner = make_runner(tmp_path)
    runner.register_hook(Fp16OptimizerHook(loss_scale='dynamic'))
    with pytest.raises(ConfigError, match='`fp16` in the config needs a GPU'):
        runner.call_hook('before_run')


def test_files_appear_whole(tmp_path):
    client = FileClient('disk')
    path = tmp_path / 'new/epoch_1.pth'
    client.put(b'first', path)
    assert path.read_bytes() == b'first'
    with pytest.raises(TypeError):
        client.put('not bytes', path)
    assert path.read_bytes() == b'first'
    assert [file.name for file in path.parent.iterdir()] == ['epoch_1.pth']


def test_what_mmdetections_own_training_sets_is_no_unknown_setting():
    """Its tools/train.py does; `python -m gkd.run` runs it where mmcv has no operators."""
    hook = CheckpointHook(interval=1, meta=dict(mmdet_version='2.28.2'))
    assert hook.args == dict(meta=dict(mmdet_version='2.28.2'))
    with pytest.raises(ConfigError, match='unknown settings metas'):
        CheckpointHook(metas={})
