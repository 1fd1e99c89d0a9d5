"""Whether Open Images' own metric finds the files that it reads besides annotations."""

from __future__ import annotations

import os.path as osp

from mmdet.datasets import OpenImagesDataset

from gkd.errors import DataError


def check_measured(dataset: OpenImagesDataset, key: str) -> None:
    """Raise DataError if a file is missing that would be read after the first epoch.

    The metric is not tried on two images, since these files are about all.

    Args:
        dataset: The data set that would be evaluated.
        key: Where the metric was asked for, for messages.
    """
    wanted = []
    if dataset.load_image_level_labels:
        wanted.append(('image_level_ann_file', 'load_image_level_labels=False measures without '
                                               'the labels of whole images'))
    if dataset.get_metas and dataset.load_from_file:
        wanted.append(('meta_file', 'load_from_file=False takes the sizes of images from the '
                                    'pipeline'))
    for name, otherwise in wanted:
        path = getattr(dataset, name)
        if not osp.isfile(path):
            raise DataError(f'{key}: the metric reads {name} of the data set, and there is no '
                            f'such file: {path!r}. Name it; {otherwise}.')
