"""Longer experiments: the quickstart, the comparison of methods, and what they will take."""

from gkd import compat  # noqa: F401  (says what is missing, if MMDetection is)
