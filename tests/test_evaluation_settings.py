"""Every documented setting of evaluation works, or is refused before the first step."""

import copy
import json
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.coco_files import renumber_categories
from helpers.distillers import assert_same_state
from helpers.refusals import append, refuse, refuse_training, train
from helpers.running import run_tool, succeed
from mmcv import Config
from mmdet.datasets import CocoDataset, VOCDataset, build_dataset
from mmdet.models import RetinaNet, build_detector

from gkd.errors import ConfigError
from gkd.running import load_config
from gkd.running.config import build_model
from gkd.running.data import build_checked_dataset, build_evaluated_dataset
from gkd.running.evaluation import check_metrics, evaluation_hook
from gkd.running.export import load_detector
from gkd.running.test import writer
from gkd.running.trial import check_best, try_hook, try_step

TWO = '[data["{0}"], data["{0}"]]'
CONCATENATED = 'dict(type="ConcatDataset", datasets=[data["{0}"], data["{0}"]])'
FILES = 'dict(data["{0}"], ann_file=["annotations.json"] * 2, img_prefix=["images"] * 2)'


def recorded(folder):
    return json.loads((folder / 'work' / 'evaluation.json').read_text())


def test_a_batch_of_evaluation_gives_what_single_images_give(folder):
    single = train('--epochs', '1')
    expected = recorded(folder)
    (folder / 'work').rename(folder / 'before')
    append('distiller.py', 'data["val_dataloader"] = dict(samples_per_gpu=2)')
    train('--epochs', '1')
    # A smaller image of a batch is padded.
    assert recorded(folder)['1'] == pytest.approx(expected['1'], abs=0.01)
    assert 'Epoch [1]' in single
    append('distiller.py', 'data["test_dataloader"] = dict(samples_per_gpu=3)')
    out, _ = succeed('test', 'distiller.py', 'work/latest.pth')
    assert 'bbox' in out


@pytest.mark.parametrize('several', [TWO, CONCATENATED, FILES])
def test_several_data_sets_are_evaluated_one_by_one(folder, several):
    train('--epochs', '1')
    expected = recorded(folder)['1']
    (folder / 'work').rename(folder / 'before')
    for part in ('val', 'test'):
        append('distiller.py', f'data["{part}"] = {several.format(part)}')
    said = train('--epochs', '1', '--cfg-options', 'evaluation.save_best=0_bbox_mAP')
    found = recorded(folder)['1']
    for name, value in expected.items():
        assert found[f'0_{name}'] == found[f'1_{name}'] == value
    assert (folder / 'work' / 'report.html').exists() and 'could not be' not in said
    succeed('test', 'distiller.py', 'work/latest.pth')
    refuse(folder, 'test', 'distiller.py', 'work/latest.pth', '--format-only',
           says=['--format-only', 'data.test has 2'])


def test_data_sets_in_test_alone(folder):
    append('distiller.py', f'data["test"] = {TWO.format("test")}')
    assert 'Epoch [1]' in train('--epochs', '1')


@pytest.mark.parametrize('option, says', [
    ('evaluation.save_best=bbox_mAp', ["evaluation.save_best = 'bbox_mAp'", 'bbox_mAP_50']),
    ('evaluation.gpu_collect=True', ['evaluation.gpu_collect']),
    ('evaluation.metric_items=mAp', [
        'error: evaluation: a trial', 'measuring', 'data.val', 'mAp', '--no-validate']),
    ('evaluation.proposal_nums=3', ['error: evaluation: a trial', '--no-validate']),
    ('evaluation.metric=proposal_fast', ['evaluation.metric', 'by bbox, proposal.']),
    ('data.val.pipeline.1.transforms.4.keys=[image]', [
        'error: data.val: a trial', 'loading', 'image', '--no-validate']),
    ('data.val_dataloader.samples_per_gpu=two', ['data.val_dataloader.samples_per_gpu', 'two']),
    ('data.val_dataloader.speed=2', ['data.val_dataloader', 'speed']),
])
def test_what_would_fail_after_an_epoch_is_refused(folder, option, says):
    if option == 'evaluation.gpu_collect=True' and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    refuse_training(folder, '--cfg-options', option, says=says)


def test_training_images_that_cannot_be_loaded_are_tried_before_prototypes(folder):
    append('distiller.py', 'data["train"]["pipeline"].insert(-2, dict(type="CopyPaste"))')
    refuse_training(folder, says=['error: data.train: a trial with two images fails, so that the '
                                  'training would, in loading them: AssertionError'])


