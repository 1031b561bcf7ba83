"""Computes the logits of several consecutive tokens of each text: the verification of drafts."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from chargpt.inference.decode import DecodeStep, TransformerRows, attention_projections
from chargpt.inference.linear_kernels import LinearFactory, Rows
from chargpt.model.attention import CausalSelfAttention
from chargpt.model.block_context import BlockContext
from chargpt.model.ensemble import Ensemble, average_logits
from chargpt.model.language_model import LanguageModel
from chargpt.model.transformer import Transformer


class VerifyStep(TransformerRows):
    """The logits of R consecutive tokens of each of B texts, with a KV cache of texts of different lengths.

    Tokens beyond the block have undefined logits.

    Args:
        model, batch_size, num_tokens, quantize: as in `TransformerRows`; on a CPU.
    """

    def __init__(self, model: Transformer, batch_size: int, num_tokens: int, quantize: str | None = None):
        super().__init__(model, batch_size, num_tokens, quantize)
        # R more positions than the block, for the tokens beyond it.
        size = (2, batch_size, model.n_head, model.block_size + num_tokens, model.n_embd // model.n_head)
        self._caches = [model.token_embedding.weight.new_zeros(size) for _ in self._blocks]
        self._context_length = model.ngram_embedding.context_length if model.ngram_embedding is not None else 0

    @classmethod
    def create(
        cls, model: LanguageModel, batch_size: int, num_tokens: int, quantize: str | None = None
    ) -> "VerifyStep | EnsembleVerifyStep":
        if isinstance(model, Transformer):
            return cls(model, batch_size, num_tokens, quantize)
        assert isinstance(model, Ensemble), type(model)
        return EnsembleVerifyStep([cls.create(member, batch_size, num_tokens, quantize) for member in model.members])

    def fill(self, row: int, tokens_T: Integer[Tensor, " T"]) -> None:
        """Fills the KV cache of a text with these tokens, from the first position on."""
        if len(tokens_T):
            cache = self._model.new_cache(1)
            self._model(tokens_T[None], cache)
            for filled, layer in zip(self._caches, cache.layers, strict=True):
                filled[:, row, :, : len(tokens_T)] = layer.keys_values_2BHTD[:, 0, :, : len(tokens_T)]

    def __call__(
        self, tokens_BR: Integer[Tensor, "B R"], starts: Sequence[int], previous: Sequence[Sequence[int]]
    ) -> Float[Tensor, "B R V"]:
        """The logits of the tokens after each of tokens_BR.

        Args:
            starts: the position of the first token of each text; the cache contains those before it.
            previous: the tokens before it in the window, at least `context_length` of the n-gram embedding if the
                window has as many.
        """
        B, R, model = self._B, self._R, self._model
        positions_BR = torch.tensor(starts)[:, None] + torch.arange(R)
        table_BR = positions_BR.clamp(max=model.block_size - 1)
        x_BRC = F.embedding(tokens_BR, model.token_embedding.weight) + self._position_TC[table_BR]
        if model.ngram_embedding is not None:
            P = self._context_length
            padded = [[0] * (P - len(tokens)) + list(tokens[max(0, len(tokens) - P) :]) for tokens in previous]
            x_BRC += model.ngram_embedding(tokens_BR, torch.tensor(padded, dtype=torch.long).view(B, P))
        x_NC = self._embedding_norm(x_BRC.view(B * R, -1))
        rotation = None
        if self._rotation is not None:
            cos_TD, sin_TD = self._rotation
            rotation = cos_TD[table_BR][:, None], sin_TD[table_BR][:, None]  # (B, 1, R, D)
        context = BlockContext(tokens_BR, x_NC.view(B, R, -1), rotation)
        S = max(starts) + R
        future_B1RS = torch.arange(S) > positions_BR[:, None, :, None]
        mask_B1RS = x_NC.new_zeros(B, 1, R, S).masked_fill_(future_B1RS, -torch.inf)
        return self.logits(x_NC, context, [(cache, positions_BR, mask_B1RS) for cache in self._caches])

    def attention(self, module: CausalSelfAttention, linear: LinearFactory) -> Callable[..., Rows]:
        qkv_proj, out_proj = attention_projections(module, linear)
        B, R, H = self._B, self._R, module.n_head
        texts_B1 = torch.arange(B)[:, None]

        def attend(
            x_NC: Rows, context: BlockContext, cache_2BHTD: Tensor, positions_BR: Tensor, mask_B1RS: Tensor
        ) -> Rows:
            qkv_BHRD = self.queries_keys_values(module, qkv_proj, x_NC, context)
            q_BHRD, k_BHRD, v_BHRD = qkv_BHRD.split(H, dim=1)
            keys_BHTD, values_BHTD = cache_2BHTD
            if B == 1:
                start = int(positions_BR[0, 0])
                keys_BHTD[:, :, start : start + R], values_BHTD[:, :, start : start + R] = k_BHRD, v_BHRD
            else:
                keys_BHTD[texts_B1, :, positions_BR] = k_BHRD.transpose(1, 2)
                values_BHTD[texts_B1, :, positions_BR] = v_BHRD.transpose(1, 2)
            S = mask_B1RS.shape[-1]
            y_BHRD = F.scaled_dot_product_attention(q_BHRD, keys_BHTD[:, :, :S], values_BHTD[:, :, :S], mask_B1RS)
            return out_proj(y_BHRD.transpose(1, 2).reshape(B * R, -1))

        return attend


class EnsembleVerifyStep:
    """The averaged logits of the steps of several models."""

    def __init__(self, steps: "Sequence[VerifyStep | EnsembleVerifyStep]"):
        self._steps = steps

    def fill(self, row: int, tokens_T: Integer[Tensor, " T"]) -> None:
        for step in self._steps:
            step.fill(row, tokens_T)

    def __call__(
        self, tokens_BR: Integer[Tensor, "B R"], starts: Sequence[int], previous: Sequence[Sequence[int]]
    ) -> Float[Tensor, "B R V"]:
        return average_logits([step(tokens_BR, starts, previous) for step in self._steps])


def supports(model: LanguageModel) -> bool:
    """Whether `VerifyStep` implements the model."""
    return DecodeStep.supports(model) and model.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
