"""Cityscapes' data set: read as COCO's, measured and written in two ways."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from helpers.refusals import append, edit, refuse, refuse_training, train
from helpers.running import succeed

from gkd.errors import ConfigError
from gkd.running import cityscapes

PACKAGE = 'cityscapesscripts'


@pytest.fixture
def folder(folder):
    """The working directory: a pair that trains on data in Cityscapes' form."""
    def complete(content):
        for image in content['images']:
            image['segm_file'] = 'map.png'
        for entry in content['annotations']:
            x, y, width, height = entry['bbox']
            entry['segmentation'] = [[x, y, x + width, y, x + width, y + height]]
    edit(folder / 'annotations.json', complete)
    append('distiller.py', 'for part in ("train", "val", "test"):\n'
                           '    data[part]["type"] = "CityscapesDataset"')
    return folder


def install(monkeypatch, *names):
    """Let modules be importable, with nothing in them."""
    for name in names:
        parts = name.split('.')
        for number in range(len(parts)):
            module = '.'.join(parts[:number + 1])
            monkeypatch.setitem(sys.modules, module, ModuleType(module))


def test_a_run_is_reported_and_its_results_are_written_as_coco(folder):
    train('--epochs', '1')
    assert not (folder / 'work' / 'detections.bbox.json').exists()
    succeed('report', 'work')
    found = json.loads((folder / 'work' / 'detections.bbox.json').read_text())
    assert {'image_id', 'bbox', 'score', 'category_id'} <= found[0].keys()
    assert 'not a single COCO file' not in (folder / 'work' / 'report.html').read_text()
    succeed('test', 'distiller.py', 'work/latest.pth', '--format-only', '--eval-options',
            'jsonfile_prefix=mine')
    assert json.loads((folder / 'mine.bbox.json').read_text()) == found
    refuse(folder, 'test', 'distiller.py', 'work/latest.pth', '--format-only',
           says=['--format-only: Cityscapes\' own results are masks, and RetinaNet detects none',
                 '--eval-options jsonfile_prefix=PREFIX'])


def test_the_own_metric_is_refused_before_the_first_step(folder):
    refuse_training(folder, '--cfg-options', 'evaluation.metric=cityscapes',
                    says=['evaluation.metric cityscapes: ', 'RetinaNet detects none'])
    refuse_training(folder, '--cfg-options', 'evaluation.metric=mAP',
                    says=['is measured by bbox, proposal, cityscapes'])


def test_what_the_own_metric_needs(tmp_path, monkeypatch):
    masks = SimpleNamespace(with_mask=True)
    data = SimpleNamespace(img_prefix=str(tmp_path / 'leftImg8bit' / 'val'))
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(ConfigError, match=f'^here: .*pip install {PACKAGE}'):
        cityscapes.check_measured(masks, data, 'here')
    install(monkeypatch, cityscapes.LABELS, cityscapes.METRIC)
    monkeypatch.delattr(np, 'in1d', raising=False)
    with pytest.raises(ConfigError, match='pip install "numpy<2.4"'):
        cityscapes.check_measured(masks, data, 'here')
    monkeypatch.setattr(np, 'in1d', np.isin, raising=False)
    with pytest.raises(ConfigError, match='gtFine beside leftImg8bit'):
        cityscapes.check_measured(masks, data, 'here')
    city = tmp_path / 'gtFine' / 'val' / 'aachen'
    city.mkdir(parents=True)
    (city / 'aachen_0_gtFine_instanceIds.png').touch()
    cityscapes.check_measured(masks, data, 'here')
