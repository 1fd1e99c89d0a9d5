"""Intervals of gains, and the tables and plots that are made from rows of single runs."""

import fcntl
import importlib.util
import subprocess
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from dataclasses import replace

import numpy as np
import pytest
from helpers.running import REPOSITORY

from gkd.errors import DataError
from gkd.locks import file_lock
from gkd.report import results as of_runs
from gkd.report.intervals import confidence_interval
from gkd.report.results import Result, append_result


@pytest.fixture(scope='module')
def results():
    """The command that fills the pages."""
    spec = importlib.util.spec_from_file_location('results', REPOSITORY / 'studies/results.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROW = Result('digit-scenes', 'RetinaNet', '0', '0', '', 'gkd', '', '', '20', '40', '', '', '', '',
             'cpu', 'mmdet 2.28.2')


def rows():
    """Two teachers and three seeds; gains of 1, 2, 3 under the first and 4, 5, 6 under the
    second; and runs that must not count."""
    found = [replace(ROW, method='plain', teacher_seed='', student_seed=str(seed),
                     AP=str(10 + seed)) for seed in range(3)]
    found += [replace(ROW, teacher_seed=str(teacher), student_seed=str(seed),
                      AP=str(10 + seed + 3 * teacher + seed + 1))
              for teacher in range(2) for seed in range(3)]
    found += [replace(ROW, method='teacher', student_seed='', AP='50'),
              replace(ROW, method='teacher', student_seed='', AP='99', machine='gpu'),
              replace(ROW, student_seed='9', AP='90'),  # no partner
              replace(ROW, machine='gpu', student_seed='1', AP='80'),  # nor here
              replace(ROW, options='model.knowledge.0.robust=False', AP='15'),
              replace(ROW, version='mmdet 3.3.0', student_seed='8', AP='85'),
              replace(ROW, method='fgd', AP='10.5'), replace(ROW, data='tree-crowns', AP='70')]
    return found


def test_interval_of_one_group_is_students_t():
    values = [0.3, 1.9, -0.4, 1.1]
    found = confidence_interval([values])
    half = 3.182446 * np.std(values, ddof=1) / 2
    assert found.low == pytest.approx(np.mean(values) - half, rel=1e-5)
    assert found.high == pytest.approx(np.mean(values) + half, rel=1e-5)
    assert confidence_interval([[value] for value in values]) == found


def test_bootstrap_draws_groups_and_not_only_members():
    """Teachers that differ make the interval wide, however many seeds each has."""
    groups = [[1.0, 1.1] * 20, [3.0, 3.1] * 20]
    found = confidence_interval(groups)
    assert found.count == 80 and found.low < 1.1 and found.high > 3.0
    together = confidence_interval([groups[0] + groups[1]])
    assert together.high - together.low < 0.5
    assert found == confidence_interval(groups)  # no chance in it
    within = confidence_interval([[0.0, 2.0], [0.0, 2.0]])
    assert within.low == 0 and within.high == 2
    # A draw's mean is over members: with three groups of the small one and five of three, 60 / 18.
    unequal = confidence_interval([[0.0], *[[4.0] * 3] * 7])
    assert (unequal.low, unequal.high) == pytest.approx((60 / 18, 4))


def test_a_page_is_filled_from_the_rows(results, tmp_path):
    for row in rows():
        append_result(str(tmp_path / 'a.csv'), row)
    page = tmp_path / 'page.md'
    page.write_text('Before.\n\n<!-- results: data=digit-scenes family=RetinaNet plot=p.png -->\n'
                    'old\n<!-- end of results -->\n\nAfter.\n')
    read = results.read_results(str(tmp_path / 'a.csv'))
    text = results.fill(page.read_text(), str(page), read)
    assert text.startswith('Before.\n') and text.endswith('After.\n') and 'old' not in text
    lines = {line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]]
             for line in text.splitlines() if line.startswith('|')}
    assert list(lines) == ['taught', '-' * 13, 'teacher', 'student alone', 'gkd', 'fgd']
    runs, *_, gain, _, pairs, higher = lines['gkd']
    assert (runs, pairs, higher) == ('6', '6', '6')
    # Beside runs of one machine, the teacher of that machine.
    assert lines['teacher'][:2] == ['1', '50.0']
    expected = confidence_interval([[1, 2, 3], [4, 5, 6]])
    assert gain == str(expected) and expected.mean == 3.5
    assert lines['fgd'][-4:] == ['+0.5', '+0.0', '1', '1']
    assert 'hierarchical bootstrap' in text and 'Teacher seeds: 0, 1' in text
    assert (tmp_path / 'p.png').read_bytes().startswith(b'\x89PNG') and '](p.png)' in text
    assert results.fill(text, str(page), read) == text


