"""Before the first step the evaluation is tried with two images, and changes nothing."""

import json
from glob import glob
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.coco_files import renumber_categories
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, METRICS, DefaultScope
from small_experiments import CLASSES, experiment, train
from test_engine import Line

from gkd.commands.trial import try_training
from gkd.compat.checkpoint import load_checkpoint_file
from gkd.engine import trial
from gkd.engine.data import build_part
from gkd.engine.runner import Runner
from gkd.engine.trial import TrialHook, check_best, measure, try_evaluation, try_step
from gkd.errors import ConfigError


def without_shapes(config):
    config.val_dataloader.dataset.pipeline[-1].meta_keys = ('img_id', 'img_path')


def without_images(config):
    del config.val_dataloader.dataset.pipeline[0]


def with_a_threshold_in_words(config):
    config.model.student.overrides = {'test_cfg.score_thr': 'high'}


def measuring_masks(config):
    config.val_evaluator.metric = 'segm'


def choosing_by_another_metric(config):
    config.default_hooks.checkpoint.save_best = ['coco/bbox_mAP', 'bbox_mAP']


def training_on_mixtures_of_single_images(config):
    config.train_dataloader.dataset.pipeline.insert(-1, dict(type='CopyPaste'))


def training_on_no_steps(config):
    config.train_dataloader.dataset.pipeline = []


def training_without_shapes(config):
    config.train_dataloader.dataset.pipeline[-1].meta_keys = ('img_id', 'scale_factor')


@pytest.mark.parametrize('batch_sampler', [None, dict(type='AspectRatioBatchSampler')])
def test_a_step_is_tried_with_as_many_images_as_a_batch_has(
        annotations, tmp_path, monkeypatch, batch_sampler):
    """Statistics of one image fail where ResNeSt normalises what it has pooled."""
    config = experiment(annotations, tmp_path / 'work')
    config.train_dataloader.batch_sampler = batch_sampler

    def count(model, batch):
        raise ConfigError(f'{len(batch["inputs"])} images')

    monkeypatch.setattr(trial, 'try_step', count)
    with pytest.raises(ConfigError, match='^2 images$'):
        Runner.with_checked_data(config, 'train', 'val').train()


@pytest.mark.parametrize('change, says', [
    (training_on_no_steps, r'train_dataloader.dataset.pipeline: what it makes of an image has no '
                           r'inputs and no data_samples.* PackDetInputs'),
    (training_without_shapes, r"in a training step with those of train_.*: KeyError: 'img_shape'"
                              r'[\s\S]*`meta_keys`'),
    (training_on_mixtures_of_single_images,
     r'train_dataloader.dataset: a trial with two images fails, so that the training would, in '
     r'loading them: AssertionError'),
    (without_images, r'val_dataloader: a trial with two images fails, .*loading them: KeyError: '
                     r'.scale_factor.[\s\S]*Look at val_dataloader .* --no-validate'),
    (without_shapes, r'model: a trial with two images fails, .*detecting .*: KeyError: .*_shape.*'
                     r'[\s\S]*what the pipeline of val_dataloader hands to it.* --no-validate'),
    (with_a_threshold_in_words, r'model: a trial with two images fails, .*: TypeError: .*\n'
                                r'It happened in .*mmdet.*\. Look at `model`'),
    (measuring_masks, 'val_evaluator: a trial with two images fails, .*: KeyError: .segm is not '
                      'in results'),
    (choosing_by_another_metric, r'default_hooks.checkpoint.save_best = .*: bbox_mAP is no metric '
                                 r'of this evaluation; it has coco/bbox_mAP, coco/bbox_mAP_50')])
def test_what_would_fail_is_found_before_the_first_step(
        annotations, tmp_path, change, says):
    config = experiment(annotations, tmp_path / 'work')
    change(config)
    runner = Runner.with_checked_data(config, 'train', 'val')
    with pytest.raises(ConfigError, match=says):
        runner.train()
    assert runner.iter == 0 and not (tmp_path / 'work').exists()


def test_a_config_may_name_the_trial_itself(annotations, tmp_path):
    config = experiment(annotations, tmp_path / 'work', hooks=[dict(type='TrialHook')])
    hooks = Runner.with_checked_data(config, 'train').hooks
    assert sum(isinstance(hook, TrialHook) for hook in hooks) == 1


@HOOKS.register_module()
class LookAfterTrial(TrialHook):
    """Tries the evaluation, and looks at what it leaves."""

    def before_train(self, runner):
        [metric] = runner.val_loop.evaluator.metrics
        before = dict(vars(metric), results=[])
        weights = {name: each.clone() for name, each in runner.model.state_dict().items()}
        modes = [module.training for module in runner.model.modules()]
        super().before_train(runner)
        assert vars(metric) == before and not glob(f'{metric.outfile_prefix}*')
        assert modes == [module.training for module in runner.model.modules()]
        assert all(map(torch.equal, weights.values(), runner.model.state_dict().values()))


