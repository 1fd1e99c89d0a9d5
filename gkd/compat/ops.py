"""A stand-in for mmcv's compiled operators, running on torchvision's own kernels.

mmcv keeps its operators in one compiled extension, ``mmcv._ext``, which takes many minutes to
build and does not build on every torch. The detectors that this package works with need four of
its operators, and torchvision ships two of those compiled for every torch; the third and fourth
(the sigmoid focal loss, used on CUDA only) are a few lines of torch.

For: mmcv 1.x installed without its operators (``MMCV_WITH_OPS=0``), every torch. A compiled
mmcv-full is used as it is.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.errors import EnvironmentMismatchError

EXTENSION = 'mmcv._ext'
_NOT_COMPILED = 'not compiled (gkd runs nms and roi_align on torchvision)'


def install_ops() -> None:
    """Make ``mmcv.ops`` importable: keep a compiled extension, else put the stand-in in its place.

    Raises:
        EnvironmentMismatchError: if a compiled extension is there but cannot be loaded, which
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


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression with mmcv's conventions.

    Args:
        boxes: ``(n, 4)`` as x1, y1, x2, y2 in pixels.
        scores: ``(n,)``.
        iou_threshold: boxes that overlap a kept one by *more* than this are dropped.
        offset: 0, or 1 where a box's width is counted as ``x2 - x1 + 1``.

    Returns:
        Indices of the kept boxes, ``(k,)`` int64, highest score first.
    """
    boxes = boxes.float()
    if offset:
        # Width and height grow by one, of the boxes and of every intersection alike.
        boxes = boxes + boxes.new_tensor([0., 0., offset, offset])
    # mmcv compares in single precision; an IoU that equals the threshold must not suppress.
    threshold = float(np.float32(iou_threshold))
    return torch.ops.torchvision.nms(boxes, scores.float(), threshold)


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor,
                      argmax_x: Tensor, aligned_height: int, aligned_width: int,
                      spatial_scale: float, sampling_ratio: int, pool_mode: int,
                      aligned: bool) -> None:
    """Average-pool every RoI of ``input`` ``(n, c, h, w)`` into ``output``, in place.

    Args:
        rois: ``(k, 5)`` as image index, x1, y1, x2, y2 in pixels of the image.
        output: ``(k, c, aligned_height, aligned_width)``, written to.
        pool_mode: 1 for 'avg'; 0 ('max') is not available.

    Raises:
        EnvironmentMismatchError: for ``pool_mode`` 'max'.
    """
    _refuse_max_pooling(pool_mode)
    dtype = _kernel_dtype(input, rois)
    output.copy_(torch.ops.torchvision.roi_align(
        input.to(dtype), rois.to(dtype), spatial_scale, aligned_height, aligned_width,
        sampling_ratio, aligned))


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                       grad_input: Tensor, aligned_height: int, aligned_width: int,
                       spatial_scale: float, sampling_ratio: int, pool_mode: int,
                       aligned: bool) -> None:
    """Write the gradient of :func:`roi_align_forward` to ``grad_input`` ``(n, c, h, w)``."""
    _refuse_max_pooling(pool_mode)
    dtype = _kernel_dtype(grad_output, rois)
    grad_input.copy_(torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype), rois.to(dtype), spatial_scale, aligned_height, aligned_width,
        *grad_input.shape, sampling_ratio, aligned))


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor,
                               gamma: float, alpha: float) -> None:
    """Focal loss of every logit, written to ``output``.

    Uses the log-sigmoid, which stays exact where the probability rounds to 0 or 1.

    Args:
        input: logits ``(n, classes)``.
        target: ``(n,)`` int64; ``classes`` (or anything outside ``[0, classes)``) is background.
        weight: ``(classes,)`` or empty, a factor for the rows of each target class.
        output: ``(n, classes)``, written to.
        gamma: focusing exponent.
        alpha: factor of the positives; the negatives get ``1 - alpha``.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, Eq. 5.
    """
    sign, log_pt, factor = _focal_terms(input, target, weight, alpha)
    output.copy_(-factor * (-sign * input.float()).sigmoid().pow(gamma) * log_pt)


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor,
                                grad_input: Tensor, gamma: float, alpha: float) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward` to ``grad_input``."""
    sign, log_pt, factor = _focal_terms(input, target, weight, alpha)
    # q = 1 - p_t; with z = sign * x: dq/dz = -q(1 - q) and dlog(p_t)/dz = q, so
    # d/dz [-q^gamma log p_t] = q^gamma (gamma (1 - q) log p_t - q).
    q = (-sign * input.float()).sigmoid()
    grad_input.copy_(sign * factor * q.pow(gamma) * (gamma * (1 - q) * log_pt - q))


def _focal_terms(input: Tensor, target: Tensor, weight: Tensor,
                 alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return, each ``(n, classes)``: +1/-1 for positive/negative, log p_t, and the factor."""
    input = input.float()
    classes = input.size(1)
    positive = target[:, None] == torch.arange(classes, device=input.device)
    sign = positive.to(input.dtype) * 2 - 1
    factor = torch.where(positive, alpha, 1 - alpha).to(input.dtype)
    if weight.numel():
        background = weight.new_ones(1)  # mmcv names no weight for it
        row = torch.where((target >= 0) & (target < classes), target, classes)
        factor = factor * torch.cat([weight, background])[row].float()[:, None]
    return sign, F.logsigmoid(sign * input), factor


def _kernel_dtype(features: Tensor, rois: Tensor) -> torch.dtype:
    """The precision to compute in: torchvision wants one dtype and knows no bfloat16."""
    dtype = torch.promote_types(features.dtype, rois.dtype)
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _refuse_max_pooling(pool_mode: int) -> None:
    if pool_mode != 1:
        raise EnvironmentMismatchError(
            "RoIAlign with pool_mode='max' needs the compiled operators of mmcv-full; only 'avg' "
            'runs without them. ' + _HOW_TO_COMPILE)


_HOW_TO_COMPILE = ('Compile them with `bash tools/setup.sh --with-ops` (9 to 20 minutes, needs a '
                   'C++ compiler), or choose a model that does without.')


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
    for function in (nms, roi_align_forward, roi_align_backward, sigmoid_focal_loss_forward,
                     sigmoid_focal_loss_backward):
        setattr(module, function.__name__, function)
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
