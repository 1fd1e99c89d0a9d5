"""What a student can be taught: one kind of knowledge a file, and the functions it is made of."""

from gkd.knowledge.base import Knowledge
from gkd.knowledge.cwd import CWD
from gkd.knowledge.defeat import DeFeat
from gkd.knowledge.fbkd import FBKD
from gkd.knowledge.fgd import FGD
from gkd.knowledge.fgfi import FGFI
from gkd.knowledge.gid import GID
from gkd.knowledge.instances import instance_mask, map_levels, pool_instances
from gkd.knowledge.losses import (
    global_knowledge_loss,
    local_knowledge_loss,
    robust_weights,
    soft_label_loss,
)
from gkd.knowledge.mgd import MGD
from gkd.knowledge.pfi import PFI
from gkd.knowledge.pkd import PKD
from gkd.knowledge.robust import RobustDistillingModule

__all__ = [
    'CWD',
    'FBKD',
    'FGD',
    'FGFI',
    'GID',
    'MGD',
    'PFI',
    'PKD',
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
