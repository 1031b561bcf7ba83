"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chargpt.errors import Mistake
from chargpt.model.language_model import LanguageModel
from chargpt.training.matrices import MatrixOptimizer
from chargpt.training.optimizer import check_betas


class SOAP(MatrixOptimizer):
    """Vyas et al. 2024, "SOAP", algorithm 3: the gradient turned into the eigenvectors of the running averages of
    G G^T and G^T G, Adam there, and back.

    The first step with a gradient only finds the first eigenvectors. Later ones follow by a step of power
    iteration and a QR decomposition, every `frequency` steps (algorithm 4).
    """

    def matrix_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for p in parameters:
            self._one(p, self.state[p], group)

    def _one(self, p: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        gradient, (beta1, beta2) = p.grad.float(), group["matrix_betas"]
        if "taken" not in state:
            if not gradient.any():  # behind projections that start at 0 there is nothing to take apart yet
                return
            state["taken"] = 0
            state["momentum"], state["variance"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            state["left"], state["right"] = gradient @ gradient.mT, gradient.mT @ gradient
            state["left_basis"] = torch.linalg.eigh(state["left"]).eigenvectors
            state["right_basis"] = torch.linalg.eigh(state["right"]).eigenvectors
            return
        state["taken"] += 1
        left, right = state["left_basis"], state["right_basis"]
        state["momentum"].lerp_(gradient, 1 - beta1)
        turned = left.mT @ gradient @ right
        state["variance"].lerp_(turned.square(), 1 - beta2)
        bias1, bias2 = 1 - beta1 ** state["taken"], 1 - beta2 ** state["taken"]
        size = (state["variance"] / bias2).sqrt().add_(group["matrix_eps"])
        step = left @ ((left.mT @ state["momentum"] @ right) / bias1 / size) @ right.mT
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])
        state["left"].lerp_(gradient @ gradient.mT, 1 - group["shampoo_beta"])
        state["right"].lerp_(gradient.mT @ gradient, 1 - group["shampoo_beta"])
        if state["taken"] % group["frequency"] == 0:
            state["left_basis"], order = refresh(state["left"], left)
            state["variance"] = state["variance"][order]
            state["right_basis"], order = refresh(state["right"], right)
            state["variance"] = state["variance"][:, order]


def refresh(
    average_MM: Float[Tensor, "M M"], basis_MM: Float[Tensor, "M M"]
) -> tuple[Float[Tensor, "M M"], Tensor]:
    """The eigenvectors of `average_MM`, from those of an earlier one: a power iteration and a QR decomposition.

    Returns:
        The basis, the largest eigenvalue first, and the order in which the earlier vectors now stand.
    """
    order = (basis_MM.mT @ average_MM @ basis_MM).diagonal().argsort(descending=True)
    return torch.linalg.qr(average_MM @ basis_MM[:, order]).Q, order


def soap(
    model: LanguageModel,
    lr: float,
    betas: Sequence[float] = (0.95, 0.95),
    shampoo_beta: float = 0.95,
    weight_decay: float = 0.01,
    eps: float = 1e-8,
    frequency: int = 10,
    adamw_lr: float = 1e-2,
    adamw_betas: Sequence[float] = (0.8, 0.95),
    adamw_weight_decay: float = 0.0,
    adamw_eps: float = 1e-10,
) -> SOAP:
    """SOAP for the model's `hidden_matrices`, AdamW for embeddings, head and vectors.

    Args:
        shampoo_beta: of the averages of G G^T and G^T G.
        frequency: steps between two looks at their eigenvectors.
    """
    check_betas("betas", betas)
    if not 0 <= shampoo_beta < 1:
        raise Mistake(f"optimizer.shampoo_beta={shampoo_beta}: it must be from 0 to below 1")
    if not 0 < eps < float("inf"):
        raise Mistake(f"optimizer.eps={eps}: it must be more than 0")
    if frequency < 1:
        raise Mistake(f"optimizer.frequency={frequency}: it must be 1 or more")
    matrices = dict(lr=lr, matrix_betas=tuple(betas), shampoo_beta=shampoo_beta, weight_decay=weight_decay)
    matrices |= dict(matrix_eps=eps, frequency=frequency)
    return SOAP(model, matrices, adamw_lr, adamw_betas, adamw_weight_decay, adamw_eps)
