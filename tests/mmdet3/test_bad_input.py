"""What a user can get wrong about data: named by file, key and value before the first step."""

import copy
import json
import pickle
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import small_detectors as small
from helpers.other_training import other_training
from helpers.small_detectors import FAMILIES
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from small_experiments import CLASSES, IMAGES, PREPROCESSOR, TOOLS, detector, experiment

from gkd import matching
from gkd.commands import run
from gkd.compat import images
from gkd.datasets import checks, coco_json
from gkd.detectors import replacement
from gkd.engine.config import load_config
from gkd.engine.data import (
    build_checked_dataset,
    build_part,
    check_ground_truth,
    check_test_data,
)
from gkd.engine.runner import Runner
from gkd.errors import CheckpointError, ConfigError, DataError, RunError
from gkd.frameworks import build_detector
from gkd.planning.cost import noise
from gkd.watching import watched


@pytest.fixture
def data(annotations, tmp_path):
    """A copy of the annotations that may be broken."""
    shutil.copytree(annotations.parent, tmp_path / 'data')
    return tmp_path / 'data' / annotations.name


@pytest.fixture
def config(data, tmp_path):
    """A config that trains, until the test breaks it."""
    whole = experiment(data, tmp_path / 'work')
    whole.test_dataloader, whole.test_evaluator = copy.deepcopy(
        (whole.val_dataloader, whole.val_evaluator))
    whole.test_cfg = dict(type='TestLoop')
    return whole


def edit(path, change, output=None):
    """Change the content of a JSON file, or write it changed to another."""
    content = json.loads(path.read_text())
    change(content)
    (output or path).write_text(json.dumps(content))


def refuse(config, *says, part='train', error=DataError):
    """Build a part of the data, which must be refused with these texts."""
    with pytest.raises(error) as caught:
        build_part(config, part)
    for text in says:
        assert text in str(caught.value)


def refuse_training(config, *says, error=ConfigError):
    """Make the runner of a training, which must be refused before its first step."""
    with pytest.raises(error) as caught:
        Runner.with_checked_data(config, 'train', 'val')
    for text in says:
        assert text in str(caught.value)


def dataset_of(config, part='train'):
    return config[f'{part}_dataloader'].dataset


@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_files_that_are_not_there(config, data, part):
    key = f'{part}_dataloader.dataset'
    whole = copy.deepcopy(config)
    dataset_of(config, part).ann_file = 'gone.json'
    refuse(config, f'{key}.ann_file: no such file: gone.json', part=part)
    dataset_of(config, part).update(data_root='gone/', ann_file='a.json')
    refuse(config, f'{key}.data_root: no such folder: gone/', part=part)
    dataset_of(config, part).data_root = f'{data.parent}/'
    refuse(config, f'{key}.ann_file: no such file: {data.parent}/a.json, of `data_root` = '
                   f"'{data.parent}/' and `ann_file` = 'a.json'", part=part)
    del dataset_of(config, part)['ann_file']
    refuse(config, f'{key} has no `ann_file`', part=part)
    dataset_of(whole, part).data_prefix.img = 'gone/'
    refuse(whole, f'{key}.data_prefix.img: no such folder: gone/', part=part)


def test_image_missing(config, data):
    (data.parent / '2.png').unlink()
    refuse(config, 'train_dataloader.dataset: 1 of 6 images', '2.png', 'or remove them')
    prefix = dict(dataset_of(config).data_prefix)
    dataset_of(config).data_prefix = dict(img='.')
    refuse(config, 'train_dataloader.dataset: 6 of 6 images', 'Set `data_prefix.img`')
    dataset_of(config).data_prefix = prefix
    # Only files on a disk are looked for, and those that the pipeline reads from files.
    dataset_of(config).pipeline[0].backend_args = dict(backend='http')
    assert len(build_part(config, 'train').dataset) == IMAGES


def test_what_is_inside_of_wrappers_has_its_own_key(config):
    plain = dataset_of(config)
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(
        type='ConcatDataset', datasets=[plain, copy.deepcopy(plain)]))
    assert len(build_part(config, 'train').dataset) == 4 * IMAGES
    config.train_dataloader.dataset.dataset.datasets[1].ann_file = 'gone.json'
    refuse(config, 'train_dataloader.dataset.dataset.datasets.1.ann_file: no such file')
    config.train_dataloader.dataset.dataset.datasets.pop()
    config.train_dataloader.dataset.speed = 3
    refuse(config, 'train_dataloader.dataset.speed: RepeatDataset has no such setting',
           error=ConfigError)
    del config.train_dataloader.dataset['speed']
    config.train_dataloader.dataset.dataset.ann_file = 'another.json'
    refuse(config, 'train_dataloader.dataset.dataset.ann_file: ConcatDataset has no such setting',
           error=ConfigError)


