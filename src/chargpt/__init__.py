"""chargpt: a research bench for small decoder-only Transformers.

import chargpt
model = chargpt.load("outputs/gpt_modern/2026-01-01_12-00-00")
print(model.generate("ROMEO:", 200))
"""

import warnings

from chargpt.errors import UserError
from chargpt.version import __version__

__all__ = ["UserError", "__version__", "load"]


def load(run, device="cpu"):
    """Loads a trained model: see `chargpt.inference.pretrained.load`. Imports neither Lightning nor Hydra."""
    from chargpt.inference.pretrained import load  # noqa: PLC0415 - torch takes seconds to import

    return load(run, device)


def __getattr__(name):
    if name == "Mistake":
        warnings.warn("chargpt.Mistake is now called chargpt.UserError", DeprecationWarning, stacklevel=2)
        return UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
