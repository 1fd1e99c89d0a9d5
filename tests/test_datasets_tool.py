"""Data sets: conversion both ways, known counts, and boxes that are broken."""

import json
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import mmcv
import numpy as np
import pytest
from helpers.running import REPOSITORY, run_tool
from mmdet.datasets import CocoDataset, VOCDataset, build_dataset

from gkd.datasets import official
from gkd.datasets.coco_json import read_coco, write_coco
from gkd.datasets.official import Known
from gkd.datasets.records import read_classes, read_records, write_records
from gkd.datasets.voc import read_voc
from gkd.errors import DataError

CLASSES = ['cat', 'dog']
# The ids of categories have gaps, as in COCO.
CATEGORIES = [dict(id=3, name='cat'), dict(id=7, name='dog')]
IMAGES = [dict(id=20, file_name='b/2.jpg', width=64, height=48),
          dict(id=10, file_name='a/1.jpg', width=100, height=80),
          dict(id=30, file_name='empty.jpg', width=40, height=40)]


def annotation(number, image, category, box, **more):
    return dict(id=number, image_id=image, category_id=category, bbox=box,
                area=box[2] * box[3], iscrowd=0, segmentation=[[1.5, 2, 3]], **more)


# Annotations come in no order of images, as in COCO.
ANNOTATIONS = [annotation(5, 10, 3, [1.5, 2.25, 10.1, 20.2]), annotation(9, 20, 7, [0, 0, 64, 48]),
               annotation(6, 10, 7, [30, 40, 50, 30]),
               {**annotation(8, 10, 3, [5, 5, 20, 20]), 'iscrowd': 1}]


@pytest.fixture
def coco(tmp_path):
    """Path of a COCO file."""
    path = tmp_path / 'coco.json'
    path.write_text(json.dumps(dict(info={}, images=IMAGES, annotations=ANNOTATIONS,
                                    categories=CATEGORIES)))
    return path


@pytest.fixture
def classes(tmp_path):
    """Path of a file of class names."""
    path = tmp_path / 'classes_config.json'
    path.write_text(json.dumps(dict(classes=CLASSES)))
    return path


@pytest.mark.parametrize('change, says', [
    (lambda content: content['annotations'][2].update(image_id='a'), 'annotation 3 cannot be'),
    (lambda content: content['images'].append('c.jpg'), 'an image or a category cannot be used'),
    (lambda content: content['images'][1].pop('width'), "an image or a category lacks 'width'"),
    (lambda content: content['annotations'][1].pop('id'), "annotation 2 lacks 'id'")])
def test_entries_that_cannot_be_converted(coco, change, says):
    """Text for ids is sound, and a training takes it; the arrays of a conversion do not."""
    content = json.loads(coco.read_text())
    change(content)
    coco.write_text(json.dumps(content))
    with pytest.raises(DataError, match=says) as caught:
        read_coco(str(coco))
    assert 'cannot' not in says or 'must be integers here' in str(caught.value)


def test_a_mark_in_front_of_the_text_is_passed_over(coco):
    """As when a training reads the file."""
    coco.write_bytes(b'\xef\xbb\xbf' + coco.read_bytes())
    assert len(read_coco(str(coco)).images) == len(IMAGES)


def loaded(path, classes=CLASSES):
    """What MMDetection trains on: boxes, labels and ignored boxes by file name."""
    dataset = build_dataset(dict(type='CocoDataset', ann_file=str(path), pipeline=[],
                                 classes=classes, filter_empty_gt=False))
    return {info['filename']: [dataset.get_ann_info(index)[key]
                               for key in ('bboxes', 'labels', 'bboxes_ignore')]
            for index, info in enumerate(dataset.data_infos)}


def test_records_are_those_of_the_original_code(coco, classes, tmp_path):
    status, _, stderr = run_tool('datasets', 'to-records', coco, tmp_path / 'records.json',
                                 '--classes', classes)
    assert status == 0, stderr
    assert json.loads((tmp_path / 'records.json').read_text()) == {
        'b/2.jpg': dict(height=48, width=64,
                        content_ann=dict(bboxes=[[0, 0, 64, 48]], labels=[['dog']])),
        'a/1.jpg': dict(height=80, width=100, content_ann=dict(
            bboxes=[[1.5, 2.25, 11.6, 22.45], [30, 40, 80, 70], [5, 5, 25, 25]],
            labels=[['cat'], ['dog'], ['cat']], cares=[1, 1, 0])),
        'empty.jpg': dict(height=40, width=40, content_ann=dict(bboxes=[], labels=[]))}


