"""chargpt: a research bench for small decoder-only Transformers.

import chargpt
run = chargpt.train(["model=gpt_nano", "trainer.max_steps=100"])
print(run.metrics["val_loss"])
model = run.load()  # or chargpt.load("outputs/gpt_nano/2026-01-01_12-00-00")
print(model.generate("ROMEO:", 200))
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from chargpt.errors import DivergenceError, Interrupted, TrainingError, UserError
from chargpt.version import __version__

if TYPE_CHECKING:
    from chargpt.api import Run, SweepTable, compose, sweep, train
    from chargpt.inference.pretrained import PretrainedModel, load

__all__ = [
    "DivergenceError",
    "Interrupted",
    "PretrainedModel",
    "Run",
    "SweepTable",
    "TrainingError",
    "UserError",
    "__version__",
    "compose",
    "load",
    "sweep",
    "train",
]

# Imported when they are used: torch takes seconds to import, and loading a model imports neither Lightning nor Hydra.
_MODULES = {"PretrainedModel": "chargpt.inference.pretrained", "load": "chargpt.inference.pretrained"}
_MODULES |= dict.fromkeys(("Run", "SweepTable", "compose", "sweep", "train"), "chargpt.api")

if not TYPE_CHECKING:  # a type checker would give every unknown attribute the type of this function's result

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(importlib.import_module(_MODULES[name]), name)
        if name == "Mistake":
            warnings.warn("chargpt.Mistake is now called chargpt.UserError", DeprecationWarning, stacklevel=2)
            return UserError
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
