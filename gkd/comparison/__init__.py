"""Comparison of methods of distillation."""

from gkd.environment import check_environment

check_environment()