def test_a_page_chooses_methods_options_and_says_what_is_missing(results, tmp_path):
    def fill(query):
        return results.fill(f'<!-- results: {query} -->\n<!-- end of results -->\n', 'page.md',
                            rows())

    text = fill('data=digit-scenes family=RetinaNet methods=fgd,mgd')
    assert '| fgd ' in text and 'gkd' not in text and 'mgd |' not in text
    text = fill('data=digit-scenes family=RetinaNet options=model.knowledge.0.robust=False')
    assert '| gkd           | 1    | 15.0 |' in text and '+5.0' in text
    # Only what this run began from and is compared with: of three students alone, the first.
    assert '| student alone | 1    | 10.0 |' in text and '| teacher       | 1    | 50.0 |' in text
    text = fill('data=digit-scenes family=RetinaNet methods=gkd teachers=1 students=1,2')
    line = next(line for line in text.splitlines() if line.startswith('| gkd '))
    assert '| +5.5 [' in line and line.split('|')[-3:-1] == [' 2     ', ' 2         ']
    assert '| student alone | 2    | 11.5 |' in text and '| teacher ' not in text
    # Under the first teacher 11 against 10.5, with the same seed; fgd has no other teacher.
    text = fill('data=digit-scenes family=RetinaNet methods=gkd against=fgd')
    line = next(line for line in text.splitlines() if line.startswith('| gkd '))
    assert [cell.strip() for cell in line.split('|')[-5:-1]] == ['+0.5', '+0.0', '1', '1']
    before, text = text, fill('data=digit-scenes family=RetinaNet methods=fgd against=gkd')
    line = next(line for line in text.splitlines() if line.startswith('| fgd '))
    assert [cell.strip() for cell in line.split('|')[-5:-1]] == ['-0.5', '+0.0', '1', '0']
    assert 'differences to `fgd` under the same teacher' in before
    assert results.NOT_YET in fill('data=digit-scenes family=FasterRCNN')
    for query in ('data=digit-scenes', 'data=a family=b method=c'):
        with pytest.raises(DataError, match='page.md: .* must say data and family'):
            fill(query)


@pytest.mark.slow
def test_the_documentation_is_what_the_rows_say(results):
    """The pages as they are now are those that the command makes."""
    read = [row for path in sorted((REPOSITORY / 'docs/data').glob('*.csv'))
            for row in results.read_results(str(path))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, 'save', lambda *args: None)
        for page in [REPOSITORY / 'README.md', *(REPOSITORY / 'docs').glob('*.md')]:
            text = page.read_text()
            assert results.fill(text, str(page), read) == text, 'run: python studies/results.py'


def enter_and_leave(path):
    with file_lock(path):
        pass


@pytest.mark.parametrize('enter', [enter_and_leave, lambda path: append_result(path, ROW)])
def test_processes_wait_for_the_one_that_holds_a_file(tmp_path, enter):
    path = str(tmp_path / 'file')
    with ThreadPoolExecutor() as pool:
        with open(path, 'w') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            waiting = pool.submit(enter, path)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        waiting.result(timeout=10)


def test_a_row_tells_the_commit_and_whether_it_was_changed(tmp_path, monkeypatch):
    def git(*command):
        subprocess.run(['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b',
                        *command], check=True, capture_output=True)

    file = tmp_path / 'gkd' / 'code.py'
    file.parent.mkdir()
    file.write_text('old')
    git('init')
    git('add', '.')
    git('commit', '-m', 'first')
    monkeypatch.setattr(of_runs, 'REPOSITORY', str(tmp_path))
    clean = of_runs.version()
    file.write_text('new')
    assert '+)' not in clean and of_runs.version() == clean.replace(')', '+)')
