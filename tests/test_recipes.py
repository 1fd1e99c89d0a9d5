"""The recipes of configs/coco and configs/voc, and the check that runs them."""

import logging
import math
from pathlib import Path

import pytest
from helpers import small_detectors as small
from helpers.running import REPOSITORY, run_tool
from mmcv import Config
from mmdet.datasets import build_dataset

from gkd.checkpoints import find_recipe
from gkd.compat.checkpoint import load_checkpoint_file
from gkd.detectors.config_files import find_file
from gkd.detectors.source import DetectorSource, sources_of
from gkd.errors import ConfigError
from gkd.recipes import RecipeError, check_losses, random_checkpoint
from gkd.recipes.mmdet2 import check_recipe, recipes, use_synthetic_data
from gkd.registry import KNOWLEDGE
from gkd.running import load_config
from gkd.zoo import of_recipes
from studies import coverage, small_models

NAMES = [Path(path).stem for path in recipes()]
ABLATIONS = {'no-global': 'knowledge', 'no-local': 'knowledge', 'no-soft': 'knowledge',
             'no-robust': 'knowledge', 'k1': 'num_prototypes', 'k5': 'num_prototypes',
             'k20': 'num_prototypes', 'alpha0': 'alpha', 'alpha1': 'alpha', 'alpha100': 'alpha',
             'interval2': 'interval', 'interval4': 'interval', 'interval24': 'interval'}


def path_of(name):
    return str(REPOSITORY / find_recipe(name))


def test_every_method_has_recipes_for_both_families():
    methods = {name.lower() for name, kind in KNOWLEDGE.module_dict.items()
               if kind.__module__.startswith('gkd.')} - {'robustdistillingmodule'}
    for method in (*methods, 'gkd'):
        for family in ('faster_rcnn', 'retinanet'):
            assert f'{method}_{family}_r101_r50_fpn_2x_coco' in NAMES


@pytest.mark.parametrize('name', NAMES)
def test_a_recipe_names_what_there_is(name):
    config = load_config(path_of(name))
    images = 64 if 'yolox' in name else 16  # that the learning rate is for
    assert config.auto_scale_lr.enable and config.auto_scale_lr.base_batch_size == images
    sources = sources_of(config.model)
    assert len(sources) == 2 * (config.model.type == 'Distiller')
    for source in sources:
        assert find_file(source.config)
        if source.checkpoint is None:  # starts as its own config says
            assert source.key == 'model.student'
            continue
        checkpoint = Path(source.checkpoint)
        if checkpoint.name in of_recipes():
            assert checkpoint.parent.name == 'checkpoints'
            assert of_recipes()[checkpoint.name].config == source.config
        else:
            # What is not published can be trained, with the very config it is loaded into.
            assert checkpoint.parts[0] == 'work_dirs' and checkpoint.name == 'latest.pth'
            assert find_recipe(checkpoint.parent.name) == source.config


@pytest.mark.parametrize('family', ['faster_rcnn', 'retinanet'])
def test_an_ablation_changes_one_setting(family):
    full = load_config(path_of(f'gkd_{family}_r101_r50_fpn_2x_coco'))
    for name, setting in ABLATIONS.items():
        ablation = load_config(path_of(f'gkd_{family}_r101_r50_fpn_{name}_2x_coco'))
        place = ablation.model if setting == 'knowledge' else ablation.model.prototypes
        original = full.model if setting == 'knowledge' else full.model.prototypes
        assert place[setting] != original[setting]
        number = ''.join(filter(str.isdigit, name))
        if number:
            assert place[setting] == int(number)
        place[setting] = original[setting]
        assert ablation._cfg_dict == full._cfg_dict


def test_faster_rcnn_on_coco_has_the_published_settings():
    config = load_config(path_of('gkd_faster_rcnn_r101_r50_fpn_2x_coco'))
    assert config.optimizer.lr == 0.02 and config.runner.max_epochs == 24
    assert config.lr_config.step == [16, 22] and config.lr_config.warmup_iters == 500
    assert config.model.knowledge[0].global_knowledge.loss_weight == 5


@pytest.mark.parametrize('distilled, plain', [
    ('gkd_faster_rcnn_r101_r50_fpn_2x_coco', 'faster_rcnn_r50_fpn_2x_coco'),
    ('gkd_retinanet_r101_r50_fpn_2x_coco', 'retinanet_r50_fpn_2x_coco'),
    ('gkd_faster_rcnn_r101_r50_fpn_1x_voc0712', 'faster_rcnn_r50_fpn_1x_voc0712'),
    ('gkd_retinanet_r101_r50_fpn_1x_voc0712', 'retinanet_r50_fpn_1x_voc0712')])
