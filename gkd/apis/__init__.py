"""What the tools and a notebook call."""

from gkd.apis.config import load_config, student_config
from gkd.apis.export import export_student
from gkd.apis.test import test
from gkd.apis.train import train

__all__ = ['export_student', 'load_config', 'student_config', 'test', 'train']
