"""Run tools that must end with a message, or must not."""

import json

from helpers.running import run_tool, succeed


def files(folder):
    """When every file below a folder was written, and which folders there are."""
    # A lock in a work dir comes and goes.
    return {path.relative_to(folder): path.is_file() and path.stat().st_mtime_ns
            for path in folder.rglob('*')}


def refuse(folder, tool, *args, says, logged=False, status=2):
    """Run a tool that must end with a status and a message that holds every text of ``says``.

    ``logged``: the error is met in the run itself, which leaves its log and its config.
    """
    before = files(folder)
    ended, _, stderr = run_tool(tool, *args)
    assert ended == status, stderr
    message = stderr[stderr.rindex('\nerror: ') + 1:]
    for text in says:
        assert text in message
    assert 'Traceback' not in stderr and message.count('error: ') == 1
    assert len(message) < 1500
    written = files(folder)
    if logged:
        written = {path: time for path, time in written.items() if path.parts[0] != 'work'}
        assert not list(folder.glob('work/*.pth')) and not list(folder.glob('work/prototypes'))
    assert written == before


def refuse_training(folder, *args, **expected):
    """Train with ``distiller.py``, which must be refused; what is expected as for ``refuse``."""
    refuse(folder, 'train', 'distiller.py', '--work-dir', 'work', *args, **expected)


def append(path, text):
    """Add a line to a config."""
    with open(path, 'a') as file:
        file.write(text + '\n')


def edit(path, change):
    """Change the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def train(*args):
    """What a training with ``distiller.py`` that must succeed logs."""
    return succeed('train', 'distiller.py', '--work-dir', 'work', *args)[1]
