"""Tools to look at prototypes, and at the trust in instances."""
