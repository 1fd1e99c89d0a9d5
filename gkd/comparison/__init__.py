"""Comparison of methods of distillation: what both MMDetections share, and that of version 3."""