def test_the_distilled_student_trains_as_the_plain_one(distilled, plain):
    distilled, plain = load_config(path_of(distilled)), load_config(path_of(plain))
    for key in ('optimizer', 'lr_config', 'runner'):
        assert distilled[key] == plain[key], key


@pytest.mark.parametrize('family', ['faster_rcnn', 'retinanet'])
def test_voc_makes_one_pass_an_epoch(family):
    """12 epochs of one pass are MMDetection's 4 of three."""
    config = load_config(path_of(f'gkd_{family}_r101_r50_fpn_1x_voc0712'))
    shipped = load_config(f'mmdet::pascal_voc/{family}_r50_fpn_1x_voc0712.py')
    assert config.data.train.times == 1
    assert config.runner.max_epochs == shipped.runner.max_epochs * shipped.data.train.times
    assert config.lr_config.step == [
        step * shipped.data.train.times for step in shipped.lr_config.step]
    assert config.lr_config.warmup_iters == 500


def test_a_config_that_has_moved_is_found_and_named(tmp_path, caplog):
    name = 'fgd_retinanet_r101_r50_fpn_2x_coco.py'
    with caplog.at_level('WARNING', 'mmdet'):
        logging.getLogger('mmdet').addHandler(caplog.handler)
        config = load_config(f'configs/coco/{name}')
        logging.getLogger('mmdet').removeHandler(caplog.handler)
    assert config.filename.endswith(f'configs/coco/methods/{name}')
    assert f'configs/coco/{name} has moved; reading' in caplog.text
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = '{REPOSITORY}/configs/coco/{name}'\n")
    with pytest.raises(ConfigError, match=f'has moved: write .*coco/methods/{name} in `_base_`'):
        load_config(str(mine))
    # Which of two is meant is not known.
    for folder in ('one', 'two'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'twice.py').touch()
    assert find_file(str(tmp_path / 'twice.py')) is None


def test_a_small_recipe_is_checked_the_whole_way(tmp_path):
    """With data of its own at absolute paths, which stay as they are."""
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'own.json').write_text('mine')
    detector = small.retinanet()
    distiller = dict(small.distiller(detector, detector), _delete_=True)
    for role in ('teacher', 'student'):
        distiller[role]['checkpoint'] = 'checkpoints/none_is_needed.pth'
    recipe = tmp_path / 'small.py'
    recipe.write_text(f"_base_ = '{REPOSITORY}/configs/coco/gkd/"
                      f"gkd_retinanet_r101_r50_fpn_2x_coco.py'\nmodel = {distiller!r}\n"
                      f"own = dict(classes=('person', 'bicycle', 'car'), "
                      f"ann_file='{mine}/own.json', img_prefix='{mine}')\n"
                      f"data = dict(train=own, val=own, test=own)\n")
    report = check_recipe(str(recipe), str(tmp_path))
    assert report.distillation.keys() == {'loss_global', 'loss_local_fg', 'loss_local_bg',
                                          'loss_soft'}
    assert report.detections > 0 and 'bbox_mAP' in report.metrics
    assert [path.name for path in mine.iterdir()] == ['own.json']
    assert (mine / 'own.json').read_text() == 'mine'


@pytest.mark.parametrize('kind', ['CocoDataset', 'VOCDataset'])
def test_every_synthetic_box_is_of_a_class_of_the_config(tmp_path, kind):
    leaf = dict(type=kind, ann_file='VOC2007/a', img_prefix='VOC2007', pipeline=[],
                classes=['ball', 'block'])
    data = dict(train=leaf, val=leaf, test=leaf)
    config = Config(dict(data=dict(data, **{f'{part}_dataloader': {} for part in data})))
    use_synthetic_data(config, str(tmp_path))
    labels = build_dataset(config.data.train).get_ann_info(0)['labels'].tolist()
    assert labels == [0, 1, 0, 1]


@pytest.mark.parametrize('root', [None, '{0}', '../mine'])
@pytest.mark.parametrize('several', [False, True])
def test_the_users_own_data_are_not_touched(tmp_path, monkeypatch, root, several):
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'train.json').write_text('mine')
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    file = 'train.json' if root else str(mine / 'train.json')
    leaf = dict(type='CocoDataset', ann_file=[file] if several else file, pipeline=[],
                img_prefix='images' if root else str(mine / 'images'))
    if root:
        leaf['data_root'] = root.format(mine)
    data = dict(train=leaf, val=leaf, test=leaf)
    config = Config(dict(data=dict(data, **{f'{part}_dataloader': {} for part in data})))
    use_synthetic_data(config, 'new')
    assert [path.name for path in mine.rglob('*')] == ['train.json']
    assert (mine / 'train.json').read_text() == 'mine'
    written = build_dataset(config.data.train)
    assert len(written) == 2
    assert len(list((tmp_path / 'here' / 'new').rglob('*.jpg'))) == 2


