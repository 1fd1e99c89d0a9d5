"""Trainings by MMEngine's own runner: resumed exactly, stopped at losses that are not finite."""

import json
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing
from helpers.centred import CENTRED, assert_boxes_lie_on_their_rectangles
from mmengine.config import Config
from mmengine.hooks import Hook, iter_timer_hook
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner, find_latest_checkpoint
from small_experiments import CLASSES, IMAGES, TOOLS, detector, experiment, train
from torch.utils.data import DataLoader, TensorDataset

from gkd import frameworks
from gkd.bank import PrototypeBank
from gkd.compat.checkpoint import load_checkpoint_file
from gkd.distiller import Distiller
from gkd.engine import resume
from gkd.engine.config import load_config
from gkd.engine.evaluation import is_evaluation_missing
from gkd.engine.export import export_student
from gkd.errors import ConfigError, NumericalError
from gkd.frameworks import build_dataset, build_detector
from gkd.frameworks.mmdet3 import prototype_configs
from gkd.planning.plan import make_plan
from gkd.report.runs import read_run
from gkd.resume import KEY, forget_evaluations, keep_evaluation


@HOOKS.register_module()
class Kill(Hook):
    """End the run after so many steps."""

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            raise InterruptedError


@HOOKS.register_module()
class Count(Hook):
    """Count steps."""

    steps = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps += 1

    def state_dict(self):
        return dict(steps=self.steps)

    def load_state_dict(self, kept):
        self.steps = kept['steps']


RATES = []


@HOOKS.register_module()
class KeepRates(Hook):
    """Keep the learning rate of each step in ``RATES``."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        RATES.append(runner.optim_wrapper.get_lr()['lr'][0])


IMAGE_IDS = []


@HOOKS.register_module()
class KeepImages(Hook):
    """Keep the ids of the images of each step in ``IMAGE_IDS``."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        IMAGE_IDS.append({sample.img_id for sample in data_batch['data_samples']})


