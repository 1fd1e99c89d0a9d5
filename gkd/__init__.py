"""Global knowledge distillation for object detectors of MMDetection 2.x.

Importing the package registers all its parts with MMDetection.
"""

from gkd import compat

# Before anything imports mmdet: it is what makes mmdet importable without compiled operators.
compat.apply()

from gkd import backbones, detectors, knowledge, prototypes  # noqa: E402
from gkd.registry import KNOWLEDGE  # noqa: E402
from gkd.version import __version__  # noqa: E402

__all__ = ['KNOWLEDGE', '__version__', 'backbones', 'compat', 'detectors', 'knowledge',
           'prototypes']
