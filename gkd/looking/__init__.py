"""Tools to look at prototypes, and at the trust in instances."""

from gkd import compat  # noqa: F401  (says what is missing, if MMDetection is)
