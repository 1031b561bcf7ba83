"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.language_model import LanguageModel
from chargpt.optim import foreach
from chargpt.optim.matrix_optimizer import MatrixOptimizer
from chargpt.optim.parameter_groups import check_betas

# The state of a matrix: Adam's averages, the averages of G G^T and G^T G, and the eigenvectors of the latter.
STATE_KEYS = ("momentum", "variance", "left", "right", "left_basis", "right_basis")


class SOAP(MatrixOptimizer):
    """Vyas et al. 2024, "SOAP", algorithm 3: rotates the gradient into the eigenbases of the running averages of
    G G^T and G^T G, computes Adam's step there, and rotates it back.

    The first step with a gradient only computes the initial eigenvectors. They are refreshed every `frequency` steps
    by a power iteration and a QR decomposition (algorithm 4). All products are in full float32.
    """

    def matrix_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        with full_float32():
            self.update_matrices(parameters, group)

    def update_matrices(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """One step of all matrices of a parameter group that have a gradient."""
        for p in parameters:
            self._update(p, self.state[p], group)

    def _update(self, p: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        assert p.grad is not None  # `step` selects the parameters that have a gradient
        gradient, (beta1, beta2) = p.grad.float(), group["matrix_betas"]
        if "taken" not in state:
            if gradient.any():  # a gradient of 0, as before projections initialized to 0, has no eigenvectors
                self._start(state, gradient)
            return
        state["taken"] += 1
        left, right = state["left_basis"], state["right_basis"]
        state["momentum"].lerp_(gradient, 1 - beta1)
        rotated = left.mT @ gradient @ right
        state["variance"].lerp_(rotated.square(), 1 - beta2)
        bias1, bias2 = 1 - beta1 ** state["taken"], 1 - beta2 ** state["taken"]
        denominator = (state["variance"] / bias2).sqrt().add_(group["matrix_eps"])
        step = left @ ((left.mT @ state["momentum"] @ right) / bias1 / denominator) @ right.mT
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])
        state["left"].lerp_(gradient @ gradient.mT, 1 - group["shampoo_beta"])
        state["right"].lerp_(gradient.mT @ gradient, 1 - group["shampoo_beta"])
        if state["taken"] % group["frequency"] == 0:
            state["left_basis"], order = refresh(state["left"], left)
            state["variance"] = state["variance"][order]
            state["right_basis"], order = refresh(state["right"], right)
            state["variance"] = state["variance"][:, order]

    def _start(self, state: dict[str, Any], gradient: Tensor) -> None:
        state["taken"] = 0
        state["momentum"], state["variance"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["left"], state["right"] = gradient @ gradient.mT, gradient.mT @ gradient
        for side in ("left", "right"):
            average = state[side]
            state[f"{side}_basis"] = torch.linalg.eigh(_decomposable(average)).eigenvectors.to(average.device)


class BatchedSOAP(SOAP):
    """SOAP with one set of batched products for all matrices of the same shape: fewer kernels on a GPU.

    The state is the same, one set of tensors per parameter, so each class resumes from the other's checkpoint.
    It is a class and not a setting of the parameter groups, because those are restored from the checkpoint.
    """

    def update_matrices(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        # All matrices of a batch have taken the same number of steps: the bias correction and the refresh depend on it.
        batches = defaultdict(list)
        for p in parameters:
            batches[p.shape, self.state[p].get("taken")].append(p)
        for (_, taken), matrices in batches.items():
            if taken is None:
                self._start_batch(matrices)
            else:
                self._update_batch(matrices, taken + 1, group)

    def _start_batch(self, parameters: list[nn.Parameter]) -> None:
        gradients = [p.grad.float() for p in parameters if p.grad is not None]
        nonzero = torch.stack(gradients).flatten(1).any(1).tolist()  # one synchronization for all matrices
        # Not batched, because it happens once: if G G^T is singular, its eigenvectors depend on rounding, and a
        # batched product may round differently. Thus both classes start from the same eigenvectors.
        for p, gradient, is_nonzero in zip(parameters, gradients, nonzero, strict=True):
            if is_nonzero:
                self._start(self.state[p], gradient)

    def _update_batch(self, parameters: list[Tensor], taken: int, group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        for state in states:
            state["taken"] = taken
            for name in ("left_basis", "right_basis"):  # eigh returns column-major matrices, slow to stack
                state[name] = state[name].contiguous()
        lists = {name: [state[name] for state in states] for name in STATE_KEYS}
        gradients = [p.grad.float() for p in parameters if p.grad is not None]
        beta1, beta2 = group["matrix_betas"]
        foreach.lerp_(lists["momentum"], gradients, 1 - beta1)
        g_NOI, momentum_NOI = torch.stack(gradients), torch.stack(lists["momentum"])
        left_NOO, right_NII = torch.stack(lists["left_basis"]), torch.stack(lists["right_basis"])
        rotated_NOI = left_NOO.mT @ g_NOI @ right_NII
        foreach.lerp_(lists["variance"], rotated_NOI.square_().unbind(), 1 - beta2)
        variance_NOI = torch.stack(lists["variance"])
        bias1, bias2 = 1 - beta1**taken, 1 - beta2**taken
        denominator_NOI = (variance_NOI / bias2).sqrt_().add_(group["matrix_eps"])
        adam_NOI = (left_NOO.mT @ momentum_NOI @ right_NII).div_(bias1).div_(denominator_NOI)
        step_NOI = left_NOO @ adam_NOI @ right_NII.mT
        foreach.mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        foreach.add_(parameters, step_NOI.unbind(), alpha=-group["lr"])
        foreach.lerp_(lists["left"], (g_NOI @ g_NOI.mT).unbind(), 1 - group["shampoo_beta"])
        foreach.lerp_(lists["right"], (g_NOI.mT @ g_NOI).unbind(), 1 - group["shampoo_beta"])
        if taken % group["frequency"] == 0:
            left_NOO, order_NO = refresh(torch.stack(lists["left"]), left_NOO)
            right_NII, order_NI = refresh(torch.stack(lists["right"]), right_NII)
            variance_NOI = variance_NOI.take_along_dim(order_NO[:, :, None], 1)
            variance_NOI = variance_NOI.take_along_dim(order_NI[:, None, :], 2)
            for name, value in (("left_basis", left_NOO), ("right_basis", right_NII), ("variance", variance_NOI)):
                foreach.copy_(lists[name], value.contiguous().unbind())


@contextmanager
def full_float32() -> Iterator[None]:
    """Disables TF32 (on CPUs bfloat16) in float32 products, independently of the run's setting for the model.

    TF32 has 10 bits of mantissa: the eigenvectors of small eigenvalues would be lost in the rounding.
    """
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


def refresh(
    average_MM: Float[Tensor, "*N M M"], basis_MM: Float[Tensor, "*N M M"]
) -> tuple[Float[Tensor, "*N M M"], Int[Tensor, "*N M"]]:
    """Refreshes the eigenvectors of running averages by one power iteration and a QR decomposition.

    Args:
        average_MM: one average, or a batch of averages.
        basis_MM: the eigenvectors of an earlier average, as columns.

    Returns:
        The new basis, with the largest eigenvalue first, and the order of the earlier vectors in it.
    """
    order_M = (basis_MM.mT @ average_MM @ basis_MM).diagonal(dim1=-2, dim2=-1).argsort(descending=True)
    rotated_MM = average_MM @ basis_MM.take_along_dim(order_M.unsqueeze(-2), -1)
    return torch.linalg.qr(_decomposable(rotated_MM)).Q.to(rotated_MM.device), order_M


def _decomposable(matrix: Tensor) -> Tensor:
    """The matrix on a device with `eigh` and `qr`: for Apple GPUs, torch 2.13 has no `eigh`, and its `qr` is new."""
    return matrix.cpu() if matrix.device.type == "mps" else matrix


def soap(
    model: LanguageModel,
    lr: float,
    betas: Sequence[float] = (0.95, 0.95),
    shampoo_beta: float = 0.95,
    weight_decay: float = 0.01,
    eps: float = 1e-8,
    frequency: int = 10,
    batched: bool = False,
    adamw_lr: float = 1e-2,
    adamw_betas: Sequence[float] = (0.8, 0.95),
    adamw_weight_decay: float = 0.0,
    adamw_eps: float = 1e-10,
    table_lr: float | None = None,
) -> SOAP:
    """SOAP for the model's `matrix_parameters`, AdamW for embeddings, head and vectors.

    Args:
        shampoo_beta: decay of the averages of G G^T and G^T G.
        frequency: the number of steps between refreshes of their eigenvectors.
        batched: whether matrices of the same shape are updated together, in batched products.
        table_lr: learning rate of n-gram tables, whose rows are then updated only in steps in which they have a
            gradient; None updates them as the other embeddings.
    """
    check_betas("betas", betas)
    if not 0 <= shampoo_beta < 1:
        raise UserError(f"optimizer.shampoo_beta={shampoo_beta}: it must be at least 0 and less than 1")
    if not 0 < eps < float("inf"):
        raise UserError(f"optimizer.eps={eps}: it must be a finite number greater than 0")
    if frequency < 1:
        raise UserError(f"optimizer.frequency={frequency}: it must be 1 or more")
    matrices = dict(lr=lr, matrix_betas=tuple(betas), shampoo_beta=shampoo_beta, weight_decay=weight_decay)
    matrices |= dict(matrix_eps=eps, frequency=frequency)
    cls = BatchedSOAP if batched else SOAP
    return cls(model, matrices, adamw_lr, adamw_betas, adamw_weight_decay, adamw_eps, table_lr)
