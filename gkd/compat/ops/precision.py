"""The precision in which torchvision's kernels can compute."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def kernel_dtype(*tensors: Tensor) -> torch.dtype:
    """The one dtype to hand tensors to torchvision in.

    Its kernels want a single one, know no bfloat16, and half precision on CUDA only.

    Example:
        >>> kernel_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    if dtype == torch.bfloat16 or (dtype == torch.half and not tensors[0].is_cuda):
        return torch.float32
    return dtype
