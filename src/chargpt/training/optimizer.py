"""The optimizers: a model's parameters in groups, and torch's update rules."""

from collections.abc import Sequence

import torch
from torch import nn

from chargpt.errors import Mistake


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices (embeddings among them) decay; vectors, that is biases and norms, do not."""
    _check("weight_decay", weight_decay)
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(
    model: nn.Module,
    lr: float,
    betas: Sequence[float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    eps: float = 1e-8,
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019). `fused` updates all parameters in one kernel, on CPU and GPU."""
    groups = decay_groups(model, weight_decay)
    _check("lr", lr)
    if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
        raise Mistake(f"optimizer.betas={list(betas)}: two numbers from 0 to below 1, for example [0.9,0.95]")
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, fused=fused)


def sgd(
    model: nn.Module, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> torch.optim.SGD:
    """Stochastic gradient descent with momentum."""
    groups = decay_groups(model, weight_decay)
    _check("lr", lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def _check(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise Mistake(f"optimizer.{name}={value}: it must be a finite number, 0 or more")
