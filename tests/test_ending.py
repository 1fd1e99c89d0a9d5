"""How a command ends."""

import pytest

from gkd.commands import run


def where_it_is_misread():
    """As MMEngine's ``pretty_text``, which takes anything that is raised for wrong syntax."""
    try:
        raise KeyboardInterrupt
    except:  # noqa: E722
        raise SyntaxError('Failed to format the config file')  # noqa: B904


def where_it_is_read():
    raise KeyboardInterrupt


def long_after():
    try:
        where_it_is_read()
    except KeyboardInterrupt:
        pass
    raise SyntaxError('another')


STOPPED = '\nstopped; the same command goes on from the last checkpoint, if there is one.\n'


@pytest.mark.parametrize('main, status, says', [
    (where_it_is_read, 130, STOPPED),
    (where_it_is_misread, 130, STOPPED),
    (long_after, 1, '\nerror: SyntaxError: another')])
def test_an_interrupted_command_says_so_wherever_it_is_met(main, status, says, capsys):
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == status
    assert capsys.readouterr().err.startswith(says)
