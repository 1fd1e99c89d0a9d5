"""Gallery of prototypes, pictures of trust and noise study, of configs of MMDetection 3."""

import csv
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_detectors as small
from matplotlib.text import Text
from mmdet.datasets import CocoDataset
from mmdet.models.detectors import RetinaNet
from mmdet.registry import DATASETS
from mmengine.config import Config
from PIL import Image
from small_experiments import CLASSES, PREPROCESSOR, TOOLS, detector, experiment, train

from gkd.bank import PrototypeBank
from gkd.comparison.mmdet3 import Training
from gkd.errors import ConfigError, DataError
from gkd.frameworks import build_detector
from gkd.looking.door import detect, load_config, load_detector, validation_datasets
from gkd.looking.trained import TrainedPair, validation_images
from gkd.looking.trust import judge, local_masks
from gkd.prototypes.features import CandidateImages
from gkd.quickstart.run import draw_pictures
from gkd.report.drawing import save
from studies.corruptions import CORRUPTIONS, corrupt
from studies.noise_study import MEASURES, features_of, versions_of
from studies.pixels import Pixels


@DATASETS.register_module()
class Uninstalled(CocoDataset):
    """A data set whose package is not installed."""

    def load_data_list(self):
        raise ImportError('no lvis.')


@pytest.fixture
def pair(annotations, tmp_path, monkeypatch):
    """A distillation config, and a checkpoint of its student."""
    monkeypatch.chdir(tmp_path)
    config = experiment(annotations, tmp_path / 'work')
    torch.manual_seed(0)
    teacher, student = (build_detector(detector('one_stage', channels)) for channels in (24, 16))
    torch.save(dict(meta=dict(dataset_meta=dict(classes=CLASSES)),
                    state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    torch.save(dict(meta={}, state_dict=student.state_dict()), tmp_path / 'student.pth')
    config.model.teacher.checkpoint = str(tmp_path / 'teacher.pth')
    config.model.student.checkpoint = str(tmp_path / 'student.pth')
    config.dump(tmp_path / 'distil.py')
    return str(tmp_path / 'distil.py'), str(tmp_path / 'student.pth')


def run(tool, monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    return runpy.run_path(str(TOOLS.parent / f'{tool}.py'))['main']()


def test_gallery_shows_the_prototypes_that_training_would_choose(pair, tmp_path, monkeypatch,
                                                                 capsys):
    run('gallery', monkeypatch, *pair, '--out', tmp_path / 'gallery')
    assert 'agreement' in capsys.readouterr().out
    page = (tmp_path / 'gallery' / 'gallery.html').read_text(encoding='utf-8')
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data['classes'] == list(CLASSES)
    basis = TrainedPair(load_config(pair[0])).generate(str(tmp_path / 'again'))
    config = load_config(pair[0])
    config.train_cfg.max_epochs = 1
    train(config)
    trained = PrototypeBank.load(str(tmp_path / 'work' / 'prototypes' / 'epoch_1.safetensors'))
    for name in ('teacher', 'student', 'offsets'):
        for one, other in zip(getattr(basis.bank, name), getattr(trained, name)):
            torch.testing.assert_close(one, other)


def test_trust_is_drawn_of_the_images_as_the_student_sees_them(pair, tmp_path, monkeypatch,
                                                               capsys):
    run('draw_trust', monkeypatch, *pair, '--out', tmp_path / 'trust', '--count', 2)
    assert 'robust weight' in capsys.readouterr().out
    for name in ('images', *(f'class_{name}' for name in CLASSES)):
        assert np.asarray(Image.open(tmp_path / 'trust' / f'{name}.png').convert('L')).std() > 5

    trained = TrainedPair(load_config(pair[0]))
    bank = trained.generate(str(tmp_path / 'again')).bank
    images = validation_images(trained.config, min_size=0)
    weights = judge(trained, bank, images).weights
    assert ((weights >= 0) & (weights <= 1)).all() and weights.std() > 0
    seen = []
    trained.distiller.student.backbone.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0]))
    modes = []
    trained.distiller.student.bbox_head.register_forward_pre_hook(
        lambda module, inputs: modes.append(module.training))
    local_masks(trained, bank, images[0])
    assert modes == [True]  # some heads compute in training what they leave out in tests
    assert not any(module.training for module in trained.distiller.student.modules())
    assert seen[0].abs().max() < 4  # normalised
    sides = [side % 32 for side in seen[0].shape[2:]]
    assert sides == [0, 0]  # padded


def test_masks_of_local_knowledge_are_drawn_for_a_student_that_trains_on_masks(pair, tmp_path):
    config = load_config(pair[0])
    config.model.student.config = dict(small.mask_rcnn(), data_preprocessor=PREPROCESSOR)
    config.model.student.checkpoint = str(tmp_path / 'mask.pth')
    torch.save(dict(state_dict=build_detector(config.model.student.config).state_dict()),
               config.model.student.checkpoint)
    trained = TrainedPair(config)
    bank = trained.generate(str(tmp_path / 'trust')).bank
    masks, _ = local_masks(trained, bank, validation_images(config, min_size=0)[0])
    assert max(mask.max() for mask in masks) > 0


@pytest.mark.parametrize('setting, value, message', [
    ('ann_file', 'absent.json', 'ann_file: no such file: absent.json'),
    ('metainfo', dict(classes=CLASSES[::-1]), 'lists them as red, green, blue'),
    # As data sets do whose package is not installed.
    ('type', 'Uninstalled', "ann_file: cannot read .* as Uninstalled: ImportError: no lvis[.]$")])