def test_there_and_back_trains_on_the_same(coco, classes, tmp_path):
    records = tmp_path / 'records.json'
    for command, source, target in (('to-records', coco, records),
                                    ('to-coco', records, tmp_path / 'back.json')):
        status, _, stderr = run_tool('datasets', command, source, target, '--classes', classes)
        assert status == 0, stderr
    before, after = loaded(coco), loaded(tmp_path / 'back.json')
    assert list(after) == list(before) and len(after) == 3
    for name, parts in before.items():
        for part, same in zip(parts, after[name]):
            np.testing.assert_allclose(same, part, atol=2e-3)
    assert len(before['a/1.jpg'][2]) == 1 and not list(tmp_path.glob('.*.tmp'))


def test_old_lists_are_understood(classes, tmp_path):
    """Polygons, indices as labels, comments, and keys that detection does not need."""
    path = tmp_path / 'old.json'
    path.write_text(json.dumps({
        '###': 'a comment', 'x.jpg': dict(height=20, width=30, content_ann2=None, content_ann=dict(
            bboxes=[[3, 4, 9, 2, 10, 8, 1, 7], [1, 1, 5, 6]], labels=[[1], ['cat', 'tail']],
            texts=['a', 'b']))}))
    annotations = read_records(str(path), CLASSES)
    assert annotations.boxes.tolist() == [[1, 2, 9, 6], [1, 1, 4, 5]]
    assert annotations.category_ids.tolist() == [2, 1] and len(annotations.images) == 1


@pytest.mark.parametrize('record, named', [
    (dict(height=1, content_ann=dict()), "'width'"),
    (dict(height=1, width=1), "'content_ann'"),
    (dict(height=1, width=1, content_ann=dict(bboxes=[[1, 2, 3]], labels=[['cat']])), 'polygon'),
    (dict(height=1, width=1, content_ann=dict(bboxes=[[1, 2, 3, 4]], labels=[])), '0 labels'),
    (dict(height=1, width=1, content_ann=dict(bboxes=[[1, 2, 3, 4]], labels=[['cow']])), 'cow'),
    (dict(height=1, width=1, content_ann=dict(bboxes=[[1, 2, 3, 4]], labels=[[2]])), 'to 1')])
def test_broken_record_is_named(record, named, tmp_path):
    path = tmp_path / 'records.json'
    path.write_text(json.dumps({'x.jpg': record}))
    with pytest.raises(DataError, match=f"record 'x.jpg'.*{named}"):
        read_records(str(path), CLASSES)


def test_cut_off_file_is_named_and_nothing_is_written(coco, classes, tmp_path):
    coco.write_text(coco.read_text()[:-300])
    status, _, stderr = run_tool('datasets', 'to-records', coco, tmp_path / 'records.json',
                                 '--classes', classes)
    assert status == 2 and f'{coco} is no complete JSON file' in stderr
    assert 'Traceback' not in stderr and not (tmp_path / 'records.json').exists()


def test_what_records_cannot_hold_is_refused(coco, tmp_path):
    annotations = read_coco(str(coco))
    with pytest.raises(DataError, match="no category is named 'cow'"):
        write_records(annotations, str(tmp_path / 'records.json'), ['cow'])
    annotations.image_ids[1] = 99
    with pytest.raises(DataError, match='annotation 9 of image 99 .*image that is not listed'):
        write_records(annotations, str(tmp_path / 'records.json'), CLASSES)
    assert not list(tmp_path.glob('records*'))


