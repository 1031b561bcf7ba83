"""The version of this package; checkpoints carry it."""

__version__ = "0.2.0"
