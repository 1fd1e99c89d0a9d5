"""Prototype generation: the common basis of the teacher's and the student's feature space."""

from gkd.bank import PrototypeBank
from gkd.environment import is_there, needing_mmdetection
from gkd.prototypes.pursuit import select_prototypes

__all__ = ['PrototypeBank', 'PrototypeGenerationModule', 'PrototypeHook', 'select_prototypes']

if is_there():
    from gkd.prototypes.generation import PrototypeGenerationModule
    from gkd.prototypes.hook import PrototypeHook
else:
    __getattr__ = needing_mmdetection(__all__)
