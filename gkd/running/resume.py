"""Exact resume: a run that was killed continues as if nothing had happened.

Besides weights, optimiser and counts, which mmcv saves, a checkpoint holds everything else that
the next step depends on: the random states of all processes, the position in the epoch, what heads
count, and the prototypes. These were generated with the weights at the beginning of the epoch and
cannot be generated again in its middle.
"""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import mmcv
import torch
from mmcv import Config
from mmcv.runner import HOOKS, CheckpointHook, EMAHook, Hook, get_dist_info, save_checkpoint
from mmdet.core.hook import YOLOXModeSwitchHook
from mmdet.core.hook.ema import BaseEMAHook
from torch.utils.data import DataLoader, Sampler

from gkd.collectives import all_gather
from gkd.commands.resume import intact_checkpoint
from gkd.compat.runner import EMA
from gkd.compat.wrapper import unwrap
from gkd.errors import CheckpointError
from gkd.files import make_folder, write_atomically
from gkd.finite.weights import check_weights
from gkd.module_state import module_state
from gkd.randomness import SeededItems, random_state, set_random_state
from gkd.resume import (
    KEPT_INSIDE,
    KEY,
    batches_done,
    hook_states,
    is_same_setup,
    remove_inside,
    restore_hooks,
    restore_model,
    with_seeds,
)
from gkd.running.runner import IterationRunner
from gkd.work_dir import INSIDE, LAST_CHECKPOINT, LATEST, no_checkpoint

EMA_HOOKS = (EMAHook, BaseEMAHook)
EMA_PRIORITY = 49  # before checkpoints and evaluations, which see the averages


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """Write checkpoints from which a run resumes exactly, inside an epoch too.

    ``epoch_N.pth`` is written at the end of an epoch, ``epoch_N_iter_I.pth`` inside of one. The
    last two of the latter are kept until the epoch's own checkpoint replaces them.

    Args:
        inside_epoch: Iterations between two checkpoints inside an epoch; 0 writes none.
        **settings: Those of mmcv's hook. With ``by_epoch=False`` its ``interval`` is used as
            ``inside_epoch``; in a training that counts iterations ``iter_N.pth`` is written at
            this interval and replaces those inside epochs.
    """

    def __init__(self, inside_epoch: int = 500, **settings: Any):
        super().__init__(**settings)
        self.inside_epoch = inside_epoch

    def before_run(self, runner) -> None:
        """Count as the runner does, and see that checkpoints can be written and found."""
        super().before_run(runner)
        if self.out_dir != runner.work_dir and self.file_client.allow_symlink:  # on a disk
            make_folder(self.out_dir)
            if runner.rank == 0:
                write_atomically(osp.join(runner.work_dir, LAST_CHECKPOINT),
                                 osp.join(osp.abspath(self.out_dir), LATEST))
        if not self.by_epoch and not isinstance(runner, IterationRunner):
            self.by_epoch, self.inside_epoch, self.interval = True, self.interval, 1

    def after_train_iter(self, runner) -> None:
        """Write a checkpoint inside the epoch."""
        if self.by_epoch:
            is_next = self.end_of_epoch(runner)
            is_due = self.every_n_inner_iters(runner, self.inside_epoch)
        else:
            is_next = self.every_n_iters(runner, self.interval) or self.is_last_iter(runner)
            is_due = self.every_n_iters(runner, self.inside_epoch)
            if is_next:
                with averages_in(runner):
                    super().after_train_iter(runner)
        if is_next or not is_due:
            return
        state = training_state(runner, batches=runner.inner_iter + 1, averaged=False)
        if runner.rank > 0:
            return
        name = INSIDE.format(runner.epoch + 1, runner.inner_iter + 1)
        save_checkpoint(
            runner.model, osp.join(self.out_dir, name),
            optimizer=runner.optimizer if self.save_optimizer else None,
            meta={**runner.meta, KEY: state, 'epoch': runner.epoch, 'iter': runner.iter + 1})
        if self.args['create_symlink']:
            mmcv.symlink(name, osp.join(self.out_dir, LATEST))
        self.forget_others(runner)
        remove_inside(self.out_dir, keep=KEPT_INSIDE)

    def _save_checkpoint(self, runner) -> None:
        # mmcv calls this on all processes, and goes on with the first one only.
        started = 0 if self.by_epoch else runner.inner_iter + 1
        self.args['meta'] = {KEY: training_state(runner, batches=started, averaged=True)}
        super()._save_checkpoint(runner)
        if runner.rank == 0:
            self.forget_others(runner)
            remove_inside(self.out_dir, keep=0)

    def forget_others(self, runner) -> None:
        """Let the work dir name no checkpoint but the one just written, as its last.

        The training may have begun with another ``out_dir``. Until now, its checkpoints were the
        last ones.
        """
        elsewhere = self.out_dir != runner.work_dir
        other = osp.join(runner.work_dir, LATEST if elsewhere else LAST_CHECKPOINT)
        if osp.islink(other) or (osp.isfile(other) and not elsewhere):
            os.remove(other)


