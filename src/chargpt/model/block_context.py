"""The inputs of a block other than the residual stream."""

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float, Integer
from torch import Tensor

from chargpt.model.position import Rotation


@dataclass
class BlockContext:
    """The state of the current forward pass.

    Attributes:
        tokens_BT: the input tokens.
        embeddings_BTC: the input of the first block.
        rotation: the rotary position encoding of queries and keys, if there is one.
        value_mixer: applied by this block's attention to its values; None to leave them unchanged.
        outputs: the outputs of the earlier blocks, first to last.
        values_BTC: the first block's values, if its `value_mixer` has stored them.
    """

    tokens_BT: Integer[Tensor, "B T"]
    embeddings_BTC: Float[Tensor, "B T C"]
    rotation: Rotation | None = None
    value_mixer: Callable[[Float[Tensor, "B T C"], "BlockContext"], Float[Tensor, "B T C"]] | None = None
    outputs: list[Float[Tensor, "B T C"]] = field(default_factory=list)
    values_BTC: Float[Tensor, "B T C"] | None = None
