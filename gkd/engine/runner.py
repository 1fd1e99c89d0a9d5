"""The runner of the commands for MMDetection 3."""

from __future__ import annotations

import torch
from mmengine import runner
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from gkd.commands.export import load_student
from gkd.commands.layout import place
from gkd.compat.wrapper import unwrap
from gkd.detectors.source import check_checkpoints
from gkd.engine.data import build_part, built, check_ground_truth, look_at_test_data
from gkd.errors import ConfigError, naming
from gkd.matching import check_num_classes, check_teacher_classes


class Runner(runner.Runner):
    """MMEngine's runner, which checks data and checkpoints and knows ``cpu_channels_last``."""

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
        check_checkpoints(config.model)
        for part in parts:
            if part != 'val' and not config.get(f'{part}_dataloader'):
                raise ConfigError(f'config {config.filename} has no `{part}_dataloader`.')
        data = {part: build_part(config, part) for part in parts
                if config.get(f'{part}_dataloader')}
        if 'train' in parts:
            look_at_test_data(config)
        made = cls.from_cfg(config)
        model = unwrap(made.model)
        for name, part in data.items():
            key = f'{name}_dataloader.dataset'
            classes = getattr(part.dataset, 'metainfo', {}).get('classes')
            if classes is not None:
                check_num_classes(model, classes, key)
            if name == 'train':
                check_ground_truth(model, config.train_dataloader.dataset, key)
                check_teacher_classes(model, classes or (), key)
            # Not in the config, which is written into the work dir.
            getattr(made, f'_{name}_dataloader')['dataset'] = built(part.dataset)
            if part.evaluator is not None:
                setattr(made, f'_{name}_evaluator', part.evaluator)
        return made

    def load_detector(self, checkpoint: str) -> None:
        """Fill the detector with weights: its own, or of a distillation those of the student.

        Args:
            checkpoint: The file.

        Raises:
            CheckpointError: It cannot be read, or does not fit.
        """
        load_student(unwrap(self.model), checkpoint)
        self._has_loaded = True

    def build_model(self, model) -> nn.Module:
        """Build the model as MMEngine does, and place it before it is wrapped."""
        return place(super().build_model(model), torch.device(get_device()), self.cfg)

    def build_train_loop(self, loop):
        """Build the loop and its loader as MMEngine does; a wrong setting is named."""
        with naming('train_dataloader or train_cfg'):
            return super().build_train_loop(loop)

    def build_val_loop(self, loop):
        """Likewise."""
        with naming('val_dataloader or val_cfg'):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop):
        """Likewise."""
        with naming('test_dataloader or test_cfg'):
            return super().build_test_loop(loop)
