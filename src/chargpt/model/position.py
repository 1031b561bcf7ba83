"""How a token knows where it stands: learned vectors, rotations, or not at all."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import UserError

Rotation = tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]  # cosines and signed sines of each position


class PositionEncoding(nn.Module):
    """No positions: what the others change. The causal mask alone tells the order.

    Args:
        block_size: T, positions 0 .. T - 1.
        n_embd: C.
        head_size: D.
    """

    def __init__(self, block_size: int, n_embd: int, head_size: int):
        super().__init__()

    def add(self, x_BTC: Float[Tensor, "B T C"], positions_T: Integer[Tensor, " T"]) -> Float[Tensor, "B T C"]:
        """The embedded tokens with their positions."""
        return x_BTC

    def rotation(self, positions_T: Integer[Tensor, " T"]) -> Rotation | None:
        """What each attention layer applies to its queries and keys."""
        return None


class Learned(PositionEncoding):
    """A vector a position, added to the token's embedding (the lecture; Vaswani et al. 2017, section 3.5)."""

    def __init__(self, block_size: int, n_embd: int, head_size: int):
        super().__init__(block_size, n_embd, head_size)
        self.embedding = nn.Embedding(block_size, n_embd)

    def add(self, x_BTC: Float[Tensor, "B T C"], positions_T: Integer[Tensor, " T"]) -> Float[Tensor, "B T C"]:
        return x_BTC + self.embedding(positions_T)


class Rotary(PositionEncoding):
    """Queries and keys turned by an angle that grows with the position (Su et al. 2021, RoFormer, eq. 34).

    Channel i is paired with channel i + D/2; pair i turns by base^(-2i/D) a position.

    Args:
        base: sets the slowest turn.
    """

    def __init__(self, block_size: int, n_embd: int, head_size: int, base: float = 10000.0):
        super().__init__(block_size, n_embd, head_size)
        if head_size % 2:
            raise UserError(
                f"rotary positions turn pairs of channels, but the head size n_embd / n_head is {head_size}: "
                f"change model.n_embd or model.n_head so that it is even"
            )
        turn = base ** -(torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angle = torch.arange(block_size, dtype=torch.float64)[:, None] * turn.repeat(2)
        sign = torch.ones(head_size).index_fill(0, torch.arange(head_size // 2), -1.0)
        self.register_buffer("cos_TD", angle.cos().float(), persistent=False)
        self.register_buffer("sin_TD", angle.sin().float() * sign, persistent=False)

    def rotation(self, positions_T: Integer[Tensor, " T"]) -> Rotation:
        return self.cos_TD[positions_T], self.sin_TD[positions_T]


def rotate(x_BHTD: Float[Tensor, "B H T D"], rotation: Rotation) -> Float[Tensor, "B H T D"]:
    """Turns the channel pairs (i, i + D/2) of each head."""
    cos_TD, sin_TD = (part.to(x_BHTD.dtype) for part in rotation)
    return x_BHTD * cos_TD + x_BHTD.roll(x_BHTD.shape[-1] // 2, dims=-1) * sin_TD
