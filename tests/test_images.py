"""A teacher that was trained on images of another kind sees those; broken files are named."""

import copy

import cv2
import numpy as np
import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.refusals import append, edit, refuse_training, train
from helpers.running import run_tool
from mmcv.parallel import collate
from mmdet.datasets import build_dataset

from gkd.detectors.images import ChannelMap, ImageFormat, format_of
from gkd.errors import ConfigError, DataError
from gkd.prototypes.features import batch_features, stack_images
from gkd.running import load_config
from gkd.running.config import build_model

CAFFE = dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
TORCHVISION = dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
                   to_rgb=True)
RAW = dict(type='Normalize', mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], to_rgb=False)
GREY = dict(type='Pad', size_divisor=32, pad_val=dict(img=(114, 110, 100)))
ZERO = dict(type='Pad', size_divisor=32)


def pipelines(normalise, padding, first='normalise'):
    """Train and test pipeline with a normalisation and a padding, in either order."""
    train_steps, test_steps = tiny_data.pipelines()
    for steps in (train_steps, test_steps[1]['transforms']):
        place = next(i for i, step in enumerate(steps) if step['type'] == 'Normalize')
        steps[place:place + 2] = ([normalise, padding] if first == 'normalise'
                                  else [padding, normalise])
    return copy.deepcopy(train_steps), copy.deepcopy(test_steps)


KINDS = dict(caffe=(CAFFE, ZERO), torchvision=(TORCHVISION, ZERO), raw=(RAW, GREY),
             padded_first=(TORCHVISION, GREY, 'pad'),
             tiny=(dict(type='Normalize', mean=[127.0] * 3, std=[60.0] * 3), ZERO))


def with_kinds(folder, fed, teacher, student=None):
    """Let the configs of the folder make images of some kinds."""
    for name, kind in (('distiller', fed), ('teacher', teacher), ('student', student or fed)):
        steps, test_steps = pipelines(*KINDS[kind])
        append(f'{name}.py',
               f'data["train"]["pipeline"] = {steps!r}\n'
               f'data["val"]["pipeline"] = data["test"]["pipeline"] = {test_steps!r}')


def batch_of(config, part):
    """All images of a config's data in one batch, and their sizes."""
    dataset = build_dataset(config.data[part])
    items = [dataset[index] for index in range(len(dataset))]
    if part == 'test':
        items = [dict(img=item['img'][0], img_metas=item['img_metas'][0]) for item in items]
    metas = [item['img_metas'].data for item in items]
    images = [item['img'] if torch.is_tensor(item['img']) else item['img'].data for item in items]
    return images, [meta['img_shape'][:2] for meta in metas]


def assert_same_maps(one, other):
    """Equal to 1e-5 of the largest value: pixels were rounded at another scale."""
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize('fed, teacher', [
    ('tiny', 'caffe'), ('torchvision', 'caffe'), ('caffe', 'torchvision'), ('raw', 'torchvision'),
    ('torchvision', 'raw'), ('padded_first', 'caffe'), ('caffe', 'padded_first')])
def test_the_teacher_sees_what_its_own_pipeline_makes(folder, fed, teacher):
    with_kinds(folder, fed, teacher)
    model = build_model(load_config('distiller.py'))
    given, sizes = batch_of(load_config('distiller.py'), 'test')
    wanted, _ = batch_of(load_config('teacher.py'), 'test')
    levels = range(5)
    for image, own, size in zip(given, wanted, sizes):
        converted = model.teacher_images(image[None], [size])
        torch.testing.assert_close(converted, own[None], rtol=1e-5, atol=1e-4)
        for one, other in zip(model.teacher.extract_feat(converted),
                              model.teacher.extract_feat(own[None])):
            assert_same_maps(one, other)
    # So do the features that prototypes are chosen from; the last image is padded.
    boxes = torch.tensor([[3.0, 4.0, 50.0, 60.0]])
    stacks = [stack_images([(image, boxes, size) for image in images])
              for images, size in ((given[-1:], sizes[-1]), (wanted[-1:], sizes[-1]))]
    features = batch_features(model.teacher, levels, stacks[0], torch.device('cpu'))
    model.teacher.test_images = None
    for one, other in zip(features, batch_features(model.teacher, levels, stacks[1],
                                                   torch.device('cpu'))):
        assert_same_maps(one, other)


def test_a_copy_of_the_teacher_in_another_precision_sees_the_same(folder):
    with_kinds(folder, 'tiny', 'caffe')
    config = load_config('distiller.py')
    config.model.teacher.precision = 'bfloat16'
    teacher = build_model(config).frozen
    assert teacher.running is not teacher.exact
    assert teacher.running.test_images is teacher.exact.test_images is not None


