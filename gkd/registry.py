"""The registry of everything that a student can be taught."""

from mmcv.utils import Registry

KNOWLEDGE = Registry('knowledge')
