"""What the commands for both MMDetections share."""

from gkd.commands.device import add_device_option
from gkd.commands.ending import run
from gkd.commands.options import (
    add_launcher_options,
    add_training_options,
    add_trust_option,
    positive,
)

__all__ = ['add_device_option', 'add_launcher_options', 'add_training_options',
           'add_trust_option', 'positive', 'run']