def test_data_sets_that_number_classes_differently(config, data):
    """Left to MMDetection, a label would stand for another class in each."""
    other = copy.deepcopy(dataset_of(config))
    other.metainfo.classes = CLASSES[1:]
    # It would take the classes of the first.
    config.train_dataloader.dataset = dict(type='ConcatDataset', ignore_keys=['classes'],
                                           datasets=[dataset_of(config), other])
    refuse(config, 'dataset.datasets.1 has other classes than train_dataloader.dataset.datasets.0',
           'green, blue, and there red, green, blue; class 0 is the first')
    other.metainfo = dict(classes=CLASSES, palette=[(0, 0, 0)])
    del config.train_dataloader.dataset['ignore_keys']
    refuse(config, 'differ in palette of their `metainfo`', "ignore_keys=['palette']",
           error=ConfigError)
    config.train_dataloader.dataset.ignore_keys = ['palette']
    assert len(build_part(config, 'train').dataset) == 2 * IMAGES


def test_a_training_that_validates_on_other_classes(config, data):
    """There are as many; it would be measured by them."""
    edit(data, lambda content: content['categories'].append(dict(id=4, name='grey')))
    config.val_dataloader.dataset.metainfo.classes = ['green', 'blue', 'grey']
    refuse_training(config, 'val_dataloader.dataset has other classes than train_dataloader.datas',
                    'green, blue, grey, and there red, green, blue', error=DataError)


@pytest.mark.parametrize('backend, says', [
    (dict(backend='ceph'), "KeyError: 'ceph'"),
    (dict(backend='memcached'), "'server_list_cfg' and 'client_cfg'")])
def test_a_storage_that_cannot_be_used(config, backend, says):
    dataset_of(config).pipeline[0].backend_args = backend
    refuse(config, 'train_dataloader.dataset.pipeline.0.backend_args', says, error=ConfigError)
    dataset_of(config).pipeline[0].pop('backend_args')
    dataset_of(config).backend_args = backend
    refuse(config, 'train_dataloader.dataset.backend_args', says, error=ConfigError)


def test_a_setting_of_a_former_release_is_named(config):
    dataset_of(config).file_client_args = dict(backend='disk')
    refuse(config, 'train_dataloader.dataset: The `file_client_args` is deprecated',
           error=ConfigError)


@pytest.mark.parametrize('content', ['not JSON', '[1, 2]', '{"images": []}', ''])
def test_annotations_that_are_not_coco(config, data, content):
    data.write_text(content)
    refuse(config, 'train_dataloader.dataset.ann_file: ', str(data))


BROKEN = dict(
    bbox=lambda annotation: annotation.pop('bbox'),
    text=lambda annotation: annotation.update(bbox=list(map(str, annotation['bbox']))),
    flat=lambda annotation: annotation.update(bbox=[5, 5, 0, 0]))


@pytest.mark.parametrize('kind, says', [
    ('bbox', ['dataset.ann_file: ', '12 annotations have a bbox that is not four finite numbers',
              'annotation 1 of image 1 (0.png) with none', 'datasets.py check']),
    ('text', ['dataset.ann_file: ', 'with ["']),
    ('flat', ['no box', '12 annotations narrower or lower than a pixel'])])
def test_boxes_that_are_broken(config, data, kind, says):
    edit(data, lambda content: [BROKEN[kind](entry) for entry in content['annotations']])
    refuse(config, 'train_dataloader.dataset', str(data), *says)
    if kind == 'flat':  # a test needs none
        assert len(build_part(config, 'val').dataset) == IMAGES
    else:
        refuse(config, 'val_dataloader.dataset', *says, part='val')


def test_no_image_is_left(config, data):
    edit(data, lambda content: content['annotations'].clear())
    refuse(config, 'train_dataloader.dataset: no box of')
    dataset_of(config).filter_cfg = dict(filter_empty_gt=True)
    refuse(config, 'train_dataloader.dataset: no image of', 'red, green, blue', 'left out')


def test_boxes_that_only_tests_need_not_have(config, data):
    """A crowd is none to be trained on."""
    edit(data, lambda content: [entry.update(iscrowd=1) for entry in content['annotations']])
    refuse(config, 'train_dataloader.dataset: no box of')
    assert len(build_part(config, 'val').dataset) == IMAGES


