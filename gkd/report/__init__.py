"""Pictures of what detectors find."""

from gkd import compat  # noqa: F401  (says what is missing, if MMDetection is)
