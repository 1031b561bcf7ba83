"""The types in which a CPU computes operations under autocast: those that were faster on this processor.

Set once per process, like torch's number of threads (`chargpt.training.cpu_precision` measures them).
"""

from dataclasses import dataclass

FLOAT32, BFLOAT16, BFLOAT16_BLOCKS = "float32", "bfloat16", "bfloat16_blocks"


@dataclass(frozen=True)
class CPUDtypes:
    """The type of each kind of operation.

    Args:
        linear: of linear layers; `float32` means that nothing is computed in bfloat16.
        attention: of attention; `bfloat16` is torch's fused attention, `bfloat16_blocks` that of
            `chargpt.model.kernels.causal_attention`.
        orthogonalization: of Muon's matrix products.
    """

    linear: str = FLOAT32
    attention: str = FLOAT32
    orthogonalization: str = FLOAT32


OPTIONS = {
    "linear": (FLOAT32, BFLOAT16),
    "attention": (FLOAT32, BFLOAT16, BFLOAT16_BLOCKS),
    "orthogonalization": (FLOAT32, BFLOAT16),
}
_current: CPUDtypes | None = None


def set_cpu_dtypes(dtypes: CPUDtypes | None) -> None:
    """Sets the types for this process; with None, torch's autocast decides."""
    global _current  # noqa: PLW0603 - a setting of the process, like torch's number of threads
    _current = dtypes


def get_cpu_dtypes() -> CPUDtypes | None:
    """The types of this process; None if they were not set."""
    return _current
