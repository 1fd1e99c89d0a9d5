"""What MMDetection 3's detectors count or draw outside of their weights goes on exactly."""

import pytest
import torch
from helpers import small_detectors as small
from small_experiments import PREPROCESSOR, detector, experiment, train

from gkd.compat.checkpoint import load_checkpoint_file

RESIZE = dict(type='BatchSyncRandomResize', random_size_range=(64, 224), interval=3)


@pytest.mark.slow
@pytest.mark.parametrize('student', [
    dict(detector('one_stage'), data_preprocessor=dict(PREPROCESSOR, batch_augments=[RESIZE])),
    dict(small.dynamic_rcnn(), data_preprocessor=PREPROCESSOR),
    dict(small.libra_rcnn(), data_preprocessor=PREPROCESSOR),
], ids=['sizes', 'thresholds', 'sampler'])
def test_what_a_step_draws_for_later_ones_goes_on(annotations, tmp_path, student):
    """Sizes drawn every three steps, thresholds that change every two, a sampler's first draw."""
    ends = []
    for name, epochs in (('whole', [2]), ('resumed', [1, 2])):
        config = experiment(annotations, tmp_path / name, 'two_stage', inside_epoch=0)
        config.model.student.config = student
        for last in epochs:
            config.train_cfg.max_epochs = last
            train(config, resume=True)
        ends.append(load_checkpoint_file(tmp_path / name / 'epoch_2.pth')['state_dict'])
    whole, resumed = ends
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
