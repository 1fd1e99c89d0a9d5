"""How a detector's training step is run and recorded."""

from gkd.detectors.step import DetectorOutputs, Needs, Step
from gkd.environment import is_there, needing_mmdetection

__all__ = ['DetectorInfo', 'DetectorOutputs', 'DetectorPair', 'Needs', 'Step']

if is_there():
    from gkd.detectors.pair import DetectorInfo, DetectorPair
else:
    __getattr__ = needing_mmdetection(__all__)
