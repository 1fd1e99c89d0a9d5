"""Evaluate between epochs, keep the metrics, and make up for interrupted evaluations."""

from __future__ import annotations

import inspect
import os.path as osp
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Callable

import torch
from mmcv import Config
from mmcv.runner import Hook, LoggerHook
from mmdet.core import DistEvalHook, EvalHook
from mmdet.datasets import (
    CityscapesDataset,
    CocoDataset,
    CustomDataset,
    LVISDataset,
    OpenImagesDataset,
    build_dataloader,
)
from mmdet.models.detectors import RPN, BaseDetector
from torch import nn
from torch.utils.data import Dataset

from gkd.collectives import all_gather
from gkd.datasets.coco_eval import METRICS
from gkd.distiller import Distiller
from gkd.errors import ConfigError, naming
from gkd.matching import check_num_classes
from gkd.report.loggers import ImageLoggerHook
from gkd.resume import evaluations, forget_evaluations, keep_evaluation
from gkd.running import cityscapes, open_images
from gkd.running.data import leaf_datasets, loader_settings, on_disk
from gkd.running.resume import averages_in
from gkd.running.runner import IterationRunner, runner_type, trained

# In the names of metrics of COCO, VOC, proposals and panoptic data.
METRIC_PARTS = ('AP', 'AR@', 'AR_', 'recall@', 'PQ', 'SQ', 'RQ')


def evaluation_hook(config: Config, model: nn.Module, dataset: Dataset) -> EvalHook:
    """Evaluate between epochs as the config's ``evaluation`` says.

    Args:
        config: The config.
        model: What is trained.
        dataset: That of ``data.val``.

    Raises:
        ConfigError: A setting is not valid.
    """
    distributed = torch.distributed.is_initialized()
    check_num_classes(model, dataset.CLASSES, 'data.val')
    with naming('data.val_dataloader'):
        loader = build_dataloader(dataset, dist=distributed,
                                  **loader_settings(config, 'val'))
    # With torch's global generator an evaluation would change the random numbers of the training
    # after it, and those of a run that is resumed there.
    loader.generator = torch.Generator()
    given = config.get('evaluation', {})
    if given is None:
        raise ConfigError('evaluation = None: must be a dict. Without any evaluation: '
                          '--no-validate')
    settings = {'by_epoch': runner_type(config) is not IterationRunner, **given}
    if settings.get('gpu_collect') and not torch.cuda.is_available():
        raise ConfigError('evaluation.gpu_collect = True needs a GPU, and none is found. Leave it '
                          'out.')
    with naming('evaluation'):
        hook = (DistEvalHook if distributed else EvalHook)(loader, **settings)
    options = dict(hook.eval_kwargs)
    metrics = options.pop('metric', 'bbox')
    check_metrics(model, dataset, metrics if isinstance(metrics, (list, tuple)) else [metrics],
                  'evaluation.metric')
    check_options(leaf_datasets(dataset)[0].evaluate, options, 'evaluation:')
    hook.after_train_iter = partial(evaluate_averages, hook, hook.after_train_iter)
    return hook


def evaluate_averages(evaluation: EvalHook, evaluate: Callable, runner) -> None:
    """Evaluate after a step, with averaged weights if an ``EMAHook`` keeps some.

    Args:
        evaluation: The hook that evaluates.
        evaluate: Its own method for this.
        runner: The runner.
    """
    if not evaluation.by_epoch and evaluation._should_evaluate(runner):
        with averages_in(runner):
            evaluate(runner)


class EvaluationRecorder(Hook):
    """Keep the metrics of every evaluation in ``WORK_DIR/evaluation.json``.

    Register it after the hook that evaluates, with the same priority.

    Args:
        evaluation: The hook that evaluates.

    Attributes:
        metrics: Those of the last evaluation.
    """

    PRIORITY = 'LOW'

    def __init__(self, evaluation: EvalHook):
        self.evaluation = evaluation
        self.metrics: dict[str, float] = {}

    def before_run(self, runner) -> None:
        """Restore the metrics that a resumed run measured before, and its best epoch."""
        done = trained(runner)
        if runner.rank == 0:
            forget_evaluations(runner.work_dir, done)
        history = evaluations(runner.work_dir, done)
        self.metrics = history.get(str(done), {})
        if history and self.evaluation.save_best is not None:
            self.remember_best(runner, history)

    def remember_best(self, runner, history: dict[str, dict[str, float]]) -> None:
        """Find the best epoch; the checkpoint was written before its epoch was evaluated."""
        evaluation = self.evaluation
        if evaluation.key_indicator == 'auto':
            first, *_ = next(iter(history.values()))
            evaluation._init_rule(evaluation.rule, first)
        key = evaluation.key_indicator
        best = None
        for done, metrics in history.items():
            # mmcv does not save a best of 0.
            if metrics.get(key) and (best is None or evaluation.compare_func(
                    metrics[key], history[best][key])):
                best = done
        if best is not None:
            unit = 'iter' if isinstance(runner, IterationRunner) else 'epoch'
            path = osp.join(evaluation.out_dir, f'best_{key}_{unit}_{best}.pth')
            evaluation.best_ckpt_path = path
            runner.meta['hook_msgs'].update(best_score=history[best][key], best_ckpt=path)

    def after_train_iter(self, runner) -> None:
        """Pick up an evaluation inside an epoch; the last one of an epoch stays."""
        if not self.evaluation.by_epoch:
            self.record(runner)

    def after_train_epoch(self, runner) -> None:
        """Pick up an evaluation between epochs."""
        if self.evaluation.by_epoch:
            self.record(runner)

    def record(self, runner) -> None:
        """Keep the metrics that the evaluation hook has just computed."""
        if runner.rank > 0 or not self.evaluation._should_evaluate(runner):
            return
        wanted = getattr(self.evaluation, 'key_indicator', None)
        self.metrics = {name: float(value) for name, value in runner.log_buffer.output.items()
                        if (any(part in name for part in METRIC_PARTS) or name == wanted)
                        and isinstance(value, (int, float))}
        if not self.metrics and isinstance(self.evaluation.dataloader.dataset, CocoDataset):
            # MMDetection gives no metrics where nothing at all was detected.
            self.metrics = {METRICS[name]: 0.0 for name in ('AP', 'AP50', 'AP75')}
        keep_evaluation(runner.work_dir, trained(runner) + 1, self.metrics)


