"""Detectors whose parts count other classes; each MMDetection names their configs its own way."""

import pytest

from gkd.errors import ConfigError
from gkd.frameworks import build_detector
from gkd.matching import check_heads_agree
from studies import small_models


def assert_segmenter_is_named(name):
    """The first would number classes wrongly, the second ends the first step in torch's error."""
    config = small_models.small_config(name)
    config.panoptic_head.num_things_classes = 3
    with pytest.raises(ConfigError, match='Mask2Former: panoptic_fusion_head.num_things_classes '
                                          '= 80, and its head detects 3 classes; set '):
        check_heads_agree(build_detector(config))
    config.panoptic_fusion_head.num_things_classes = 3
    with pytest.raises(ConfigError, match='panoptic_head.loss_cls.class_weight has 81 weights, '
                                          'and its head scores 3 classes and the background: '
                                          'give it 4'):
        check_heads_agree(build_detector(config))
    config.panoptic_head.loss_cls.class_weight = [1.0] * 3 + [0.1]
    check_heads_agree(build_detector(config))


def assert_stage_is_named(name):
    config = small_models.small_config(name)
    config.roi_head.bbox_head[0].num_classes = config.roi_head.bbox_head[1].num_classes = 3
    with pytest.raises(ConfigError, match=r'roi_head.bbox_head.2.num_classes = 80, .* 3 classes'):
        check_heads_agree(build_detector(config))
    config.roi_head.bbox_head[2].num_classes = 3
    check_heads_agree(build_detector(config))
