"""Exact resume under MMEngine: a killed run continues as if nothing had happened.

A checkpoint holds, besides MMEngine's weights, optimiser and schedules, all else that the next
step depends on: the random states of every process, the position in the epoch's order of images,
the prototypes, and what heads and hooks count.
"""

from __future__ import annotations

import os.path as osp
import warnings
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader

from gkd.collectives import all_gather
from gkd.compat.wrapper import unwrap
from gkd.engine.evaluation import (
    is_evaluation_missing,
    keep_metrics,
    kept_metric,
    tell_early_stopping,
)
from gkd.engine.loop import IterationTrainLoop, trained
from gkd.errors import ConfigError
from gkd.files import make_folder
from gkd.finite.weights import check_weights
from gkd.frameworks.mmdet3 import require_epochs
from gkd.module_state import module_state
from gkd.randomness import SeededItems, random_state, set_random_state
from gkd.resume import (
    KEPT_INSIDE,
    KEY,
    batches_done,
    evaluations,
    forget_evaluations,
    hook_states,
    is_same_setup,
    remove_inside,
    restore_hooks,
    restore_model,
    with_seeds,
)
from gkd.work_dir import INSIDE


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """Write MMEngine's checkpoints so that a run resumes exactly, inside an epoch too.

    ``epoch_N_iter_I.pth`` is written inside an epoch. The last two are kept until the epoch's own
    checkpoint replaces them. ``resume = True`` finds the newest. If the evaluation of the last
    finished epoch was interrupted, the resumed run evaluates that first. Metrics are kept in
    ``WORK_DIR/evaluation.json``. A training that counts iterations takes ``by_epoch=False``:
    ``iter_N.pth`` is written every ``interval`` iterations and replaces those inside epochs.

    Args:
        inside_epoch: Iterations between two checkpoints inside an epoch; 0 writes none.
        **settings: Those of MMEngine's hook.
    """

    def __init__(self, inside_epoch: int = 500, **settings: Any):
        super().__init__(**settings)
        self.inside_epoch = inside_epoch
        self.due = False
        self.state: Optional[dict] = None
        self.resumed: Optional[dict] = None
        self.training = False
        self.evaluated = False  # what is written now, its evaluation included

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Take the state out of a checkpoint; keep it only if the run resumes from it."""
        state = checkpoint.pop(KEY, None)
        self.resumed = state if runner._resume else None
        if self.resumed is not None and self.by_epoch:
            count_anew(checkpoint, state, len(runner.train_dataloader))

    def before_train(self, runner) -> None:
        """Make the loader's order resumable, restore what the checkpoint holds, and catch up.

        Raises:
            ConfigError: The training loop counts otherwise than the hook.
        """
        require_epochs(runner.train_loop, 'checkpoints of ResumableCheckpointHook are')
        self.check_count(runner.train_loop)
        super().before_train(runner)
        if isinstance(self.file_backend, LocalBackend):
            make_folder(self.out_dir)
        self.order = BatchOrder(runner.train_dataloader, runner.seed or 0)
        if runner.val_loop is not None:
            # A loader draws a number when it starts; a resumed run starts others.
            runner.val_loop.dataloader.generator = torch.Generator()
        state, self.resumed = self.resumed, None
        if state is not None:
            self.restore(runner, state)
        self.training, done = True, trained(runner.train_loop)[0]
        if runner.rank == 0:
            forget_evaluations(runner.work_dir, done)
        kept = all_gather(evaluations(runner.work_dir, done))[0]
        tell_early_stopping(runner, kept)
        if state is not None and state.get('evaluated') is False and not self.order.skip:
            tell_schedules(runner, kept.get(str(done), {}))
        if (not self.by_epoch or not self.order.skip) and \
                is_evaluation_missing(runner, self.out_dir):
            unit = 'epoch' if self.by_epoch else 'iteration'
            runner.logger.info(f'Evaluating {unit} {done}, which was interrupted.')
            # Its checkpoint is written again if it is the best so far, as after any evaluation.
            self.last_ckpt = osp.join(self.out_dir, self.filename_tmpl.format(done))
            runner.val_loop.run()

    def check_count(self, loop: EpochBasedTrainLoop) -> None:
        """Raise ConfigError if a loop counts iterations and the hook epochs, or the reverse.

        Also if it counts epochs that never end.
        """
        counted = not isinstance(loop, IterationTrainLoop)
        if counted and isinstance(loop.dataloader.batch_sampler.sampler, InfiniteSampler):
            raise ConfigError('train_dataloader.sampler is an InfiniteSampler, so that an epoch '
                              'would never end, and train_cfg counts epochs: use DefaultSampler, '
                              'or IterBasedTrainLoop with `max_iters`.')
        if self.by_epoch != counted:
            raise ConfigError(
                f'default_hooks.checkpoint.by_epoch = {self.by_epoch}, and train_cfg counts '
                f'{"epochs" if counted else "iterations"}: set it to {counted}, and `interval` to '
                f'the number of {"epochs" if counted else "iterations"} between two checkpoints'
                + ('; for further ones inside an epoch set `inside_epoch`.' if counted else '.'))

    def restore(self, runner, state: dict) -> None:
        """Put back what a checkpoint holds besides what MMEngine keeps."""
        model = unwrap(runner.model)
        restore_model(model, state, runner.rank)
        restore_hooks(runner.hooks, state)
        if state.get('order_seed') is not None:  # earlier releases did not keep it
            self.order.sampler.seed = state['order_seed']
        length = len(runner.train_dataloader)
        alike = is_same_setup(state, runner.world_size, length, runner.logger)
        self.order.skip = batches_done(state, length)
        if self.by_epoch and length != state['length']:
            step_schedules(runner)
        elif not self.by_epoch and not alike:
            runner.train_loop._epoch, self.order.skip = divmod(runner.iter, length)
        if alike:
            set_random_state(state['random'][runner.rank])
            self.order.now = state['random'][runner.rank] if self.order.skip else None
        if alike and state.get('gradients'):
            put_back_gradients(model, state['gradients'][runner.rank])

    def before_train_epoch(self, runner) -> None:
        """Set the epoch of the order."""
        self.order.epoch = runner.epoch

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        """Write a checkpoint inside the epoch, at the next step of the optimiser."""
        done = runner.iter + 1 - runner.epoch * len(runner.train_dataloader)
        counted = done if self.by_epoch else runner.iter + 1
        if self.inside_epoch and counted % self.inside_epoch == 0:
            self.due = True
        super().after_train_iter(runner, batch_idx, data_batch, outputs)  # may write `iter_N.pth`
        is_next = self.by_epoch and done == len(runner.train_dataloader)  # that of the epoch
        if not self.due or is_next or not runner.optim_wrapper.should_update():
            return
        self.due = False
        self.state = training_state(runner, batches=done)
        name = INSIDE.format(runner.epoch + 1, done)
        runner.save_checkpoint(
            self.out_dir, name, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, by_epoch=False,
            backend_args=self.backend_args)
        if is_main_process():
            Path(runner.work_dir, 'last_checkpoint').write_text(osp.join(self.out_dir, name))
            remove_inside(self.out_dir, keep=KEPT_INSIDE)

    def after_val_epoch(self, runner, metrics: dict[str, float]) -> None:
        """Write the best checkpoint; then the evaluation is done, and its metrics are kept."""
        self.evaluated = True
        super().after_val_epoch(runner, metrics)
        self.evaluated = False
        if self.training:
            keep_metrics(runner, metrics)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        # MMEngine calls this on all processes, and writes with the first one only. It writes the
        # checkpoint of an epoch again if the epoch is the best so far.
        self.due = False
        started = 0 if self.by_epoch else step - runner.epoch * len(runner.train_dataloader)
        self.state = dict(training_state(runner, batches=started), evaluated=self.evaluated)
        super()._save_checkpoint_with_step(runner, step, meta)
        if is_main_process():
            remove_inside(self.out_dir, keep=0)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the state."""
        state, self.state = self.state, None
        if state is not None:
            checkpoint[KEY] = state


