"""Annotation files that are broken or incomplete: named before anything is built, or completed."""

import json
import sys
from types import SimpleNamespace

import pytest
from helpers import tiny_data
from helpers.refusals import append, edit, refuse_training, train
from helpers.running import run_tool

from gkd.datasets import checks
from gkd.datasets.coco_json import inspect_coco
from gkd.datasets.inspection import Inspection
from gkd.errors import DataError


def content(annotations=3):
    """A sound file."""
    return dict(
        images=[dict(id=number, file_name=f'{number}.jpg', width=64, height=48)
                for number in (1, 2)],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
        annotations=[dict(id=number, image_id=1 + number % 2, category_id=1 + number % 2,
                          bbox=[2, 3, 20, 10], area=200, iscrowd=0)
                     for number in range(1, annotations + 1)])


def found(**changes):
    """What is found after changing fields of annotation 2 (of image 1); None deletes them."""
    data = content()
    for key, value in changes.items():
        data['annotations'][1][key] = value
        if value is None:
            del data['annotations'][1][key]
    return Inspection(data)


def test_nothing_is_found_in_a_sound_file():
    data = content()
    before = json.dumps(data)
    assert not Inspection(data).findings and json.dumps(data) == before


@pytest.mark.parametrize('changes, says', [
    (dict(bbox=None), 'a bbox that is not four finite numbers, first annotation 2 of image 1 '
                      '(1.jpg) with none'),
    (dict(bbox=[]), 'with []'),
    (dict(bbox=[1, 2, 3]), 'with [1, 2, 3]'),
    (dict(bbox=['1', 2, 3, 4]), 'with ["1", 2, 3, 4]'),
    (dict(bbox=[1, 2, float('nan'), 4]), 'with [1, 2, NaN, 4]'),
    (dict(bbox=[1, 2, float('inf'), 4]), 'finite'),
    (dict(bbox=[1, 2, True, 4]), 'finite'),
    (dict(bbox=[1, 2, 10 ** 400, 4]), 'finite'),
    (dict(bbox='1 2 3 4'), 'with 1 2 3 4'),
    (dict(bbox=dict(x=1)), 'finite'),
    (dict(area='200'), 'an area that is no finite number, first annotation 2'),
    (dict(area=float('nan')), 'an area that is no finite number'),
    (dict(iscrowd='0'), 'an iscrowd that is neither 0 nor 1'),
    (dict(iscrowd=2), 'an iscrowd that is neither 0 nor 1'),
    (dict(ignore='0'), 'an ignore that is neither 0 nor 1'),
    (dict(id=1), 'with the id of another, first annotation 1 of image 1'),
    (dict(image_id=None), 'no image_id that is an integer, as ids are'),
    (dict(image_id='1'), 'no image_id that is an integer, as ids are'),
    (dict(image_id=[1]), 'no image_id that is an integer, as ids are'),
    (dict(category_id=None), 'no category_id that is an integer'),
    (dict(category_id='1'), 'no category_id that is an integer'),
])
def test_annotations_that_cannot_be_used(changes, says):
    faults = found(**changes).faults
    assert len(faults) == 1 and says in str(faults[0])
    assert faults[0].count == 1 and faults[0].kind == 'annotations'


@pytest.mark.parametrize('kind, entry, says', [
    ('images', dict(id=3, file_name='3.jpg', height=48), 'images without a width'),
    ('images', dict(id=3, file_name='3.jpg', width='64', height=48), 'image 3 (3.jpg) with 64'),
    ('images', dict(id=3, file_name='3.jpg', width=64, height=0), 'without a height'),
    ('images', dict(id=3, file_name='3.jpg', width=float('nan'), height=48), 'without a width'),
    ('images', dict(id=3, width=64, height=48), 'images without a file_name'),
    ('images', dict(id=3, file_name=3, width=64, height=48), 'images without a file_name'),
    ('images', dict(file_name='3.jpg', width=64, height=48), 'images without an id'),
    ('images', dict(id=1, file_name='3.jpg', width=64, height=48), 'images with the id of another'
     ', first image 1 (3.jpg)'),
    ('images', dict(id='3', file_name='3.jpg', width=64, height=48), 'have text for an id, others '
     'integers, first image 3'),
    ('categories', dict(id=3), 'categories without a name'),
    ('categories', dict(id=None, name='cow'), 'categories without an id'),
    ('categories', dict(id=2, name='cow'), 'categories with the id of another'),
])
def test_images_and_categories_that_cannot_be_used(kind, entry, says):
    data = content()
    data[kind].append(entry)
    faults = Inspection(data).faults
    assert len(faults) == 1 and says in str(faults[0])


