"""Longer experiments: the quickstart, the comparison of methods, and what they will take."""