@pytest.mark.slow
def test_a_trial_changes_nothing(annotations, tmp_path):
    for name, hooks in (('tried', [dict(type='LookAfterTrial')]), ('untried', [])):
        config = experiment(annotations, tmp_path / name, hooks=hooks)
        config.train_cfg.max_epochs = 1
        config.val_evaluator.outfile_prefix = str(tmp_path / name / 'detections')
        # It draws random numbers.
        config.val_dataloader.dataset.pipeline.insert(-1, dict(type='RandomFlip', prob=0.5))
        train(config)
    weights = [load_checkpoint_file(str(tmp_path / name / 'epoch_1.pth'))['state_dict']
               for name in ('tried', 'untried')]
    assert all(map(torch.equal, *(each.values() for each in weights)))
    assert len(list(tmp_path.glob('*/detections.bbox.json'))) == 2


class OfAllImages(BaseMetric):
    default_prefix = 'own'

    def process(self, data_batch, data_samples):
        raise AssertionError('it may count what it gets')

    def compute_metrics(self, results):
        raise AssertionError('it may need all images')


def test_metrics_that_may_need_all_images_are_not_tried():
    evaluator = Evaluator([OfAllImages()])
    evaluator.dataset_meta = dict(classes=CLASSES)
    assert measure(evaluator, [({}, [SimpleNamespace(img_id=1)])]) == {}


@pytest.mark.parametrize('wrapper', [
    lambda dataset: dict(type='RepeatDataset', times=2, dataset=dataset),
    lambda dataset: dict(type='MultiImageMixDataset', dataset=dataset, pipeline=[])])
def test_a_trial_of_loading_leaves_what_a_pipeline_keeps(annotations, tmp_path, wrapper):
    config = experiment(annotations, tmp_path)
    entry = config.train_dataloader.dataset
    entry.pipeline.insert(2, dict(type='CachedMosaic', img_scale=(64, 64), max_cached_images=4))
    config.train_dataloader.dataset = wrapper(entry)
    dataset = build_part(config, 'train').dataset
    torch.manual_seed(0)
    np.random.seed(0)
    try_training(dataset, 'train', list, 2)
    assert not dataset.dataset.pipeline.transforms[2].results_cache
    drawn = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert drawn == (torch.rand(1).item(), np.random.rand())
    dataset[0]
    assert dataset.dataset.pipeline.transforms[2].results_cache


class Noting(Line):
    """Notes which model computes what, and in which mode."""

    seen = []

    def forward(self, *inputs, mode='tensor'):
        self.seen.append((self, self.training, mode))
        return super().forward(*inputs, mode=mode)


def test_a_step_is_tried_by_a_copy_that_trains():
    model = Noting().eval()
    try_step(model, [torch.zeros(1)])
    [(tried, training, mode)] = Noting.seen
    assert tried is not model and training and mode == 'loss' and not model.training


def test_the_best_checkpoint_by_the_first_metric():
    hook = CheckpointHook(save_best='auto')
    check_best(hook, {})
    check_best(hook, {'pascal_voc/mAP': 0.0})
    with pytest.raises(ConfigError, match='default_hooks.checkpoint.rule: .*recall@100'):
        check_best(hook, {'pascal_voc/recall@100@0.5': 0.0})
    check_best(CheckpointHook(save_best='auto', rule='greater'), {'recall@100@0.5': 0.0})
    assert hook.key_indicators == ['auto']


def test_usual_metrics_are_tried_beside_others(annotations, tmp_path):
    config = experiment(annotations, tmp_path / 'work')
    METRICS.register_module(module=OfAllImages, force=True)
    own = dict(type='OfAllImages')
    config.val_evaluator = [own, config.val_evaluator]
    # Only a whole evaluation has this one.
    config.default_hooks.checkpoint.update(save_best='own/score', rule='greater')
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert tried(config).keys() >= {'coco/bbox_mAP'}
        config.val_evaluator[1].metric = 'segm'
        with pytest.raises(ConfigError, match='KeyError: .segm is not in results'):
            tried(config)


def tried(config):
    """The metrics of a trial, whose hook lets the run begin."""
    runner = Runner.with_checked_data(config, 'train', 'val')
    runner._val_loop = runner.build_val_loop(runner._val_loop)
    TrialHook().before_train(runner)
    return try_evaluation(runner)


@pytest.mark.parametrize('processes', [False, True])
def test_each_class_has_its_own_ap_in_whatever_order_the_ids_of_the_file_are(
        annotations, tmp_path, processes):
    content = json.loads(annotations.read_text())
    renumber_categories(content, {1: 907, 2: 3, 3: 44})
    (tmp_path / 'own.json').write_text(json.dumps(content))
    metric = CocoMetric(str(tmp_path / 'own.json'), classwise=True, use_mp_eval=processes,
                        iou_thrs=[0.5 + 0.05 * step for step in range(10)])
    metric.dataset_meta = dict(classes=CLASSES)
    for image in content['images']:  # all of the first class, and no other
        boxes = torch.tensor([entry['bbox'] for entry in content['annotations'] if
                              (entry['image_id'], entry['category_id']) == (image['id'], 907)],
                             dtype=torch.float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        metric.process({}, [dict(img_id=image['id'], ori_shape=(96, 128), pred_instances=dict(
            bboxes=boxes, scores=torch.ones(len(boxes)),
            labels=torch.zeros(len(boxes), dtype=torch.long)))])
    found = metric.evaluate(len(content['images']))
    assert [found[f'coco/{name}_precision'] for name in CLASSES] == [1, 0, 0]
