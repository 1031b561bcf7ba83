"""A decoding step with fixed shapes: the forward pass of the model with a KV cache whose length is on the device.

The length of the plain KV cache is a Python number that grows by one per step, so each step runs different kernels.
Here the keys and values always cover a full block, a mask hides the positions that are not filled yet, and the
position is a tensor. Every step launches the same kernels on the same memory, as a CUDA graph requires.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from chargpt.model.attention import LayerKVCache
from chargpt.model.language_model import LanguageModel
from chargpt.model.transformer import KVCache


class StaticDecodeStep:
    """Computes the logits after one more token for each of B sequences, in static memory.

    Args:
        model: in eval mode; a model that `DecodeStep.supports`.
        batch_size: B.

    Attributes:
        tokens_B1: input of the next step; written in place.
        position_1: the number of tokens in the KV cache, which is the position of the next token. It must be less
            than `block_size` when a step starts.
    """

    def __init__(self, model: LanguageModel, batch_size: int):
        self._model = model
        self.tokens_B1 = torch.zeros(batch_size, 1, dtype=torch.long, device=model.device)
        self.position_1 = torch.zeros(1, dtype=torch.long, device=model.device)
        # Row t is added to the attention scores at position t. A boolean mask would be converted to this in each layer.
        weight = next(model.parameters())
        self._masks_TT = weight.new_full((model.block_size, model.block_size), -float("inf")).triu(1)
        self._mask_1T = self._masks_TT[:1].clone()
        self._pairs: list[tuple[KVCache, StaticKVCache]] = []
        self._plain = model.new_cache(batch_size)
        self._static = self._share_memory(self._plain)

    def __call__(self) -> Float[Tensor, "B V"]:
        """Appends `tokens_B1` to the KV cache."""
        torch.index_select(self._masks_TT, 0, self.position_1, out=self._mask_1T)
        logits_BV = self._model(self.tokens_B1, self._static)[:, -1]
        self.position_1.add_(1)
        return logits_BV

    def prefill(self, tokens_BT: Integer[Tensor, "B T"]) -> Float[Tensor, "B V"]:
        """Replaces the content of the KV cache by T tokens, in one pass with the plain cache on the same memory."""
        for plain, _ in self._pairs:
            plain.previous_BR = torch.zeros_like(plain.previous_BR)
            for layer in plain.layers:
                layer.length = 0
        logits_BV = self._model(tokens_BT, self._plain)[:, -1]
        for plain, static in self._pairs:
            static.previous_BR.copy_(plain.previous_BR)
        self.position_1.fill_(tokens_BT.shape[1])
        return logits_BV

    def _share_memory(self, plain: KVCache | list[KVCache]) -> "StaticKVCache | list":
        if not isinstance(plain, KVCache):  # an ensemble has one cache per member
            return [self._share_memory(member) for member in plain]
        static = StaticKVCache(plain, self.position_1, self._mask_1T)
        self._pairs.append((plain, static))
        return static


class StaticKVCache(KVCache):
    """The KV cache of a `StaticDecodeStep`. One token is appended at a time.

    Args:
        plain: the cache whose memory is shared. It is zeroed, since a masked NaN would still reach the output.
        position_1: the position of the token.
        mask_1T: 0 for the positions up to `position_1`, -inf for the others.
    """

    def __init__(self, plain: KVCache, position_1: Integer[Tensor, " 1"], mask_1T: Float[Tensor, "1 T"]):
        layers = [StaticLayerKVCache(layer.keys_values_2BHTD.zero_(), position_1, mask_1T) for layer in plain.layers]
        super().__init__(layers, plain.previous_BR.clone())
        self._position_1 = position_1

    def positions(self, start: int, end: int) -> Integer[Tensor, " 1"]:
        return self._position_1

    def append(self, tokens_BT: Integer[Tensor, "B 1"]) -> None:
        self.previous_BR.copy_(torch.cat((self.previous_BR, tokens_BT), dim=1)[:, 1:])


class StaticLayerKVCache(LayerKVCache):
    """One layer of a `StaticKVCache`. `position_1` replaces `length`, which stays 0."""

    def __init__(
        self,
        keys_values_2BHTD: Float[Tensor, "2 B H T D"],
        position_1: Integer[Tensor, " 1"],
        mask_1T: Float[Tensor, "1 T"],
    ):
        super().__init__(keys_values_2BHTD)
        self._keys_BHTD, self._values_BHTD = keys_values_2BHTD
        self._position_1, self._mask_1T = position_1, mask_1T

    def append(
        self, keys_BHTD: Float[Tensor, "B H 1 D"], values_BHTD: Float[Tensor, "B H 1 D"]
    ) -> Float[Tensor, "2 B H S D"]:
        """Writes one token and returns the keys and values of the full block."""
        self._keys_BHTD.index_copy_(2, self._position_1, keys_BHTD)
        self._values_BHTD.index_copy_(2, self._position_1, values_BHTD)
        return self.keys_values_2BHTD

    def mask(self, T: int) -> Float[Tensor, "1 S"]:
        return self._mask_1T
