"""What makes MMDetection 2.x run on today's torch, without editing an installed package.

:func:`apply` runs once, when ``gkd`` is imported, before anything imports mmdet.
"""

from gkd.compat.environment import check_environment
from gkd.compat.ops import install_ops


def apply() -> None:
    """Check the installed packages and apply every mend. Safe to call again."""
    check_environment()
    install_ops()
