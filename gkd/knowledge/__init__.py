"""What a student can be taught: one kind of knowledge a file, and the functions it is made of."""

from gkd.knowledge.base import Knowledge
from gkd.knowledge.instances import instance_mask, map_levels, pool_instances
from gkd.knowledge.losses import (
    global_knowledge_loss,
    local_knowledge_loss,
    robust_weights,
    soft_label_loss,
)
from gkd.knowledge.robust import RobustDistillingModule

__all__ = [
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
