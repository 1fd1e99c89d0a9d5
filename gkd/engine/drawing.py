"""Detections drawn into a folder, each picture in the subfolder of its image."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from typing import Any, Callable

from mmdet.engine.hooks import DetVisualizationHook
from mmengine.registry import HOOKS

from gkd.datasets.images import PictureFiles
from gkd.watching import watched


@HOOKS.register_module()
class DrawingHook(DetVisualizationHook):
    """MMDetection's hook, which writes all pictures of a test into one folder.

    There images of one name in several folders would replace each other. Of a name that no format
    is written by, nothing could be written.

    Args:
        folder: Where pictures go.
    """

    def __init__(self, folder: str):
        super().__init__(draw=True)
        self.folder = osp.abspath(folder)
        self.files = PictureFiles(self.folder)

    def after_test_iter(self, runner, batch_idx: int, data_batch: Any,
                        outputs: Sequence) -> None:
        """Draw the images of a batch."""
        prefix = getattr(runner.test_dataloader.dataset, 'data_prefix', None) or {}
        for sample in outputs:
            inside = folder_inside(sample.img_path, prefix.get('img', prefix.get('img_path')))
            self.test_out_dir = osp.join(self.folder, inside)
            if 'pred_instances' in sample:
                # CrowdDet numbers classes by real numbers, which the visualizer cannot draw.
                sample.pred_instances.labels = sample.pred_instances.labels.long()
            with watched(self._visualizer, 'add_datasample', self.write):
                super().after_test_iter(runner, batch_idx, data_batch, [sample])

    def write(self, method: Callable, *args: Any, out_file: str, **settings: Any) -> None:
        """Stands for the visualizer's method that draws an image into a file."""
        method(*args, out_file=self.files(out_file), **settings)


def folder_inside(path: str, root: Any) -> str:
    """The folder of a file inside another folder; empty if it is not in there.

    Example:
        >>> folder_inside('data/images/a/b/1.jpg', 'data/images/'), folder_inside('1.jpg', 'data')
        ('a/b', '')
    """
    if not isinstance(root, str):
        return ''
    inside = osp.relpath(osp.dirname(path) or '.', root or '.')
    return '' if inside == '.' or inside.startswith('..') else inside