def test_a_part_of_the_data_may_show_background_alone(config, data):
    empty = copy.deepcopy(dataset_of(config))
    empty.ann_file = str(data.with_name('empty.json'))
    edit(data, lambda content: content['annotations'].clear(), Path(empty.ann_file))
    config.train_dataloader.dataset = dict(type='ConcatDataset',
                                           datasets=[dataset_of(config), empty])
    assert len(build_part(config, 'train').dataset) == 2 * IMAGES


def test_omissions_are_completed_for_training_and_evaluation(config, data, monkeypatch):
    monkeypatch.setattr(coco_json, '_said', set())
    edit(data, lambda content: [(entry.pop('area'), entry.pop('iscrowd'))
                                for entry in content['annotations']])
    part = build_part(config, 'val')
    assert len(part.dataset.get_data_info(0)['instances']) == 2
    [metric] = part.evaluator.metrics
    annotation = metric._coco_api.anns[1]
    assert annotation['area'] == annotation['bbox'][2] * annotation['bbox'][3]
    assert annotation['iscrowd'] == 0
    # What the metric writes by itself has no names of images; it is taken as it is.
    own = CocoMetric()
    own.dataset_meta = dict(classes=CLASSES)
    nothing = torch.zeros(0, 4)
    own.process({}, [dict(img_id=1, ori_shape=(9, 9), instances=[], pred_instances=dict(
        bboxes=nothing, scores=nothing[:, 0], labels=nothing[:, 0].long()))])
    own.evaluate(1)


@pytest.mark.parametrize('classes, says', [
    ('red', ["metainfo.classes = 'red' is text", "classes = ['red']"]),
    (['red', 3], ['must be a list of names']), ([], ['must be a list of names']),
    (['red', 'green', 'red'], ['a class is named twice']),
    (['red', 'grean', 'blue'], ['1 of 3 classes', 'grean', 'It has red, green, blue',
                                '`metainfo.classes`'])])
def test_classes(config, classes, says):
    dataset_of(config).metainfo.classes = classes
    refuse(config, 'train_dataloader.dataset', *says)


def test_classes_that_are_not_given(config):
    # Left to MMDetection, it would search for all 80 of COCO and find none.
    del dataset_of(config)['metainfo']
    refuse(config, '80 of 80 classes are no categories of')


@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_classes_that_the_annotations_have_in_another_order(config, data, tmp_path, part):
    # Left to MMDetection, they would be numbered as in the file, and 1 and 3 be mixed up.
    other = tmp_path / 'reversed.json'
    edit(data, lambda content: content['categories'].reverse(), other)
    if part != 'train':
        config[f'{part}_evaluator'].ann_file = str(other)
        refuse(config, f'{part}_evaluator.ann_file: ', 'reversed.json lists them as blue, green',
               part=part)
    dataset_of(config, part).ann_file = str(other)
    refuse(config, f'{part}_dataloader.dataset: `metainfo.classes` are red, green, blue',
           'reversed.json lists them as blue, green, red', part=part)
    dataset_of(config, part).metainfo.classes = ['blue', 'red']
    if part == 'train':  # the file has one category more, between them
        assert build_part(config, part).dataset.metainfo['classes'] == ['blue', 'red']


def test_two_categories_of_one_name(config, data):
    edit(data, lambda content: content['categories'].append(dict(id=9, name='green')))
    refuse(config, 'several categories called green')


def test_evaluator(config, data, tmp_path):
    whole = copy.deepcopy(config)
    config.val_evaluator.ann_file = 'gone.json'
    refuse(config, 'val_evaluator.ann_file: no such file: gone.json', '`data_root`', part='val')
    config.val_evaluator = [whole.val_evaluator, dict(type='CocoMetric', ann_file='gone.json')]
    refuse(config, 'val_evaluator.1.ann_file: no such file', part='val')
    config.val_evaluator = dict(metrics=config.val_evaluator)
    refuse(config, 'val_evaluator.metrics.1.ann_file: no such file', part='val')
    config.val_evaluator = dict(type='CocoMetric', metric='box')
    refuse(config, 'val_evaluator: ', 'box', part='val', error=ConfigError)
    other = tmp_path / 'other.json'

    def renumber(content):
        for image in content['images']:
            image['id'] += 100
        for annotation in content['annotations']:
            annotation['image_id'] += 100
            annotation['id'] += 100

    edit(data, renumber, other)
    whole.val_evaluator.ann_file = str(other)
    refuse(whole, 'val_evaluator.ann_file: 6 of 6 images of val_dataloader are not in', str(other),
           part='val')
    whole.val_evaluator.ann_file = str(data)
    whole.val_dataloader.dataset.indices = 4
    with watched(coco_json.logger(), 'warning', lambda log, text: said.append(text)):
        said = []
        build_part(whole, 'val')
    assert ['2 images that val_dataloader does not have' in text for text in said] == [True]
    # Of two files that number their images alike, detections could not be told apart.
    whole.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        copy.deepcopy(config.val_dataloader.dataset) for _ in range(2)])
    refuse(whole, 'val_dataloader has 2 images with the id 1,', part='val')
    whole.val_dataloader.dataset.datasets[1].ann_file = str(other)

    def join(content):
        renumbered = json.loads(other.read_text())
        for name in ('images', 'annotations'):
            content[name] += renumbered[name]

    edit(data, join, tmp_path / 'joined.json')
    whole.val_evaluator.ann_file = str(tmp_path / 'joined.json')
    assert len(build_part(whole, 'val').dataset) == 2 * IMAGES


