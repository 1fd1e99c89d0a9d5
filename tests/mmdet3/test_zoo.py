"""The model zoo's checkpoints by the configs of MMDetection 3."""

import os
from pathlib import Path

import pytest

from gkd.detectors.config_files import find_file
from gkd.detectors.source import sources_of
from gkd.engine.config import load_config
from gkd.repository import REPOSITORY
from gkd.zoo import find, of_configs, of_mmdet


def test_every_checkpoint_of_the_model_zoo_is_known_by_its_config():
    (found,) = of_configs('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    assert found.name == 'rtmdet_tiny_8xb32-300e_coco_20220902_112414-78e30dcc.pth'
    assert found.box_ap == 40.9 and find(found.name) == found
    assert len(of_mmdet()) > 550
    for checkpoint in of_mmdet().values():
        assert find_file(checkpoint.config)
    # In a folder whose name the lists write with escapes.
    (found,) = of_configs('mmdet::gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py')
    assert found.box_ap == 39.7


RECIPES = sorted(Path(REPOSITORY, 'configs/mmdet3').glob('*.py'))


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda path: path.stem)
def test_what_recipes_start_from_can_be_downloaded(recipe):
    teacher, student = sources_of(load_config(str(recipe)).model)
    for source in (teacher, student) if student.checkpoint else (teacher, ):
        found = find(os.path.basename(source.checkpoint))
        # By the config's name in this MMDetection, whatever it was in the other.
        assert found.config == source.config
