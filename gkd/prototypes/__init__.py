"""Prototype generation: the common basis of the teacher's and the student's feature space."""

from gkd.prototypes.bank import PrototypeBank
from gkd.prototypes.pursuit import select_prototypes

__all__ = ['PrototypeBank', 'select_prototypes']