def test_an_evaluator_that_measures_each_data_set_by_itself(config, data, tmp_path):
    """Their images may have the same ids; each metric gets the detections of its own data set."""
    few = tmp_path / 'few.json'
    edit(data, lambda content: content.update(images=content['images'][:2]), few)
    dataset, metric = config.val_dataloader.dataset, config.val_evaluator
    datasets = [{**dataset, 'ann_file': str(path)} for path in (data, few)]
    config.val_dataloader.dataset = dict(type='ConcatDataset', datasets=datasets)

    def evaluate(*files, prefixes=('all', 'few')):
        config.val_evaluator = dict(
            type='MultiDatasetsEvaluator', dataset_prefixes=prefixes,
            metrics=[{**metric, 'ann_file': str(path)} for path in files])

    evaluate(data, few)
    assert len(build_part(config, 'val').dataset) == IMAGES + 2
    evaluate(few, data)
    refuse(config, f'val_evaluator.ann_file: {IMAGES - 2} of {IMAGES} images', part='val')
    for files, prefixes in (([data], ['all', 'few']), ([data, few], ['all'])):
        evaluate(*files, prefixes=prefixes)
        refuse(config, 'val_evaluator: a MultiDatasetsEvaluator takes a metric and a prefix',
               f'are 2 data sets, {len(files)} `metrics` and {len(prefixes)} ', part='val',
               error=ConfigError)


def test_settings_of_a_dataset(config):
    dataset_of(config).img_prefix = 'images/'
    refuse(config, 'train_dataloader.dataset.img_prefix: CocoDataset has no such setting',
           error=ConfigError)
    del dataset_of(config)['img_prefix']
    dataset_of(config).pipeline[1].with_boxes = True
    refuse(config, "train_dataloader.dataset: LoadAnnotations has no setting 'with_boxes' "
                   '(did you mean with_bbox, ', error=ConfigError)
    del dataset_of(config).pipeline[1]['with_boxes']
    folder = dataset_of(config).pop('data_prefix')
    refuse(config, 'train_dataloader.dataset.data_prefix has no `img`')
    dataset_of(config).data_prefix = folder
    dataset_of(config).type = 'Coco'
    refuse(config, 'train_dataloader.dataset: KeyError', 'Coco', error=ConfigError)
    del config.train_dataloader['dataset']
    refuse(config, 'train_dataloader: KeyError', 'dataset', error=ConfigError)


def test_masks_that_are_asked_for(config):
    dataset_of(config).pipeline[1].with_mask = True
    refuse(config, 'loads masks', 'annotation 1 of image 1', 'segmentation none', '11 more')


def test_a_mask_head_that_counts_other_classes(config):
    config.model.student.config = dict(small.mask_rcnn(), data_preprocessor=PREPROCESSOR)
    config.model.student.config['roi_head']['mask_head']['num_classes'] = 80
    refuse_training(config, 'roi_head.mask_head.num_classes = 80, and its head detects 3 classes')


def test_masks_that_only_polygons_can_be(config, data):
    def give_masks(content):
        for entry in content['annotations']:
            entry['segmentation'] = [[0, 0, 4, 0, 4, 4]]
        content['annotations'][0].update(segmentation=dict(counts=[3, 5], size=[2, 4]))

    edit(data, give_masks)
    dataset_of(config).pipeline[1].with_mask = True
    assert len(build_part(config, 'train').dataset) == IMAGES
    dataset_of(config).pipeline[1].poly2mask = False
    refuse(config, 'polygons only, but annotation 1 has a run-length code', 'poly2mask=True')
    for settings in (dict(iscrowd=1), dict(iscrowd=0, ignore=1, segmentation=[])):
        edit(data, lambda content, own=settings: content['annotations'][0].update(own))
        assert len(build_part(config, 'train').dataset) == IMAGES


