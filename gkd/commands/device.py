"""``--device`` of the commands: which device a process, and those that it starts, can see."""

from __future__ import annotations

import argparse
import os
import re

import torch

from gkd.compat.defaults import default_to_existing_device
from gkd.errors import ConfigError

VISIBLE = 'CUDA_VISIBLE_DEVICES'


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``; it takes effect as soon as it is read."""
    parser.add_argument('--device', action=ChooseDevice, metavar='cpu|cuda|cuda:N',
                        default=argparse.SUPPRESS,
                        help='compute on the CPU, on a GPU, or on GPU N of those that are visible '
                             '(default: a GPU if there is one)')


class ChooseDevice(argparse.Action):
    """Choose the device, and store ``cpu`` or ``cuda``: the process sees no other device then."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Read the option."""
        choose_device(values)
        setattr(namespace, self.dest, values.partition(':')[0])


def choose_device(name: str) -> None:
    """Let this process, and all that it starts, see one device alone.

    CUDA reads only once, when it starts, which GPUs it may see. So nothing may have been computed
    on a GPU before.

    Args:
        name: ``cpu``, ``cuda`` for all GPUs that are visible, or ``cuda:1`` for the second.

    Raises:
        ConfigError: The name is no device, or the device does not exist, or a single GPU is named
            for several processes.
    """
    if not re.fullmatch(r'cpu|cuda(:\d+)?', name):
        raise ConfigError(f'--device {name}: must be cpu, cuda, or cuda:N with the number of a '
                          f'GPU, such as cuda:1.')
    if name == 'cpu':
        os.environ[VISIBLE] = ''
        default_to_existing_device()
        return
    gpus = visible_gpus()
    if not gpus:
        raise ConfigError(f'--device {name}: {why_there_is_no_gpu()} Leave --device out, or give '
                          f'--device cpu.')
    _, _, number = name.partition(':')
    if not number:
        return
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise ConfigError(f'--device {name}: each of several processes takes a GPU of its own. '
                          f'Give --device cuda, and the GPUs as {VISIBLE}=0,1.')
    if int(number) >= len(gpus):
        raise ConfigError(f'--device {name}: {len(gpus)} GPUs are visible, cuda:0 to '
                          f'cuda:{len(gpus) - 1}.')
    os.environ[VISIBLE] = gpus[int(number)]


def visible_gpus() -> list[str]:
    """The visible GPUs as ``CUDA_VISIBLE_DEVICES`` names them, without starting CUDA."""
    count = torch.cuda.device_count()
    names = os.environ.get(VISIBLE)
    return [*map(str, range(count))] if names is None else names.split(',')[:count]


def why_there_is_no_gpu() -> str:
    """Why torch sees no GPU, as a sentence for messages."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f'torch {torch.__version__} is built for the CPU alone.'
    if os.environ.get(VISIBLE) == '':
        return f'{VISIBLE} is empty and so hides all GPUs.'
    return 'torch finds no GPU; nvidia-smi shows whether the driver does.'
