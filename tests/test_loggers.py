"""What a training tells: TensorBoard, Weights & Biases, and the summary at its end."""

import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import tiny_data
from helpers.running import forget_loggers, run_tool
from mmcv import Config
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gkd.errors import EnvironmentMismatchError
from gkd.prototypes import PrototypeBank
from gkd.report.drawing import pixels_of
from gkd.report.prototypes import prototype_figure
from gkd.report.summary import format_summary
from gkd.running import load_config, train
from gkd.running.hooks import custom_hooks


@pytest.fixture
def fake_wandb(monkeypatch):
    """A package that keeps what it is given, step by step, as the real one does."""
    wandb = ModuleType('wandb')
    wandb.__spec__ = importlib.util.spec_from_loader('wandb', None)
    wandb.steps, wandb.dropped, wandb.now = {}, [], 0

    def log(values, step=None, commit=None):
        if step is not None and step < wandb.now:
            wandb.dropped.append((step, values))
            return
        wandb.now = wandb.now if step is None else step
        wandb.steps.setdefault(wandb.now, {}).update(values)
        if commit or (commit is None and step is None):
            wandb.now += 1

    class Artifact:
        def __init__(self, **settings):
            self.files = []

        def add_file(self, path):
            self.files.append(path)

    wandb.log, wandb.Artifact, wandb.Image = log, Artifact, np.asarray
    wandb.init = wandb.join = wandb.log_artifact = lambda *args, **settings: None
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    return wandb


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs and data of a tiny experiment."""
    folder = tmp_path_factory.mktemp('loggers')
    tiny_data.write_pair(folder, 'two_stage', batch_size=1)
    return folder


def write(folder, *types):
    """A config that logs every second step, to these loggers, too."""
    path = folder / f'{"_".join(types)}.py'
    hooks = [dict(type=name) for name in ('TextLoggerHook', *types)]
    path.write_text((folder / 'distiller.py').read_text()
                    + f'log_config = dict(interval=2, hooks={hooks})\n'
                    + 'evaluation["save_best"] = "bbox_mAP"\n')
    return path


@pytest.fixture
def logged(folder, fake_wandb):
    """Work dir of a training with both loggers, and what W&B has got."""
    work = folder / 'work'
    if not work.exists():
        logged.output = run_tool('train', write(
            folder, 'TensorboardLoggerHook', 'WandbLoggerHook'), '--work-dir', work)
        logged.wandb = fake_wandb
    assert logged.output[0] == 0, logged.output
    return work, logged.wandb, logged.output[2]


def test_tensorboard_gets_scalars_and_pictures(folder, logged):
    work, _, _ = logged
    events = EventAccumulator(str(work / 'tf_logs'), size_guidance=dict(images=0))
    events.Reload()
    assert [event.step for event in events.Scalars('train/loss_global')] == [2, 4, 6, 8]
    evaluations = json.loads((work / 'evaluation.json').read_text())
    for event, metrics in zip(events.Scalars('val/bbox_mAP'), evaluations.values()):
        assert event.value == pytest.approx(metrics['bbox_mAP'], abs=1e-6)
    assert set(events.Tags()['images']) == {
        'detections', *(f'prototypes/{name}' for name in tiny_data.CLASSES)}
    # After the four steps of an epoch, and before those of the next one.
    assert [event.step for event in events.Images('detections')] == [5, 9]
    assert [event.step for event in events.Images('prototypes/red')] == [1, 5]
    for epoch, event in enumerate(events.Images('prototypes/green'), 1):
        bank = PrototypeBank.load(work / 'prototypes' / f'epoch_{epoch}.safetensors')
        expected = pixels_of(prototype_figure(
            bank, ['nowhere', str(folder / 'images')], tiny_data.CLASSES, 1))
        shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        np.testing.assert_array_equal(shown, expected)
    first, last = (np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
                   for event in events.Images('detections'))
    assert first.shape == last.shape and (first != last).any()


def test_weights_and_biases_gets_the_same(logged):
    _, wandb, _ = logged
    assert not wandb.dropped
    prototypes = {f'prototypes/{name}' for name in tiny_data.CLASSES}
    pictures = {step: values.keys() & {'detections', *prototypes}
                for step, values in wandb.steps.items()}
    assert {step: names for step, names in pictures.items() if names} == {
        0: prototypes, 5: {'detections'}, 6: prototypes, 9: {'detections'}}
    shown = [wandb.steps[step]['detections'] for step in (5, 9)]
    assert all(pixels.dtype == np.uint8 and pixels.shape[2] == 3 for pixels in shown)
    assert (shown[0] != shown[1]).any() and wandb.steps[9]['val/bbox_mAP'] >= 0


def test_logs_of_the_run_are_as_without(logged):
    """The loggers take nothing from one another, and pictures take no random numbers."""
    work, _, _ = logged
    log = [json.loads(line) for path in work.glob('*.log.json')
           for line in path.read_text().splitlines()][1:]
    assert [line['mode'] for line in log] == ['train', 'train', 'val'] * 2


def test_pictures_are_added_where_they_can_be_shown():
    def hooks(*types, **more):
        return custom_hooks(Config(dict(log_config=dict(
            hooks=[dict(type=name) for name in types]), **more)))

    assert not any(hook['type'] == 'ImageLoggerHook' for hook in hooks('TextLoggerHook'))
    assert [hook['priority'] for hook in hooks('TensorboardLoggerHook')
            if hook['type'] == 'ImageLoggerHook'] == [80]
    own = [hook for hook in hooks('WandbLoggerHook', custom_hooks=[
        dict(type='ImageLoggerHook', num_images=1)]) if hook['type'] == 'ImageLoggerHook']
    assert own == [dict(type='ImageLoggerHook', num_images=1, priority=80)]


def test_a_picture_that_cannot_be_drawn_does_not_end_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr('gkd.report.prototypes.crop', None)
    config = load_config(str(write(folder, 'TensorboardLoggerHook')), {'runner.max_epochs': 1})
    config.work_dir = str(tmp_path)
    monkeypatch.setattr('gkd.report.detections.draw_image', None)
    forget_loggers()
    assert train(config)
    log = next(tmp_path.glob('*.log')).read_text()
    assert log.count('No pictures for the loggers: TypeError') == 2
    forget_loggers()


@pytest.mark.parametrize('name, package', [('TensorboardLoggerHook', 'tensorboard'),
                                           ('WandbLoggerHook', 'wandb'),
                                           ('MlflowLoggerHook', 'mlflow')])
def test_missing_package_is_named(folder, tmp_path, monkeypatch, name, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec',
                        lambda module, *args: None if module == package else find(module, *args))
    work = tmp_path / 'work'
    status, _, stderr = run_tool('train', write(folder, name), '--work-dir', work)
    assert status == 2 and 'Traceback' not in stderr
    assert re.search(rf'log_config.hooks\[1\]: {name} needs the package {package}, .*'
                     rf'pip install {package}\.', stderr)
    assert not work.exists()
    config = load_config(str(folder / 'student.py'), {'work_dir': str(work)})
    config.custom_hooks = [dict(type='CheckInvalidLossHook'), dict(type=name)]
    with pytest.raises(EnvironmentMismatchError, match=r'custom_hooks\[1\]'):
        train(config)


def test_summary_tells_the_numbers_of_the_run(logged):
    work, _, stderr = logged
    summary = stderr.split(' Done.\n')[1]
    evaluations = json.loads((work / 'evaluation.json').read_text())
    best = max(evaluations, key=lambda epoch: (evaluations[epoch]['bbox_mAP'], epoch))
    rows = dict(re.findall(r'\| (\w+, epoch \d) \| (.*) \|', summary))
    assert set(rows) == {'last, epoch 2'} | ({f'best, epoch {best}'} if best != '2' else set())
    for title, cells in rows.items():
        metrics = evaluations[title[-1]]
        assert cells.split(' | ') == [f'{100 * metrics[key]:5.1f}' for key in (
            'bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75')]
    lines = [json.loads(line) for path in work.glob('*.log.json')
             for line in path.read_text().splitlines()]
    times = sorted(line['time'] - line['data_time'] for line in lines if 'time' in line)
    assert f'median step {times[len(times) // 2]:.3f} s' in summary
    record = json.loads((work / 'record.json').read_text())
    minutes, seconds = divmod(int(record['seconds']), 60)
    assert f'2 epochs in {minutes:02}:{seconds:02}, ' in summary
    assert f'{record["peak"]:.0f} MiB, peak of the process' in summary
    assert 'FasterRCNN on ResNet-18, taught by FasterRCNN on ResNet-18' in summary
    # The commands work as they stand.
    tool, config, checkpoint = re.search(
        r'export: +python tools/(\w+).py (\S+) (\S+)\n', summary).groups()
    status, _, err = run_tool(tool, config, checkpoint)
    assert status == 0, err
    for path in re.search(r'checkpoint: (\S+), best: (\S+)\n', summary).groups():
        assert Path(path).is_file()
    assert Path(re.search(r'report: +(\S+)', summary)[1]).is_file()


@pytest.mark.slow
def test_summary_of_other_runs(folder, tmp_path):
    work = tmp_path / 'plain'
    status, _, err = run_tool('train', folder / 'student.py', '--work-dir', work,
                              '--no-validate', '--epochs', 1)
    assert status == 0
    summary = err.split(' Done.\n')[1]
    assert '| AP' not in summary and 'export' not in summary
    assert 'model:      FasterRCNN on ResNet-18\n' in summary and '1 epoch in' in summary
    record = json.loads((work / 'record.json').read_text())
    # Going on adds up the time.
    (work / 'record.json').write_text(json.dumps({**record, 'seconds': 3600.0}))
    (work / 'evaluation.json').write_text('{"1": {"mAP": 0.5, "AP50": 0.25}}')
    status, _, err = run_tool('train', folder / 'student.py', '--work-dir', work,
                              '--no-validate')
    assert status == 0 and '2 epochs in 1:00:0' in err
    assert format_summary(str(work), 'student.py').startswith('|               |   mAP |  AP50 |')