def test_segmentation_maps_that_are_asked_for(config, data):
    """A test does without them."""
    dataset_of(config).pipeline[1].with_seg = True
    refuse(config, 'train_dataloader.dataset.data_prefix.seg is not set',
           'loads segmentation maps')
    dataset_of(config).test_mode = True
    assert len(build_part(config, 'train').dataset) == IMAGES
    dataset_of(config).update(test_mode=False)
    folder = data.parent / 'maps'
    folder.mkdir()
    dataset_of(config).data_prefix.seg = f'{folder}/'
    refuse(config, f'{IMAGES} of {IMAGES} segmentation maps', 'Set `data_prefix.seg`')
    for number in range(IMAGES):
        (folder / f'{number}.png').touch()
    assert len(build_part(config, 'train').dataset) == IMAGES


def test_proposals_that_are_asked_for(config, data):
    dataset_of(config).pipeline.insert(1, dict(type='LoadProposals'))
    refuse(config, 'train_dataloader.dataset.proposal_file is not set', 'loads proposals')
    dataset_of(config).proposal_file = str(data.parent / 'gone.pkl')
    refuse(config, 'train_dataloader.dataset.proposal_file: no such file')
    dataset_of(config).update(data_root=str(data.parent), ann_file=data.name, data_prefix=dict(
        img=''), proposal_file='found.pkl')
    (data.parent / 'found.pkl').write_bytes(pickle.dumps({
        f'{data.parent.name}/{number}.png': dict(bboxes=np.zeros((1, 4)), scores=np.zeros(1))
        for number in range(IMAGES)}))
    assert len(build_part(config, 'train').dataset) == IMAGES


def test_panoptic_segments_that_are_asked_for(config, monkeypatch):
    monkeypatch.setitem(sys.modules, 'panopticapi', SimpleNamespace(utils=SimpleNamespace(
        rgb2id=abs)))
    for loaded in ({}, dict(with_mask=False), dict(with_seg=False)):
        dataset_of(config).pipeline[1] = dict(type='LoadPanopticAnnotations', **loaded)
        refuse(config, 'loads panoptic segments, but a CocoDataset gives none',
               'CocoPanopticDataset')


def test_test_data_are_looked_at_before_a_training(config, data, tmp_path):
    dataset_of(config, 'test').ann_file = 'later.json'
    said = []
    with watched(coco_json.logger(), 'warning', lambda log, text: said.append(text)):
        check_test_data(config)
    assert said == ['test_dataloader.dataset.ann_file: no such file: later.json. A test will need '
                    'it.']
    (tmp_path / 'broken.json').write_text('{}')
    dataset_of(config, 'test').ann_file = str(tmp_path / 'broken.json')
    refuse_training(config, 'test_dataloader.dataset.ann_file: ', 'broken.json', error=DataError)
    assert not (tmp_path / 'work').exists()
    dataset_of(config, 'test').update(data_root=str(tmp_path), ann_file='broken.json')
    with pytest.raises(DataError, match='test_dataloader.dataset.ann_file: .*broken.json'):
        check_test_data(config)
    dataset_of(config, 'test').type = OfAnotherFormat
    check_test_data(config)


class OfAnotherFormat(CocoDataset):
    def load_data_list(self):
        raise AssertionError('nothing is known of its files')


@pytest.mark.parametrize('part', ['train', 'val'])
def test_detector_and_data_count_classes_differently(config, part):
    dataset_of(config, part).metainfo.classes = ['red', 'green']
    refuse_training(config, 'RetinaNet detects 3 classes',
                    f'{part}_dataloader.dataset has 2 (red, green)', '`metainfo.classes`')


def teacher(config, path, classes, **settings):
    """Give a config a teacher whose checkpoint names classes."""
    own = dict(FAMILIES['one_stage'](24, **settings), data_preprocessor=PREPROCESSOR)
    torch.save(dict(meta=dict(dataset_meta=dict(classes=classes)),
                    state_dict=build_detector(own).state_dict()), path)
    config.model.teacher = dict(config=own, checkpoint=str(path))


def test_teacher_that_has_the_classes_in_another_order(config, tmp_path):
    teacher(config, tmp_path / 'teacher.pth', ('red', 'blue', 'green'))
    refuse_training(config, 'model.teacher.checkpoint', 'red, blue, green',
                    'train_dataloader.dataset has red, green, blue')
    (tmp_path / 'teacher.pth').unlink()
    refuse_training(config, 'model.teacher.checkpoint: no such file', error=CheckpointError)