def test_a_training_step_shows_the_teacher_its_own_images(folder):
    with_kinds(folder, 'tiny', 'caffe')
    config = load_config('distiller.py')
    model = build_model(config)
    dataset = build_dataset(config.data.train)
    dataset.pipeline.transforms[3].prob = 0.0  # no flip, as in the other pipeline
    data = collate([dataset[index] for index in range(4)], samples_per_gpu=4)
    images, metas = data['img'].data[0], data['img_metas'].data[0]
    seen = []
    extract = model.teacher.extract_feat
    model.teacher.extract_feat = lambda image: seen.append(image) or extract(image)
    model.bank = small.random_bank(model.pair)
    model.forward_train(images, metas, data['gt_bboxes'].data[0], data['gt_labels'].data[0])
    own, _ = batch_of(load_config('teacher.py'), 'test')
    assert len(seen) == 1
    for image, shown, meta in zip(own, seen[0], metas):
        height, width = meta['img_shape'][:2]
        torch.testing.assert_close(shown[:, :height, :width], image[:, :height, :width],
                                   rtol=1e-5, atol=1e-4)
        assert (shown[:, height:] == 0).all() and (shown[:, :, width:] == 0).all()


def test_it_is_said_once_and_not_at_all_where_nothing_differs(folder):
    assert 'converted' not in train('--epochs', '1', '--no-validate')
    with_kinds(folder, 'tiny', 'caffe')
    said = train('--epochs', '1', '--no-validate', '--resume', 'never')
    assert said.count('they are converted for it') == 1
    assert 'BGR, mean 103.53, 116.28, 123.675, std 1, 1, 1' in said


def test_formats_that_are_the_same_are_not_touched():
    formats = [format_of(dict(pipeline=pipelines(*KINDS[kind])[1])) for kind in KINDS]
    for given in formats:
        images = torch.rand(1, 3, 8, 8)
        assert ChannelMap(given, given)(images, [(4, 4)]) is images
    # Caffe's means are torchvision's in the other order: padding needs no care.
    assert not ChannelMap(formats[0], formats[1]).refill
    assert ChannelMap(formats[2], formats[1]).refill


def test_all_that_a_batch_is_padded_with_becomes_the_padding_that_is_wanted():
    """A pipeline that pads with 4, which becomes 2 by itself, and the zeros of the batch."""
    change = ChannelMap(ImageFormat(padding=(4.0,) * 3),
                        ImageFormat(mean=(2.0,) * 3, padding=(2.0,) * 3))
    images = torch.zeros(1, 3, 2, 4)
    images[..., 1:3] = 4
    turned = change(images, [(2, 1)])
    assert (turned[..., 0] == -2).all() and (turned[..., 1:] == 2).all()


def test_wrappers_and_lists_are_looked_into():
    steps, _ = pipelines(*KINDS['caffe'])
    mixed = dict(type='MultiImageMixDataset', dataset=dict(pipeline=steps[:2]), pipeline=steps[2:])
    assert format_of([dict(datasets=[mixed])]) == format_of(dict(pipeline=steps))
    assert format_of(dict(pipeline=[dict(type='LoadTiff'), CAFFE])) is None
    assert format_of({}) is None


def test_what_cannot_be_converted_is_refused(folder):
    append('teacher.py', 'data["test"]["pipeline"][0]["color_type"] = "grayscale"')
    refuse_training(folder, says=['data.train', 'model.teacher', "'color'", "'grayscale'"])


def test_a_student_whose_own_config_makes_other_images_is_told_of(folder):
    with_kinds(folder, 'tiny', 'tiny', student='caffe')
    assert 'The student\'s own config makes images of BGR' in train('--epochs', '1')
    # What is known better than from the config is said in the setting.
    append('distiller.py', 'model["student"]["img_norm_cfg"] = dict(mean=[127.0] * 3, std=[60.0] '
                           '* 3, to_rgb=True)')
    assert 'own config makes' not in train('--epochs', '2')


def test_the_setting_goes_before_the_config(folder):
    append('distiller.py', f'model["teacher"]["img_norm_cfg"] = dict(mean={CAFFE["mean"]}, std='
                           f'{CAFFE["std"]}, to_rgb=False)')
    model = build_model(load_config('distiller.py'))
    assert model.teacher_images.wanted == ImageFormat(
        tuple(CAFFE['mean']), (1.0,) * 3, False, (0.0,) * 3)
    append('distiller.py', 'model["teacher"]["img_norm_cfg"] = dict(mean=3)')
    with pytest.raises(ConfigError, match='model.teacher.img_norm_cfg'):
        build_model(load_config('distiller.py'))


