"""What extends MMEngine's runner, which MMDetection 3 trains with."""

from gkd.engine.drawing import DrawingHook
from gkd.engine.finite import FiniteLossHook
from gkd.engine.loop import IterationTrainLoop
from gkd.engine.report import ReportHook
from gkd.engine.resume import ResumableCheckpointHook
from gkd.engine.trial import TrialHook

__all__ = ['DrawingHook', 'FiniteLossHook', 'IterationTrainLoop', 'ReportHook',
           'ResumableCheckpointHook', 'TrialHook']