def test_tested_detector_that_has_the_classes_in_another_order(config, tmp_path):
    config.model = detector('one_stage')
    config.load_from = None
    runner = Runner.with_checked_data(config, 'test')

    def test(**meta):
        torch.save(dict(meta=meta, state_dict=runner.model.state_dict()), tmp_path / 'it.pth')
        with watched(matching.logger(), 'warning', lambda log, text: said.append(text)):
            said = []
            runner.load_detector(str(tmp_path / 'it.pth'))
        return said

    for meta in (dict(CLASSES=('red', 'blue', 'green')),
                 dict(dataset_meta=dict(classes=('red', 'blue', 'green')))):
        with pytest.raises(CheckpointError, match='it.pth was trained on red, blue, green, test_d'
                                                  'ataloader.dataset has red, green, blue; class '
                                                  '1 is the first'):
            test(**meta)
    assert ['just renamed' in text for text in test(CLASSES=('red', 'vert', 'bleu'))] == [True]
    assert not test(CLASSES=CLASSES) and not test()


def test_teacher_that_has_more_classes(config, tmp_path):
    names = ('cat', 'blue', 'dog', 'red', 'green')
    teacher(config, tmp_path / 'teacher.pth', names, num_classes=5)
    model = Runner.with_checked_data(config, 'train').model
    assert model.teacher_columns.tolist() == [3, 4, 1]
    teacher(config, tmp_path / 'teacher.pth', (*names[:4], 'violet'), num_classes=5)
    refuse_training(config, 'but not green, which train_dataloader.dataset has')


def test_data_sets_are_read_once(config, monkeypatch):
    read = []
    load = coco_json.inspect_coco
    monkeypatch.setattr(coco_json, 'inspect_coco', lambda path: read.append(path) or load(path))
    runner = Runner.with_checked_data(config, 'train', 'val')
    before = len(read)
    assert before == 3  # training, validation, and what its metric measures by
    loader = runner.build_train_loop(runner._train_loop).dataloader
    val_loop = runner.build_val_loop(runner._val_loop)
    assert len(read) == before and len(loader.dataset) == len(val_loop.dataloader.dataset) == 6
    assert val_loop.evaluator.metrics[0].dataset_meta['classes'] == CLASSES
    assert runner.cfg.train_dataloader.dataset.type == 'CocoDataset'


def test_ground_truth_that_no_pipeline_loads(config):
    model = build_detector(config.model)
    model.pair = replace(model.pair, student=replace(model.pair.student,
                                                     ground_truth=('gt_masks',)))
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=2,
                                           dataset=dataset_of(config))
    with pytest.raises(ConfigError, match=r'key.pipeline: student RetinaNet trains on `gt_masks`.*'
                                          r'LoadAnnotations\(with_mask=True\)'):
        check_ground_truth(model, dataset_of(config), 'key')
    plain = build_detector(ConfigDict(small.mask_rcnn(), data_preprocessor=PREPROCESSOR))
    with pytest.raises(ConfigError, match='key.pipeline: MaskRCNN trains on `gt_masks`'):
        check_ground_truth(plain, dataset_of(config), 'key')
    dataset_of(config).dataset.pipeline[1].with_mask = True
    check_ground_truth(model, dataset_of(config), 'key')
    check_ground_truth(plain, dataset_of(config), 'key')
    # It loads masks and maps by default, as configs of panoptic data leave it.
    dataset_of(config).dataset.pipeline[1] = dict(type='LoadPanopticAnnotations')
    check_ground_truth(plain, dataset_of(config), 'key')
    check_ground_truth(plain, ConfigDict(type='ConcatDataset', datasets=[dataset_of(config)]),
                       'key')
    dataset_of(config).dataset.pipeline[1]['with_mask'] = False
    with pytest.raises(ConfigError, match='key.pipeline: MaskRCNN trains on `gt_masks`'):
        check_ground_truth(plain, dataset_of(config), 'key')


def test_proposals_that_no_pipeline_loads(config):
    model = build_detector(config.model)
    model.pair = replace(model.pair, student=replace(model.pair.student,
                                                     ground_truth=('proposals',)))
    with pytest.raises(ConfigError, match='trains on `proposals`, .*LoadProposals'):
        check_ground_truth(model, dataset_of(config), 'key')
    dataset_of(config).pipeline.insert(1, dict(type='LoadProposals'))
    check_ground_truth(model, dataset_of(config), 'key')