class MissedEvaluation(Hook):
    """Evaluate where a resumed run begins, if the evaluation there was interrupted.

    Args:
        recorder: What has been evaluated, and by which hook.
    """

    PRIORITY = 'LOWEST'  # all other hooks are ready

    def __init__(self, recorder: EvaluationRecorder):
        self.recorder = recorder

    def before_run(self, runner) -> None:
        """Go back to the end of the epoch, or iteration, and do what is missing."""
        evaluation = self.recorder.evaluation
        counts_iterations = isinstance(runner, IterationRunner)
        unit, count = ('iteration', '_iter') if counts_iterations else ('epoch', '_epoch')
        reached = trained(runner)
        done = all_gather(str(reached) in evaluations(runner.work_dir, reached))[0]
        runner.mode = 'train'
        setattr(runner, count, reached - 1)
        if not done and evaluation.by_epoch != counts_iterations and \
                evaluation._should_evaluate(runner):
            runner.logger.info(f'Evaluating {unit} {reached}, which was interrupted.')
            evaluation._do_evaluate(runner)
            self.recorder.record(runner)
            for hook in runner.hooks:
                if isinstance(hook, (LoggerHook, ImageLoggerHook)):
                    hook.after_train_epoch(runner)
        setattr(runner, count, reached)


def check_metrics(model: BaseDetector, dataset: CustomDataset, metrics: Sequence[str],
                  key: str) -> None:
    """Raise GKDError for a metric that cannot be computed, before hours of detection.

    Args:
        model: The detector; for a distiller, its student is checked.
        dataset: The data set that would be evaluated.
        metrics: Names of metrics.
        key: Where they were asked for, for messages.
    """
    dataset = leaf_datasets(dataset)[0]
    detector = model.student if isinstance(model, Distiller) else model
    if metrics and type(dataset).evaluate is OpenImagesDataset.evaluate and on_disk(
            dataset.file_client_args):
        open_images.check_measured(dataset, key)
    has_own = type(dataset).evaluate is CityscapesDataset.evaluate
    if has_own and cityscapes.OWN_METRIC in metrics:
        cityscapes.check_measured(detector, dataset, f'{key} {cityscapes.OWN_METRIC}')
    # Others that read COCO files have metrics of their own.
    if not has_own and type(dataset).evaluate not in (CocoDataset.evaluate, LVISDataset.evaluate):
        return
    # Proposals alone are arrays, which proposal_fast takes, without classes.
    has_masks = detector.with_mask or hasattr(detector, 'panoptic_head')
    known = ['proposal', 'proposal_fast'] if isinstance(detector, RPN) else \
        ['bbox', 'proposal'] + ['segm'] * has_masks + [cityscapes.OWN_METRIC] * has_own
    unknown = [metric for metric in metrics if metric not in known]
    if unknown:
        raise ConfigError(f'{key} {" ".join(map(str, unknown))}: {type(detector).__name__} on '
                          f'{type(dataset).__name__} is measured by {", ".join(known)}.')


def check_options(function: Callable, options: Iterable[str], key: str) -> None:
    """Raise ConfigError for options that a data set's function does not take.

    Args:
        function: Its ``evaluate`` or ``format_results``.
        options: Names of options.
        key: Where they were given, for messages.
    """
    known = inspect.signature(function).parameters.keys() - {'results', 'metric'}
    unknown = set(options) - known
    if unknown and 'kwargs' not in known:
        raise ConfigError(f'{key} {", ".join(sorted(unknown))}: unknown; known are '
                          f'{", ".join(sorted(known))}.')
