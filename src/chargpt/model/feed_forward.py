"""The feed-forward layers of a block, and activations that torch does not have."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chargpt.errors import UserError
from chargpt.model.kernels.dropout import dropout
from chargpt.model.kernels.squared_relu import squared_relu


class FeedForward(nn.Module):
    """A linear layer to `expansion` times the channels, an activation, and a linear layer back (Vaswani et al. 2017,
    section 3.3).

    Args:
        n_embd: C.
        dropout: probability for the output.
        expansion: width of the inner layer, in units of C.
        activation: builds the module between the two layers.
        bias: whether both layers have a bias.
    """

    def __init__(
        self,
        n_embd: int,
        dropout: float = 0.0,
        expansion: float = 4.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        bias: bool = True,
    ):
        super().__init__()
        inner = _inner(n_embd, expansion)
        self.dropout = dropout
        self.up_proj = nn.Linear(n_embd, inner, bias=bias)
        self.activation = activation()
        self.down_proj = nn.Linear(inner, n_embd, bias=bias)

    def forward(self, x_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        y_BTC = self.down_proj(self.activation(self.up_proj(x_BTC)))
        return dropout(y_BTC, self.dropout, self.training)


class LinearReLU(nn.Module):
    """A single linear layer and a ReLU: the lecture's first feed-forward, before the residual connections."""

    def __init__(self, n_embd: int, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        self.dropout = dropout
        self.linear = nn.Linear(n_embd, n_embd, bias=bias)

    def forward(self, x_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return dropout(F.relu(self.linear(x_BTC)), self.dropout, self.training)


class SwiGLU(nn.Module):
    """(silu(x W) * (x U)) W2 (Shazeer 2020, "GLU Variants Improve Transformer", eq. 5).

    Args:
        expansion: width of the inner layer, in units of C. As in the paper, 8/3 gives as many parameters as a
            FeedForward with an expansion of 4.
    """

    def __init__(self, n_embd: int, dropout: float = 0.0, expansion: float = 8 / 3, bias: bool = False):
        super().__init__()
        inner = _inner(n_embd, expansion)
        self.dropout = dropout
        self.gate_proj = nn.Linear(n_embd, inner, bias=bias)
        self.up_proj = nn.Linear(n_embd, inner, bias=bias)
        self.down_proj = nn.Linear(inner, n_embd, bias=bias)

    def forward(self, x_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        y_BTC = self.down_proj(F.silu(self.gate_proj(x_BTC)) * self.up_proj(x_BTC))
        return dropout(y_BTC, self.dropout, self.training)


class SquaredReLU(nn.Module):
    """max(0, x)^2 (So et al. 2021, Primer, section 3.1)."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return squared_relu(x)


def _inner(n_embd: int, expansion: float) -> int:
    inner = round(expansion * n_embd)
    if inner < 1:
        raise UserError(f"model.feed_forward.expansion={expansion}: the inner layer has no channels; use 1 or more")
    return inner