def test_ground_truth_is_asked_for_before_the_first_step(config):
    config.model = ConfigDict(small.mask_rcnn(), data_preprocessor=PREPROCESSOR)
    config.custom_hooks = []
    refuse_training(config, 'train_dataloader.dataset.pipeline: MaskRCNN trains on `gt_masks`')


def test_masks_that_the_preprocessor_makes_need_not_be_loaded(config):
    pytest.importorskip('skimage')
    model = build_detector(config.model)
    model.pair = replace(model.pair, student=replace(model.pair.student,
                                                     ground_truth=('pairwise_masks', 'gt_masks')))
    with pytest.raises(ConfigError, match='trains on `pairwise_masks`, .*BoxInstDataPreproc'):
        check_ground_truth(model, dataset_of(config), 'key')
    model.data_preprocessor = build_detector(dict(type='BoxInstDataPreprocessor'))
    check_ground_truth(model, dataset_of(config), 'key')


def test_texts_that_no_pipeline_packs(config):
    detector = build_detector(config.model).student
    detector.language_model = torch.nn.Identity()  # as Grounding DINO and GLIP have it
    with pytest.raises(ConfigError, match='RetinaNet trains on `text`, .*`meta_keys` of PackDet'):
        check_ground_truth(detector, dataset_of(config), 'key')
    pack = dataset_of(config).pipeline.pop()
    # The last step is that of a wrapper if images are mixed.
    mixed = ConfigDict(type='MultiImageMixDataset', dataset=dataset_of(config),
                       pipeline=[dict(pack, meta_keys=('img_id', 'text'))])
    check_ground_truth(detector, mixed, 'key')

    samples = noise(64, 64, 2, detector).native['batch_data_samples']
    assert [len(sample.text) for sample in samples] == [len(CLASSES)] * 2


def test_settings_of_a_loader(config):
    config.train_dataloader.batch_size = 0
    runner = Runner.with_checked_data(config, 'train')
    with pytest.raises(ConfigError, match='train_dataloader or train_cfg: ValueError: batch_size'):
        runner.train()
    assert not Path(config.work_dir).exists()


