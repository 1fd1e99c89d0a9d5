"""What a training records, and the pages, tables and pictures made of it."""

from gkd import compat  # noqa: F401  (says what is missing, if anything is)
