"""A trial of a step and of the evaluation with two images, before a training starts."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel, collate, scatter
from mmdet.apis import single_gpu_test
from mmdet.core import EvalHook
from mmdet.datasets import (
    CocoDataset,
    ConcatDataset,
    CustomDataset,
    VOCDataset,
    build_dataloader,
)
from torch import nn
from torch.utils.data import Dataset

from gkd.commands.trial import trying
from gkd.detectors.modes import eval_mode
from gkd.distiller import Distiller
from gkd.errors import ConfigError, naming
from gkd.files import naming_storage
from gkd.frameworks import revert_sync_batchnorm, to_batch
from gkd.progress import silence
from gkd.running.data import leaf_datasets, loader_settings
from gkd.running.resume import random_state, set_random_state

# These can measure any number of images.
USUAL_EVALUATIONS = [kind.evaluate for kind in (CocoDataset, ConcatDataset, CustomDataset,
                                                VOCDataset)]


@torch.no_grad()
def try_step(model: nn.Module, device: torch.device, samples: Sequence[dict]) -> None:
    """Let a copy of a model compute the losses of a batch, as a distiller does before it teaches.

    Args:
        model: The model.
        device: Where the copy runs.
        samples: What the pipeline has made of each image.
    """
    # SyncBN, which normalises over several processes, computes only on GPUs.
    trial = revert_sync_batchnorm(copy.deepcopy(model)).to(device).train()
    target = device.index if device.type == 'cuda' else -1
    [data] = scatter(collate(samples, samples_per_gpu=len(samples)), [target])
    if isinstance(trial, Distiller) and trial.knowledge:
        trial.observe(to_batch(**data))
    else:
        trial(return_loss=True, **data)


def try_hook(evaluation: EvalHook, config: Config, model: nn.Module,
             device: torch.device) -> None:
    """Try an evaluation between epochs, and the choice of the best checkpoint.

    Args:
        evaluation: The hook that evaluates.
        config: The config.
        model: What is trained.
        device: Where.

    Raises:
        ConfigError: It fails.
    """
    metrics = try_evaluation(model, device, evaluation.dataloader.dataset,
                             loader_settings(config, 'val'), evaluation.eval_kwargs, 'data.val',
                             'evaluation', 'Without any evaluation: --no-validate')
    check_best(evaluation, metrics)


def try_evaluation(model: nn.Module, device: torch.device, dataset: Dataset, loader_config: dict,
                   options: dict, key: str, asked: str, without: str = '') -> dict[str, float]:
    """Evaluate two images of every data set, so that no setting fails after an epoch of training.

    Weights, statistics and random states stay as they are. On data sets whose ``evaluate`` is none
    of MMDetection's usual ones, the trial only detects: their ``evaluate`` may need all images.

    Args:
        model: A detector.
        device: Where it runs.
        dataset: The data set, possibly several in one.
        loader_config: Settings of its loader.
        options: Options of the data set's ``evaluate``, including ``metric``.
        key: Place of the data set in the config, for messages.
        asked: Where the metrics were asked for, likewise.
        without: How to do without the evaluation, likewise.

    Returns:
        The metrics, whose values mean nothing; empty if nothing was computed or detected.

    Raises:
        ConfigError: The evaluation fails; with the reason.
    """
    before = random_state()
    try:
        with naming_storage(), silence(), eval_mode(model):
            with trying(key, 'loading them', f'Look at {key} (its `pipeline`) and '
                                             f'{key}_dataloader. {without}'):
                few = first_images(dataset)
                batches = LoadedBatches(few, loader_config)
            with trying('model', f'detecting in those of {key}', f'Look at `model`, and at what '
                        f'the pipeline of {key} hands to it. {without}'):
                wrapped = MMDataParallel(model.to(device), device_ids=(
                    [device.index] if device.type == 'cuda' else []))
                results = single_gpu_test(wrapped, batches)
            if not all(type(leaf).evaluate in USUAL_EVALUATIONS for leaf in leaf_datasets(few)):
                return {}
            options = {name: value for name, value in options.items()
                       if name not in ('jsonfile_prefix', 'outfile_prefix')}
            with trying(asked, f'measuring what was detected in those of {key}',
                        f'Look at {asked}. {without}'):
                return few.evaluate(results, logger='silent', **options) or {}
    finally:
        set_random_state(before)


class LoadedBatches(list):
    """Batches that are loaded already, where MMDetection's loop over them takes a loader.

    Args:
        dataset: The data set.
        settings: Those of its loader.
    """

    def __init__(self, dataset: Dataset, settings: dict):
        super().__init__(build_dataloader(dataset, dist=False, workers_per_gpu=0, **{
            name: value for name, value in settings.items()
            if name not in ('workers_per_gpu', 'persistent_workers', 'prefetch_factor')}))
        self.dataset = dataset


def check_best(evaluation: EvalHook, metrics: dict[str, float]) -> None:
    """Raise ConfigError if the metrics of an evaluation cannot select the best checkpoint.

    Args:
        evaluation: The hook that evaluates.
        metrics: Metrics of a trial; empty ones are not checked.
    """
    name = evaluation.save_best
    if name is None or not metrics:
        return
    if name != 'auto' and name not in metrics:
        raise ConfigError(f'evaluation.save_best = {name!r} is no metric of this evaluation; it '
                          f'has {", ".join(metrics)}.')
    with naming('evaluation.save_best or evaluation.rule'):
        copy.copy(evaluation)._init_rule(evaluation.rule,
                                         next(iter(metrics)) if name == 'auto' else name)


def first_images(dataset: Dataset, count: int = 2) -> Dataset:
    """A data set of the first images of another, of each one in a concatenation."""
    few = copy.copy(dataset)
    if hasattr(dataset, 'datasets'):
        few.datasets = [first_images(leaf, count) for leaf in dataset.datasets]
        few.cumulative_sizes = few.cumsum(few.datasets)
        return few
    for name, value in vars(few).items():
        if name in ('data_infos', 'img_ids', 'proposals') and value is not None:
            setattr(few, name, value[:count])
        elif type(value) is list:  # Open Images' data set collects what its pipeline has made
            setattr(few, name, list(value))
    return few
