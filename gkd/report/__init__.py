"""Pictures of what detectors find."""
