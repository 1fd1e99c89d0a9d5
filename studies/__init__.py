"""What examines the claims of the paper, and the detectors of the zoo; not in the package."""
