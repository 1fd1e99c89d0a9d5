"""The distiller, and how a detector's training step is run and recorded."""

from gkd.detectors.pair import DetectorInfo, DetectorPair
from gkd.detectors.step import StepRecord
from gkd.distiller import Distiller

__all__ = ['DetectorInfo', 'DetectorPair', 'Distiller', 'StepRecord']
