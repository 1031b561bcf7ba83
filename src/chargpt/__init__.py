"""chargpt: a research bench for small decoder-only Transformers.

import chargpt
model = chargpt.load("outputs/gpt_modern/2026-01-01_12-00-00")
print(model.generate("ROMEO:", 200))
"""

import warnings
from typing import TYPE_CHECKING

from chargpt.errors import UserError
from chargpt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch

    from chargpt.inference.pretrained import PretrainedModel

__all__ = ["UserError", "__version__", "load"]


def load(
    run: "str | Path", device: "str | torch.device" = "cpu", trust: "str | Iterable[str]" = ()
) -> "PretrainedModel":
    """Loads a trained model: see `chargpt.inference.pretrained.load`. Imports neither Lightning nor Hydra."""
    from chargpt.inference.pretrained import load  # noqa: PLC0415 - torch takes seconds to import

    return load(run, device, trust)


if not TYPE_CHECKING:  # a type checker would give every unknown attribute the type of this function's result

    def __getattr__(name: str) -> type[UserError]:
        if name == "Mistake":
            warnings.warn("chargpt.Mistake is now called chargpt.UserError", DeprecationWarning, stacklevel=2)
            return UserError
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
