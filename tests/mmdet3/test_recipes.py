"""The check that runs the configs of configs/mmdet3 for one step."""

import importlib.util
import sys

import pytest
from helpers import small_detectors as small
from mmengine.config import Config
from small_experiments import PREPROCESSOR, TOOLS
from test_configs import ROOT

from gkd.commands import run
from gkd.recipes.mmdet3 import check_recipe, recipes, use_synthetic_data

DIGITS = 'configs/mmdet3/digits/gkd_{}_efficientnet-lite0_r18-w8_fpn_digit-scenes.py'
BASE = 'configs/mmdet3/gkd_retinanet_r101_r50_fpn_2x_coco.py'


def small_recipe(path, base=BASE, **settings):
    """A recipe with detectors of the tests, which detect three of COCO's classes."""
    detector = dict(small.retinanet(), data_preprocessor=PREPROCESSOR)
    model = dict(small.distiller(detector, detector), _delete_=True, **settings)
    for role in ('teacher', 'student'):
        model[role]['checkpoint'] = 'checkpoints/none_is_needed.pth'
    data = dict(dataset=dict(metainfo=dict(classes=('person', 'bicycle', 'car'))))
    path.write_text(f"_base_ = '{ROOT}/{base}'\nmodel = {model!r}\ntrain_dataloader = {data!r}\n"
                    f'val_dataloader = {data!r}\ntest_dataloader = {data!r}\n')
    return str(path)


def test_every_config_is_checked():
    found = {path.replace(f'{ROOT}/', '') for path in recipes()}
    assert {BASE, *map(DIGITS.format, ('retinanet', 'faster_rcnn'))} <= found
    assert len(found) == len([path for path in ROOT.glob('configs/mmdet3/**/*.py')
                              if path.parent.name != '_base_'])


def test_a_small_recipe_is_checked_the_whole_way(tmp_path):
    """With data of its own at absolute paths, which stay as they are."""
    recipe, mine = small_recipe(tmp_path / 'small.py'), tmp_path / 'mine'
    mine.mkdir()
    (mine / 'own.json').write_text('mine')
    with open(recipe, 'a') as file:
        for part in ('train', 'val', 'test'):
            file.write(f"{part}_dataloader['dataset'].update(data_root='{mine}/', "
                       f"ann_file='own.json', data_prefix=dict(img='{mine}'))\n")
        file.write(f"val_evaluator = test_evaluator = dict(ann_file='{mine}/own.json')\n")
    report = check_recipe(recipe, str(tmp_path))
    assert [path.name for path in mine.iterdir()] == ['own.json']
    assert (mine / 'own.json').read_text() == 'mine'
    assert report.distillation.keys() == {'loss_global', 'loss_local_fg', 'loss_local_bg',
                                          'loss_soft'}
    assert report.detections > 0 and 'coco/bbox_mAP' in report.metrics
    assert not (tmp_path / 'check_recipes' / 'work').exists()


@pytest.fixture
def check(monkeypatch, capsys):
    """Run the command; returns its exit status and what it printed."""
    spec = importlib.util.spec_from_file_location('check_recipes',
                                                  TOOLS.parent / 'check_recipes.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['check_recipes.py', *map(str, args)])
        status = 0
        try:
            run(tool.main)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()
    return call


def test_recipes_that_do_not_run_are_named(check, tmp_path):
    recipe = small_recipe(tmp_path / 'wrong.py', base='configs/mmdet3/gone.py')
    other = ROOT / 'configs/coco/gkd/gkd_retinanet_r101_r50_fpn_2x_coco.py'
    status, printed, error = check(recipe, other, '--folder', tmp_path)
    assert status == 2 and '0 of 2 recipes run' in printed
    assert 'FAILED  wrong.py: cannot read config' in printed and 'gone.py' in printed
    assert f'FAILED  {other.name}: config {other} is one of MMDetection 2' in printed
    assert f'these do not: wrong.py {other.name}' in error


def test_a_teacher_that_teaches_nothing_is_found(check, tmp_path):
    settings = dict(knowledge=[dict(type='PKD', loss_weight=0.0)])
    recipe = small_recipe(tmp_path / 'nothing.py')
    with open(recipe, 'a') as file:
        file.write(f'model.update({settings!r})\n')
    status, printed, _ = check(recipe, '--folder', tmp_path)
    assert status == 2 and 'FAILED  nothing.py: nothing is taught' in printed


def test_data_of_voc_are_written(tmp_path):
    leaf = dict(type='VOCDataset', data_root='data/VOCdevkit/',
                ann_file='VOC2007/ImageSets/Main/trainval.txt',
                data_prefix=dict(sub_data_root='VOC2007/'),
                pipeline=[dict(type='Resize', scale=(1000, 600), keep_ratio=True)])
    config = Config(dict(train_dataloader=dict(dataset=dict(
        type='RepeatDataset', times=3, dataset=dict(type='ConcatDataset', datasets=[leaf])))))
    use_synthetic_data(config, str(tmp_path))
    entry = config.train_dataloader.dataset
    written = entry.dataset.datasets[0]
    assert (entry.times, written.pipeline[0].scale) == (1, (256, 256))
    folder = tmp_path / 'data/VOCdevkit/VOC2007'
    assert (folder / 'ImageSets/Main/trainval.txt').read_text() == '00\n01\n'
    assert {path.name for path in folder.glob('*/0*')} == {'00.xml', '00.jpg', '01.xml', '01.jpg'}
    assert written.ann_file == str(folder / 'ImageSets/Main/trainval.txt')
    assert written.data_prefix == dict(sub_data_root=str(folder))


@pytest.mark.slow
@pytest.mark.parametrize('family', ['retinanet', 'faster_rcnn'])
def test_a_recipe_runs_at_full_size(check, family, tmp_path):
    status, printed, error = check(ROOT / DIGITS.format(family), '--folder', tmp_path)
    assert status == 0, printed + error
    for term in ('loss_global', 'loss_local_fg', 'loss_local_bg', 'loss_soft'):
        assert f'{term}=' in printed
