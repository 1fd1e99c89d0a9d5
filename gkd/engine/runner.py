"""The runner of the commands for MMDetection 3."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Optional, Union

import torch
from mmengine import runner
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseTTAModel
from torch import nn

from gkd.collectives import all_gather
from gkd.commands.export import load_student
from gkd.commands.layout import place
from gkd.commands.resume import intact_checkpoint, nothing_left
from gkd.commands.values import check_counts, check_scaling
from gkd.compat.wrapper import unwrap
from gkd.detectors.source import check_checkpoints, check_start
from gkd.distiller import Distiller
from gkd.engine.checks import COUNTS, check_default_hooks, check_optimizer, check_together
from gkd.engine.data import (
    Part,
    build_part,
    built,
    check_ground_truth,
    check_test_data,
    check_val_classes,
)
from gkd.engine.loop import in_epochs
from gkd.engine.refusal import remove_traces
from gkd.engine.trial import TrialHook
from gkd.errors import ConfigError, naming
from gkd.files import absent_folders, make_folder
from gkd.frameworks.mmdet3 import DECAY, require_epochs
from gkd.matching import (
    check_heads_agree,
    check_num_classes,
    check_teacher_classes,
    check_tested_classes,
)
from gkd.prototypes.hook import PrototypeHook
from gkd.resume import explaining_mismatch

RUNNERS = count()


class Runner(runner.Runner):
    """MMEngine's runner, which checks all that it can before the first step.

    MMEngine makes the work dir and a log before it builds anything. What it has made is removed if
    the run is refused, that is, if anything fails before it has started. The config's copy is
    written afterwards. ``cpu_channels_last`` is known, too.

    MMEngine finds a runner's log, visualizer and message hub by names: that of the experiment,
    which two runners share that are made within a second, and one in the config. Each runner of a
    process but the first has a number in its names, so that none writes into another's folder.

    Args:
        model: As MMEngine's runner takes it.
        work_dir: Likewise.
        experiment_name: Likewise.
        **settings: Likewise.

    Attributes:
        number: Of the runner in this process, from 0.
        started: Whether a training or a test has started.
        tested_classes: Names of the classes of the data to test on, if they are known.
    """

    def __init__(self, model: Union[nn.Module, dict], work_dir: str,
                 experiment_name: Optional[str] = None, **settings: Any):
        self.number = next(RUNNERS)
        self.started = False
        self.tested_classes: Sequence[str] = ()
        self.new_folders = absent_folders(work_dir)
        if self.number:
            config = settings.get('cfg') or {}
            named = experiment_name or getattr(config, 'filename', None) or 'run'
            experiment_name = f'{osp.splitext(osp.basename(named))[0]}_{self.number}'
        with self.leaving_nothing(), naming('the config'):
            make_folder(work_dir)
            super().__init__(model, work_dir, experiment_name=experiment_name, **settings)

    @classmethod
    def with_checked_data(cls, config: Config, *parts: str) -> Runner:
        """Make a runner whose data sets are built already, and fit its detector.

        MMEngine would build them later, and find most faults in the middle of a run or never.
        Nothing is written unless files and settings of the data are sound.

        Args:
            config: A config.
            *parts: Of ``'train'``, ``'val'`` and ``'test'`` those that are needed; a config may
                have no ``val_dataloader``.

        Raises:
            GKDError: A checkpoint, a setting, annotations or images are missing or do not fit.
        """
        if 'train' in parts:
            check_counts(config, COUNTS)
            check_scaling(config)
        check_checkpoints(config.model)
        check_start(config)
        for part in parts:
            if part != 'val' and not config.get(f'{part}_dataloader'):
                raise ConfigError(f'config {config.filename} has no `{part}_dataloader`.')
        check_together(config)
        data = {part: build_part(config, part) for part in parts
                if config.get(f'{part}_dataloader')}
        if 'train' in parts:
            check_test_data(config)
        made = cls.from_cfg(config)
        with made.leaving_nothing():
            for name, part in data.items():
                made.take_part(name, part)
            if 'train' in parts:
                check_val_classes(data)
        if not any(isinstance(hook, TrialHook) for hook in made.hooks):
            made.register_hook(TrialHook())
        return made

    def take_part(self, name: str, part: Part) -> None:
        """Use data that are built, if they fit the model.

        Args:
            name: ``'train'``, ``'val'`` or ``'test'``.
            part: The data set and its evaluator.
        """
        model, key = unwrap(self.model), f'{name}_dataloader.dataset'
        classes = getattr(part.dataset, 'metainfo', {}).get('classes')
        if classes is not None:
            check_num_classes(model, classes, key)
        if name == 'test':
            self.tested_classes = classes or ()
        if name == 'train':
            check_heads_agree(model)
            check_ground_truth(model, self.cfg.train_dataloader.dataset, key)
            check_teacher_classes(model, classes or (), key)
        # Not in the config, which is written into the work dir.
        getattr(self, f'_{name}_dataloader')['dataset'] = built(part.dataset)
        if part.evaluator is not None:
            setattr(self, f'_{name}_evaluator', part.evaluator)

    def set_randomness(self, seed: Optional[int] = None, **settings: Any) -> None:
        """Set the seed as MMEngine does; without one, a random one, whatever else is set.

        Raises:
            ConfigError: A setting is wrong.
        """
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2 ** 32):
            raise ConfigError(f'randomness.seed = {seed!r}: must be an integer from 0 to '
                              f'2 ** 32 - 1, or None for a random one.')
        with naming('randomness'):
            super().set_randomness(seed, **settings)

    def setup_env(self, env_cfg: dict) -> None:
        """Set up as MMEngine does; any process may have been the first to make the work dir."""
        super().setup_env(env_cfg)
        self.new_folders = max(all_gather(self.new_folders), key=len)

    @contextmanager
    def leaving_nothing(self) -> Iterator[None]:
        """Remove what the run has made if the block fails before the run has started."""
        try:
            yield
        except Exception:
            if not self.started:
                remove_traces(self, self.new_folders)
            raise

    def dump_config(self) -> None:
        """Write the config into the work dir, once the run has started."""
        if self.started:
            super().dump_config()

    def call_hook(self, fn_name: str, **settings: Any) -> None:
        """Call all hooks; those that may refuse a run are called first of all."""
        super().call_hook(fn_name, **settings)
        if fn_name in ('before_train', 'before_val', 'before_test') and not self.started:
            self.started = True
            if fn_name == 'before_train':  # a test's would replace it: that of the student alone
                self.dump_config()

    def train(self) -> nn.Module:
        """Train as MMEngine does."""
        with self.leaving_nothing():
            return super().train()

    def test(self) -> dict[str, float]:
        """Test as MMEngine does."""
        with self.leaving_nothing():
            return super().test()

    def load_or_resume(self) -> None:
        """Load or resume as MMEngine does; from the newest checkpoint that can be read.

        Raises:
            CheckpointError: There are checkpoints, but none can be read.
        """
        if self._has_loaded:
            return
        if self.rank == 0 and self._resume and self._load_from is None:
            self._load_from = intact_checkpoint(self.work_dir)
            self._resume = self._load_from is not None
        # The first process decides: others may see the folder a little later, or not at all.
        self._resume, self._load_from = all_gather((self._resume, self._load_from))[0]
        super().load_or_resume()
        if self._resume and self.iter >= self.max_iters:
            done = f'{self.epoch} epochs' if 'max_epochs' in self.cfg.train_cfg else (
                f'{self.iter} iterations')
            self.logger.info(nothing_left(self._load_from, done))

    def resume(self, filename: str, *args: Any, **settings: Any) -> None:
        """Resume as MMEngine does; a training of another config in the work dir is named."""
        with explaining_mismatch(filename, self.work_dir):
            super().resume(filename, *args, **settings)

    def load_detector(self, checkpoint: str) -> None:
        """Fill the detector with weights: its own, or of a distillation those of the student.

        Args:
            checkpoint: The file.

        Raises:
            CheckpointError: It cannot be read, or does not fit the detector or the data.
        """
        with self.leaving_nothing():
            model = unwrap(self.model)
            detector = model.module if isinstance(model, BaseTTAModel) else model
            load_student(detector, checkpoint)
            check_tested_classes(detector.CLASSES, self.tested_classes, checkpoint,
                                 'test_dataloader.dataset')
        self._has_loaded = True

    def build_model(self, model) -> nn.Module:
        """Build the model as MMEngine does, and place it before it is wrapped."""
        with naming('model', RuntimeError):  # a package that a part needs is missing
            built_model = super().build_model(model)
        return place(built_model, torch.device(get_device()), self.cfg)

    def build_visualizer(self, visualizer=None):
        """Build it as MMEngine does; a wrong setting is named."""
        if self.number and isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self.experiment_name}
        with naming('visualizer'):
            return super().build_visualizer(visualizer)

    def register_hooks(self, default_hooks=None, custom_hooks=None) -> None:
        """Likewise."""
        check_default_hooks(default_hooks or {})
        with naming('default_hooks or custom_hooks'):
            super().register_hooks(default_hooks, custom_hooks)

    def build_optim_wrapper(self, optim_wrapper):
        """Likewise."""
        with naming('optim_wrapper'):
            if isinstance(optim_wrapper, dict):
                check_optimizer(optim_wrapper)
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler):
        """Likewise."""
        with naming('param_scheduler'):
            return super().build_param_scheduler(scheduler)

    def build_train_loop(self, loop):
        """Build the loop and its loader likewise."""
        with naming('train_dataloader or train_cfg'):
            built_loop = super().build_train_loop(in_epochs(loop))
        model = unwrap(self.model)
        if isinstance(model, Distiller):
            require_epochs(built_loop, DECAY)
            if len(model.knowledge) and not any(isinstance(hook, PrototypeHook)
                                                for hook in self.hooks):
                raise ConfigError('custom_hooks has no PrototypeHook, which generates the '
                                  'prototypes and sets the progress of the decay: add '
                                  'dict(type="PrototypeHook").')
        if built_loop.max_iters < 1:
            raise ConfigError(f'train_cfg = {self.cfg.train_cfg}: must train for at least one '
                              f'epoch.')
        return built_loop

    def build_val_loop(self, loop):
        """Likewise."""
        with naming('val_dataloader or val_cfg'):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop):
        """Likewise."""
        with naming('test_dataloader or test_cfg'):
            return super().build_test_loop(loop)
