"""The quickstart: from nothing to a distilled detector and a table."""

from __future__ import annotations

import argparse

from gkd.installed import mmdet_major

FAMILIES = dict(retinanet='RetinaNet', faster_rcnn='FasterRCNN')  # with their types
# Below configs/ and work_dirs/, where MMDetection 3 has folders of its own.
FOLDER = {2: '', 3: 'mmdet3/'}[mmdet_major()]
CONFIGS = {
    'digit-scenes': f'configs/{FOLDER}digits/'
                    'gkd_{}_efficientnet-lite0_r18-w8_fpn_digit-scenes.py',
    'tree-crowns': f'configs/{FOLDER}quickstart/'
                   'gkd_{}_efficientnet-lite0_r18-w8_fpn_tree-crowns.py'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the quickstart's own command-line options."""
    group = parser.add_argument_group('quickstart only')
    group.add_argument('--data', choices=CONFIGS, default='digit-scenes',
                       help='handwritten digits on photographs, or trees on aerial photographs')
    group.add_argument('--family', choices=FAMILIES, default='retinanet',
                       help='detector of teacher and student')
    group.add_argument('--seeds', type=int, nargs='+', default=[0],
                       help='train both students once with each seed')
    group.add_argument('--teacher-seed', type=int, default=0, help='train the teacher with it')
