"""A stand-in for mmcv's compiled operators, running on torchvision's kernels and on torch.

mmcv keeps its operators in one compiled extension, ``mmcv._ext``, which takes many minutes to
build and does not build on every torch. torchvision ships compiled operators for every torch. Most
of what MMDetection's detectors call can be built on those, the rest in a few lines of torch. There
is one file per operator. Each function keeps the name, the arguments and the results of mmcv's;
results are written into buffers that the caller hands over.

For: mmcv 1.x installed without its operators (``MMCV_WITH_OPS=0``) and mmcv-lite 2.x, every
torch. Compiled operators are used as they are.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types

import torch

from gkd.compat.ops import (
    attention,
    carafe,
    deform_conv,
    deform_roi_pool,
    focal_loss,
    masked_conv,
    roi_align,
    roi_pool,
    suppression,
)
from gkd.errors import EnvironmentMismatchError

EXTENSION = 'mmcv._ext'
OPERATORS = (
    suppression.nms, suppression.softnms, suppression.nms_match,
    roi_align.roi_align_forward, roi_align.roi_align_backward,
    roi_pool.roi_pool_forward, roi_pool.roi_pool_backward,
    deform_roi_pool.deform_roi_pool_forward, deform_roi_pool.deform_roi_pool_backward,
    deform_conv.deform_conv_forward, deform_conv.deform_conv_backward_input,
    deform_conv.deform_conv_backward_parameters,
    deform_conv.modulated_deform_conv_forward, deform_conv.modulated_deform_conv_backward,
    carafe.carafe_forward, carafe.carafe_backward,
    carafe.carafe_naive_forward, carafe.carafe_naive_backward,
    masked_conv.masked_im2col_forward, masked_conv.masked_col2im_forward,
    attention.ms_deform_attn_forward, attention.ms_deform_attn_backward,
    focal_loss.sigmoid_focal_loss_forward, focal_loss.sigmoid_focal_loss_backward,
)
_NOT_COMPILED = "not compiled (gkd runs mmcv's operators on torchvision and torch)"
_HOW_TO_COMPILE = ('Compile them with `bash tools/setup.sh --with-ops` (9 to 20 minutes, needs a '
                   'C++ compiler), or choose a model that does without.')


def install_ops() -> None:
    """Make ``mmcv.ops`` importable: keep a compiled extension, else put the stand-in in its place.

    Raises:
        EnvironmentMismatchError: A compiled extension is there but cannot be loaded, which
            happens when it was compiled against another torch.
    """
    if EXTENSION in sys.modules:
        return
    if importlib.util.find_spec(EXTENSION) is None:
        stand_in = _build_stand_in()
        sys.modules[EXTENSION] = stand_in
        sys.modules['mmcv']._ext = stand_in
        return
    try:
        importlib.import_module(EXTENSION)
    except ImportError as error:
        raise EnvironmentMismatchError(
            f'The compiled operators of mmcv-full do not load with torch {torch.__version__} '
            f'({error}). They were most likely compiled against another torch; pip also hands '
            'out such a build from its wheel cache without a word. What to do: either\n'
            '  pip uninstall -y mmcv-full mmcv && bash tools/setup.sh\n'
            'to run without compiled operators, or\n'
            '  pip uninstall -y mmcv-full mmcv && bash tools/setup.sh --with-ops\n'
            'to compile them for this torch.') from error


def _missing_op(name: str):
    """Module ``__getattr__``: each operator can be imported; a missing one says so when called."""
    if name.startswith('_'):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise EnvironmentMismatchError(
            f"The operator '{name}' is one of mmcv-full's compiled operators, and this mmcv was "
            f'installed without them. {_HOW_TO_COMPILE}')

    missing.__name__ = name
    return missing


def _build_stand_in() -> types.ModuleType:
    _check_torchvision()
    module = types.ModuleType(EXTENSION, __doc__)
    # mmcv asks pkgutil for the loader to learn whether compiled operators exist: they do not.
    module.__spec__ = importlib.machinery.ModuleSpec(EXTENSION, loader=None)
    for operator in OPERATORS:
        setattr(module, operator.__name__, operator)
    # Printed by mmcv's collect_env at the start of every training.
    module.get_compiler_version = lambda: _NOT_COMPILED
    module.get_compiling_cuda_version = lambda: _NOT_COMPILED
    module.__getattr__ = _missing_op
    return module


def _check_torchvision() -> None:
    """Import torchvision and see that its kernels fit the installed torch."""
    try:
        import torchvision
        torchvision.extension._assert_has_ops()
    except (ImportError, RuntimeError) as error:
        raise EnvironmentMismatchError(
            f'torchvision does not work with torch {torch.__version__} ({error}). Install the '
            'torchvision that belongs to this torch: '
            'https://github.com/pytorch/vision#installation lists the pairs.') from error
