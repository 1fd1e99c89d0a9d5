"""The distiller, and how a detector's training step is run and recorded."""

from gkd.detectors.pair import DetectorInfo, DetectorPair
from gkd.detectors.step import DetectorOutputs, Needs, Step
from gkd.distiller import Distiller

__all__ = ['DetectorInfo', 'DetectorOutputs', 'DetectorPair', 'Distiller', 'Needs', 'Step']