class BatchOrder:
    """A batch sampler with which an epoch can be resumed at any batch.

    With worker processes every image gets its own seed for augmentation, so that augmentation
    depends neither on the number of workers nor on where the epoch was resumed. Without workers,
    augmentation draws from the random generators of the training.

    Args:
        loader: Loader whose batch sampler gives the order; it is replaced by this one.
        seed: Seed of the run.

    Attributes:
        epoch: The current epoch, from 0.
        skip: Batches of the epoch that are done already.
        now: For a resumed epoch, the random state to continue with.
    """

    def __init__(self, loader: DataLoader, seed: int):
        self.batches = loader.batch_sampler
        self.seed = seed
        self.epoch = 0
        self.skip = 0
        self.now: Optional[dict] = None
        self.seeded = loader.num_workers > 0
        # torch refuses to replace it by assignment; the loader has not started yet.
        vars(loader)['batch_sampler'] = self
        # By default a loader draws a number from torch's global generator when it starts, and a
        # resumed run would draw more of them.
        loader.generator = torch.Generator()
        if self.seeded:
            loader.dataset.__getitems__ = SeededItems(loader.dataset)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        # MMEngine looks for `sampler.set_epoch` in here, too.
        return getattr(vars(self)['batches'], name)

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, which does nothing before it is asked for a batch: with worker processes
        # torch makes two iterators and uses the second one.
        batches = list(self.batches)
        if self.seeded:
            images = iter(with_seeds([*chain.from_iterable(batches)], self.seed,
                                     get_dist_info()[0], self.epoch))
            batches = [[*islice(images, len(batch))] for batch in batches]
        skip, self.skip = self.skip, 0
        now, self.now = self.now, None
        if now is not None:
            set_random_state(now)
        yield from batches[skip:]


