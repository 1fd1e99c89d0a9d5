"""Longer experiments: quickstart, comparison, plans, checks of recipes and detectors."""

from gkd.compat import of_mmdet2  # noqa: F401
