"""The optimizers: a model's parameters in groups, and torch's update rules."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as torch_adamw

from chargpt.errors import Mistake


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices (embeddings among them) decay; vectors, that is biases and norms, do not."""
    check_rate("weight_decay", weight_decay)
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW, its lists of tensors gathered once: that was a quarter of its time on a CPU."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        gradients = [[p.grad for p in group["params"]] for group in self.param_groups]
        whole = all(gradient is not None for some in gradients for gradient in some)
        # float16's gradients, which torch unscales, and skips where they are infinite
        scaled = any(getattr(self, name, None) is not None for name in ("grad_scale", "found_inf"))
        if self._gathered is None or not whole or scaled:
            super().step()  # makes the state too
            self._gathered = [self._gather(group) for group in self.param_groups] if whole else None
        else:
            for group, some, gathered in zip(self.param_groups, gradients, self._gathered, strict=True):
                self.update(group, some, gathered)
        return result

    @staticmethod
    @torch.no_grad()
    def update(group: dict[str, Any], gradients: list[Tensor], state: tuple[list[Tensor], ...]) -> None:
        firsts, seconds, steps = state
        settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        settings["beta1"], settings["beta2"] = group["betas"]
        torch_adamw(group["params"], gradients, firsts, seconds, [], steps, fused=True, **settings)

    def _gather(self, group: dict[str, Any]) -> tuple[list[Tensor], ...]:
        kept = ("exp_avg", "exp_avg_sq", "step")
        return tuple([self.state[p][name] for p in group["params"]] for name in kept)

    _gathered: list[tuple[list[Tensor], ...]] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:  # load_state_dict comes this way too
        super().__setstate__(state)
        self._gathered = None

    def add_param_group(self, group: dict[str, Any]) -> None:
        super().add_param_group(group)
        self._gathered = None


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
    check_rate("lr", lr)
    check_betas("betas", betas)
    kind = AdamW if fused else torch.optim.AdamW
    return kind(groups, lr=lr, betas=tuple(betas), eps=eps, fused=fused)


def sgd(
    model: nn.Module, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> torch.optim.SGD:
    """Stochastic gradient descent with momentum."""
    groups = decay_groups(model, weight_decay)
    check_rate("lr", lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def check_betas(name: str, betas: Sequence[float]) -> None:
    if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
        raise Mistake(f"optimizer.{name}={list(betas)}: two numbers from 0 to below 1, for example [0.9,0.95]")


def check_rate(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise Mistake(f"optimizer.{name}={value}: it must be a finite number, 0 or more")
