"""Train, test, export, resume: what a command does with a config."""

from gkd.compat import of_mmdet2  # noqa: F401
from gkd.running.config import load_config, student_config
from gkd.running.export import export_student
from gkd.running.test import test
from gkd.running.train import train

__all__ = ['export_student', 'load_config', 'student_config', 'test', 'train']