@HOOKS.register_module()
class KillEvaluation(Hook):
    """End the run within the evaluation of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.epoch == self.epoch:
            raise InterruptedError


@HOOKS.register_module()
class Spoil(Hook):
    """Make a weight infinite at the end of the first epoch."""

    def after_train_epoch(self, runner):
        next(runner.model.parameters()).data.fill_(torch.inf)


def goes_on_exactly(annotations, folder, killed_at, left, **settings):
    """Train at once; train, be killed after a step, and go on; compare."""
    whole = train(experiment(annotations, folder / 'whole', **settings))
    config = experiment(annotations, folder / 'killed', **settings)
    with pytest.raises(InterruptedError):
        train(config, custom_hooks=[*config.custom_hooks, dict(type='Kill', after=killed_at)])
    assert Path(find_latest_checkpoint(config.work_dir)).name == left
    resumed = train(config, resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert not list((folder / 'killed').glob('epoch_*_iter_*.pth'))
    bank, other = (PrototypeBank.load(folder / name / 'prototypes' / 'epoch_2.safetensors')
                   for name in ('whole', 'killed'))
    assert all(map(torch.equal, bank.student, other.student))
    assert all(map(torch.equal, bank.class_features, other.class_features))


def test_a_new_training_from_a_checkpoint_inside_an_epoch_trains_on_all_images(
        annotations, tmp_path):
    """Only one that goes on leaves out the batches that are done."""
    config = experiment(annotations, tmp_path / 'killed')
    with pytest.raises(InterruptedError):
        train(config, custom_hooks=[*config.custom_hooks, dict(type='Kill', after=6)])
    left = find_latest_checkpoint(config.work_dir)
    assert '_iter_' in Path(left).name
    config = experiment(annotations, tmp_path / 'new')
    RATES.clear()
    begun = train(config, load_from=left,
                  custom_hooks=[*config.custom_hooks, dict(type='KeepRates')])
    assert len(RATES) == begun.max_epochs * len(begun.train_dataloader)


def test_a_run_that_goes_on_with_smaller_batches_leaves_out_the_same_part_of_the_epoch(
        annotations, tmp_path):
    config = experiment(annotations, tmp_path)
    with pytest.raises(InterruptedError):
        train(config, custom_hooks=[*config.custom_hooks, dict(type='Kill', after=6)])
    assert Path(find_latest_checkpoint(config.work_dir)).name == 'epoch_2_iter_2.pth'
    config.train_dataloader.batch_size //= 2
    RATES.clear()
    resumed = train(config, resume=True,
                    custom_hooks=[*config.custom_hooks, dict(type='KeepRates')])
    assert len(resumed.train_dataloader) == 6 and len(RATES) == 2  # of 3 batches 1 was left


def test_without_a_seed_a_killed_run_goes_on_with_the_images_that_are_left(annotations, tmp_path):
    config = experiment(annotations, tmp_path, inside_epoch=1,
                        randomness=dict(seed=None))
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    config.model = detector('one_stage')
    config.custom_hooks = [dict(type='KeepImages')]
    IMAGE_IDS.clear()
    np.random.seed(0)  # of which MMEngine draws one
    with pytest.raises(InterruptedError):
        train(config, custom_hooks=[*config.custom_hooks, dict(type='Kill', after=5)])
    assert Path(find_latest_checkpoint(config.work_dir)).name == 'epoch_2_iter_1.pth'
    np.random.seed(1)
    train(config, resume=True)
    *_, second, killed, again, third = IMAGE_IDS
    assert again == killed
    assert len(second | again | third) == IMAGES


def test_a_new_training_forgets_the_metrics_of_the_one_before(annotations, tmp_path):
    """Else its own evaluation, if it were interrupted, would be taken for done."""
    config = experiment(annotations, tmp_path)
    (tmp_path / 'evaluation.json').write_text('{"1": {"coco/bbox_mAP": 0.5}}')
    with pytest.raises(InterruptedError):
        train(config, custom_hooks=[*config.custom_hooks, dict(type='Kill', after=1)])
    assert json.loads((tmp_path / 'evaluation.json').read_text()) == {}


def evaluations_and_best(runner):
    """Metrics by epoch, and what is known of the best one, of a run."""
    folder, known = Path(runner.work_dir), runner.message_hub.get_info
    assert Path(known('best_ckpt')).is_file()
    return (json.loads((folder / 'evaluation.json').read_text()), known('best_score'),
            [path.name for path in folder.glob('best_*.pth')])


@pytest.mark.slow
def test_an_interrupted_evaluation_is_made_up_for_before_the_run_goes_on(annotations, tmp_path):
    """Within the run, and after its last epoch; the best checkpoint and the report know of it."""
    def of(folder):
        config = experiment(annotations, tmp_path / folder, inside_epoch=0)
        config.model, config.custom_hooks = detector('one_stage'), []
        # As long as nothing is found, the first epoch is the best.
        config.default_hooks.checkpoint.update(save_best='coco/bbox_mAP', rule='less')
        return config

    whole = train(of('whole'))
    config = of('killed')
    for epoch in (1, 2):
        with pytest.raises(InterruptedError):
            train(config, resume=True, custom_hooks=[dict(type='KillEvaluation', epoch=epoch)])
        assert Path(find_latest_checkpoint(config.work_dir)).name == f'epoch_{epoch}.pth'
    # The best epoch's checkpoint was written again after its evaluation.
    best = load_checkpoint_file(tmp_path / 'killed' / 'epoch_1.pth')
    assert KEY in best and 'best_score' in best['message_hub']['runtime_info']
    resumed = train(config, resume=True)
    assert evaluations_and_best(resumed) == evaluations_and_best(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    run = read_run(config.work_dir)
    assert [*run.evaluations] == [1, 2] and 'bbox_mAP_50' in run.evaluations[2]
    assert len([line for line in run.lines if line['mode'] == 'train']) == 6
    # Nothing is evaluated twice.
    train(config, resume=True)
    logs = [path.read_text() for path in tmp_path.glob('killed/*/vis_data/scalars.json')]
    assert ''.join(logs).count('coco/bbox_mAP"') == 2


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_early_as_it_would_have(annotations, tmp_path):
    """Three evaluations in a row show no better AP; the run is killed after the first of them."""
    config = experiment(annotations, tmp_path, inside_epoch=0)
    config.model, config.train_cfg.max_epochs = detector('one_stage'), 5
    config.custom_hooks = [dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', patience=2,
                                min_delta=1)]
    with pytest.raises(InterruptedError):
        train(config, custom_hooks=[*config.custom_hooks, dict(type='Kill', after=7)])
    assert Path(find_latest_checkpoint(config.work_dir)).name == 'epoch_2.pth'
    for _ in range(2):  # the one that has ended trains no further, either
        resumed = train(config, resume=True)
        assert (resumed.epoch, resumed.train_loop.stop_training) == (3, True)


@pytest.mark.slow
def test_a_schedule_that_waits_for_metrics_goes_on_exactly(annotations, tmp_path):
    """No evaluation after the first is better; each of these but the last halves the rate.

    The run is killed after the second, whose step the checkpoint of the epoch lacks.
    """
    def halving(folder):
        config = experiment(annotations, folder, inside_epoch=0)
        config.model, config.train_cfg.max_epochs = detector('one_stage'), 4
        config.param_scheduler = [dict(
            type='ReduceOnPlateauLR', monitor='coco/bbox_mAP', rule='greater', patience=0,
            threshold=1, threshold_rule='abs', factor=0.5)]
        config.custom_hooks = []
        return config

    def rate(runner):
        return runner.optim_wrapper.param_groups[0]['lr'] / runner.cfg.optim_wrapper.optimizer.lr

    whole = train(halving(tmp_path / 'whole'))
    assert rate(whole) == 1 / 4
    config = halving(tmp_path / 'killed')
    with pytest.raises(InterruptedError):
        train(config, custom_hooks=[dict(type='Kill', after=7)])
    assert Path(find_latest_checkpoint(config.work_dir)).name == 'epoch_2.pth'
    for _ in range(2):  # with nothing left to train, too
        assert rate(train(config, resume=True)) == 1 / 4


def test_what_is_evaluated(annotations, tmp_path, monkeypatch):
    """By the loop's settings, and not where a checkpoint from elsewhere was the start."""
    config = experiment(annotations, tmp_path)
    config.train_cfg.update(max_epochs=7, val_begin=2, val_interval=3, dynamic_intervals=[(6, 1)])
    config.model = detector('one_stage')
    with DefaultScope.overwrite_default_scope('mmdet'):
        runner = Runner.from_cfg(config)
        loop, missing = runner.train_loop, []
        assert runner.val_loop is not None
    for epoch in range(8):
        loop._epoch = epoch
        if is_evaluation_missing(runner, str(tmp_path)):
            missing.append(epoch)
    assert missing == [3, 5, 6, 7]
    keep_evaluation(str(tmp_path), 7, {})
    assert not is_evaluation_missing(runner, str(tmp_path))
    forget_evaluations(str(tmp_path), 6)
    for start, is_missing in ((tmp_path / 'epoch_7.pth', True), (Path('epoch_7.pth'), False)):
        runner._load_from = str(start)
        assert is_evaluation_missing(runner, str(tmp_path)) == is_missing
    # The first process decides, whatever the others see.
    monkeypatch.setattr('gkd.engine.evaluation.all_gather', lambda own: [False, own])
    assert is_evaluation_missing(runner, str(tmp_path))


