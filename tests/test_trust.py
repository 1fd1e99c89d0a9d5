"""A checkpoint that would run code does not, unless the user says so."""

from pathlib import Path

import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.running import run_tool

from gkd.compat import checkpoint


class Attack:
    """What a hostile file holds: reading it writes a file."""

    def __reduce__(self):
        return Path.write_text, (Path('attacked'), 'yes')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Working directory with a detector and a hostile checkpoint of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, '_trusted', False)
    annotations = tiny_data.write_data(tmp_path)
    tiny_data.write_config('student.py', tiny_data.experiment(small.retinanet(), annotations))
    content = torch.load(tiny_data.write_weights('student.pth', small.retinanet()))
    torch.save({**content, 'extra': Attack()}, 'attack.pth')
    return tmp_path


@pytest.mark.parametrize('tool, args', [
    ('export_student', ['attack.pth', 'out.pth']),
    ('test', ['attack.pth']),
    ('train', ['--work-dir', 'work', '--epochs', 1, '--cfg-options', 'load_from=attack.pth']),
    ('train', ['--work-dir', 'work', '--resume', 'attack.pth']),
])
def test_code_in_a_checkpoint_is_not_run(folder, tool, args):
    status, _, stderr = run_tool(tool, 'student.py', *args)
    assert status == 2 and 'attack.pth needs' in stderr and '--trust-checkpoint' in stderr
    assert not (folder / 'attacked').exists() and not list(folder.glob('work/*.pth'))


def test_trusted_checkpoint_is_read(folder):
    status, printed, stderr = run_tool('export_student', 'student.py', 'attack.pth', 'out.pth',
                                       '--trust-checkpoint')
    assert status == 0 and 'wrote out.pth' in printed, stderr
    assert (folder / 'attacked').exists()
    assert torch.load('out.pth')['state_dict'].keys() == \
        torch.load('student.pth')['state_dict'].keys()
