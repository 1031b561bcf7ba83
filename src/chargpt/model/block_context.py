"""What a block may look at besides the stream that it adds to."""

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float, Integer
from torch import Tensor

from chargpt.model.position import Rotation


@dataclass
class BlockContext:
    """One forward pass, as far as it has come.

    Attributes:
        tokens_BT: the tokens of this pass.
        embeddings_BTC: what the first block was given.
        rotation: what attention applies to queries and keys, if the position encoding has any.
        mix: what this block's attention makes of its values; None to leave them as they are.
        outputs: of the blocks before, first to last.
        values_BTC: the first block's, once it has computed them and if `value_mixer` keeps them.
    """

    tokens_BT: Integer[Tensor, "B T"]
    embeddings_BTC: Float[Tensor, "B T C"]
    rotation: Rotation | None = None
    value_mixer: Callable[[Float[Tensor, "B T C"], "BlockContext"], Float[Tensor, "B T C"]] | None = None
    outputs: list[Float[Tensor, "B T C"]] = field(default_factory=list)
    values_BTC: Float[Tensor, "B T C"] | None = None
