"""Stochastic gradient descent."""

import torch
from torch import nn

from chargpt.optim.parameter_groups import check_rate, decay_groups


def sgd(
    model: nn.Module, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> torch.optim.SGD:
    """Stochastic gradient descent with momentum."""
    groups = decay_groups(model, weight_decay)
    check_rate("lr", lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
