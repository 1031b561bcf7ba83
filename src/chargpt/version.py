"""The version of this package; it is saved in checkpoints."""

__version__ = "0.2.0"
