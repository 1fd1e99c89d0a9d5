"""Look inside: the gallery of prototypes, and the trust in instances."""

from gkd import compat  # noqa: F401  (says what is missing, if MMDetection is)
