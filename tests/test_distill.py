"""A pair without a config: what is made of it, said about it, and refused."""

import pytest
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.running import run_tool, succeed

from gkd.bank import PrototypeBank
from gkd.errors import CheckpointError
from gkd.running.config import build_model, load_config
from gkd.running.distill import distillation_config


@pytest.fixture
def pair(tmp_path):
    tiny_data.write_pair(tmp_path, 'one_stage')
    return tmp_path / 'student.py', f'{tmp_path / "teacher.py"}:{tmp_path / "teacher.pth"}'


def test_config_is_the_students_own_with_a_distiller(pair, tmp_path):
    student, teacher = pair
    path, lines = succeed('distill', student, teacher, '--method', 'gkd+pkd', '--work-dir',
                          tmp_path / 'work', '--epochs', 1, '--seed', 3)
    # Tools that look at the pair name their folders by the config.
    assert path.strip() == str(tmp_path / 'work' / 'work.py')
    config, own = load_config(path.strip()), load_config(str(student))
    assert [kind.type for kind in config.model.knowledge] == ['RobustDistillingModule', 'PKD']
    assert config.model.teacher.checkpoint == str(tmp_path / 'teacher.pth')
    assert config.data == own.data and config.optimizer == own.optimizer
    assert (config.runner.max_epochs, own.runner.max_epochs) == (1, 2)
    assert config.work_dir == str(tmp_path / 'work')
    for said in ('soft labels at the positives', '16 channels of the student, 24 of the teacher',
                 'images     RGB, mean 127, 127, 127, std 60, 60, 60, as of the teacher',
                 'teaches    PKD', '3, to the teacher red, green, blue', 'times the operations'):
        assert said in lines
    assert 'leaves out' not in lines


def test_what_is_left_out_is_said(pair, tmp_path):
    tiny_data.write_pair(tmp_path / 'two', 'two_stage')
    teacher = tmp_path / 'two' / 'teacher.py'
    teacher.write_text(teacher.read_text().replace('127.0', '100.0'))
    _, lines = succeed('distill', pair[0],
                       f'{tmp_path}/two/teacher.py:{tmp_path}/two/teacher.pth',
                       '--work-dir', tmp_path / 'work')
    assert 'leaves out soft labels: a two-stage teacher' in lines
    assert 'converted for the teacher, which was trained on RGB, mean 100' in lines


@pytest.mark.slow
def test_what_was_written_trains(pair, tmp_path):
    path, _ = succeed('distill', *pair, '--method', 'class-space', '--work-dir',
                      tmp_path / 'work', '--epochs', 1)
    succeed('train', path.strip())
    assert (tmp_path / 'work' / 'epoch_1.pth').exists()
    bank = PrototypeBank.load(tmp_path / 'work' / 'prototypes' / 'epoch_1.safetensors')
    assert len(bank.class_features) == bank.num_levels


@pytest.mark.parametrize('change, message', [
    (lambda student, teacher: (student, teacher.partition(':')[0]), 'needs its checkpoint'),
    (lambda student, teacher: (student.with_suffix('.yaml'), teacher), 'must be CONFIG'),
    (lambda student, teacher: (student.parent / 'distiller.py', teacher), 'distillation config'),
    (lambda student, teacher: (student, teacher.replace('.pth', '.pt')), 'no such file'),
])
def test_refusals_come_before_anything_is_written(pair, tmp_path, change, message):
    status, _, error = run_tool('distill', *change(*pair), '--work-dir', tmp_path / 'work')
    assert status == 2 and message in error
    assert not (tmp_path / 'work').exists()


def test_methods_are_named_as_elsewhere(pair):
    student, teacher = pair
    with pytest.raises(Exception, match='telepathy is unknown.*fgd.*gkd'):
        distillation_config(str(student), teacher, 'gkd+telepathy')


@pytest.mark.parametrize('setting', ['load_from', 'resume_from'])
def test_student_starts_as_its_own_training_does(pair, tmp_path, setting):
    student, teacher = pair
    tiny_data.write_weights(tmp_path / 'student.pth', small.retinanet())
    with open(student, 'a') as file:
        file.write(f'\n{setting} = {str(tmp_path / "student.pth")!r}\n')
    path, lines = succeed('distill', student, teacher, '--work-dir', tmp_path / 'work')
    config = load_config(path.strip())
    assert config.model.student.checkpoint == str(tmp_path / 'student.pth')
    assert f'{student}, {tmp_path}/student.pth' in lines
    assert not {'load_from', 'resume_from'} & config.keys()  # which take distillers' checkpoints
    named = distillation_config(f'{student}:{tmp_path / "teacher.pth"}', teacher)
    assert named.model.student.checkpoint == str(tmp_path / 'teacher.pth')


def test_a_start_that_is_no_file_is_refused_and_can_be_declined(pair):
    student, teacher = pair
    with open(student, 'a') as file:
        file.write('\nload_from = "https://example.org/student.pth"\n')
    with pytest.raises(CheckpointError, match='model.student.checkpoint.*must be a file'):
        distillation_config(str(student), teacher)
    config = distillation_config(str(student), teacher,
                                 options={'model.student.checkpoint': None})
    assert config.model.student.checkpoint is None


def test_a_start_that_a_distillation_does_not_take_is_named(pair, caplog):
    student, teacher = pair
    config = distillation_config(str(student), teacher)
    with open(student, 'a') as file:
        file.write('\nload_from = "start.pth"\n')
    with caplog.at_level('WARNING', 'mmdet'):
        build_model(config).init_weights()
    assert 'does not start with start.pth' in caplog.text
