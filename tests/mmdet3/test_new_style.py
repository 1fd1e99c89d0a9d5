"""Configs of MMEngine's new style, which hold classes instead of their names."""

import pytest
from helpers import small_detectors as small
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import DefaultScope
from small_experiments import detector, experiment

from gkd.comparison.mmdet3 import coco_evaluator
from gkd.detectors.config_files import read_config, with_registered_names
from gkd.distiller import Distiller
from gkd.engine.config import detector_config, load_config
from gkd.engine.data import build_part
from gkd.errors import ConfigError, DataError
from gkd.frameworks import build_detector
from gkd.knowledge.methods.pkd import PKD
from gkd.prototypes import PrototypeGenerationModule
from gkd.prototypes.generation import build_generation
from gkd.report.summary import detector as describe

NEW = """\
from mmengine.config import read_base
with read_base():
    from .base import *
from gkd.distiller import Distiller
from gkd.engine import ResumableCheckpointHook
from gkd.knowledge.methods.pkd import PKD
model = dict(type=Distiller, teacher=dict(config='teacher.py', checkpoint='teacher.pth'),
             student=dict(config={student!r}), knowledge=[dict(type=PKD)])
train_dataloader = dict(dataset=dict(type=CocoDataset))
default_hooks = dict(checkpoint=dict(type=ResumableCheckpointHook))
"""
BASE = 'from mmdet.datasets import CocoDataset\nfrom mmdet.models import RetinaNet\n'


@pytest.fixture
def config(tmp_path):
    """Path of a distillation config in the new style."""
    (tmp_path / 'base.py').write_text(f'from mmengine.config import read_base\n{BASE}')
    path = tmp_path / 'new.py'
    path.write_text(NEW.format(student=detector('one_stage')))
    return str(path)


def test_own_classes_stand_by_their_names(config, tmp_path):
    read = load_config(config)
    read.dump(tmp_path / 'dumped.py')
    for each in (read, read_config(str(tmp_path / 'dumped.py')),
                 with_registered_names(Config.fromstring(read.pretty_text, '.py'))):
        assert (each.model.type, each.model.knowledge[0].type) == ('Distiller', 'PKD')
        assert each.default_hooks.checkpoint.type == 'ResumableCheckpointHook'
        assert each.custom_imports.imports == ['gkd']
    assert read.default_scope == 'mmdet'  # else `Distiller` would be looked for in MMEngine alone
    assert detector_config(read).type == 'RetinaNet'
    assert read.train_dataloader.dataset.type is CocoDataset


def test_configs_that_hold_none_stay_as_they_are():
    whole = dict(model=dict(type='RetinaNet'), default_scope='mmdet')
    assert with_registered_names(Config(whole)).to_dict() == Config(whole).to_dict()


def test_classes_are_built():
    """MMDetection's own commands hand them over as they are."""
    model = small.distiller(detector('one_stage', 24), detector('one_stage'),
                            knowledge=[dict(type=PKD)])
    built = build_detector(dict(model, type=Distiller))
    assert type(built.knowledge[0]) is PKD
    generation = build_generation(dict(type=PrototypeGenerationModule))
    assert type(generation) is PrototypeGenerationModule
    with pytest.raises(ConfigError, match="type 'Unknown' is unknown"):
        build_detector(dict(model, knowledge=[dict(type='Unknown')]))


def test_data_of_classes_are_checked(annotations, tmp_path):
    config = experiment(annotations, tmp_path / 'work')
    entry = config.train_dataloader.dataset
    entry.type = CocoDataset
    assert len(build_part(config, 'train').dataset) == 6
    entry.ann_file = 'gone.json'
    with DefaultScope.overwrite_default_scope('mmdet'), \
            pytest.raises(DataError, match='train_dataloader.dataset.ann_file: no such file'):
        build_part(config, 'train')


def test_a_class_is_described_by_its_name():
    model = dict(type='mmdet.models.RetinaNet', backbone=dict(type=CocoDataset, depth=18))
    assert describe(model) == 'RetinaNet on CocoDataset-18'


def test_a_config_of_the_old_style_may_import_modules_of_python(tmp_path):
    (tmp_path / 'base.py').write_text('import os.path as osp\nfolder = osp.join("data", "x")\n')
    (tmp_path / 'own.py').write_text('_base_ = ["base.py"]\n')
    assert read_config(str(tmp_path / 'base.py')).folder == 'data/x'
    assert read_config(str(tmp_path / 'own.py')).folder == 'data/x'


def test_other_imports_are_explained(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text('import numpy as np\nlr = float(np.sqrt(4))\n')
    (tmp_path / 'child.py').write_text('_base_ = ["own.py"]\n')
    for file in (path, tmp_path / 'child.py'):
        with pytest.raises(ConfigError, match='_base_ = .. *` above the import'):
            read_config(str(file))
    path.write_text(f'_base_ = []\n{path.read_text()}')
    assert read_config(str(path)).lr == 2


def test_a_comparison_finds_the_metric_of_coco():
    metric = dict(type=CocoMetric, ann_file='a.json')
    for evaluators in (metric, [dict(type='DumpResults'), metric],
                       dict(metric, type='mmdet.CocoMetric')):
        assert coco_evaluator(Config(dict(val_evaluator=evaluators))).ann_file == 'a.json'
    assert coco_evaluator(Config(dict(val_evaluator=dict(type='VOCMetric')))) is None