def test_data_that_cannot_be_used_are_refused_as_a_training_refuses_them(
        pair, tmp_path, setting, value, message):
    config = load_config(pair[0])
    trained = TrainedPair(config)
    for part in ('train', 'val'):
        config[f'{part}_dataloader'].dataset[setting] = value
    with pytest.raises(DataError, match=f'^train_dataloader.dataset.*{message}'):
        trained.generate(str(tmp_path / 'gallery'))
    with pytest.raises(DataError, match=f'^val_dataloader.dataset.*{message}'):
        validation_images(config, min_size=0)


@pytest.mark.slow
def test_the_method_is_drawn_with_a_pair_of_ones_own(pair, tmp_path, monkeypatch, capsys):
    run('draw_concept', monkeypatch, *pair, '--out', tmp_path / 'concept')
    assert 'wrote 3 pictures' in capsys.readouterr().out
    for name in ('spaces', 'coordinates', 'weights'):
        assert np.asarray(Image.open(tmp_path / 'concept' / f'{name}.jpg').convert('L')).std() > 5


def test_quickstart_draws_what_detectors_find_and_the_last_prototypes(
        pair, annotations, tmp_path, monkeypatch):
    config = load_config(pair[0])
    config.train_cfg.max_epochs = 1
    config.dump(pair[0])
    train(config)
    teacher = Config.fromfile(pair[0])
    teacher.model = detector('one_stage', 24)
    teacher.dump(tmp_path / 'teacher.py')
    teacher = Training(str(tmp_path / 'teacher.py'), str(tmp_path / 'teacher.pth'))
    distilled = Training(pair[0], str(tmp_path / 'work' / 'epoch_1.pth'))
    said = []
    monkeypatch.setattr('gkd.looking.detections.save', lambda figure, path: (
        said.extend(text.get_text() for text in figure.findobj(Text)), save(figure, path)))
    draw_pictures(teacher, distilled, distilled, str(tmp_path))
    names = {image['file_name'] for image in json.loads(Path(annotations).read_text())['images']}
    assert len(names & {*said}) == 2 and any('yellow: missed' in text for text in said)
    for name in ('detections', 'prototypes'):
        assert np.asarray(Image.open(tmp_path / f'{name}.png').convert('L')).std() > 5


def test_detections_are_in_pixels_of_the_image_file(pair, monkeypatch):
    config = load_config(pair[0])
    # That of LD and LAD returns nothing, either.
    monkeypatch.setattr(RetinaNet, 'eval', lambda model: torch.nn.Module.eval(model) and None)
    model = load_detector(config, pair[1])
    found = []
    for side in (128, 256):
        config.val_dataloader.dataset.pipeline[2].scale = (side, side)
        found.append(detect(model, validation_datasets(config)[0], 0))
    for boxes in found:
        assert len(boxes) and (boxes[:, :4] <= torch.tensor([128, 96, 128, 96])).all()
        assert torch.equal(boxes[:, 4], boxes[:, 4].sort(descending=True).values)
        assert set(boxes[:, 5].tolist()) <= {0, 1, 2}
    assert found[1][:, 2].max() > 100


def test_what_cannot_be_looked_at_is_refused(pair, tmp_path):
    config = Config.fromfile(pair[0])
    config.model.student.checkpoint = None
    with pytest.raises(ConfigError, match='untrained'):
        TrainedPair(config)
    config.val_dataloader = None
    with pytest.raises(ConfigError, match='val_dataloader'):
        validation_images(config, 0)


def test_noise_study_corrupts_what_the_pipelines_of_mmdetection_2_normalise(
        pair, tmp_path, monkeypatch):
    config = load_config(pair[0])
    settings = config.model.student.config.data_preprocessor
    settings.update(mean=[120.0, 100.0, 80.0], std=[50.0, 60.0, 70.0])
    trained = TrainedPair(config)
    image, boxes, size = CandidateImages(validation_images(config, min_size=20))[0]
    seen = []
    trained.distiller.student.backbone.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0]))
    versions = versions_of(image, boxes[0], size, Pixels.of_validation(trained), [0.5, 1.0], 3)
    features_of(trained, versions, boxes[0], size, batch_size=99)

    mean, std = (torch.tensor(settings[name]).reshape(3, 1, 1) for name in ('mean', 'std'))
    normalised = (image.flip(0) - mean) / std  # MMDetection 2's, red first
    expected = [normalised] + [corrupt(normalised, boxes[0], kind, degree, 3)
                               for kind in CORRUPTIONS for degree in (0.5, 1.0)]
    torch.testing.assert_close(seen[0], torch.stack(expected))


def test_noise_study_writes_what_it_prints(pair, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'noise'
    run('noise_study', monkeypatch, *pair, '--instances', 3, '--degrees', 1, '--out', out)
    printed = capsys.readouterr().out
    assert '3 instances in' in printed
    assert (out / 'noise_study.md').read_text().strip() in printed
    table = list(csv.DictReader((out / 'noise_study.csv').open()))
    assert len(table) == 2 * len(MEASURES) * len(CORRUPTIONS) * 2
    moved = [float(row['mean']) for row in table
             if row['measure'] == 'distance, teacher' and row['degree'] == '1.0'
             and row['corruption'] != 'down-scaling']  # which leaves a plain rectangle as it is
    assert len(moved) == 6 and min(moved) > 0
    for name in ('noise_study.png', 'examples.png'):
        assert np.asarray(Image.open(out / name).convert('L')).std() > 5