@contextmanager
def averages_in(runner) -> Iterator[None]:
    """Give the model its averaged weights inside of an epoch; between epochs its hook does so."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMA_HOOKS)]
    for hook in hooks:
        hook._swap_ema_parameters()
    try:
        yield
    finally:
        for hook in hooks:
            hook._swap_ema_parameters()


class ResumeHook(Hook):
    """Restore the random states and the position in the epoch that a checkpoint holds.

    Args:
        order: The order of the training images.
    """

    PRIORITY = 'HIGHEST'  # other hooks may draw random numbers at the beginning of an epoch

    def __init__(self, order: ImageOrder):
        self.order = order
        self.state: Optional[dict] = None

    def before_run(self, runner) -> None:
        """Take the state out of the checkpoint that was resumed from, if there was one."""
        self.state = (runner.meta or {}).pop(KEY, None)
        if self.state is not None:
            restore_model(unwrap(runner.model), self.state, runner.rank)
            count_anew(runner, self.state)

    def before_train_epoch(self, runner) -> None:
        """Restore the random states, or the position in the epoch."""
        self.order.skip = 0
        state, self.state = self.state, None
        if state is not None:
            self.restore(runner, state)
        self.order.epoch = runner.epoch

    def restore(self, runner, state: dict) -> None:
        """Put back what a checkpoint holds of the epoch that begins."""
        length = len(runner.data_loader)
        now = start = None
        if is_same_setup(state, runner.world_size, length, runner.logger):
            now, start = (state[name][runner.rank] for name in ('random', 'epoch_start'))
        self.order.skip = batches_done(state, length)
        if now is None and isinstance(runner, IterationRunner):
            runner._epoch, self.order.skip = divmod(runner.iter, length)
        self.order.states = start, now
        if self.order.skip == 0 and now is not None:
            set_random_state(now)

    def before_train_iter(self, runner) -> None:
        """Count iterations from the beginning of the epoch."""
        runner._inner_iter += self.order.skip


def count_anew(runner, state: dict) -> None:
    """Count iterations, by which learning rates may go, in epochs of the run's own length.

    mmcv counts on from those of the former setup, which had another number of images in a step.

    Args:
        runner: The runner; one that counts iterations continues from those that are done.
        state: The state in the checkpoint.
    """
    if not isinstance(runner, IterationRunner):
        length = runner.max_iters // runner.max_epochs
        runner._iter = runner.epoch * length + batches_done(state, length)


class HookStates(Hook):
    """Restore the states of hooks, once all of them are ready.

    - ``EMAHook`` and its like: the averaged weights.
    - ``YOLOXModeSwitchHook``: that it has switched, if its epoch is over.
    - Any hook with ``state_dict()`` and ``load_state_dict(state)``: what it returned.

    Args:
        resume: The hook that takes the state out of the checkpoint.
    """

    PRIORITY = 'LOW'  # hooks of the config are ready, loggers come later

    def __init__(self, resume: ResumeHook):
        self.resume = resume

    def before_run(self, runner) -> None:
        """Restore the states, and remove them from what loggers and checkpoints write."""
        meta = runner.meta if runner.meta is not None else {}
        averages = meta.pop(EMA, {})
        meta.pop(KEY, None)  # an EMAHook with `resume_from` has read the checkpoint once more
        state = self.resume.state or {}
        self.restore_averages(runner, averages,
                              averaged=state.get('averaged', not state.get('batches')))
        restore_hooks(runner.hooks, state)
        for hook in runner.hooks:
            if isinstance(hook, YOLOXModeSwitchHook):
                self.switch_again(hook, runner)

    def restore_averages(self, runner, averages: dict[str, torch.Tensor], averaged: bool) -> None:
        """Give averaged weights back.

        Args:
            runner: The runner.
            averages: What the hook kept, by its names.
            averaged: Whether the model in the checkpoint has the averages, as between epochs; the
                hook then kept the weights that are trained.
        """
        hooks = [hook for hook in runner.hooks if isinstance(hook, EMA_HOOKS)]
        if averages and not hooks:
            runner.logger.warning(
                'The checkpoint holds averaged weights of an EMAHook, and `custom_hooks` has no '
                'such hook: the run continues without averages.')
        for hook in hooks:
            buffers = {name: hook.model_buffers[name]
                       for name in hook.param_ema_buffer.values() if name in averages}
            for name, buffer in buffers.items():
                buffer.copy_(averages[name])
            if buffers and not averaged:
                hook._swap_ema_parameters()  # at the beginning of an epoch it swaps back

    def switch_again(self, hook: YOLOXModeSwitchHook, runner) -> None:
        """Let YOLOX train without mosaic and with its L1 loss if it did before.

        The hook itself switches only at the start of one epoch, and never later.
        """
        if runner.epoch + 1 > runner.max_epochs - hook.num_last_epochs:
            self.resume.order.dataset.update_skip_type_keys(hook.skip_type_keys)
            unwrap(runner.model).bbox_head.use_l1 = True


class ImageOrder(Sampler):
    """A sampler with which an epoch can be resumed at any batch.

    With worker processes every image gets its own seed for augmentation, so that augmentation
    depends neither on the number of workers nor on where the epoch was resumed. Without workers,
    augmentation draws from the random generators of the training.

    Args:
        loader: Loader whose sampler gives the order; the sampler is replaced by this one.
        seed: Seed of the run.

    Attributes:
        epoch: The current epoch, from 0.
        skip: Batches of the epoch that are done already.
        states: For a resumed epoch, the random states to draw the order with and to continue with.
        start: Random state with which the current epoch's order was drawn.
    """

    def __init__(self, loader: DataLoader, seed: int):
        self.sampler = loader.sampler
        self.dataset = loader.dataset
        self.batch_size = loader.batch_sampler.batch_size
        self.seed = seed
        self.epoch = 0
        self.skip = 0
        self.states: tuple[Optional[dict], Optional[dict]] = (None, None)
        self.start: Optional[dict] = None
        self.seeded = loader.num_workers > 0
        loader.batch_sampler.sampler = self
        if self.seeded:
            loader.dataset.__getitems__ = SeededItems(loader.dataset)
            # By default a loader draws the seed of its workers from torch's global generator,
            # and a resumed run would draw more of them.
            loader.generator = torch.Generator()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        start, now = self.states if self.skip else (None, None)
        if start is not None:
            set_random_state(start)
        self.start = random_state()
        order = list(self.sampler)
        if now is not None:
            set_random_state(now)
        if self.seeded:
            order = with_seeds(order, self.seed, get_dist_info()[0], self.epoch)
        return iter(order[self.skip * self.batch_size:])


def training_state(runner, batches: int, averaged: bool) -> dict:
    """What the next step depends on, besides what mmcv keeps; all processes call this together.

    Args:
        runner: The runner.
        batches: Batches of the running epoch that are done; 0 at the end of an epoch.
        averaged: Whether the model has the weights that an ``EMAHook`` averages, if there is one.

    Raises:
        NumericalError: A weight is not finite.
    """
    model = unwrap(runner.model)
    check_weights(model, 'optimizer_config.grad_clip')
    bank = getattr(model, 'bank', None)
    sampler = runner.data_loader.batch_sampler.sampler
    return dict(batches=batches, averaged=averaged, length=len(runner.data_loader),
                bank=None if bank is None else bank.state_dict(),
                hooks=hook_states(runner.hooks),
                random=all_gather(random_state()),
                modules=all_gather(module_state(model)),
                epoch_start=all_gather(sampler.start if batches else None))


def find_checkpoint(resume: str, config: Config) -> Optional[str]:
    """The checkpoint to resume from, None to start anew; all processes call this together.

    If a checkpoint in the work dir is damaged, the log names it and the one before it is taken.

    Args:
        resume: ``'auto'``, ``'never'`` or a path.
        config: Its ``work_dir`` is looked into, then its ``resume_from``.

    Raises:
        CheckpointError: A named checkpoint does not exist, or all in the work dir are damaged.
    """
    if resume == 'never':
        return None
    key, path = '--resume', resume
    if resume == 'auto':
        # The first process decides: others may see the folder a little later.
        latest = intact_checkpoint(config.work_dir) if get_dist_info()[0] == 0 else None
        key, path = 'resume_from', all_gather(latest)[0] or config.get('resume_from')
    if path is not None and not osp.isfile(path):
        raise CheckpointError(f'{key}: {no_checkpoint(path)}')
    return path