AVERAGE = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.1, update_buffers=True,
               priority=49)


@pytest.mark.slow
def test_a_killed_run_with_averaged_weights_goes_on_exactly(annotations, tmp_path):
    goes_on_exactly(annotations, tmp_path, killed_at=6, left='epoch_2_iter_2.pth',
                    family='two_stage', hooks=[AVERAGE], space='classes')
    averages = [load_checkpoint_file(tmp_path / name / 'epoch_2.pth')['state_dict']
                for name in ('whole', 'killed')]
    assert all(map(torch.equal, *(average.values() for average in averages)))


@pytest.mark.slow
def test_hooks_with_a_state_go_on(annotations, tmp_path):
    config = experiment(annotations, tmp_path, inside_epoch=1)
    config.model, config.custom_hooks = detector('one_stage'), [dict(type='Count')]
    with pytest.raises(InterruptedError):
        train(config, custom_hooks=[*config.custom_hooks, dict(type='Kill', after=5)])
    assert Path(find_latest_checkpoint(config.work_dir)).name == 'epoch_2_iter_1.pth'
    count, = (hook for hook in train(config, resume=True).hooks if isinstance(hook, Count))
    assert count.steps == 6


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly_where_an_epoch_ended_between_two_steps(
        annotations, tmp_path):
    """Of three batches an epoch, two make a step of the optimiser; RoIs are drawn by torch."""
    goes_on_exactly(annotations, tmp_path, killed_at=4, left='epoch_1.pth', inside_epoch=0,
                    family='two_stage', accumulated=2)