def test_a_detector_that_fails_in_an_evaluation_is_named(folder):
    append('student.py', 'model["test_cfg"]["score_thr"] = "high"')
    refuse_training(folder, says=['error: model: a trial', 'detecting in those of data.val',
                                  'TypeError', 'It happened in', 'mmdet'])


@pytest.mark.parametrize('settings', [
    dict(metric='proposal'), dict(metric=['bbox', 'proposal']), dict(classwise=True),
    dict(iou_thrs=[0.5, 0.6]), dict(proposal_nums=(10, 20, 30)), dict(save_best='auto'),
    dict(by_epoch=False, interval=2), dict(start=2), dict(dynamic_intervals=[(2, 1)], interval=5),
    dict(jsonfile_prefix='found/results'), dict(metric_items=['mAP', 'mAP_50']),
])
def test_documented_settings_work(folder, settings):
    # As long as nothing is detected there are no metrics.
    append('distiller.py', f'evaluation.update({settings!r})')
    said = train('--epochs', '2')
    assert 'Epoch [2]' in said
    found = recorded(folder)
    assert list(found)[-1] == '2' and all(found.values())
    if settings.get('metric') == 'proposal':
        assert 'AR@100' in found['2'] and 'bbox_mAP' not in found['2']


def test_a_test_that_would_fail_is_told_of_its_own_options(folder):
    train('--epochs', '1', '--no-validate')
    _, _, stderr = run_tool('test', 'distiller.py', 'work/latest.pth', '--eval-options',
                            'iou_thrs=none')
    assert 'error: --eval or --eval-options: a trial' in stderr and 'data.test' in stderr
    assert '--no-validate' not in stderr


def test_a_test_measures_what_the_training_does(folder):
    append('distiller.py', 'evaluation["metric"] = ["proposal"]')
    train('--epochs', '1')
    out, _ = succeed('test', 'distiller.py', 'work/latest.pth')
    assert 'Evaluating proposal' in out and 'Evaluating bbox' not in out
    out, _ = succeed('test', 'distiller.py', 'work/latest.pth', '--eval', 'bbox')
    assert 'Evaluating bbox' in out and 'Evaluating proposal' not in out


class Measured(CocoDataset):
    """Reads COCO files, and has metrics of its own."""

    def evaluate(self, results, metric='own'):
        return {}


def test_data_sets_with_metrics_of_their_own(folder):
    data = Measured(str(folder / 'annotations.json'), [], classes=list(tiny_data.CLASSES))
    model = build_detector(Config(dict(model=small.retinanet())).model)
    check_metrics(model, data, ['own'], '--eval')
    data.__class__ = CocoDataset
    with pytest.raises(ConfigError, match='--eval own: RetinaNet on CocoDataset'):
        check_metrics(model, data, ['own'], '--eval')


def test_data_sets_without_a_format_of_results():
    data = VOCDataset.__new__(VOCDataset)
    with pytest.raises(ConfigError, match='VOCDataset has no format for results. --out FILE.pkl'):
        writer(None, data, {}, 'latest.pth')


def test_detectors_with_a_panoptic_head_have_masks(folder):
    data = CocoDataset(str(folder / 'annotations.json'), [], classes=list(tiny_data.CLASSES))
    model = build_detector(Config(dict(model=small.retinanet())).model)
    with pytest.raises(ConfigError, match='--eval segm: RetinaNet'):
        check_metrics(model, data, ['segm'], '--eval')
    model.panoptic_head = torch.nn.Identity()
    check_metrics(model, data, ['bbox', 'segm'], '--eval')


def test_a_detector_whose_eval_returns_nothing(folder, monkeypatch):
    """Such as LD and LAD."""
    monkeypatch.setattr(RetinaNet, 'eval', lambda model: torch.nn.Module.eval(model) and None)
    model = load_detector(load_config('teacher.py'), 'teacher.pth')
    assert isinstance(model, RetinaNet) and not model.training


def test_the_trial_leaves_the_training_as_it_is(folder):
    train('--epochs', '1', '--no-validate')
    expected = torch.load('work/latest.pth')['state_dict']
    train('--epochs', '1', '--resume', 'never')
    for name, tensor in torch.load('work/latest.pth')['state_dict'].items():
        assert torch.equal(tensor, expected[name]), name


