"""Checkpoints cross from MMDetection 3 to 2 and back."""

import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.mmdet3 import needs_mmdet3, run_mmdet3
from mmcv import Config, ConfigDict
from mmdet.models import build_detector

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.compat.weights import class_names, load_strictly
from gkd.running.export import export_student

pytestmark = [needs_mmdet3, pytest.mark.slow]


def maps_of(detector):
    """What a detector's layers make of some images, without what prepares or decodes them."""
    torch.manual_seed(0)
    with torch.no_grad():
        return detector.eval().bbox_head(detector.extract_feat(torch.randn(1, 3, 64, 96)))


def assert_equal(some, others):
    for level, other in zip(sum(some, []), sum(others, [])):
        assert torch.equal(level, other)


def test_training_of_mmdetection_3_loads_under_2(tmp_path):
    data = tiny_data.write_data(tmp_path / 'data').parent
    run_mmdet3('tiny_retinanet.py', 'train', data, tmp_path)
    checkpoint = load_checkpoint_file(tmp_path / 'epoch_1.pth')
    assert class_names(checkpoint) == tiny_data.CLASSES
    assert 'message_hub' in checkpoint
    detector = build_detector(ConfigDict(small.retinanet()))
    load_strictly(detector, checkpoint, 'epoch_1.pth')
    assert_equal(maps_of(detector), torch.load(tmp_path / 'maps.pth'))


def test_training_of_mmdetection_2_loads_under_3(tmp_path):
    """Exported: plain MMDetection 3 looks for the classes elsewhere."""
    detector = build_detector(ConfigDict(small.retinanet()))
    detector.init_weights()
    torch.save(dict(meta=dict(CLASSES=tiny_data.CLASSES, epoch=1, iter=2),
                    state_dict=detector.state_dict()), tmp_path / 'epoch_1.pth')
    (tmp_path / 'config.py').write_text(f'model = {small.retinanet()!r}')
    export_student(Config.fromfile(str(tmp_path / 'config.py')), str(tmp_path / 'epoch_1.pth'),
                   str(tmp_path / 'student.pth'))
    names = 'epoch_1', 'student'
    paths = [tmp_path / f'{name}.{kind}' for name in names for kind in ('pth', 'maps')]
    printed = run_mmdet3('tiny_retinanet.py', 'load', *paths)
    assert printed.splitlines().count(' '.join(tiny_data.CLASSES)) == len(names)
    for name in names:
        assert_equal(maps_of(detector), torch.load(tmp_path / f'{name}.maps'))
