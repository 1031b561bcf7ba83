"""The version of this package; it is saved in checkpoints."""

__version__ = "0.3.0.dev0"