@pytest.mark.parametrize('broken, says', [
    ([], 'holds a list'), ({}, 'no list "images"'),
    (dict(images=[dict(id=1)]), 'no list "categories"'),
    (dict(content(), images=[]), '"images" is empty'),
    (dict(content(), annotations={}), 'no list "annotations"'),
    (dict(content(), annotations=[[1]]), 'entry 1 of "annotations" is [1]'),
    (dict(content(), categories=['cat']), 'entry 1 of "categories" is cat'),
])
def test_files_of_another_form(broken, says, tmp_path):
    path = tmp_path / 'broken.json'
    path.write_text(json.dumps(broken))
    with pytest.raises(DataError) as error:
        inspect_coco(str(path))
    assert str(path) in str(error.value) and says in str(error.value)


@pytest.mark.parametrize('changes, says, completed', [
    (dict(area=None), 'without area', dict(area=200)),
    (dict(area=None, bbox=[2, 3, 1.5, 3.5]), 'without area', dict(area=5.25)),
    (dict(iscrowd=None), 'without iscrowd', dict(iscrowd=0)),
    (dict(id=None), 'without an id from 1 on', dict(id=4)),
    (dict(id=0), 'without an id from 1 on', dict(id=4)),
    (dict(id='a-b'), 'without an id from 1 on', dict(id=4)),
])
def test_what_is_harmless_is_completed(changes, says, completed):
    inspection = found(**changes)
    assert not inspection.faults
    assert [finding.completed for finding in inspection.findings] == [True]
    assert says in str(inspection.findings[0])
    assert {key: inspection.annotations[1][key] for key in completed} == completed


@pytest.mark.parametrize('changes, says', [
    (dict(image_id=9), 'of an image that is not listed, first annotation 2 of image 9'),
    (dict(category_id=9), 'of a category that is not listed'),
    (dict(bbox=[2, 3, 0, 0]), 'narrower or lower than a pixel'),
    (dict(bbox=[90, 3, 5, 5]), 'wholly outside of the image'),
    (dict(bbox=[50, 3, 50, 5]), 'over the border of the image by more than a pixel'),
    (dict(area=0), 'have no area above 0'),
])
def test_what_mmdetection_passes_over_is_told(changes, says):
    inspection = found(**changes)
    assert not inspection.faults and len(inspection.findings) == 1
    assert says in str(inspection.findings[0]) and inspection.findings[0].outcome


def test_ids_may_be_text_throughout():
    data = content()
    for entry in data['images']:
        entry['id'] = f'image {entry["id"]}'
    for entry in data['annotations']:
        entry['image_id'] = f'image {entry["image_id"]}'
    assert not Inspection(data).findings


def calls(count):
    """Python functions that are called, and C functions, to look at ``count`` annotations."""
    data, numbers = content(count), dict(call=0, c_call=0)

    def note(frame, event, argument):
        if event in numbers:
            numbers[event] += 1

    sys.setprofile(note)
    try:
        Inspection(data)
    finally:
        sys.setprofile(None)
    return numbers


def test_no_python_function_is_called_for_every_annotation():
    few, many = calls(1000), calls(3000)
    # Not equal: Python runs the finalisers of other tests' objects when it pleases.
    assert (many['call'] - few['call']) / 2000 < 0.5
    assert (many['c_call'] - few['c_call']) / 2000 < 10


BROKEN = dict(
    area=lambda annotation: annotation.pop('area'),
    iscrowd=lambda annotation: annotation.pop('iscrowd'),
    bbox=lambda annotation: annotation.pop('bbox'),
    empty=lambda annotation: annotation.update(bbox=[]),
    text=lambda annotation: annotation.update(bbox=list(map(str, annotation['bbox']))),
    flat=lambda annotation: annotation.update(bbox=[5, 5, 0, 0]))


def break_all(path, kind):
    edit(path, lambda data: [BROKEN[kind](annotation) for annotation in data['annotations']])


@pytest.mark.parametrize('kind, says', [
    ('bbox', ['8 annotations have a bbox that is not four finite numbers',
              'annotation 1 of image 1 (image_0.png) with none', 'datasets.py check']),
    ('empty', ['with []']), ('text', ['with ["']),
    ('flat', ['no box', '8 annotations narrower or lower than a pixel']),
])
@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_training_names_what_is_broken_before_it_starts(folder, part, kind, says):
    path = folder / 'broken.json'
    path.write_text((folder / 'annotations.json').read_text())
    break_all(path, kind)
    append('distiller.py', f'data["{part}"]["ann_file"] = "broken.json"')
    if part == 'train' or kind != 'flat':
        refuse_training(folder, says=[f'data.{part}: ', 'broken.json', *says])


