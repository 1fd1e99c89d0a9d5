"""Masked convolution: only at the places that a mask names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(im: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, col: Tensor,
                          kernel_h: int, kernel_w: int, pad_h: int, pad_w: int) -> None:
    """Gather what a convolution of stride 1 reads at ``k`` places.

    Args:
        im: ``(1, c, h, w)``.
        mask_h_idx: Row of every place in the convolution's output, ``(k,)`` int64.
        mask_w_idx: Column of every place, alike.
        col: ``(c * kernel_h * kernel_w, k)``, written to.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor,
                          height: int, width: int, channels: int) -> None:
    """Write the columns of ``col`` ``(channels, k)`` to their places of ``im``.

    Args:
        im: ``(1, channels, height, width)``, written to; other places stay.
    """
    im[0, :, mask_h_idx, mask_w_idx] = col
