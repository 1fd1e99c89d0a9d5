"""A trial of a step and of the evaluation, before the first step, under MMEngine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Optional

import torch
from mmdet.evaluation import CocoMetric, VOCMetric
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner.amp import autocast
from torch import nn
from torch.utils.data import DataLoader

from gkd.commands.trial import first_images, try_training, trying
from gkd.compat.wrapper import unwrap
from gkd.detectors.modes import eval_mode
from gkd.distiller import Distiller
from gkd.errors import ConfigError, naming
from gkd.files import naming_storage
from gkd.frameworks.mmdet3 import revert_sync_batchnorm, to_batch
from gkd.progress import silence, without_log
from gkd.prototypes.hook import choose_classes
from gkd.randomness import random_state, set_random_state

# These can measure any number of images.
USUAL_METRICS = (CocoMetric, VOCMetric)
WITHOUT = ('Without any evaluation: --no-validate, that is, val_dataloader, val_evaluator and '
           'val_cfg None.')


@HOOKS.register_module()
class TrialHook(Hook):
    """Train on and evaluate two images before the first step, so that no setting fails later.

    The commands of this project try every evaluation; for MMDetection's own commands the hook
    belongs into ``custom_hooks``. Weights, statistics and random states stay as they are. Only
    metrics of COCO and PASCAL VOC are measured: others may need all images.
    """

    priority = 'VERY_HIGH'  # nothing else has started yet

    def before_train(self, runner) -> None:
        """Try a training step, the evaluation, and the choice of the best checkpoint.

        Raises:
            ConfigError: One fails; with the reason.
        """
        model, loader = unwrap(runner.model), runner.train_dataloader
        if isinstance(model, Distiller):
            choose_classes(model, runner)
        try_training(loader.dataset, 'train_dataloader.dataset',
                     lambda samples: try_step(model, loader.collate_fn(samples)),
                     images_of_batch(loader))
        if runner.val_loop is None:
            return
        metrics = try_evaluation(runner)
        whole = all(map(is_usual, metrics_of(runner.val_loop.evaluator)))
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and whole:
                check_best(hook, metrics)


@torch.no_grad()
def try_step(model: nn.Module, data: Any) -> None:
    """Let a copy of a model compute the losses of a batch, as a distiller does before it teaches.

    Args:
        model: The model.
        data: The batch, as the loader makes it.
    """
    # SyncBN, which normalises over several processes, computes only on GPUs.
    trial = revert_sync_batchnorm(copy.deepcopy(model)).train()
    data = trial.data_preprocessor(data, True)
    if isinstance(trial, Distiller) and trial.knowledge:
        trial.observe(to_batch(data['inputs'], data['data_samples']))
    else:
        trial._run_forward(data, mode='loss')


def try_evaluation(runner) -> dict[str, float]:
    """Evaluate two images of every data set that a runner validates on.

    Args:
        runner: The runner, whose model has its weights.

    Returns:
        The metrics, whose values mean nothing; empty if nothing was measured or detected.

    Raises:
        ConfigError: The evaluation fails; with the reason.
    """
    before = random_state()
    try:
        with naming_storage(), silence(), without_log(), eval_mode(unwrap(runner.model)):
            with trying('val_dataloader', 'loading them', f'Look at val_dataloader (the '
                        f'`pipeline` of its data set). {WITHOUT}'):
                batches = load(runner.val_loop.dataloader)
            with trying('model', 'detecting in those of val_dataloader', f'Look at `model`, and '
                        f'at what the pipeline of val_dataloader hands to it. {WITHOUT}'):
                found = detect(runner, batches)
            with trying('val_evaluator', 'measuring what was detected in those of val_dataloader',
                        f'Look at val_evaluator. {WITHOUT}'):
                return measure(runner.val_loop.evaluator, found)
    finally:
        set_random_state(before)


def load(loader: DataLoader) -> list[Any]:
    """Batches of the first images of a loader."""
    indices, size = first_images(loader.dataset), images_of_batch(loader)
    return [loader.collate_fn([loader.dataset[index] for index in indices[start:start + size]])
            for start in range(0, len(indices), size)]


def images_of_batch(loader: DataLoader) -> int:
    """Images that a loader puts into a batch; 1 if it is not known.

    torch's loader itself has no number where a ``batch_sampler`` makes the batches.
    """
    return loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None) or 1


@torch.no_grad()
def detect(runner, batches: Sequence[Any]) -> list[tuple[Any, Sequence]]:
    """Batches, each with what a runner's model finds in it."""
    with autocast(enabled=runner.val_loop.fp16):
        return [(batch, unwrap(runner.model).val_step(batch)) for batch in batches]


def metrics_of(evaluator: Evaluator) -> list[Optional[BaseMetric]]:
    """Metrics of an evaluator; None for those of one that divides the images among them."""
    return evaluator.metrics if type(evaluator) is Evaluator else [None]


def is_usual(metric: Optional[BaseMetric]) -> bool:
    """Whether a metric can measure any number of images."""
    return type(metric) in USUAL_METRICS


def measure(evaluator: Evaluator,
            found: Sequence[tuple[Any, Sequence]]) -> dict[str, float]:
    """Measure detections in a few images by the metrics of an evaluator, which stay as they are.

    Args:
        evaluator: The evaluator.
        found: Batches, each with the detections in it.

    Returns:
        The metrics, without those that may need all images.
    """
    few = Evaluator([copy.copy(metric) for metric in metrics_of(evaluator) if is_usual(metric)])
    few.dataset_meta = evaluator.dataset_meta
    images = [sample.img_id for _, samples in found for sample in samples]
    for metric in few.metrics:
        metric.results = []
        if isinstance(metric, CocoMetric):
            metric.img_ids, metric.outfile_prefix = images, None
    for batch, samples in found:
        few.process(data_samples=samples, data_batch=batch)
    return few.evaluate(len(images))


def check_best(hook: CheckpointHook, metrics: dict[str, float]) -> None:
    """Raise ConfigError if the metrics of an evaluation cannot select the best checkpoint.

    Args:
        hook: The hook that writes checkpoints.
        metrics: Metrics of a trial; empty ones are not checked.
    """
    if not hook.save_best or not metrics:
        return
    unknown = [name for name in hook.key_indicators if name != 'auto' and name not in metrics]
    if unknown:
        raise ConfigError(f'default_hooks.checkpoint.save_best = {hook.save_best!r}: '
                          f'{", ".join(unknown)} is no metric of this evaluation; it has '
                          f'{", ".join(metrics)}.')
    if 'auto' in hook.key_indicators:
        with naming('default_hooks.checkpoint.save_best or default_hooks.checkpoint.rule'):
            copy.copy(hook)._init_rule(hook.rules, [next(iter(metrics))])