def share_buffers(runner) -> None:
    """Give all processes the first one's batch normalisation statistics, which checkpoints hold.

    MMEngine lets every process keep statistics of its own, and evaluates with them.
    """
    if not dist.is_initialized():
        return
    averaged = [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
    for model in (unwrap(runner.model), *averaged):
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def training_state(runner, batches: int) -> dict:
    """What the next step depends on besides what MMEngine keeps; all processes call this.

    Args:
        runner: The runner.
        batches: Batches of the running epoch that are done; 0 at the end of an epoch.

    Raises:
        NumericalError: A weight is not finite.
    """
    model = unwrap(runner.model)
    check_weights(model, 'optim_wrapper.clip_grad')
    share_buffers(runner)
    bank = getattr(model, 'bank', None)
    # A config without a seed gets a random one, and MMEngine makes the sampler of a run that goes
    # on before it reads the checkpoint's.
    sampler = runner.train_dataloader.batch_sampler.sampler
    state = dict(batches=batches, length=len(runner.train_dataloader),
                 order_seed=getattr(sampler, 'seed', None),
                 bank=None if bank is None else bank.state_dict(),
                 hooks=hook_states(runner.hooks),
                 random=all_gather(random_state()), modules=all_gather(module_state(model)))
    if not runner.optim_wrapper.should_update():
        # An epoch may end between two steps of the optimiser.
        state['gradients'] = all_gather({
            name: parameter.grad.cpu() for name, parameter in model.named_parameters()
            if parameter.grad is not None})
    return state


def put_back_gradients(model: torch.nn.Module, gradients: dict[str, torch.Tensor]) -> None:
    """Restore accumulated gradients, so that a model continues to accumulate.

    Args:
        model: The model without its data-parallel wrapper.
        gradients: By the name of the parameter; they may lie on another device.
    """
    for name, parameter in model.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device)


def count_anew(checkpoint: dict, state: dict, length: int) -> None:
    """Let MMEngine continue to count in epochs of the run's own length.

    It would count on from the iterations of the former setup, which had another number of images
    in a step; so would its schedules, if some count iterations. :func:`step_schedules` brings the
    run's own to where it is.

    Args:
        checkpoint: What was loaded; changed in place.
        state: The state in it.
        length: Iterations of an epoch of the run.
    """
    meta = checkpoint['meta']
    meta['iter'] = meta['epoch'] * length + batches_done(state, length)
    schedules = in_one_list(checkpoint.get('param_schedulers'))
    if length != state['length'] and not all(each['by_epoch'] for each in schedules):
        del checkpoint['param_schedulers']


def step_schedules(runner) -> None:
    """Bring the schedules of a run to where it is, if some count iterations.

    They go through the training once more: most of them multiply what the optimiser has, so that
    setting only their step would continue from the learning rate of another step.

    Raises:
        ConfigError: A schedule waits for metrics, which are not measured once more.
    """
    schedules, length = in_one_list(runner.param_schedulers), len(runner.train_dataloader)
    if all(schedule.by_epoch for schedule in schedules):
        return
    for schedule in schedules:
        if getattr(schedule, 'need_val_args', False):
            raise ConfigError(
                f'param_scheduler has {type(schedule).__name__}, which waits for metrics, beside '
                f'schedules that count iterations: such a training cannot continue with another '
                f'number of iterations per epoch. Give it the batch size and the processes that '
                f'it had.')
        name = schedule.param_name
        for group in schedule.optimizer.param_groups:
            group[name] = group.setdefault(f'initial_{name}', group[name])
        schedule.last_step = schedule._global_step = -1
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the optimiser has made no steps
        for done in range(runner.iter + 1):
            for schedule in schedules:
                if not schedule.by_epoch or done % length == 0:
                    schedule.step()


def tell_schedules(runner, metrics: dict[str, float]) -> None:
    """Give schedules that wait for metrics those of the evaluation after the last checkpoint.

    An epoch's checkpoint is written before its evaluation, so it lacks this step of theirs.

    Args:
        runner: The runner, before it trains on from such a checkpoint.
        metrics: What was measured there; nothing if that was interrupted.
    """
    for schedule in in_one_list(runner.param_schedulers):
        if getattr(schedule, 'need_val_args', False):
            metric = kept_metric(metrics, schedule.monitor)
            if metric is not None:
                schedule.step({schedule.monitor: metric})


def in_one_list(schedules: Any) -> list:
    """Schedules, or their states, as MMEngine keeps them.

    Args:
        schedules: A list, by optimiser if there are several, or None.
    """
    if isinstance(schedules, dict):
        return [*chain.from_iterable(schedules.values())]
    return schedules or []
