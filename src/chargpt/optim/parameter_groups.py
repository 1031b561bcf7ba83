"""Parameter groups with and without weight decay, and the argument checks that all optimizers share."""

from collections.abc import Sequence

from torch import nn

from chargpt.errors import UserError


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups with weight decay for matrices and embeddings, and without for vectors (biases and norms)."""
    check_rate("weight_decay", weight_decay)
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def check_betas(name: str, betas: Sequence[float]) -> None:
    if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
        raise UserError(f"optimizer.{name}={list(betas)}: it must be two numbers in [0, 1), for example [0.9,0.95]")


def check_rate(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise UserError(f"optimizer.{name}={value}: it must be a finite number, 0 or more")