def test_annotations_of_voc(tmp_path, monkeypatch):
    xml = ('<annotation><size><width>64</width><height>48</height></size><object><name>cat</name>'
           '{}</object></annotation>')
    box = '<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>{}</xmax><ymax>20</ymax></bndbox>'
    for name in ('JPEGImages', 'Annotations'):
        (tmp_path / name).mkdir()
    (tmp_path / 'train.txt').write_text('1\n')
    config = ConfigDict(type='XMLDataset', ann_file=str(tmp_path / 'train.txt'),
                        data_prefix=dict(sub_data_root=str(tmp_path)),
                        metainfo=dict(classes=['cat']), pipeline=[dict(type='LoadImageFromFile')])

    def build():
        with DefaultScope.overwrite_default_scope('mmdet'):
            return build_checked_dataset(config, 'data')

    with pytest.raises(DataError, match=r'data: the annotations of JPEGImages/1.jpg in .*train.tx'
                                        r't cannot be used \(FileNotFoundError'):
        build()
    for content, says in ((box.format('wide'), 'annotations of .*1.jpg .*ValueError'),
                          ('', 'annotations of .*1.jpg .*AttributeError'),
                          (box.format(30), '1 of 1 images .*1.jpg')):
        (tmp_path / 'Annotations' / '1.xml').write_text(xml.format(content))
        with pytest.raises(DataError, match=says):
            build()
    (tmp_path / 'JPEGImages' / '1.jpg').touch()
    assert len(build()) == 1
    # One pixel wide: MMDetection takes the last pixel for the border of the box.
    (tmp_path / 'Annotations' / '1.xml').write_text(xml.format(box.format(2)).replace(
        '</object>', '</object><object><name>cat</name>' + box.format(30) + '</object>'))
    told = []
    monkeypatch.setattr(checks, 'logger', lambda: SimpleNamespace(warning=told.append))
    build()
    config.test_mode = True
    build()
    del config.test_mode
    assert len(told) == 1 and '1 boxes without area in their image, first [1, 2, 1, 19' in told[0]
    (tmp_path / 'Annotations' / '1.xml').write_text(xml.format(box.format(30)).replace(
        '<ymin>3', '<ymin>60').replace('<ymax>20', '<ymax>70'))
    build()
    assert len(told) == 2 and 'first [1, 59, 29, 69] of' in told[1]  # below the image
    (tmp_path / 'Annotations' / '1.xml').write_text(xml.format(box.format(30)))
    config.metainfo.classes = ['dog']
    with pytest.raises(DataError, match='no box of'):
        build()
    config.data_prefix.sub_data_root = 'gone'
    with pytest.raises(DataError, match='data.data_prefix.sub_data_root: no such folder: gone'):
        build()


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_commands_end_with_the_message_alone(config, tmp_path, monkeypatch, capsys, tool):
    dataset_of(config, tool).ann_file = 'gone.json'
    config.dump(tmp_path / 'config.py')
    monkeypatch.chdir(tmp_path)
    torch.save(build_detector(detector('one_stage')).state_dict(), 'student.pth')
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', 'config.py'] + ['student.pth'] * (
        tool == 'test'))
    before = set(tmp_path.rglob('*'))
    with pytest.raises(SystemExit) as ended:
        run(runpy.run_path(str(TOOLS / f'{tool}.py'))['main'])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (f'\nerror: {tool}_dataloader.dataset.ann_file: no such '
                                       f'file: gone.json\n')
    assert set(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_a_damaged_image_is_named(config, data, content):
    (data.parent / '2.png').write_bytes(content)
    built = build_part(config, 'train').dataset
    with pytest.raises(DataError, match=r'2.png: the image file is empty, damaged.*datasets.py c'):
        built[2]
    config.train_dataloader.update(num_workers=1, persistent_workers=True)
    runner = Runner.with_checked_data(config, 'train')
    with pytest.raises(DataError, match='2.png: the image file is empty') as caught:
        next(iter(runner.build_dataloader(dict(
            config.train_dataloader, batch_size=1, dataset=torch.utils.data.Subset(built, [2]),
            batch_sampler=None))))
    assert 'Caught' not in str(caught.value)


def test_a_disk_that_fails_is_none_of_the_users_errors(config, monkeypatch):
    built = build_part(config, 'train').dataset
    monkeypatch.setattr('mmengine.fileio.get', mock.Mock(side_effect=OSError(5, 'I/O error')))
    with pytest.raises(RunError, match='0.png: the image file cannot be read .*I/O error'):
        built[0]


def test_an_image_of_another_size_is_told_once(config, data, monkeypatch):
    told = []
    monkeypatch.setattr(images, '_warned', False)
    monkeypatch.setattr(images, 'logger', lambda: SimpleNamespace(warning=told.append))
    edit(data, lambda content: content['images'][0].update(width=96, height=128))
    built = build_part(config, 'train').dataset
    for index in (1, 0, 0):
        built[index]
    assert len(told) == 1 and '0.png is 128 x 96 pixels, the annotations say 96 x 128' in told[0]


def test_a_work_dir_in_which_another_training_writes(config, tmp_path, monkeypatch, capsys):
    config.dump(tmp_path / 'config.py')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py', '--work-dir', 'work'])
    with other_training('work') as holder, pytest.raises(SystemExit) as ended:
        run(runpy.run_path(str(TOOLS / 'train.py'))['main'])
    assert ended.value.code == 2
    assert f'work: another training writes into this work dir (process {holder.pid} on ' in (
        capsys.readouterr().err)


def test_a_metric_that_needs_another_package_says_so(config, monkeypatch):
    def without_package(self, **settings):
        raise RuntimeError('Package lvis is not installed.')

    monkeypatch.setattr(CocoMetric, '__init__', without_package)
    refuse(config, 'val_evaluator: Package lvis is not installed.', part='val', error=ConfigError)


@pytest.mark.parametrize('name, says', [
    ('knowledge.0.robust', 'mean model.knowledge.0.robust?'),
    ('batch_size', 'mean test_dataloader.batch_size, train_dataloader.batch_size'),
    ('optim_wraper.optimizer.lr', 'mean optim_wrapper.optimizer.lr?'),
    ('nothing', 'nothing reads a setting `nothing`'),
    ('auto_scale_lr.enabled', 'of `auto_scale_lr`, so that it would have no effect'),
    ('env_cfg.cudnn_benchmarks', 'Did you mean cudnn_benchmark?'),
])
def test_an_option_at_a_place_where_nothing_reads_it(config, tmp_path, name, says):
    config.dump(tmp_path / 'config.py')
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config(str(tmp_path / 'config.py'), {name: 1})


def test_an_option_for_a_variable_of_the_file_is_told(config, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(replacement, 'logger', lambda: SimpleNamespace(warning=told.append))
    config.folder = 'data/'
    config.dump(tmp_path / 'config.py')
    load_config(str(tmp_path / 'config.py'), {'folder': 'other/', 'log_level': 'INFO'})
    assert ['`folder` is a variable' in line for line in told] == [True]
