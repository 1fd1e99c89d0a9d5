"""Losses and weights that are not finite: named, stopped at or skipped, never saved."""
