"""What becomes of a student: exported with a config for plain MMDetection, and tested."""

import runpy
import sys

import pytest
import torch
from mmdet.apis import init_detector
from mmdet.models import DetTTAModel
from mmengine.config import Config
from small_experiments import CLASSES, IMAGES, TOOLS, detector, experiment

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.engine.commands import augment_tests
from gkd.engine.config import untrained_model
from gkd.engine.export import export_student, load_detector
from gkd.errors import ConfigError
from gkd.frameworks import build_detector
from gkd.frameworks.mmdet3 import leaf_configs
from studies import coverage, small_models


def write_checkpoint(config, path):
    """What a training of a distillation leaves; returns the student's weights."""
    weights = build_detector(config.model).student.state_dict()
    torch.save(dict(meta=dict(dataset_meta=dict(classes=CLASSES)), state_dict={
        f'student.{name}': tensor for name, tensor in weights.items()}), path)
    return weights


def test_a_config_is_written_where_the_student_has_none_of_its_own(
        annotations, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = experiment(annotations, 'work', hooks=[dict(type='ReportHook')])
    config.custom_imports = dict(imports=['gkd', 'math'], allow_failed_imports=False)
    config.test_dataloader = config.val_dataloader
    config.dump('distiller.py')
    weights = write_checkpoint(config, 'trained.pth')
    monkeypatch.setattr(sys, 'argv', ['export_student.py', 'distiller.py', 'trained.pth'])
    runpy.run_path(str(TOOLS.parent / 'export_student.py'))['main']()
    assert 'wrote student.pth; it fits student.py' in capsys.readouterr().out
    own = Config.fromfile('student.py')
    assert own.model.type == 'RetinaNet' and own.custom_imports.imports == ['math']
    assert 'Hook' not in str(own.get('custom_hooks')) and 'gkd' not in own.pretty_text
    assert 'checkpoint' not in own.default_hooks  # else that of this project
    plain = init_detector('student.py', 'student.pth', device='cpu')
    assert all(map(torch.equal, weights.values(), plain.state_dict().values()))
    assert plain.dataset_meta['classes'] == CLASSES


def test_a_detector_is_loaded_to_detect(annotations, tmp_path):
    config, trained = experiment(annotations, tmp_path / 'work'), str(tmp_path / 'trained.pth')
    weights = write_checkpoint(config, trained)
    loaded = load_detector(config, trained)
    assert not any(module.training for module in loaded.modules())
    assert all(map(torch.equal, weights.values(), loaded.state_dict().values()))


def test_a_model_without_weights_leaves_its_config_as_it_is(annotations, tmp_path):
    config = experiment(annotations, tmp_path / 'work')
    config.model.teacher.checkpoint = 'gone.pth'
    before = config.pretty_text
    assert untrained_model(config).bank is None
    assert config.pretty_text == before


def test_images_are_augmented_inside_of_wrappers(annotations, tmp_path):
    config = experiment(annotations, tmp_path / 'work')
    leaf = config.val_dataloader.dataset
    config.test_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[
        leaf, dict(type='RepeatDataset', times=1, dataset=leaf)]))
    config.update(tta_model=dict(type='DetTTAModel'), tta_pipeline=[dict(type='TestTimeAug')])
    detector_alone = config.model
    augment_tests(config)
    for inner in leaf_configs(config.test_dataloader.dataset).values():
        assert inner.pipeline == config.tta_pipeline
    assert config.model == dict(type='DetTTAModel', module=detector_alone)


@pytest.mark.usefixtures('short_backbones')
def test_the_config_of_a_detr_is_read_again(tmp_path):
    """Its head writes a tensor into the config that it is built from."""
    student = small_models.small_config('detr/detr_r50_8xb2-150e_coco')
    config = Config(dict(model=coverage.distiller(student, student), train_dataloader=dict()))
    trained, output = str(tmp_path / 'trained.pth'), str(tmp_path / 'student.pth')
    weights = write_checkpoint(config, trained)
    plain = build_detector(Config.fromfile(export_student(config, trained, output)).model)
    exported = load_checkpoint_file(output)['state_dict']
    assert plain.load_state_dict(exported) and exported.keys() == weights.keys()


def test_its_own_config_is_named_unless_settings_replace_some_of_it(annotations, tmp_path):
    file = tmp_path / 'own.py'
    file.write_text(f'model = {detector("one_stage")!r}\n')
    config = experiment(annotations, tmp_path / 'work')
    config.model.student = dict(config=str(file))
    trained, output = str(tmp_path / 'trained.pth'), str(tmp_path / 'student.pth')
    write_checkpoint(config, trained)
    assert export_student(config, trained, output) == str(file)
    config.model.student.overrides = {'bbox_head.stacked_convs': 2}
    write_checkpoint(config, trained)
    written = export_student(config, trained, output)
    assert written == str(tmp_path / 'student.py')
    assert Config.fromfile(written).model.bbox_head.stacked_convs == 2
    with pytest.raises(ConfigError, match='own.py is there already'):
        export_student(config, trained, str(tmp_path / 'own.pth'))
    assert not (tmp_path / 'own.pth').exists() and file.read_text().startswith('model')


def test_the_students_own_config_exports_too(annotations, tmp_path):
    config = experiment(annotations, tmp_path / 'work')
    trained, output = str(tmp_path / 'trained.pth'), str(tmp_path / 'student.pth')
    weights = write_checkpoint(config, trained)
    (tmp_path / 'own.py').write_text(f'model = {detector("one_stage")!r}\n')
    config = Config.fromfile(str(tmp_path / 'own.py'))
    assert export_student(config, trained, output) == str(tmp_path / 'own.py')
    exported = torch.load(output, weights_only=True)['state_dict']
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in weights.items())


def test_a_test_augments_images(annotations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = experiment(annotations, 'work')
    config.update(test_dataloader=config.val_dataloader, test_cfg=dict(type='TestLoop'),
                  test_evaluator=config.val_evaluator)
    write_checkpoint(config, 'trained.pth')
    config.dump('plain.py')
    flips = [dict(type='RandomFlip', prob=float(flipped)) for flipped in range(2)]
    pack = dict(type='PackDetInputs', meta_keys=(
        'img_id', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction'))
    resize = dict(type='Resize', scale=(128, 128), keep_ratio=True)
    config.tta_model = dict(type='DetTTAModel', tta_cfg=dict(
        nms=dict(type='nms', iou_threshold=0.5), max_per_img=10))
    config.tta_pipeline = [dict(type='LoadImageFromFile'),
                           dict(type='TestTimeAug', transforms=[[resize], flips, [pack]])]
    config.dump('tta.py')

    def test(name):
        monkeypatch.setattr(sys, 'argv', ['test.py', name, 'trained.pth', '--tta',
                                          '--out', 'found.pkl'])
        return runpy.run_path(str(TOOLS / 'test.py'))['main']()

    views, merge = [], DetTTAModel.merge_preds

    def merge_counted(self, samples):
        views.extend(map(len, samples))
        return merge(self, samples)

    monkeypatch.setattr(DetTTAModel, 'merge_preds', merge_counted)
    test('tta.py')
    assert views == [2] * IMAGES
    with pytest.raises(ConfigError, match='--tta: config plain.py has no tta_model and no tta_p'):
        test('plain.py')