@pytest.mark.slow
def test_with_another_batch_size_a_run_goes_on_at_the_same_part_of_the_epoch(
        annotations, tmp_path):
    config = experiment(annotations, tmp_path, inside_epoch=1)
    config.model = detector('one_stage')
    config.train_cfg.max_epochs = 3
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    for batch_size, killed_at, left in ((2, 5, 'epoch_2_iter_1.pth'),
                                        (1, 10, 'epoch_2_iter_3.pth')):
        config.train_dataloader.batch_size = batch_size
        with pytest.raises(InterruptedError):
            train(config, resume=True, custom_hooks=[dict(type='Kill', after=killed_at)])
        assert Path(find_latest_checkpoint(config.work_dir)).name == left
    # Who starts from its weights alone begins with the first batch.
    with pytest.raises(InterruptedError):
        train(config, load_from=str(tmp_path / left), work_dir=str(tmp_path / 'new'),
              custom_hooks=[dict(type='Kill', after=1)])
    assert train(config, resume=True, custom_hooks=[]).iter == 18


@pytest.mark.slow
@pytest.mark.parametrize('former, batch_size', [(1, 2), (2, 1)])
def test_after_an_epoch_with_another_batch_size_schedule_and_clock_go_on(
        annotations, tmp_path, former, batch_size):
    """Also where the clock would have divided by the iterations since the start, which were 0."""
    config = experiment(annotations, tmp_path, inside_epoch=0)
    config.model = detector('one_stage')
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    config.param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, eta_min=1e-5,
                                   convert_to_iter_based=True)]
    config.train_dataloader.batch_size = former
    with pytest.raises(InterruptedError):
        train(config, resume=True, custom_hooks=[
            dict(type='Kill', after=IMAGES // former + 1)])
    config.train_dataloader.batch_size = batch_size
    steps, found = IMAGES // batch_size, []
    for folder in tmp_path, tmp_path / 'anew':
        RATES.clear()
        runner = train(config, work_dir=str(folder), resume=True,
                       custom_hooks=[dict(type='KeepRates')])
        assert runner.iter == runner.max_iters == 2 * steps
        found.append(RATES[:])
    assert found[0] == pytest.approx(found[1][steps:], rel=1e-3)


def test_prototypes_are_seen_by_the_pipeline_of_tests_on_several_data_sets(
        annotations, tmp_path):
    config = experiment(annotations, tmp_path)
    tested = config.val_dataloader.dataset
    config.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[tested, tested])
    entry, = prototype_configs(config)
    assert entry.pipeline == tested.pipeline
    assert entry.pipeline != config.train_dataloader.dataset.pipeline


def test_prototypes_of_a_config_that_neither_validates_nor_tests(annotations, tmp_path):
    """Its training pipeline flips images; their boxes are those of the annotations."""
    config = experiment(annotations, tmp_path)
    tested = config.pop('val_dataloader').dataset
    entry, = prototype_configs(config)
    assert entry.pipeline == tested.pipeline
    config.train_dataloader.dataset.pipeline.insert(-1, dict(type='RandomCrop', crop_size=(9, 9)))
    with pytest.raises(ConfigError, match='RandomCrop of train_dataloader.dataset.pipeline may'):
        prototype_configs(config)


def test_prototypes_of_images_in_which_boxes_are_not_known(annotations, tmp_path):
    entry = experiment(annotations, tmp_path).val_dataloader.dataset
    entry.pipeline[-1].meta_keys = ('img_shape', 'ori_shape')
    assert frameworks.test_view(build_dataset(entry), 0)[1].tolist() == [1] * 4
    entry.pipeline[2].scale = (64, 64)
    with pytest.raises(ConfigError, match='json are seen, does not tell scale_factor of an image'):
        frameworks.test_view(build_dataset(entry), 0)
    entry.pipeline[-1].meta_keys = ('scale_factor', )
    with pytest.raises(ConfigError, match='list img_shape in `meta_keys`'):
        frameworks.test_view(build_dataset(entry), 0)


def test_boxes_move_with_images_that_are_put_in_the_middle_of_larger_ones(annotations, tmp_path):
    entry = experiment(annotations, tmp_path).val_dataloader.dataset
    entry.pipeline = [dict(type='LoadImageFromFile', to_float32=True), CENTRED,
                      dict(type='PackDetInputs', meta_keys=('img_shape', 'border'))]
    assert_boxes_lie_on_their_rectangles(build_dataset(entry))


def test_prototypes_follow_the_images_that_the_teacher_was_trained_on(annotations, tmp_path):
    """Its kept features are not those of a config that has been corrected since."""
    config, found = experiment(annotations, tmp_path), []
    for mean in (127.0, 90.0):
        config.model.teacher.config.data_preprocessor.mean = [mean] * 3
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = build_detector(config.model)
            datasets = [*map(build_dataset, prototype_configs(config))]
        found.append(model.generate_bank(datasets, str(tmp_path)))
    first, second = found
    assert all(map(torch.equal, first.student, second.student))
    assert not any(map(torch.equal, first.teacher, second.teacher))


def go_on_in_process(rank, port, annotations, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    cv2.setNumThreads(0)  # thread pools do not survive a fork
    goes_on_exactly(annotations, folder, killed_at=4, left='epoch_2_iter_1.pth',
                    workers=2, inside_epoch=1, launcher='pytorch')
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_killed_processes_with_loader_workers_go_on_exactly(annotations, tmp_path, free_port):
    torch.multiprocessing.start_processes(
        go_on_in_process, (free_port, annotations, tmp_path), nprocs=2, start_method='fork')


@pytest.mark.slow
def test_averaged_two_stage_student_is_exported(annotations, tmp_path, monkeypatch):
    """Averaged over steps of two batches each; shown to a back end of MMEngine's visualizer."""
    config = experiment(annotations, tmp_path, 'two_stage',
                        hooks=[AVERAGE, dict(type='ReportHook')], accumulated=2)
    config.visualizer = dict(type='DetLocalVisualizer', vis_backends=[
        dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
    runner = train(config, train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1))
    assert list(tmp_path.rglob('events.out.tfevents.*'))
    report = (tmp_path / 'report.html').read_text()
    assert 'trained for 1 epoch' in report and 'loss_local_fg' in report and '0.png' in report
    assert runner.optim_wrapper.optimizer.state  # it has made a step
    assert runner.model.bank.metadata['epoch'] == '1'
    average = next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model.module
    assert average.teacher is runner.model.teacher
    export_student(config, str(tmp_path / 'epoch_1.pth'), str(tmp_path / 'student.pth'))
    exported = load_checkpoint_file(str(tmp_path / 'student.pth'))
    assert tuple(exported['meta']['dataset_meta']['classes']) == CLASSES
    assert (exported['meta']['epoch'], exported['meta']['iter']) == (1, runner.iter)
    assert 'mmengine_version' in exported['meta']
    plain = build_detector(Config(detector('two_stage')))
    plain.load_state_dict(exported['state_dict'], strict=True)
    weight = 'roi_head.bbox_head.fc_cls.weight'
    assert torch.equal(plain.get_parameter(weight), average.student.get_parameter(weight))
    assert not torch.equal(plain.get_parameter(weight), runner.model.student.get_parameter(weight))
    # It was the average that was evaluated.
    config.update(test_dataloader=config.val_dataloader, test_cfg=dict(type='TestLoop'),
                  test_evaluator=config.val_evaluator)
    config.dump(tmp_path / 'config.py')
    monkeypatch.setattr(sys, 'argv', ['test.py', str(tmp_path / 'config.py'),
                                      str(tmp_path / 'student.pth'),
                                      '--out', str(tmp_path / 'found.pkl'),
                                      '--show-dir', str(tmp_path / 'shown')])
    metrics = runpy.run_path(str(TOOLS / 'test.py'))['main']()
    assert len(list((tmp_path / 'shown').iterdir())) == IMAGES
    assert (tmp_path / 'found.pkl').stat().st_size > 0
    evaluated = runner.message_hub.get_scalar('val/coco/bbox_mAP').current()
    assert metrics['coco/bbox_mAP'] == evaluated


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_before_it_spoils_the_weights(
        annotations, tmp_path, monkeypatch):
    config = experiment(annotations, tmp_path)
    from gkd.distiller import Distiller
    losses = Distiller.losses
    monkeypatch.setattr(Distiller, 'losses', lambda self, batch: {
        **losses(self, batch), 'loss_global': torch.tensor(float('nan'))})
    with pytest.raises(NumericalError, match='loss_global = nan at epoch 1, iteration 1'):
        train(config)


def test_weights_that_are_not_finite_are_not_saved(annotations, tmp_path):
    config = experiment(annotations, tmp_path, inside_epoch=0)
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    config.model = detector('one_stage')
    with pytest.raises(NumericalError, match='weights are not finite any more, first backbone'):
        train(config, custom_hooks=[dict(type='Spoil')])
    assert not list(tmp_path.glob('*.pth'))


def test_processes_augment_their_images_differently(monkeypatch):
    def seeds(rank):
        monkeypatch.setattr(resume, 'get_dist_info', lambda: (rank, 2))
        loader = DataLoader(TensorDataset(torch.arange(4)), batch_size=2, num_workers=1)
        return {index.seed for batch in resume.BatchOrder(loader, seed=0) for index in batch}

    assert len(seeds(0) | seeds(1)) == 8


def test_a_config_of_mmdetection_2_is_named(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('model = dict(type="RetinaNet")\ndata = dict(samples_per_gpu=2)\n')
    with pytest.raises(ConfigError, match='is one of MMDetection 2'):
        load_config(str(path))


def test_a_teacher_that_knows_more_classes_teaches_those_of_the_data(annotations, tmp_path):
    config = experiment(annotations, tmp_path / 'work')
    config.train_cfg.max_epochs = 1
    config.model.teacher.config.bbox_head.num_classes = 5
    with pytest.raises(ConfigError, match='teacher has 5 classes, .* has 3, .*teacher.classes'):
        train(config)
    config.model.teacher.classes = ['grey', 'blue', 'red', 'pink', 'green']
    model = train(config).model
    assert model.teacher_columns.tolist() == [2, 4, 1]
    assert make_plan(config, image=(128, 128)).cost.teacher > 0


def test_the_generation_of_prototypes_does_not_count_as_waiting_for_data(
        annotations, tmp_path, monkeypatch):
    clock, generate = [0.0], Distiller.generate_bank

    def slow(*args):
        clock[0] += 1000
        return generate(*args)

    monkeypatch.setattr(iter_timer_hook, 'time', SimpleNamespace(time=lambda: clock[0]))
    monkeypatch.setattr(Distiller, 'generate_bank', slow)
    runner = train(experiment(annotations, tmp_path), val_cfg=None, val_dataloader=None,
                   val_evaluator=None)
    assert clock == [2000]
    assert runner.message_hub.get_scalar('train/data_time').data[0].max() == 0
