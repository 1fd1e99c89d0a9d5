"""The runner of the commands for MMDetection 3."""

from __future__ import annotations

import torch
from mmengine import runner
from mmengine.device import get_device
from torch import nn

from gkd.commands.layout import place


class Runner(runner.Runner):
    """MMEngine's runner, which knows ``cpu_channels_last``."""

    def build_model(self, model) -> nn.Module:
        """Build the model as MMEngine does, and place it before it is wrapped."""
        return place(super().build_model(model), torch.device(get_device()), self.cfg)
