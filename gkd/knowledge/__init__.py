"""What a student can be taught."""

from gkd.knowledge.instances import instance_mask, map_levels, pool_instances
from gkd.knowledge.losses import (
    global_knowledge_loss,
    local_knowledge_loss,
    robust_weights,
    soft_label_loss,
)

__all__ = [
    'global_knowledge_loss',
    'instance_mask',
    'local_knowledge_loss',
    'map_levels',
    'pool_instances',
    'robust_weights',
    'soft_label_loss',
]