def test_broken_boxes_are_counted_once_each(coco):
    data = json.loads(coco.read_text())
    broken = {
        'of an image that is not listed': [annotation(100, 99, 3, [0, 0, 5, 5])],
        'of a category that is not listed': [annotation(101, 10, 99, [0, 0, 5, 5])],
        'with the id of another': [annotation(5, 10, 3, [0, 0, 5, 5])],
        'not four finite numbers': [{**annotation(102, 10, 3, [0, 0, 5, 5]), 'bbox': box}
                                    for box in ([1, 2, 3], None, [1, 2, '3', 4])],
        'narrower or lower than a pixel': [annotation(105, 10, 3, [5, 5, 0.5, 9]),
                                           annotation(106, 10, 3, [500, 5, 9, -9])],
        'wholly outside of the image': [annotation(107, 10, 3, [100, 5, 9, 9])],
        'over the border of the image by more than a pixel': [
            annotation(108, 10, 3, [-1.5, 5, 9, 9]), annotation(109, 10, 3, [90, 5, 11.5, 9])]}
    for number, (_, entries) in enumerate(broken.items()):
        for offset, entry in enumerate(entries):
            if entry['id'] > 99:
                entry['id'] = 1000 + 10 * number + offset
        data['annotations'] += entries
    data['annotations'].append(annotation(2000, 10, 3, [-0.9, 0, 101, 9]))  # still allowed
    coco.write_text(json.dumps(data))
    found = read_coco(str(coco)).faults()
    assert {name: len(rows) for name, rows in found.items()} == \
        {name: len(entries) for name, entries in broken.items()}
    status, printed, _ = run_tool('datasets', 'check', coco)
    assert status == 1
    assert ('3 annotations have a bbox that is not four finite numbers, first annotation 1030 of '
            'image 10 (a/1.jpg) with [1, 2, 3]') in printed
    # The tool counts them as the conversions do.
    for name, entries in broken.items():
        assert f'  {len(entries)} annotations ' in printed and name in printed


def test_sound_file_and_missing_images(coco, tmp_path):
    for image in IMAGES[:2]:
        path = tmp_path / 'images' / image['file_name']
        path.parent.mkdir(parents=True)
        path.touch()
    status, printed, _ = run_tool('datasets', 'check', coco)
    assert status == 0
    assert '3 images, 2 of them annotated, with 4 boxes of 2 of 2 classes; 1 are' in printed
    content = json.loads(coco.read_text())
    numbers = [entry['category_id'] for entry in content['annotations']]
    each = [f'{entry["name"]} {numbers.count(entry["id"])}' for entry in content['categories']]
    assert f'boxes of each class: {", ".join(each)}\n' in printed
    status, printed, _ = run_tool('datasets', 'check', coco, '--images', tmp_path / 'images')
    assert status == 1 and f'1 of 3 images are missing, first {tmp_path}/images/empty' in printed


def test_repeated_image_is_named(coco):
    data = json.loads(coco.read_text())
    data['images'][2]['id'] = 10
    coco.write_text(json.dumps(data))
    with pytest.raises(DataError, match='id 10 is given to .*1.jpg.*empty.jpg'):
        read_coco(str(coco))


def zipped(path, files):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_coco_is_unpacked_and_verified(coco, tmp_path, monkeypatch):
    root = tmp_path / 'coco'
    root.mkdir()
    status, _, stderr = run_tool('datasets', 'coco', '--root', root)
    assert status == 2
    assert 'annotations_trainval2017.zip and put it at' in stderr and str(root) in stderr

    zipped(root / 'annotations_trainval2017.zip',
           {f'annotations/instances_{part}.json': coco.read_text()
            for part in ('train2017', 'val2017')})
    status, printed, stderr = run_tool('datasets', 'coco', '--root', root)
    assert status == 2
    assert ('train2017 is not complete, or not the official one: 3 instead of 118,287 images, '
            '2 instead of 117,266 images with annotations, 4 instead of 860,001 boxes.') in stderr

    known = Known(images=3, annotated=2, boxes=4)
    monkeypatch.setattr(official, 'COCO_2017', dict(train2017=known, val2017=known))
    status, _, stderr = run_tool('datasets', 'coco', '--root', root)
    assert status == 2 and 'zips/train2017.zip and put it at' in stderr
    for part in ('train2017', 'val2017'):
        zipped(root / f'{part}.zip', {f'{part}/{image["file_name"]}': 'pixels'
                                      for image in IMAGES})
    # What an interrupted run left: a file that is not whole, another that is.
    (root / 'train2017/b').mkdir(parents=True)
    (root / 'train2017/b/2.jpg').write_text('pix')
    status, printed, stderr = run_tool('datasets', 'coco', '--root', root)
    assert status == 0, stderr
    assert printed.count('counts are the known ones') == 2
    assert (root / 'train2017/b/2.jpg').read_text() == 'pixels'
    (root / 'train2017.zip').unlink()  # not needed any more
    assert run_tool('datasets', 'coco', '--root', root)[0] == 0


def test_archive_cannot_write_elsewhere(tmp_path):
    zipped(tmp_path / 'bad.zip', {'../outside.txt': 'x'})
    with pytest.raises(DataError, match='outside of'):
        official.unpack(str(tmp_path / 'bad.zip'), str(tmp_path / 'in'))
    assert not (tmp_path / 'outside.txt').exists()


