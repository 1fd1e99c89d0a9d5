"""What is kept of evaluations, and which epoch a resumed run takes for the best."""

import operator
from types import SimpleNamespace

import pytest
from mmdet.datasets import CocoDataset

from gkd.errors import ConfigError
from gkd.resume import evaluations, keep_evaluation
from gkd.running.evaluation import EvaluationRecorder, check_options


def hook(**settings):
    """A hook that evaluates after each epoch."""
    return SimpleNamespace(**{**dict(
        by_epoch=True, save_best=None, key_indicator=None, _should_evaluate=lambda runner: True,
        out_dir='work', best_ckpt_path=None, dataloader=SimpleNamespace(dataset=None)),
                              **settings})


def runner_at(folder, epoch, **measured):
    return SimpleNamespace(work_dir=str(folder), rank=0, epoch=epoch, meta=dict(hook_msgs={}),
                           log_buffer=SimpleNamespace(output=measured))


@pytest.mark.parametrize('better, metrics, best', [
    (operator.gt, (0.2, 0.3, 0.1), 2),
    (operator.lt, (0.2, 0.3, 0.1), 3),
    (operator.lt, (0.2, 0.0, 0.3), 1),  # mmcv saves no best of 0
])
def test_a_resumed_run_knows_the_best_epoch_of_those_before(tmp_path, better, metrics, best):
    for epoch, value in enumerate(metrics, 1):
        keep_evaluation(str(tmp_path), epoch, dict(score=value, loss=1.0))
    evaluation = hook(save_best='score', key_indicator='score', compare_func=better)
    runner = runner_at(tmp_path, epoch=3)
    recorder = EvaluationRecorder(evaluation)
    recorder.before_run(runner)
    path = f'work/best_score_epoch_{best}.pth'
    assert evaluation.best_ckpt_path == path
    assert runner.meta['hook_msgs'] == dict(best_score=metrics[best - 1], best_ckpt=path)
    assert recorder.metrics == dict(score=metrics[2], loss=1.0)


def test_metrics_are_kept_and_nothing_else(tmp_path):
    """Those that are called as MMDetection's are, and the one that the best is chosen by."""
    measured = dict(bbox_mAP=0.2, score=0.5, other=0.6, time=1.0, bbox_mAP_copypaste='0.2 0.4')
    recorder = EvaluationRecorder(hook(key_indicator='score'))
    recorder.after_train_epoch(runner_at(tmp_path, epoch=1, **measured))
    assert evaluations(str(tmp_path), 2) == {'2': dict(bbox_mAP=0.2, score=0.5)}


def test_where_nothing_is_detected_ap_is_0(tmp_path):
    recorder = EvaluationRecorder(hook(dataloader=SimpleNamespace(
        dataset=CocoDataset.__new__(CocoDataset))))
    recorder.after_train_epoch(runner_at(tmp_path, epoch=0, loss=1.0))
    assert set(recorder.metrics.values()) == {0.0} and 'bbox_mAP' in recorder.metrics


def test_functions_that_take_any_options_get_them():
    check_options(lambda results, **kwargs: None, ['anything'], '--eval-options')
    with pytest.raises(ConfigError, match='--eval-options anything: unknown; known are prefix'):
        check_options(lambda results, prefix: None, ['anything'], '--eval-options')
