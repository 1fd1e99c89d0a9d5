"""What a training records, and the pages, tables and pictures made of it."""

from gkd.compat import of_mmdet2  # noqa: F401
