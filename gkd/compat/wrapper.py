"""The model inside what distributes it over processes and GPUs, in either MMDetection."""

from __future__ import annotations

from torch import nn

from gkd.installed import mmdet_major

if mmdet_major() == 3:
    from mmengine.model import is_model_wrapper as is_module_wrapper
else:
    from mmcv.parallel import is_module_wrapper


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper; one without a wrapper is returned as it is."""
    return model.module if is_module_wrapper(model) else model
