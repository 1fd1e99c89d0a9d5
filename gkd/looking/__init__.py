"""Look inside: the gallery of prototypes, and the trust in instances."""

from gkd.compat import of_mmdet2  # noqa: F401