XML = """<annotation><size><width>50</width><height>40</height></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>11</xmin><ymin>5</ymin>
<xmax>30</xmax><ymax>25.6</ymax></bndbox></object>
<object><name>sofa</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>
<xmax>50</xmax><ymax>40</ymax></bndbox><part><name>head</name></part></object></annotation>"""


@pytest.fixture
def devkit(tmp_path):
    """A VOCdevkit folder beside an archive of its VOC2012, which it lacks."""
    folder = tmp_path / 'source' / 'VOCdevkit'
    for year, names in (('VOC2007', dict(trainval=['1', '2'], test=['3'])),
                        ('VOC2012', dict(trainval=['2008_1']))):
        for name, images in names.items():
            path = folder / year / 'ImageSets/Main' / f'{name}.txt'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('\n'.join(images) + '\n')
            for image in images:
                for part, content in ((f'Annotations/{image}.xml', XML),
                                      (f'JPEGImages/{image}.jpg', 'pixels')):
                    (folder / year / part).parent.mkdir(exist_ok=True)
                    (folder / year / part).write_text(content)
    with tarfile.open(tmp_path / 'VOCtrainval_11-May-2012.tar', 'w') as archive:
        archive.add(folder / 'VOC2012', 'VOCdevkit/VOC2012')
    (folder / 'VOC2007').rename(Path(tmp_path / 'VOCdevkit').mkdir() or
                                tmp_path / 'VOCdevkit/VOC2007')
    return tmp_path / 'VOCdevkit'


def test_voc_is_unpacked_verified_and_converted(devkit, monkeypatch):
    monkeypatch.setattr(official, 'VOC', {
        ('VOC2007', 'trainval'): Known(images=2, counted=2),
        ('VOC2012', 'trainval'): Known(images=1, counted=1),
        ('VOC2007', 'test'): Known(images=1, counted=1)})
    status, printed, stderr = run_tool('datasets', 'voc', '--root', devkit)
    assert status == 0, stderr
    assert printed.count('counts are the known ones') == 3
    converted = loaded(devkit / 'annotations/voc0712_trainval.json', VOCDataset.CLASSES)
    assert list(converted) == ['VOC2007/JPEGImages/1.jpg', 'VOC2007/JPEGImages/2.jpg',
                               'VOC2012/JPEGImages/2008_1.jpg']
    # The boxes that MMDetection reads from the XML files.
    read = build_dataset(dict(type='VOCDataset', pipeline=[], img_prefix=str(devkit / 'VOC2007/'),
                              ann_file=str(devkit / 'VOC2007/ImageSets/Main/trainval.txt')))
    expected = read.get_ann_info(0)
    for key, found in zip(('bboxes', 'labels', 'bboxes_ignore'),
                          converted['VOC2007/JPEGImages/1.jpg']):
        assert len(expected[key]) == 1
        np.testing.assert_array_equal(found, expected[key])


def test_incomplete_voc_is_named(devkit):
    with pytest.raises(DataError, match='VOC2007 trainval .* 2 instead of 5,011 images'):
        official.prepare_voc(str(devkit), lambda line: None)
    xml = devkit / 'VOC2007/Annotations/2.xml'
    xml.write_text(XML.replace('sofa', 'settee'))
    with pytest.raises(DataError, match='2.xml is no annotation of VOC: .*settee'):
        read_voc(str(devkit), [('VOC2007', 'trainval')])
    xml.unlink()
    with pytest.raises(DataError, match='1 of 4 files are missing.*VOCtrainval_06-Nov-2007.tar'):
        official.prepare_voc(str(devkit), lambda line: None)


def test_class_names_that_come_with_the_repository():
    assert read_classes(str(REPOSITORY / 'datalists/classes_config.json')) == \
        list(CocoDataset.CLASSES)


def test_polygons_are_not_kept(coco, tmp_path):
    """Memory grows with boxes, not with what else a file holds."""
    data = json.loads(coco.read_text())
    data['annotations'] = [{**annotation(number, 10, 3, [1, 2, 3, 4]),
                            'segmentation': [[0.5] * 10_000]} for number in range(20)]
    coco.write_text(json.dumps(data))
    one = 10_000 * (24 + 8)  # bytes of a list of floats
    tracemalloc.start()
    write_coco(read_coco(str(coco)), str(tmp_path / 'copy.json'))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * one
    assert len(mmcv.load(str(tmp_path / 'copy.json'))['annotations']) == 20
