"""MMEngine, mended: checkpoints, resuming, finding packages, processes without GPUs."""

import os
import os.path as osp
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import Dataset

from gkd.commands.device import VISIBLE, choose_device
from gkd.compat import engine
from gkd.compat.checkpoint import load_checkpoint_file
from gkd.engine.drawing import DrawingHook
from gkd.engine.runner import Runner as PlacingRunner
from gkd.errors import CheckpointError, ConfigError


class Numbers(Dataset):
    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([float(index)])


class Line(BaseModel):
    def __init__(self, outputs=1):
        super().__init__()
        self.layer = nn.Linear(1, outputs)

    def forward(self, *inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())


def runner(folder, epochs=1, outputs=1, **settings):
    torch.manual_seed(0)
    return Runner(
        Line(outputs), str(folder),
        train_dataloader=dict(batch_size=2, num_workers=0, dataset=Numbers(),
                              sampler=dict(type='DefaultSampler', shuffle=False),
                              collate_fn=dict(type='pseudo_collate')),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        param_scheduler=dict(type='MultiStepLR', milestones=[1], by_epoch=True),
        default_scope='mmengine', experiment_name=f'test-{epochs}-{len(list(folder.iterdir()))}',
        **settings)


@pytest.fixture
def trained(tmp_path):
    runner(tmp_path).train()
    return tmp_path


def test_own_checkpoint_is_resumed(tmp_path):
    """Stock MMEngine can neither resume nor load it on today's torch."""
    at_once = runner(tmp_path, epochs=2)
    at_once.train()
    resumed = runner(tmp_path, epochs=2, load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    resumed.train()
    assert torch.equal(resumed.model.layer.weight, at_once.model.layer.weight)
    losses = [each.message_hub.log_scalars['train/loss'].data[0] for each in (at_once, resumed)]
    assert len(losses[0]) == 4 and (losses[0] == losses[1]).all()


def test_misfit_stops_load_from_and_resume(trained):
    for settings in (dict(load_from=str(trained / 'epoch_1.pth')), dict(resume=True)):
        with pytest.raises(CheckpointError, match=r'weight: \(1, 1\) in the file, \(2, 1\)'):
            runner(trained, epochs=2, outputs=2, **settings).train()


def test_resume_does_not_execute_the_config(trained):
    checkpoint = load_checkpoint_file(trained / 'epoch_1.pth')
    checkpoint['meta']['config'] = f'import os\nos.mkdir({str(trained / "executed")!r})\n'
    torch.save(checkpoint, trained / 'epoch_1.pth')
    runner(trained, epochs=2, resume=True).train()
    assert not (trained / 'executed').exists()


def test_resume_from_weights_or_mmdetection_2_is_refused(trained):
    for meta in ({}, dict(epoch=1, iter=2, CLASSES=('a', 'b'))):
        torch.save(dict(meta=meta, state_dict=Line().state_dict()), trained / 'other.pth')
        with pytest.raises(CheckpointError, match='cannot be resumed from.*MMDetection 2'):
            runner(trained, load_from=str(trained / 'other.pth'), resume=True).train()
        runner(trained, load_from=str(trained / 'other.pth')).train()


class Attack:
    def __reduce__(self):
        return exec, ('raise SystemExit("executed")',)


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    torch.save(dict(state_dict=Attack()), tmp_path / 'attack.pth')
    with pytest.raises(CheckpointError, match='could execute code'):
        runner(tmp_path, load_from=str(tmp_path / 'attack.pth')).train()


def test_half_a_checkpoint_keeps_its_old_content(trained, monkeypatch):
    before = (trained / 'epoch_1.pth').read_bytes()
    monkeypatch.setattr('os.fsync', lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runner(trained).train()
    assert (trained / 'epoch_1.pth').read_bytes() == before


def test_configs_of_a_package_are_found_without_pkg_resources(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)
    path = tmp_path / 'config.py'
    path.write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n")
    assert Config.fromfile(path).model.type == 'RetinaNet'
    assert engine.get_installed_path('mmdet').endswith('mmdet')
    assert engine.get_installed_path('mmcv-lite').endswith('mmcv')
    assert not engine.is_installed('no_such_package')
    with pytest.raises(ConfigError, match='no_such_package, which a config names'):
        engine.get_installed_path('no_such_package')


@pytest.mark.parametrize('version', ['2.1.0', '2.2.0'])
def test_newer_mmcv_is_accepted_and_tells_its_version(version):
    code = (f"import mmcv; mmcv.__version__ = '{version}'\n"
            'import gkd, mmdet.models\nprint(mmcv.__version__)')
    ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.split()[-1:]) == (0, [version]), ended.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU it works')
def test_mixed_precision_without_gpu_is_refused():
    with pytest.raises(ConfigError, match='AmpOptimWrapper.*needs a GPU'):
        AmpOptimWrapper(optimizer=torch.optim.SGD(Line().parameters(), lr=0.1))


def train_in_processes(rank, port, folder):
    import os
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    init_dist('pytorch')
    torch.manual_seed(rank)
    model = MMDistributedDataParallel(Line(), device_ids=[rank], broadcast_buffers=False)
    model(torch.tensor([rank + 1.0]), mode='loss')['loss'].backward()
    torch.save(model.module.layer.weight.grad, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_processes_without_gpus(tmp_path, free_port):
    torch.multiprocessing.start_processes(train_in_processes, (free_port, str(tmp_path)), nprocs=2,
                                          start_method='fork')
    gradients = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    assert torch.equal(*gradients) and gradients[0].any()


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_a_gpu_that_shall_not_be_seen_is_not_used(monkeypatch):
    """MMEngine looks for GPUs when it is imported, before any option is read."""
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cuda')
    monkeypatch.setenv(VISIBLE, '0')
    choose_device('cpu')
    assert get_device() == 'cpu' and os.environ[VISIBLE] == ''


class Map(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3)

    def forward(self, *inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).mean())


@pytest.mark.parametrize('asked', [True, False])
def test_convolutions_have_channels_last_if_the_config_says_so(tmp_path, asked):
    made = PlacingRunner(Map(), str(tmp_path), experiment_name=f'channels-last-{asked}',
                         cfg=Config(dict(cpu_channels_last=asked)))
    weight = made.model.layer.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == asked


def test_images_of_one_name_in_two_folders_are_both_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(DetVisualizationHook, 'after_test_iter', lambda hook, *arguments: (
        drawn.append((hook.test_out_dir, arguments[-1][0].img_path))))
    monkeypatch.setattr(Visualizer, 'get_current_instance',
                        lambda: SimpleNamespace(add_datasample=print))
    dataset = SimpleNamespace(data_prefix=dict(img='data/images/'))
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset))
    paths = ['data/images/a/1.jpg', 'data/images/b/1.jpg', 'data/images/1.jpg', 'other/1.jpg']
    hook = DrawingHook(folder=str(tmp_path))
    hook.after_test_iter(runner, 0, None, [
        DetDataSample(metainfo=dict(img_path=path)) for path in paths])
    assert drawn == [(osp.join(tmp_path, folder), path)
                     for folder, path in zip(('a', 'b', '', ''), paths)]


