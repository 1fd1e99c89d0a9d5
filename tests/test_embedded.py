"""Embedded data sets and weights are made where a config asks for them, and only there."""

import json
import multiprocessing
import time

import pytest

from gkd.backbones import efficientnet_lite
from gkd.datasets import embedded
from gkd.datasets.once import build_once
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


def build_slowly(folder):
    """Build a data set, so slowly that others come meanwhile."""
    with open('builds', 'a') as file:
        file.write('.')
    (folder / 'train.json').write_text('{}')
    time.sleep(0.5)


def test_of_several_processes_one_builds(tmp_path, monkeypatch):
    """The second would remove what the first has begun to read; none is in a group yet."""
    monkeypatch.chdir(tmp_path)
    build = dict(root='data/set', recipe=dict(data_set='set'), build=build_slowly)
    processes = [multiprocessing.get_context('fork').Process(target=build_once, kwargs=build)
                 for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / 'builds').read_text() == '.'
    assert (tmp_path / 'data' / 'set' / 'train.json').exists()


def test_another_recipe_replaces_the_data_set_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        build_once('set', dict(data_set='set', number=number),
                   lambda folder, number=number: (folder / f'{number}').touch())
    assert sorted(path.name for path in (tmp_path / 'set').iterdir()) == ['1', 'recipe.json']
    with pytest.raises(DataError, match='neither empty nor a other data'):
        build_once('set', dict(data_set='other'), build_slowly)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.set.lock', 'set']


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
