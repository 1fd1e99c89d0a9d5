"""What a student can be taught: one file for each kind of knowledge, and their functions."""

from gkd.environment import is_there, needing_mmdetection
from gkd.knowledge.base import Knowledge
from gkd.knowledge.instances import instance_mask, map_levels, pool_instances
from gkd.knowledge.losses import (
    global_knowledge_loss,
    local_knowledge_loss,
    soft_label_loss,
)
from gkd.knowledge.similarities import robust_weights

__all__ = [
    'CWD',
    'FBKD',
    'FGD',
    'FGFI',
    'GID',
    'MGD',
    'PFI',
    'PKD',
    'RKD',
    'DeFeat',
    'Knowledge',
    'RobustDistillingModule',
    'global_knowledge_loss',
    'instance_mask',
    'local_knowledge_loss',
    'map_levels',
    'pool_instances',
    'robust_weights',
    'soft_label_loss',
]

if is_there():
    from gkd.knowledge.methods.cwd import CWD
    from gkd.knowledge.methods.defeat import DeFeat
    from gkd.knowledge.methods.fbkd import FBKD
    from gkd.knowledge.methods.fgd import FGD
    from gkd.knowledge.methods.fgfi import FGFI
    from gkd.knowledge.methods.gid import GID
    from gkd.knowledge.methods.mgd import MGD
    from gkd.knowledge.methods.pfi import PFI
    from gkd.knowledge.methods.pkd import PKD
    from gkd.knowledge.methods.rkd import RKD
    from gkd.knowledge.robust import RobustDistillingModule
else:
    __getattr__ = needing_mmdetection(__all__)
