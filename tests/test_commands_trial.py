"""Which images a training is tried with, and that the trial leaves no trace."""

from types import SimpleNamespace

import pytest
from torch.utils.data import ConcatDataset

from gkd.commands.trial import first_images, try_training


class Numbers:
    """A data set of numbers, whose pipeline counts what it has made."""

    def __init__(self, length):
        self.length, self.pipeline = length, SimpleNamespace(made=0)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.pipeline.made += 1
        return dict(img=index, gt_bboxes=[], gt_labels=[], img_metas={}, inputs=index,
                    data_samples=[])


@pytest.mark.parametrize('dataset, expected', [
    (Numbers(1), [0]), (Numbers(5), [0, 1]), (ConcatDataset([Numbers(1), Numbers(3)]), [0, 1, 2])])
def test_two_images_of_each_data_set_are_tried_where_there_are_two(dataset, expected):
    assert first_images(dataset) == expected


@pytest.mark.parametrize('batch_size, batches', [(1, [1, 1, 1]), (2, [2, 1]), (8, [3])])
def test_the_pipelines_of_a_training_do_not_see_the_trial(batch_size, batches):
    dataset = ConcatDataset([Numbers(1), Numbers(3)])
    taken = []
    try_training(dataset, 'data.train', lambda samples: taken.append(len(samples)), batch_size)
    assert taken == batches
    assert [part.pipeline.made for part in dataset.datasets] == [0, 0]
