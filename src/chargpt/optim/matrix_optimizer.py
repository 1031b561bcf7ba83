"""Optimizers with a rule of their own for the matrices inside the blocks, and AdamW for everything else."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chargpt.model.language_model import LanguageModel
from chargpt.optim.adamw import AdamW
from chargpt.optim.parameter_groups import check_betas, check_rate


class MatrixOptimizer(torch.optim.Optimizer):
    """Both rules in one optimizer: with two, Lightning does not clip or accumulate, and counts each step twice.

    Args:
        model: its `matrix_parameters` take the rule of a subclass. Groups of them have the number of `maps` that
            lie stacked in each; it is 0 in the group of the rest.
        matrices: settings of that rule.
        lr, betas, weight_decay, eps: AdamW's, for embeddings, head and vectors.

    Raises:
        UserError: settings without sense.
    """

    _step_supports_amp_scaling = True  # torch's GradScaler leaves infinite gradients to it

    def __init__(
        self,
        model: LanguageModel,
        matrices: dict[str, Any],
        lr: float,
        betas: Sequence[float],
        weight_decay: float,
        eps: float,
    ):
        for name, value in {"lr": matrices["lr"], "weight_decay": matrices["weight_decay"]}.items():
            check_rate(name, value)
        for name, value in {"lr": lr, "weight_decay": weight_decay, "eps": eps}.items():
            check_rate(f"adamw_{name}", value)
        check_betas("adamw_betas", betas)
        by_maps, taken = defaultdict(list), set()
        for weight, maps in model.matrix_parameters():
            if weight.requires_grad:
                by_maps[maps].append(weight)
                taken.add(weight)
        rest = [p for p in model.parameters() if p.requires_grad and p not in taken]
        groups: list[dict[str, Any]] = [{"params": p, "maps": maps, **matrices} for maps, p in by_maps.items()]
        if rest:
            groups.append({"params": rest, "maps": 0})
        defaults = dict(lr=lr, betas=tuple(betas), weight_decay=weight_decay, eps=eps)
        super().__init__(groups, defaults | dict(amsgrad=False, maximize=False, fused=True))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if getattr(self, "found_inf", None) is not None and self.found_inf.item():
            return result  # float16's gradients were infinite: no step. In 16-mixed each step waits for the device
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["maps"]:
                self.matrix_step(parameters, group)
            elif parameters:
                self._adamw_step(parameters, group)
        return result

    def matrix_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _adamw_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        kept = [self.kept(parameters, name) for name in ("exp_avg", "exp_avg_sq")]
        for p in parameters:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device)
        kept.append([self.state[p]["step"] for p in parameters])
        AdamW.update({**group, "params": parameters}, [p.grad for p in parameters], tuple(kept))

    def kept(self, parameters: list[nn.Parameter], name: str) -> list[Tensor]:
        """What is kept from step to step under a name, one tensor a parameter; zeros at first."""
        for p in parameters:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in parameters]