def metrics(folder):
    return json.loads((folder / 'work' / 'evaluation.json').read_text())


def test_training_completes_what_is_harmless_and_says_so_once(folder):
    args = '--epochs', '1', '--cfg-options', 'evaluation.save_best=bbox_mAP'
    train(*args)
    whole = metrics(folder)
    (folder / 'work').rename(folder / 'before')
    for kind in ('area', 'iscrowd'):
        break_all(folder / 'annotations.json', kind)
    said = train(*args)
    assert said.count('annotations without area') == said.count('without iscrowd') == 1
    assert metrics(folder) == whole
    # The checks agree, and the file of the user is as it was.
    status, printed, _ = run_tool('datasets', 'check', folder / 'annotations.json')
    assert status == 0 and '8 annotations without area' in printed
    assert 'area' not in (folder / 'annotations.json').read_text()


@pytest.mark.parametrize('kind', ['bbox', 'text', 'flat'])
def test_the_tool_finds_what_the_training_finds(folder, kind):
    break_all(folder / 'annotations.json', kind)
    status, printed, _ = run_tool('datasets', 'check', folder / 'annotations.json')
    assert status == 1 and '  8 annotations ' in printed and 'no broken box' not in printed


@pytest.mark.parametrize('value, says', [
    ('("red")', ["data.train.classes = 'red' is text", "classes = ['red']"]),
    ('["red", 3]', ['must be a list of names']), ('[]', ['must be a list of names']),
    ('{"red": 1}', ['must be a list of names']),
    ('["red", "green", "red"]', ['a class is named twice']),
])
def test_classes_that_are_no_list_of_names(folder, value, says):
    append('distiller.py', f'data["train"]["classes"] = {value}')
    refuse_training(folder, says=['data.train.classes', *says])


def test_masks_that_are_asked_for(folder):
    append('distiller.py', 'data["train"]["pipeline"][1]["with_mask"] = True')
    refuse_training(folder, says=['data.train', 'loads masks', 'annotation 1 of image 1',
                                  'segmentation none', '7 more'])


def test_test_data_that_are_not_there_yet_are_named(folder):
    append('distiller.py', 'data["test"]["ann_file"] = "later.json"')
    assert 'data.test.ann_file: no such file: later.json' in train('--epochs', '1')


def test_annotations_of_voc_are_looked_at(tmp_path, monkeypatch):
    from mmcv import ConfigDict

    from gkd.running.data import build_checked_dataset
    xml = ('<annotation><size><width>64</width><height>48</height></size><object><name>cat</name>'
           '{}</object></annotation>')
    box = '<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>{}</xmax><ymax>20</ymax></bndbox>'
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'ImageSets/Main/train.txt').write_text('1\n')
    (tmp_path / 'JPEGImages/1.jpg').touch()
    config = ConfigDict(type='VOCDataset', ann_file=str(tmp_path / 'ImageSets/Main/train.txt'),
                        img_prefix=str(tmp_path), pipeline=tiny_data.pipelines()[0])
    config.type = 'XMLDataset'
    config.classes = ['cat']
    for content, sound in ((box.format(30), True), (box.format('wide'), False), ('', False)):
        (tmp_path / 'Annotations/1.xml').write_text(xml.format(content))
        if sound:
            assert len(build_checked_dataset(config, 'data.train')) == 1
        else:
            with pytest.raises(DataError, match='data.train: the annotations of .*1.jpg'):
                build_checked_dataset(config, 'data.train')
    # One pixel wide: MMDetection takes the last pixel for the border of the box.
    (tmp_path / 'Annotations/1.xml').write_text(xml.format(box.format(2)).replace(
        '</object>', '</object><object><name>cat</name>' + box.format(30) + '</object>'))
    told = []
    monkeypatch.setattr(checks, 'logger', lambda: SimpleNamespace(warning=told.append))
    for settings in (dict(), dict(min_size=1), dict(test_mode=True)):
        build_checked_dataset(config, 'data.train', settings)
    assert len(told) == 1 and '1 boxes without area in their image, first [1.0, 2.0' in told[0]
    # It wants a folder whose name holds the year.
    config.type = 'VOCDataset'
    with pytest.raises(DataError, match='Cannot infer dataset year.* take XMLDataset'):
        build_checked_dataset(config, 'data.train')
