"""Position encodings: learned, rotary, or none."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import UserError

# Cosines and signed sines of each position; for texts of different lengths with leading dimensions B 1.
Rotation = tuple[Float[Tensor, "*B1 T D"], Float[Tensor, "*B1 T D"]]


class PositionEncoding(nn.Module):
    """The base class, which encodes no positions: only the causal mask depends on the order of the tokens.

    Args:
        block_size: T, positions 0 .. T - 1.
        n_embd: C.
        head_size: D.
    """

    def __init__(self, block_size: int, n_embd: int, head_size: int):
        super().__init__()

    def add(self, x_BTC: Float[Tensor, "B T C"], positions_T: Integer[Tensor, " T"]) -> Float[Tensor, "B T C"]:
        """Adds the positions to the embedded tokens."""
        return x_BTC

    def rotation(self, positions_T: Integer[Tensor, " T"]) -> Rotation | None:
        """The rotation that each attention layer applies to its queries and keys; None for no rotation."""
        return None


class Learned(PositionEncoding):
    """One learned vector per position, added to the token's embedding (the lecture; Vaswani et al. 2017, section
    3.5)."""

    def __init__(self, block_size: int, n_embd: int, head_size: int):
        super().__init__(block_size, n_embd, head_size)
        self.embedding = nn.Embedding(block_size, n_embd)

    def add(self, x_BTC: Float[Tensor, "B T C"], positions_T: Integer[Tensor, " T"]) -> Float[Tensor, "B T C"]:
        return x_BTC + self.embedding(positions_T)


class Rotary(PositionEncoding):
    """Rotates queries and keys by an angle proportional to the position (Su et al. 2021, RoFormer, eq. 34).

    Channel i is paired with channel i + D/2; pair i rotates by base^(-2i/D) per position.

    Args:
        base: determines the slowest rotation.
    """

    cos_TD: Float[Tensor, "T D"]
    sin_TD: Float[Tensor, "T D"]

    def __init__(self, block_size: int, n_embd: int, head_size: int, base: float = 10000.0):
        super().__init__(block_size, n_embd, head_size)
        if head_size % 2:
            raise UserError(
                f"rotary positions require an even head size, but the head size n_embd / n_head is {head_size}: "
                f"change model.n_embd or model.n_head"
            )
        frequency = base ** -(torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angle = torch.arange(block_size, dtype=torch.float64)[:, None] * frequency.repeat(2)
        sign = torch.ones(head_size).index_fill(0, torch.arange(head_size // 2), -1.0)
        self.register_buffer("cos_TD", angle.cos().float(), persistent=False)
        self.register_buffer("sin_TD", angle.sin().float() * sign, persistent=False)

    def rotation(self, positions_T: Integer[Tensor, " T"]) -> Rotation:
        return self.cos_TD[positions_T], self.sin_TD[positions_T]


def rotate(x_BHTD: Float[Tensor, "B H T D"], rotation: Rotation) -> Float[Tensor, "B H T D"]:
    """Rotates the channel pairs (i, i + D/2) of each head."""
    cos_TD, sin_TD = (x_TD.to(x_BHTD.dtype) for x_TD in rotation)
    return x_BHTD * cos_TD + x_BHTD.roll(x_BHTD.shape[-1] // 2, dims=-1) * sin_TD
