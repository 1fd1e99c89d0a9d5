"""Longer experiments: quickstart, comparison, plans, checks of recipes and detectors."""

from gkd import compat  # noqa: F401  (says what is missing, if MMDetection is)
