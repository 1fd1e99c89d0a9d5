"""Numbers that the host knows, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['on_device']


def on_device(values: list, device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """A tensor of numbers known to the host, without waiting for the device."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