# Student, and whether it is taught by soft labels.
PAIRS = [('gkd_mask_rcnn_swin-t_faster_rcnn_r18_fpn_1x_coco', True),
         ('gkd_cascade_rcnn_r101_retinanet_r18_fpn_1x_coco', False),
         ('gkd_cascade_rcnn_r101_faster_rcnn_r18_fpn_1x_coco', True),
         ('gkd_gfl_r101_r18_fpn_1x_coco', True),
         ('gkd_tood_r101_gfl_r18_fpn_1x_coco', True),
         ('gkd_vfnet_r101_atss_r18_fpn_1x_coco', True),
         ('gkd_paa_r101_atss_r50_fpn_1x_coco', True),
         ('gkd_reppoints_r101_r50_fpn_gn-neck+head_2x_coco', True),
         ('gkd_yolox_l_tiny_8x8_300e_coco', True),
         ('gkd_deformable_detr_r50_retinanet_r18_fpn_1x_coco', False),
         ('gkd_htc_x101_64x4d_mask_rcnn_r18_fpn_1x_coco', True)]


@pytest.mark.parametrize('name, soft', PAIRS)
def test_a_pair_of_two_kinds_takes_a_small_step(name, soft, short_backbones):
    config = load_config(path_of(name)).model
    for role in ('teacher', 'student'):
        source = DetectorSource.parse(config[role], f'model.{role}')
        config[role] = dict(config=small_models.made_small(source.model_config()), checkpoint=None)
    plain = coverage.build(config['student']['config'])
    model = coverage.build(config)
    batch = coverage.batch_of(model)
    own, losses = (coverage.step(detector, batch) for detector in (plain, model))
    taught = {'loss_global', 'loss_local_fg', 'loss_local_bg'} | ({'loss_soft'} if soft else set())
    assert taught <= losses.keys() and ('loss_soft' in losses) == soft
    assert all(losses[term].isfinite() for term in taught)
    model._parse_losses(losses)[0].backward()
    unreached = [name for name, parameter in model.knowledge.named_parameters()
                 if parameter.grad is None]
    assert not unreached
    assert all(coverage.equal(losses[term], value) for term, value in own.items())


# The whole way at full size; `python tools/check_recipes.py` takes every recipe.
@pytest.mark.slow
@pytest.mark.parametrize('name', ['gkd_retinanet_r101_mobilenetv2_fpn_2x_coco',
                                  'gkd_faster_rcnn_r101_r50_fpn_1x_voc0712'])
def test_a_recipe_runs_at_full_size(name, tmp_path):
    status, stdout, stderr = run_tool('check_recipes', path_of(name), '--folder', tmp_path)
    assert status == 0, stdout + stderr
    for term in ('loss_global', 'loss_local_fg', 'loss_local_bg', 'loss_soft'):
        assert f'{term}=' in stdout


def test_a_recipe_that_does_not_run_is_named(tmp_path):
    wrong = tmp_path / 'wrong.py'
    wrong.write_text(f"_base_ = '{path_of('gkd_retinanet_r101_r50_fpn_2x_coco')}'\n"
                     "model = dict(teacher=dict(config='mmdet::no/such.py'))\n")
    status, stdout, stderr = run_tool('check_recipes', wrong, '--folder', tmp_path)
    assert status == 2
    assert 'FAILED  wrong.py: model.teacher.config: no such file' in stdout
    assert '0 of 1 recipes run' in stdout and 'wrong.py' in stderr


def test_a_teacher_that_teaches_nothing_is_found():
    model = dict(knowledge=[dict(type='FGD')])
    for losses, message in ((dict(loss_cls=1.0, loss=1.0), 'nothing is taught'),
                            (dict(loss_cls=1.0, loss_fgd=0.0), 'nothing is taught'),
                            (dict(loss_cls=math.nan, loss_fgd=1.0), 'no finite .*: loss_cls')):
        with pytest.raises(RecipeError, match=message):
            check_losses(losses, model)


def test_random_weights_have_the_format_of_the_model_zoo(tmp_path):
    name = 'retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth'
    source = DetectorSource('mmdet::retinanet/retinanet_r50_fpn_2x_coco.py',
                            f'checkpoints/{name}', 'model.student', {})
    path = random_checkpoint(source, str(tmp_path))
    loaded = load_checkpoint_file(path)
    assert set(loaded) == {'meta', 'state_dict'}
    with open(path, 'rb') as file:
        assert file.read(2) != b'PK'  # a zip file, which torch writes since 1.6
