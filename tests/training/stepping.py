"""Optimizer steps on random gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    """Random gradients, one per parameter; deterministic for each step."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
    for step in steps:
        for p, grad in zip(model.parameters(), gradients(model, step), strict=True):
            p.grad = grad.clone()
        optimizer.step()
