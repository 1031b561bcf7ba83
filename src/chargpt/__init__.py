"""chargpt: a research bench for small decoder-only Transformers.

import chargpt
model = chargpt.load("outputs/gpt_modern/2026-01-01_12-00-00")
print(model.generate("ROMEO:", 200))
"""

from chargpt.errors import Mistake
from chargpt.version import __version__

__all__ = ["Mistake", "__version__", "load"]


def load(run, device="cpu"):
    """A trained model, ready to use: see `chargpt.inference.pretrained.load`. Imports torch, but neither Lightning
    nor Hydra."""
    from chargpt.inference.pretrained import load

    return load(run, device)
