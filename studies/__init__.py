"""What examines the claims of the paper; not part of the package."""
