"""Longer experiments: quickstart, comparison, checks of recipes."""

from gkd.compat import of_mmdet2  # noqa: F401
