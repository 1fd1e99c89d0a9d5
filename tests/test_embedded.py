"""Embedded data sets and weights are made where a config asks for them, and only there."""

import json

import pytest

from gkd.backbones import efficientnet_lite
from gkd.datasets import embedded
from gkd.errors import DataError
from gkd.running.data import build_checked_dataset

DATA = dict(type='CocoDataset', img_prefix='', pipeline=[], classes=('digit',))


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Names of the data sets that were made, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    made = []

    def prepare():
        made.append('digits')
        folder = tmp_path / 'data/digit_scenes'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'train.json').write_text(json.dumps(dict(
            images=[], annotations=[], categories=[dict(id=1, name='digit')])))

    monkeypatch.setattr(embedded, 'EMBEDDED', {'data/digit_scenes/': prepare})
    return made


def test_a_config_that_names_an_embedded_data_set_gets_it(made):
    with pytest.raises(DataError, match='digit_scenes/train.json .*"images" is empty'):
        build_checked_dataset(dict(DATA, ann_file='data/digit_scenes/train.json'), 'data')
    assert made == ['digits']


def test_other_data_sets_are_left_to_the_user(made):
    with pytest.raises(DataError, match='no such file: data/mine.json'):
        build_checked_dataset(dict(DATA, ann_file='data/mine.json'), 'data')
    assert not made


def test_imagenet_weights_are_fetched_where_the_config_names_the_projects_own(monkeypatch):
    fetched = []

    def prepare(path):
        fetched.append(path)
        raise DataError('fetched')

    monkeypatch.setattr(efficientnet_lite, 'prepare_efficientnet_lite0', prepare)
    own = dict(type='Pretrained', checkpoint='checkpoints/efficientnet_lite0.safetensors')
    with pytest.raises(DataError, match='fetched'):
        efficientnet_lite.EfficientNetLite0(init_cfg=own).init_weights()
    assert fetched == [own['checkpoint']]
