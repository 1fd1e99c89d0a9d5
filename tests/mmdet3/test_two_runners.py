"""Two runners in one process."""

from types import SimpleNamespace

import pytest
from mmengine.runner import runner as of_mmengine
from small_experiments import experiment

from gkd.engine.runner import Runner


@pytest.mark.parametrize('name', [None, 'visualizer'])
def test_runners_of_one_second_write_into_their_own_folders(annotations, tmp_path, monkeypatch,
                                                            name):
    """MMEngine names by the second what it logs with, and shares what has the same name."""
    now = of_mmengine.time.time()
    monkeypatch.setattr(of_mmengine, 'time', SimpleNamespace(
        **{**vars(of_mmengine.time), 'time': lambda: now}))
    folders = [tmp_path / 'a', tmp_path / 'b']
    runners = []
    for folder in folders:
        config = experiment(annotations, folder)
        config.train_cfg.max_epochs = 1
        if name:
            config.visualizer = dict(type='DetLocalVisualizer', name=name,
                                     vis_backends=[dict(type='LocalVisBackend')])
        runners.append(Runner.with_checked_data(config, 'train', 'val'))
        runners[-1].train()
    for folder in folders:
        scalars = (folder / runners[0].timestamp / 'vis_data' / 'scalars.json').read_text()
        assert scalars.count('"loss"') == 3 and scalars.count('"coco/bbox_mAP"') == 1
        assert next(folder.glob('*/*.log')).stat().st_size
    assert runners[0].message_hub is not runners[1].message_hub
