"""Global knowledge distillation for object detectors of MMDetection 2.x."""

from gkd import compat

compat.apply()