def break_image(path, how):
    if how == 'empty':
        path.write_bytes(b'')
    elif how == 'text':
        path.write_text('no image')
    else:
        path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize('how', ['empty', 'text', 'cut'])
def test_a_damaged_image_is_named_everywhere(folder, how):
    break_image(folder / 'images' / 'image_2.png', how)
    says = ['images/image_2.png', 'damaged', 'datasets.py check']
    refuse_training(folder, '--no-validate', says=says, logged=True)
    append('student.py', 'data["workers_per_gpu"] = 1')
    status, _, stderr = run_tool('train', 'student.py', '--work-dir', 'work', '--no-validate')
    message = stderr[stderr.rindex('\nerror: '):]
    assert status == 2 and all(text in message for text in says) and 'Caught' not in message
    weights = tiny_data.write_weights('student.pth', small.retinanet())
    status, _, stderr = run_tool('test', 'student.py', weights)
    assert status == 2 and all(text in stderr for text in says)
    status, printed, _ = run_tool('datasets', 'check', 'annotations.json', '--images', 'images')
    assert status == 1 and 'images/image_2.png' in printed
    assert '1 of 4 images are damaged or of another size' in printed


def test_an_image_that_its_camera_has_turned(folder):
    from PIL import Image
    path = folder / 'images' / 'image_0.jpg'
    pixels = cv2.imread(str(folder / 'images' / 'image_0.png'))[..., ::-1]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(path, exif=exif, quality=95)

    def rename(content):
        content['images'][0]['file_name'] = path.name

    edit(folder / 'annotations.json', rename)
    said = train('--epochs', '1', '--no-validate')
    assert said.count('image_0.jpg is 96 x 128 pixels, the annotations say 128 x 96') == 1
    assert 'Epoch [1]' in said
    status, printed, _ = run_tool('datasets', 'check', 'annotations.json', '--images', 'images')
    assert status == 1 and 'image_0.jpg is 96 x 128 pixels' in printed
    # Its features are those that it has alone.
    model = build_model(load_config('distiller.py'))
    boxes = torch.tensor([[1.0, 2.0, 40.0, 50.0]])
    samples = [(torch.rand(3, *size), boxes, size) for size in ((96, 128), (128, 96), (96, 128))]
    together = batch_features(model.teacher, range(5), stack_images(samples), torch.device('cpu'))
    for row, sample in enumerate(samples):
        alone = batch_features(model.teacher, range(5), stack_images([sample]),
                               torch.device('cpu'))
        for one, other in zip(together, alone):
            torch.testing.assert_close(one[row:row + 1], other, rtol=1e-4, atol=1e-5)


def test_files_of_another_storage_are_not_looked_for(folder, monkeypatch):
    from mmcv import FileClient
    from mmcv.fileio import BaseStorageBackend

    @FileClient.register_backend('elsewhere', force=True)
    class Elsewhere(BaseStorageBackend):
        """The folder under another name."""

        def get(self, filepath):
            """The file."""
            return (folder / str(filepath).replace('far://', '')).read_bytes()

        def get_text(self, filepath, encoding='utf-8'):
            """The file as text."""
            return self.get(filepath).decode(encoding)

    append('distiller.py', '''
for part in ("train", "val", "test"):
    data[part]["img_prefix"] = "far://images"
    data[part]["pipeline"][0]["file_client_args"] = dict(backend="elsewhere")''')
    assert 'Epoch [1]' in train('--epochs', '1')
    append('distiller.py', 'data["train"]["pipeline"][0]["file_client_args"] = dict(backend='
                           '"disk")')
    refuse_training(folder, says=['data.train.img_prefix: no such folder: far://images'])


def test_an_image_that_cannot_be_fetched_is_named(folder):
    append('distiller.py', '''
for part in ("train", "val", "test"):
    data[part]["img_prefix"] = "http://127.0.0.1:9/images"
    data[part]["pipeline"][0]["file_client_args"] = dict(backend="http")''')
    # It may be there later: torchrun would start the processes again.
    refuse_training(folder, '--no-validate', logged=True, status=1,
                    says=['http://127.0.0.1:9/images/image_', 'cannot be read', 'network'])


def test_looking_tools_name_a_damaged_image(folder):
    from gkd.datasets.images import read_image
    (folder / 'images' / 'image_1.png').write_bytes(b'')
    with pytest.raises(DataError, match='image_1.png: the image file is empty'):
        read_image(str(folder / 'images' / 'image_1.png'))
    with pytest.raises(DataError, match='nowhere.png: no such image file'):
        read_image('nowhere.png')
