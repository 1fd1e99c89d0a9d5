"""A few of the faults that kill.py injects in numbers."""

import kill
import pytest
from kill import Fault


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    """A training that was left alone, and how often it came to every place."""
    folder = tmp_path_factory.mktemp('faults')
    config = kill.write_experiment(folder / 'experiment')
    status, counts = kill.train(config, folder / 'reference')
    assert status == 0, (folder / 'reference' / 'output_0.txt').read_text()
    assert set(counts) == set(kill.PLACES)
    assert len(list((folder / 'reference').glob('best_bbox_mAP_epoch_*.pth'))) == 1
    return config, folder / 'reference', counts


@pytest.mark.slow
@pytest.mark.parametrize('place, share, goes_on_from', [
    ('step', 0.45, 'epoch_1_iter_4.pth'), ('prototypes', 0.9, 'epoch_1.pth'),
    ('evaluation', 1, 'epoch_2.pth'), ('writing', 0.5, None)])
def test_killed_training_goes_on_exactly(reference, tmp_path, place, share, goes_on_from):
    config, folder, counts = reference
    status, _ = kill.train(config, tmp_path, Fault(place, round(share * counts[place])))
    assert status == -kill.signal.SIGKILL
    newest = tmp_path / 'latest.pth'
    assert kill.load_checkpoint_file(newest)  # whole, whatever was being written
    assert newest.resolve().name == goes_on_from or goes_on_from is None
    status, _ = kill.train(config, tmp_path)
    assert status == 0, (tmp_path / 'output_0.txt').read_text()
    assert kill.differences(folder, tmp_path) == []


@pytest.mark.slow
def test_damaged_checkpoint_is_named_and_the_one_before_is_taken(reference, tmp_path):
    config, folder, _ = reference
    status, _ = kill.train(config, tmp_path, Fault('step', 12))
    newest = (tmp_path / 'latest.pth').resolve()
    assert newest.name == 'epoch_2_iter_4.pth'
    newest.write_bytes(newest.read_bytes()[:-1000])
    (tmp_path / 'epoch_7.pth').write_bytes(b'of a run that was thrown away')
    status, _ = kill.train(config, tmp_path)
    output = (tmp_path / 'output_0.txt').read_text()
    assert status == 0 and 'latest.pth cannot be read' in output and 'epoch_7' not in output
    assert 'resumed epoch 1, iter 8' in output
    (tmp_path / 'epoch_7.pth').unlink()
    assert kill.differences(folder, tmp_path) == []


@pytest.mark.slow
def test_with_processes_that_train_and_load_images(tmp_path):
    config = kill.write_experiment(tmp_path / 'experiment', workers=1)
    reference, killed = tmp_path / 'reference', tmp_path / 'killed'
    assert kill.train(config, reference, processes=2)[0] == 0
    assert kill.train(config, killed, Fault('step', 6), processes=2)[0] == -kill.signal.SIGKILL
    assert (killed / 'latest.pth').resolve().name == 'epoch_2_iter_2.pth'
    assert kill.train(config, killed, processes=2)[0] == 0
    assert kill.differences(reference, killed, processes=2) == []
