"""The base class of optimizers that update the matrices of the blocks by a special rule and the rest by AdamW."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from chargpt.model.language_model import LanguageModel
from chargpt.optim.adamw import AdamW
from chargpt.optim.parameter_groups import check_betas, check_rate


class MatrixOptimizer(torch.optim.Optimizer):
    """Applies a rule for matrices and AdamW in one optimizer: with two optimizers, Lightning does not support gradient
    clipping and accumulation, and counts each step twice.

    Args:
        model: `matrix_step` of a subclass updates its `matrix_parameters`. The entry `maps` of a parameter group is the
            number of linear maps stacked in each of its matrices; 0 in the group that AdamW updates.
        matrices: the settings of the matrix rule.
        lr, betas, weight_decay, eps: the settings of AdamW, for embeddings, head and vectors.
        table_lr: the learning rate of the rows of the model's `embedding_tables`, which are updated only in the steps
            in which they have a gradient, as by torch.optim.SparseAdam; None updates all rows in each step, as those of
            other embeddings.

    Raises:
        UserError: a setting is out of range.
    """

    _step_supports_amp_scaling = True  # torch's GradScaler leaves the check for infinite gradients to `step`

    def __init__(
        self,
        model: LanguageModel,
        matrices: dict[str, Any],
        lr: float,
        betas: Sequence[float],
        weight_decay: float,
        eps: float,
        table_lr: float | None = None,
    ):
        for name, value in {"lr": matrices["lr"], "weight_decay": matrices["weight_decay"]}.items():
            check_rate(name, value)
        for name, value in {"lr": lr, "weight_decay": weight_decay, "eps": eps}.items():
            check_rate(f"adamw_{name}", value)
        check_betas("adamw_betas", betas)
        if table_lr is not None:
            check_rate("table_lr", table_lr)
        self.tables = model.embedding_tables() if table_lr is not None else []
        tables = dict.fromkeys(table.weight for table in self.tables if table.weight.requires_grad)
        by_maps, special = defaultdict(list), {*tables}
        for weight, maps in model.matrix_parameters():
            if weight.requires_grad and weight not in tables:
                by_maps[maps].append(weight)
                special.add(weight)
        rest = [p for p in model.parameters() if p.requires_grad and p not in special]
        groups: list[dict[str, Any]] = [{"params": p, "maps": maps, **matrices} for maps, p in by_maps.items()]
        if rest:
            groups.append({"params": rest, "maps": 0})
        if tables:
            groups.append({"params": list(tables), "maps": 0, "lazy": True, "lr": table_lr})
        defaults = dict(lr=lr, betas=tuple(betas), weight_decay=weight_decay, eps=eps)
        super().__init__(groups, defaults | dict(amsgrad=False, maximize=False, fused=True))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return result  # infinite gradients in 16-mixed precision, where each step synchronizes with the device
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["maps"]:
                self.matrix_step(parameters, group)
            elif parameters and group.get("lazy"):
                self._lazy_adamw_step(parameters, group)
            elif parameters:
                self._adamw_step(parameters, group)
        return result

    def matrix_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _adamw_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        state = [self.state_tensors(parameters, name) for name in ("exp_avg", "exp_avg_sq")]
        for p in parameters:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device)
        state.append([self.state[p]["step"] for p in parameters])
        gradients = [p.grad for p in parameters if p.grad is not None]
        AdamW.update({**group, "params": parameters}, gradients, tuple(state))

    def _lazy_adamw_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """AdamW of the rows with a gradient: the moments of the others do not decay."""
        (beta1, beta2), lr = group["betas"], group["lr"]
        moments = (self.state_tensors(parameters, name) for name in ("exp_avg", "exp_avg_sq"))
        for p, average, square in zip(parameters, *moments, strict=True):
            self.state[p]["step"] = self.state[p].get("step", torch.zeros(())) + 1
            step = self.state[p]["step"].item()
            rows_R, gradient_RC = rows_with_gradient(p)
            average_RC = average[rows_R].lerp_(gradient_RC, 1 - beta1)
            square_RC = square[rows_R].lerp_(gradient_RC.square(), 1 - beta2)
            average[rows_R], square[rows_R] = average_RC, square_RC
            scale_RC = square_RC.div_(1 - beta2**step).sqrt_().add_(group["eps"])
            decayed_RC = p[rows_R].mul_(1 - lr * group["weight_decay"])
            p[rows_R] = decayed_RC.addcdiv_(average_RC, scale_RC, value=-lr / (1 - beta1**step))

    def state_tensors(self, parameters: list[nn.Parameter], name: str) -> list[Tensor]:
        """The state tensor `name` of each parameter, initialized to zeros."""
        for p in parameters:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in parameters]


def rows_with_gradient(table: nn.Parameter) -> tuple[Int[Tensor, " R"], Float[Tensor, "R C"]]:
    """The indices and the gradients of the rows of a table whose gradient, dense or sparse, is not 0."""
    assert table.grad is not None
    if table.grad.is_sparse:
        gradient = table.grad.coalesce()
        (indices_N,), gradient_NC = gradient.indices(), gradient.values()
        used_N = gradient_NC.ne(0).any(dim=1)
        return indices_N[used_N], gradient_NC[used_N]
    (rows_R,) = table.grad.ne(0).any(dim=1).nonzero(as_tuple=True)
    return rows_R, table.grad[rows_R]
