"""The distiller, and how a detector's training step is run and recorded."""

from gkd.detectors.distiller import Distiller
from gkd.detectors.pair import DetectorInfo, DetectorPair
from gkd.detectors.step import StepRecord

__all__ = ['DetectorInfo', 'DetectorPair', 'Distiller', 'StepRecord']
