"""Global knowledge distillation for object detectors of MMDetection.

Importing the package registers all its parts with MMDetection. Where there is none, its functions
of tensors can be used all the same: ``gkd.knowledge.losses``, ``gkd.knowledge.similarities``,
``gkd.knowledge.instances`` and ``gkd.prototypes.pursuit``.
"""

import os

from gkd.environment import is_there, needing_mmdetection
from gkd.errors import show_without_traceback
from gkd.installed import mmdet_major
from gkd.registry import KNOWLEDGE
from gkd.version import __version__

__all__ = ['KNOWLEDGE', '__version__', 'backbones', 'compat', 'detectors', 'distiller',
           'knowledge', 'prototypes']

# So torch looks for GPUs without starting CUDA: a command may still choose one, or none.
os.environ.setdefault('PYTORCH_NVML_BASED_CUDA_CHECK', '1')

show_without_traceback()

if is_there():
    from gkd import compat

    # Before anything imports mmdet: it makes mmdet importable without compiled operators.
    compat.apply()

    from gkd import backbones, detectors, distiller, knowledge, prototypes

    if mmdet_major() == 3:
        from gkd import engine  # noqa: F401
else:
    __getattr__ = needing_mmdetection(__all__)
