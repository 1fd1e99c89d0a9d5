"""The former name of :mod:`gkd.running`."""

from gkd.running import export_student, load_config, student_config, test, train

__all__ = ['export_student', 'load_config', 'student_config', 'test', 'train']
