"""The version, which any part of the package may name."""

__version__ = '0.1.0'
