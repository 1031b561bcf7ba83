"""Muon: momentum orthogonalized by the Polar Express iteration."""

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.language_model import LanguageModel
from chargpt.optim import foreach
from chargpt.optim.matrix_optimizer import MatrixOptimizer
from chargpt.training.bfloat16_support import has_fast_bfloat16

# Amsel et al. 2025, "The Polar Express", algorithm 1: the odd polynomial a x + b x^3 + c x^5 of each step, which is
# optimal after the previous steps, for singular values of 0.001 and more.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": None}
SAFETY = 1.01  # from the same algorithm: keeps singular values within the polynomials' range despite bfloat16 rounding


def orthogonalize(
    matrices_NOI: Float[Tensor, "N O I"], steps: int = 5, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "N O I"]:
    """Approximates U V^T of each matrix's singular value decomposition U S V^T: singular values become 1 +- 0.15.

    Singular values below a thousandth of the matrix's norm remain smaller than 1 - 0.15.

    Args:
        steps: the number of iterations, 1 to 5.
        dtype: the type of the matrix products.
    """
    x = matrices_NOI.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    polynomials = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS[:steps]]
    if dtype == torch.float32 and x.shape[-1] >= 2 * x.shape[-2]:
        x = _iteration_factor(x @ x.mT, polynomials) @ x
    else:
        for a, b, c in polynomials:
            square = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices_NOI.dtype)


def _iteration_factor(square: Tensor, polynomials: list[tuple[float, float, float]]) -> Tensor:
    """The matrix by which the complete iteration multiplies x, computed from x x^T: long rows of x are read only twice.

    Only in float32: the smallest singular values of x x^T would be lost in the rounding of a 16-bit type.
    """
    steps: list[Tensor] = []
    for a, b, c in polynomials:
        if steps:
            square = steps[-1] @ square @ steps[-1]
        step = torch.baddbmm(square, square, square, beta=b, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        steps.append(step)
    return functools.reduce(torch.matmul, steps)  # the order does not matter: all are polynomials in the same matrix


class Muon(MatrixOptimizer):
    """Updates a matrix by its orthogonalized Nesterov momentum times lr * sqrt(max(1, O / I)).

    Jordan et al. 2024, "Muon". The linear maps stacked in a weight, such as queries, keys and values, are
    orthogonalized separately. All matrices of the same shape are updated in one batch.
    """

    def matrix_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        by_shape = defaultdict(list)
        for p in parameters:
            by_shape[p.shape].append(p)
        for (fan_out, fan_in), matrices in by_shape.items():
            gradients, momenta = [p.grad for p in matrices], self.state_tensors(matrices, "momentum")
            foreach.lerp_(momenta, gradients, 1 - group["momentum"])
            nesterov = torch.stack(foreach.lerp(gradients, momenta, group["momentum"]))
            steps = group["orthogonalization_steps"]
            dtype = DTYPES[group.get("orthogonalization_dtype", "auto")]  # missing in older checkpoints
            if dtype is None:
                dtype = torch.bfloat16 if has_fast_bfloat16(nesterov.device) else torch.float32
            maps_NOI = nesterov.view(-1, fan_out // group["maps"], fan_in)
            update = orthogonalize(maps_NOI, steps, dtype).view_as(nesterov)
            scale = max(1.0, fan_out / group["maps"] / fan_in) ** 0.5
            if group["weight_decay"]:
                foreach.mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            foreach.add_(matrices, list(update), alpha=-group["lr"] * scale)


def muon(
    model: LanguageModel,
    lr: float,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    orthogonalization_steps: int = 5,
    orthogonalization_dtype: str = "auto",
    adamw_lr: float = 1e-2,
    adamw_betas: Sequence[float] = (0.8, 0.95),
    adamw_weight_decay: float = 0.0,
    adamw_eps: float = 1e-10,
    table_lr: float | None = None,
) -> Muon:
    """Muon for the model's `matrix_parameters`, AdamW for embeddings, head and vectors.

    Args:
        lr: learning rate of the matrices: the change of their singular values per step.
        orthogonalization_steps: 1 to 5; fewer are faster and less accurate.
        orthogonalization_dtype: the type of the iteration's matrix products: "float32", "bfloat16", or "auto", which
            is bfloat16 on devices with fast bfloat16 products.
        table_lr: learning rate of n-gram tables, whose rows are then updated only in steps in which they have a
            gradient; None updates them as the other embeddings.
    """
    if not 0 <= momentum < 1:
        raise UserError(f"optimizer.momentum={momentum}: it must be at least 0 and less than 1")
    if orthogonalization_steps not in range(1, 6):
        raise UserError(f"optimizer.orthogonalization_steps={orthogonalization_steps}: it must be from 1 to 5")
    if orthogonalization_dtype not in DTYPES:
        raise UserError(
            f"optimizer.orthogonalization_dtype={orthogonalization_dtype}: it must be one of {', '.join(DTYPES)}"
        )
    matrices: dict[str, Any] = dict(lr=lr, momentum=momentum, weight_decay=weight_decay)
    matrices["orthogonalization_steps"] = orthogonalization_steps
    matrices["orthogonalization_dtype"] = orthogonalization_dtype
    return Muon(model, matrices, adamw_lr, adamw_betas, adamw_weight_decay, adamw_eps, table_lr)
