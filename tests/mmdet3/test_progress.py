"""What MMEngine's progress bars leave in a command's output."""

import sys

from mmdet.datasets.crowdhuman import ProgressBar


def test_data_sets_draw_no_bars_into_files(capsys):
    bar = ProgressBar(2, file=sys.stdout)
    bar.update()
    bar.update()
    assert capsys.readouterr() == ('', '')
