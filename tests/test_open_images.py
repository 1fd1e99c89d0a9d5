"""Open Images' data set: boxes are fractions of images whose sizes its annotations lack."""

import csv
import json

import cv2
import numpy as np
import pytest
from helpers import tiny_data
from helpers.refusals import append, refuse_training, train
from helpers.running import succeed
from mmdet.datasets import OpenImagesChallengeDataset, build_dataset

from gkd.bank import PrototypeBank
from gkd.errors import DataError
from gkd.frameworks import annotation, image_info
from gkd.running.data import check_images

COLUMNS = ('ImageID', 'Source', 'LabelName', 'Confidence', 'XMin', 'XMax', 'YMin', 'YMax',
           'IsOccluded', 'IsTruncated', 'IsGroupOf', 'IsDepiction', 'IsInside')


def write_table(path, *rows):
    """Write a CSV file."""
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows(rows)


def convert(folder):
    """Write the tiny COCO data in Open Images' form; the last box stands for a group."""
    content = json.loads((folder / 'annotations.json').read_text())
    for image in content['images']:
        pixels = cv2.imread(str(folder / 'images' / image['file_name']))
        cv2.imwrite(str(folder / 'images' / f'{image["id"]}.jpg'), pixels)
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    rows = []
    for entry in content['annotations']:
        (x, y, w, h), (width, height) = entry['bbox'], sizes[entry['image_id']]
        group = int(entry is content['annotations'][-1])
        rows.append([entry['image_id'], '', f'/m/{entry["category_id"]}', 1, x / width,
                     (x + w) / width, y / height, (y + h) / height, 0, 0, group, 0, 0])
    write_table(folder / 'boxes.csv', COLUMNS, *rows)
    write_table(folder / 'labels.csv', *([f'/m/{number}', name] for number, name
                                         in enumerate(tiny_data.CLASSES, 1)))
    (folder / 'tree.json').write_text('{}')
    return content['annotations']


def data_set(folder, pipeline, **settings):
    """The data set's config."""
    return dict(type='OpenImagesDataset', ann_file=str(folder / 'boxes.csv'),
                img_prefix=str(folder / 'images'), label_file=str(folder / 'labels.csv'),
                hierarchy_file=str(folder / 'tree.json'), pipeline=pipeline, **settings)


@pytest.fixture
def boxes(folder):
    """Those of the working directory, as COCO has them: its pair trains on Open Images' form."""
    found = convert(folder)
    training, test = tiny_data.pipelines()
    training[1]['denorm_bbox'] = True
    measured = data_set(folder, test, load_image_level_labels=False, load_from_file=False)
    data = dict(samples_per_gpu=2, workers_per_gpu=0, train=data_set(folder, training),
                val=measured, test=measured)
    append('distiller.py', f'data = {data!r}\nevaluation["metric"] = "mAP"')
    return found


def test_boxes_are_in_pixels_and_groups_are_left_out(folder):
    expected = convert(folder)
    data = build_dataset(data_set(folder, []))
    assert len(data) == len(tiny_data.SIZES)
    for index, (width, height) in enumerate(tiny_data.SIZES):
        own = [entry for entry in expected[:-1] if entry['image_id'] == index + 1]
        found, labels = annotation(data, index)
        np.testing.assert_allclose(found[:, :2], [entry['bbox'][:2] for entry in own], atol=1e-4)
        np.testing.assert_allclose(found[:, 2:] - found[:, :2],
                                   [entry['bbox'][2:] for entry in own], atol=1e-4)
        assert labels.tolist() == [entry['category_id'] - 1 for entry in own]
        info = image_info(data, index)
        assert (info['width'], info['height']) == (width, height)


def test_the_challenge_names_images_elsewhere(folder):
    convert(folder)
    data = OpenImagesChallengeDataset.__new__(OpenImagesChallengeDataset)
    vars(data).update(
        img_prefix=str(folder / 'images'), pipeline=build_dataset(
            data_set(folder, tiny_data.pipelines()[1])).pipeline, ann_file='challenge.txt',
        CLASSES=tiny_data.CLASSES, data_infos=[dict(
            img_info=dict(filename='1.jpg'), ann_info=dict(
                bboxes=np.array([[0.25, 0.5, 0.5, 1]], np.float32), labels=np.array([2]),
                gt_is_group_ofs=np.array([False])))])
    assert annotation(data, 0)[0].tolist() == [[32, 48, 64, 96]]
    check_images(data, 'data.train')
    data.data_infos[0]['img_info'] = dict(filename='none.jpg')
    with pytest.raises(DataError, match='none.jpg'):
        check_images(data, 'data.train')
    with pytest.raises(DataError, match='none.jpg: the size of this image is needed'):
        annotation(data, 0)


def test_a_pair_is_trained_tested_and_looked_at(folder, boxes):
    """Sizes come from the pipeline, of whose images the trial's must not be counted."""
    said = train('--epochs', '1')
    assert f'Prototypes: {len(boxes) - 1} instances' in said
    bank = PrototypeBank.load(next((folder / 'work' / 'prototypes').glob('epoch_*.safetensors')))
    known = {(entry['image_id'], *entry['bbox'][:2]) for entry in boxes}
    for name, box, _ in json.loads(bank.metadata['origins'])[0]:
        assert (int(name[:-len('.jpg')]), *map(round, box[:2])) in known
    assert 'mAP' in (folder / 'work' / 'report.html').read_text()
    succeed('test', 'distiller.py', 'work/latest.pth')
    succeed('gallery', 'distiller.py', 'work/latest.pth', '--out', 'gallery')


@pytest.mark.parametrize('setting, name', [
    ('load_from_file', 'meta_file'), ('load_image_level_labels', 'image_level_ann_file')])
def test_files_of_the_metric_are_missed_before_the_first_step(folder, boxes, setting, name):
    refuse_training(folder, '--cfg-options', f'data.val.{setting}=True',
                    says=['evaluation.metric: the metric reads ', name, f'{setting}=False'])