def test_an_image_whose_name_has_no_ending_is_drawn(annotations, tmp_path, monkeypatch):
    shutil.copy(annotations.parent / '0.png', tmp_path / 'photo')
    drawn = []
    monkeypatch.setattr(Visualizer, 'get_current_instance', lambda: SimpleNamespace(
        add_datasample=lambda *_, out_file, **settings: drawn.append(out_file)))
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=None), work_dir='',
                             timestamp='')
    DrawingHook(folder=str(tmp_path / 'drawn')).after_test_iter(runner, 0, None, [
        DetDataSample(metainfo=dict(img_path=str(tmp_path / 'photo')))])
    assert drawn == [str(tmp_path / 'drawn' / 'photo.png')]


def test_images_of_one_name_in_two_data_sets_are_both_drawn(annotations, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Visualizer, 'get_current_instance', lambda: SimpleNamespace(
        add_datasample=lambda *_, out_file, **settings: drawn.append(out_file)))
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=None), work_dir='',
                             timestamp='')
    hook = DrawingHook(folder=str(tmp_path / 'drawn'))
    for folder in ('one', 'two'):
        (tmp_path / folder).mkdir()
        shutil.copy(annotations.parent / '0.png', tmp_path / folder / '0.png')
        hook.after_test_iter(runner, 0, None, [
            DetDataSample(metainfo=dict(img_path=str(tmp_path / folder / '0.png')))])
    assert drawn == [str(tmp_path / 'drawn' / name) for name in ('0.png', '0_2.png')]


def test_classes_that_are_numbered_by_real_numbers_are_drawn(tmp_path, monkeypatch):
    """As CrowdDet's are."""
    drawn = []
    monkeypatch.setattr(DetVisualizationHook, 'after_test_iter',
                        lambda hook, *arguments: drawn.extend(arguments[-1]))
    monkeypatch.setattr(Visualizer, 'get_current_instance',
                        lambda: SimpleNamespace(add_datasample=print))
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=None))
    sample = DetDataSample(metainfo=dict(img_path='1.jpg'),
                           pred_instances=InstanceData(labels=torch.zeros(2)))
    DrawingHook(folder=str(tmp_path)).after_test_iter(runner, 0, None, [sample])
    (shown,) = drawn
    assert shown.pred_instances.labels.dtype == torch.int64
