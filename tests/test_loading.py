"""What a pipeline loads besides boxes and the data do not give is named before the first step."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_data
from mmcv import ConfigDict
from mmdet.datasets.pipelines import LoadPanopticAnnotations

from gkd.errors import DataError
from gkd.running.data import build_checked_dataset

BOX = '<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>'


@pytest.fixture
def config(tmp_path):
    """A data set whose pipeline loads boxes alone."""
    return ConfigDict(tiny_data.dataset(tiny_data.write_data(tmp_path),
                                        tiny_data.pipelines()[0]))


def load(config, **settings):
    """Let the pipeline load more."""
    config.pipeline[1].update(settings)


def refuse(config, *says, **settings):
    """Build the data set, which must be refused with all these texts."""
    with pytest.raises(DataError) as caught:
        build_checked_dataset(config, 'data.train', settings)
    for text in says:
        assert text in str(caught.value)


def use_voc(config, folder):
    """Let the data set be one of PASCAL VOC's format."""
    for name in ('JPEGImages', 'Annotations'):
        (folder / name).mkdir()
    (folder / 'train.txt').write_text('1\n')
    (folder / 'JPEGImages/1.jpg').touch()
    (folder / 'Annotations/1.xml').write_text(
        '<annotation><size><width>64</width><height>48</height></size><object><name>red</name>'
        f'{BOX}</object></annotation>')
    config.update(type='XMLDataset', ann_file=str(folder / 'train.txt'), img_prefix=str(folder))


def test_segmentation_maps(config, tmp_path):
    load(config, with_seg=True)
    refuse(config, 'data.train.seg_prefix is not set', 'loads segmentation maps', 'their folder')
    config.seg_prefix = str(tmp_path / 'maps')
    refuse(config, '4 of 4 segmentation maps', 'maps/image_0.png', 'Set `seg_prefix`')
    (tmp_path / 'maps').mkdir()
    for number in range(3):
        (tmp_path / f'maps/image_{number}.png').touch()
    refuse(config, '1 of 4 segmentation maps', 'maps/image_3.png', 'Get them')
    (tmp_path / 'maps/image_3.png').touch()
    assert len(build_checked_dataset(config, 'data.train')) == 4
    config.seg_prefix = 'elsewhere'
    load(config, file_client_args=dict(backend='http'))
    assert len(build_checked_dataset(config, 'data.train')) == 4


@pytest.mark.parametrize('setting, what', [('with_mask', 'masks'),
                                           ('with_seg', 'segmentation maps')])
def test_a_format_that_holds_boxes_alone(config, tmp_path, setting, what):
    use_voc(config, tmp_path)
    assert len(build_checked_dataset(config, 'data.train')) == 1
    load(config, **{setting: True})
    refuse(config, f'data.train: the pipeline loads {what}, but a XMLDataset gives none',
           'CocoDataset')


def test_masks_as_polygons(config):
    def give_masks(entries, mask):
        for entry in content['annotations'][:entries]:
            entry['segmentation'] = mask
        path.write_text(json.dumps(content))

    path = Path(config.ann_file)
    content = json.loads(path.read_text())
    give_masks(8, [[0, 0, 4, 0, 4, 4]])
    give_masks(2, dict(counts=[3, 5], size=[2, 4]))
    load(config, with_mask=True)
    assert len(build_checked_dataset(config, 'data.train')) == 4
    load(config, poly2mask=False)
    refuse(config, 'polygons only, but annotation 1 has a run-length code; so have 1 more',
           'poly2mask=True')
    for entry in content['annotations'][:2]:  # no mask of a crowd is loaded
        entry['iscrowd'] = 1
    give_masks(0, None)
    assert len(build_checked_dataset(config, 'data.train')) == 4


def test_masks_of_annotations_that_are_ignored_are_not_needed(config):
    path = Path(config.ann_file)
    content = json.loads(path.read_text())
    for entry in content['annotations']:
        entry['segmentation'] = [[0, 0, 4, 0, 4, 4]]
    del content['annotations'][0]['segmentation']
    path.write_text(json.dumps(content))
    load(config, with_mask=True)
    refuse(config, 'annotation 1')
    content['annotations'][0]['ignore'] = True
    path.write_text(json.dumps(content))
    assert len(build_checked_dataset(config, 'data.train')) == 4


@pytest.mark.parametrize('test_mode', [False, True])
def test_proposals(config, tmp_path, test_mode):
    config.pipeline.insert(1, dict(type='LoadProposals'))
    refuse(config, 'data.train.proposal_file is not set', 'loads proposals', test_mode=test_mode)
    config.proposal_file = str(tmp_path / 'proposals.pkl')
    refuse(config, 'data.train.proposal_file: no such file', test_mode=test_mode)
    for images, sound in ((4, True), (5, False), (3, False)):
        with open(config.proposal_file, 'wb') as file:
            pickle.dump([np.zeros((1, 5), np.float32)] * images, file)
        if sound:
            assert len(build_checked_dataset(config, 'data.train')) == 4
        else:
            refuse(config, f'proposals of {images} images', 'annotations.json has 4',
                   test_mode=test_mode)


def test_panoptic_segments(config, tmp_path, monkeypatch):
    monkeypatch.setattr('mmdet.datasets.pipelines.loading.rgb2id', abs)  # else it is refused
    config.pipeline[1].type = LoadPanopticAnnotations.__name__
    refuse(config, 'loads panoptic segments, but a CocoDataset gives none', 'CocoPanopticDataset')