def test_the_trial_leaves_the_evaluation_as_it_is(folder):
    append('student.py', 'evaluation.update(save_best="auto", jsonfile_prefix="found")')
    config = load_config('student.py')
    model = build_model(config).train()
    evaluation = evaluation_hook(config, model, build_evaluated_dataset(config, 'val'))
    settings = copy.deepcopy(evaluation.eval_kwargs), evaluation.rule, evaluation.key_indicator
    before = torch.get_rng_state()
    try_hook(evaluation, config, model, torch.device('cpu'))
    check_best(evaluation, dict(bbox_mAP=0.1))
    assert settings == (evaluation.eval_kwargs, evaluation.rule, evaluation.key_indicator)
    assert not list(folder.glob('found*')) and model.training
    iter(evaluation.dataloader)  # nor does the evaluation draw from the training's generator
    assert torch.equal(torch.get_rng_state(), before)


def test_images_without_boxes_are_evaluated_and_not_trained_on(folder):
    config = load_config('student.py')
    for empty, trained in ((0, 4), (1, 3)):
        tiny_data.write_data(folder, empty_images=empty)
        assert len(build_checked_dataset(config.data.train, 'data.train')) == trained
        assert len(build_evaluated_dataset(config, 'val')) == 4
    tiny_data.write_data(folder, empty_images=4)
    assert len(build_evaluated_dataset(config, 'val')) == 4


@pytest.mark.parametrize('config', ['student.py', 'distiller.py'])
def test_a_step_is_tried_with_a_copy(folder, config):
    config = load_config(config)
    model = build_model(config).eval()
    dataset = build_dataset(config.data.train)
    before = copy.deepcopy(model.state_dict())
    try_step(model, torch.device('cpu'), [dataset[0], dataset[1]])
    assert_same_state(model.state_dict(), before)
    assert not any(module.training for module in model.modules())


def test_two_images_are_evaluated_first_and_none_without_validation(folder):
    counts = []
    evaluate = CocoDataset.evaluate

    def count(self, results, *args, **kwargs):
        counts.append(len(results))
        return evaluate(self, results, *args, **kwargs)

    with mock.patch.object(CocoDataset, 'evaluate', count):
        train('--epochs', '1', '--no-validate')
        assert counts == []
    weights = tiny_data.write_weights('student.pth', small.retinanet())
    with mock.patch.object(CocoDataset, 'evaluate', count), \
            mock.patch('gkd.running.trial.USUAL_EVALUATIONS', [count]):
        succeed('test', 'student.py', weights)
        assert counts == [2, 4]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_detector_of_mixed_precision_is_tested_on_the_cpu(folder):
    weights = tiny_data.write_weights('student.pth', small.retinanet())
    found = []
    for precision in ('None', 'dict(loss_scale="dynamic")'):
        append('student.py', f'fp16 = {precision}')
        succeed('test', 'student.py', weights, '--out', 'found.pkl')
        found.append((folder / 'found.pkl').read_bytes())
    assert found[0] == found[1]


def test_drawings_name_the_classes_of_the_data(folder, monkeypatch):
    weights = tiny_data.write_weights('student.pth', small.retinanet())
    torch.save(dict(state_dict=torch.load(weights)['state_dict']), weights)  # it names none
    names = []
    monkeypatch.setattr(RetinaNet, 'show_result',
                        lambda model, *args, **settings: names.append(model.CLASSES))
    succeed('test', 'student.py', weights, '--show-dir', 'drawn')
    assert names == [[*tiny_data.CLASSES]] * 4


def test_metrics_of_a_test_are_tried_first(folder):
    weights = tiny_data.write_weights('student.pth', small.retinanet())
    refuse(folder, 'test', 'student.py', weights, '--eval-options', 'metric_items=mAp',
           says=['data.test', 'mAp', '--eval-options'])


def test_each_class_has_its_own_ap_in_whatever_order_the_ids_of_the_file_are(tmp_path, capsys):
    path = tiny_data.write_data(tmp_path)
    content = json.loads(path.read_text())
    renumber_categories(content, {1: 907, 2: 3, 3: 44})
    path.write_text(json.dumps(content))
    data = CocoDataset(ann_file=str(path), pipeline=[], classes=tiny_data.CLASSES, test_mode=True)
    found = [[np.zeros((0, 5))] * 3 for _ in data.img_ids]
    for results, number in zip(found, range(len(data))):  # all of the first class, and no other
        truth = data.get_ann_info(number)
        boxes = truth['bboxes'][truth['labels'] == 0]
        results[0] = np.hstack([boxes, np.ones((len(boxes), 1))])
    data.evaluate(found, classwise=True)
    table = capsys.readouterr().out
    assert '| red      | 1.000 | green    | 0.000 | blue     | 0.000 |' in table
