"""Patches of mmcv's runner: checkpoints, resuming, and logging of short epochs."""

from __future__ import annotations

import ast
import functools
import os
import os.path as osp
from types import SimpleNamespace

import mmcv
import torch
from mmcv.fileio.file_client import HardDiskBackend
from mmcv.runner import (
    BaseRunner,
    CheckpointHook,
    IterBasedRunner,
    LoggerHook,
    checkpoint,
    epoch_based_runner,
)
from mmcv.runner.hooks.optimizer import Fp16OptimizerHook

from gkd.compat.checkpoint import load_url
from gkd.compat.checkpoint_hook import refuse_unknown_settings
from gkd.compat.local_files import load_from_local, put
from gkd.compat.weights import ema_copies, get_state_dict, load_strictly
from gkd.errors import CheckpointError, ConfigError
from gkd.watching import watched

EMA = 'ema'  # in a runner's `meta`


def read_checkpoints_safely() -> None:
    """Let mmcv read checkpoints without executing code in them.

    Reason: mmcv calls ``torch.load`` with its default, which executes code before torch 2.6; after
    it, files with numpy numbers (a run's best score) fail. Downloads execute code on every torch.
    For: mmcv 1.x, every torch.
    """
    checkpoint.CheckpointLoader.register_scheme('', load_from_local, force=True)
    checkpoint.load_url = load_url


def load_checkpoints_strictly() -> None:
    """Let ``load_from`` and ``resume_from`` stop when the checkpoint does not fit the model.

    Reason: mmcv only warns, and trains on from half-loaded weights. ``init_cfg`` of type
    'Pretrained' keeps picking what it needs out of a classification network.
    For: mmcv 1.x.
    """

    load_as_asked = BaseRunner.load_checkpoint

    @functools.wraps(load_as_asked)
    def load_checkpoint(self, filename, map_location='cpu', strict=True, **kwargs):
        if not strict or kwargs:
            return load_as_asked(self, filename, map_location, strict, **kwargs)
        loaded = checkpoint.CheckpointLoader.load_checkpoint(filename, map_location, self.logger)
        load_strictly(self.model, loaded, filename)
        return loaded

    BaseRunner.load_checkpoint = load_checkpoint


def resume_without_running_the_config() -> None:
    """Resume without executing the config text in the checkpoint; name files that cannot resume.

    Reason: mmcv runs ``meta['config']`` as Python to learn on how many GPUs the run was before; a
    checkpoint is data. A file without ``meta`` ends in a bare ``KeyError``. Weights that an
    ``EMAHook`` keeps fit no model before that hook begins: they are laid aside, in
    ``runner.meta['ema']``. And the ``IterBasedRunner`` loads to a GPU even where there is none.
    For: mmcv 1.x.
    """
    for runner_type in (BaseRunner, IterBasedRunner):
        runner_type.resume = _resume_without_running(runner_type.resume)


def _resume_without_running(resume):

    @functools.wraps(resume)
    def resume_from(self, checkpoint, resume_optimizer=True, map_location='default'):
        if map_location == 'default' and not torch.cuda.is_available():
            map_location = 'cpu'
        config = None

        def load_without_config(load, filename, *args, **kwargs):
            nonlocal config
            loaded = load(filename, *args, **kwargs)
            meta = loaded.get('meta', {})
            if 'epoch' not in meta or 'iter' not in meta:
                raise CheckpointError(
                    f'{filename} cannot be resumed from: it does not say at which epoch it was '
                    'written. It holds weights only (exported or published); start from them with '
                    '`load_from`, or resume from the epoch_*.pth of the run.')
            if 'message_hub' in loaded:
                raise CheckpointError(
                    f'{filename} cannot be resumed from: a training of MMDetection 3 wrote it, '
                    'and this is 2. Start from its weights with `load_from`, or resume with '
                    'MMDetection 3.')
            config = meta.pop('config', None)
            weights = get_state_dict(loaded, filename)
            copies = ema_copies(weights)
            if copies:
                meta[EMA] = {name: weights[name] for name in copies}
            return loaded

        with watched(self, 'load_checkpoint', load_without_config):
            resume(self, checkpoint, resume_optimizer, map_location)
        if config is None:
            return
        self.meta['config'] = config
        previous = _number_of_gpus(config)
        if previous and previous != self.world_size and not isinstance(self, IterBasedRunner):
            # With fewer processes an epoch takes more iterations.
            self._iter = int(self._iter * previous / self.world_size)
            self.logger.info(f'resumed on {self.world_size} instead of {previous} processes: '
                             f'continues from iteration {self._iter}')

    return resume_from


