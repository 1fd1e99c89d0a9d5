"""Backbones that MMDetection does not have."""

from .efficientnet_lite import EfficientNetLite0, prepare_efficientnet_lite0

__all__ = ['EfficientNetLite0', 'prepare_efficientnet_lite0']