def _number_of_gpus(config: str) -> int | None:
    """Read the length of ``gpu_ids`` (``range(0, 8)`` or a list) from a config's text."""
    try:
        statements = ast.parse(config).body
    except SyntaxError:
        return None
    for statement in statements:
        if isinstance(statement, ast.Assign) and \
                any(getattr(target, 'id', None) == 'gpu_ids' for target in statement.targets):
            value = statement.value
            try:
                if isinstance(value, ast.Call) and getattr(value.func, 'id', None) == 'range':
                    return len(range(*map(ast.literal_eval, value.args)))
                return len(ast.literal_eval(value))
            except (ValueError, TypeError):
                return None
    return None


def log_short_epochs() -> None:
    """Print at least once per epoch.

    Reason: with an epoch shorter than ``log_config.interval`` (50 by default) the loggers of mmcv
    print nothing, no loss, no speed, no time left. Shortening the interval keeps averages and the
    time left right, which ``ignore_last=False`` does not.
    For: mmcv 1.x.
    """

    def before_train_epoch(self, runner):
        if self.by_epoch:
            self.interval = min(self.interval, len(runner.data_loader))
        self.before_epoch(runner)

    LoggerHook.before_train_epoch = before_train_epoch


def leave_out_pauses() -> None:
    """Begin every epoch, and end the run, without a pause.

    Reason: the ``EpochBasedRunner`` sleeps for two seconds before every epoch, against deadlocks
    of the data loaders of old, and for one at the end. Its successor in MMEngine does not.
    For: mmcv 1.x.
    """
    epoch_based_runner.time = SimpleNamespace(sleep=lambda seconds: None)


def refuse_fp16_without_gpu() -> None:
    """Refuse ``fp16 = dict(...)`` where there is no GPU, instead of failing inside a layer.

    Reason: mmcv casts the images to half precision and leaves the rest to ``torch.cuda.amp``,
    which does nothing on a CPU.
    For: mmcv 1.x.
    """
    before_run = Fp16OptimizerHook.before_run

    @functools.wraps(before_run)
    def before_run_on_gpu(self, runner):
        check_fp16()
        before_run(self, runner)

    Fp16OptimizerHook.before_run = before_run_on_gpu


def check_fp16() -> None:
    """Raise ConfigError where ``fp16`` cannot work."""
    if not torch.cuda.is_available():
        raise ConfigError('`fp16` in the config needs a GPU, and none is found. Leave it out: '
                          '--cfg-options fp16=None')


def refuse_unknown_settings_of_checkpoints() -> None:
    """Refuse unknown settings in ``checkpoint_config`` before the first step."""
    # The `tools/train.py` of MMDetection 2 sets `meta`.
    refuse_unknown_settings(CheckpointHook, ['filename_tmpl', 'create_symlink', 'meta'],
                            'checkpoint_config')


def write_files_whole() -> None:
    """Write checkpoints, and the link to the latest one, beside their place and move them there.

    Reason: a run that is killed while mmcv writes leaves half a checkpoint under the final name,
    or, between removing the old link and making the new one, none.
    For: mmcv 1.x.
    """

    def symlink(source, target, overwrite=True, **kwargs):
        if overwrite and osp.lexists(target):
            folder, name = osp.split(target)
            beside = osp.join(folder, f'.{name}.{os.getpid()}.tmp')
            os.symlink(source, beside, **kwargs)
            os.replace(beside, target)
        else:
            os.symlink(source, target, **kwargs)

    HardDiskBackend.put = put
    mmcv.symlink = symlink
