"""Computes the logits of several consecutive tokens of each text: the verification of drafts."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from chargpt.inference.decode import DecodeStep, LinearFactory, feed_forward_rows, int8_linear, linear_rows, norm_rows
from chargpt.model.attention import CausalSelfAttention
from chargpt.model.block_context import BlockContext
from chargpt.model.ensemble import Ensemble, average_logits
from chargpt.model.language_model import LanguageModel
from chargpt.model.position import rotate
from chargpt.model.transformer import Block, Transformer


class VerifyStep:
    """The logits of R consecutive tokens of each of B texts, with a KV cache of texts of different lengths.

    The computation is that of `DecodeStep` with N = B * R rows. Tokens beyond the block have undefined logits.

    Args:
        model: in eval mode, made of modules that `DecodeStep.supports` accepts, on a CPU.
        batch_size: B.
        num_tokens: R.
        quantize: as in `DecodeStep`.
    """

    def __init__(self, model: Transformer, batch_size: int, num_tokens: int, quantize: str | None = None):
        B, R = batch_size, num_tokens
        linear = functools.partial(int8_linear if quantize else linear_rows, batch_size=B * R)
        self._model, self._B, self._R = model, B, R
        weight_VC = model.token_embedding.weight
        positions_T = torch.arange(model.block_size)
        zeros_BTC = weight_VC.new_zeros(1, model.block_size, model.n_embd)
        (self._position_TC,) = model.position.add(zeros_BTC, positions_T)
        self._rotation = model.position.rotation(positions_T)
        self._embedding_norm = norm_rows(model.embedding_norm)
        blocks = list(cast(Iterable[Block], model.blocks))  # torch types every element as a plain Module
        self._blocks = [
            (
                norm_rows(block.attention_norm),
                _attention(cast(CausalSelfAttention, block.attention), B, R, linear),
                norm_rows(block.feed_forward_norm) if block.feed_forward_norm is not None else None,
                feed_forward_rows(block.feed_forward, linear),
                block.residual,
            )
            for block in blocks
        ]
        self._final_norm, self._head = norm_rows(model.final_norm), linear(model.head)
        # R more positions than the block, for the tokens beyond it.
        size = (2, B, model.n_head, model.block_size + R, model.n_embd // model.n_head)
        self._caches = [weight_VC.new_zeros(size) for _ in blocks]
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
        unet_skips, value_residual = model.unet_skips, model.value_residual
        for i, (attention_norm, attention, feed_forward_norm, feed_forward, residual) in enumerate(self._blocks):
            if unet_skips is not None:
                x_NC = unet_skips(x_NC.view(B, R, -1), context.outputs).reshape(B * R, -1).clone()
            context.value_mixer = value_residual[i] if value_residual is not None else None
            y_NC = attention(attention_norm(x_NC), self._caches[i], positions_BR, mask_B1RS, context)
            x_NC = x_NC.add_(y_NC) if residual else y_NC.clone()
            if feed_forward is not None and feed_forward_norm is not None:
                y_NC = feed_forward(feed_forward_norm(x_NC))
                x_NC = x_NC.add_(y_NC) if residual else y_NC.clone()
            if unet_skips is not None:
                context.outputs.append(x_NC.view(B, R, -1).clone())
        return model.softcap(self._head(self._final_norm(x_NC)).view(B, R, -1))


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


def _attention(module: CausalSelfAttention, B: int, R: int, linear: LinearFactory) -> Callable[..., Tensor]:
    qkv_proj, H = linear(module.qkv_proj), module.n_head
    out_proj = linear(module.out_proj) if module.out_proj is not None else lambda x_NC: x_NC
    texts_B1 = torch.arange(B)[:, None]

    def attend(
        x_NC: Tensor, cache_2BHTD: Tensor, positions_BR: Tensor, mask_B1RS: Tensor, context: BlockContext
    ) -> Tensor:
        qkv_NC = qkv_proj(x_NC)
        C = x_NC.shape[1]
        if context.value_mixer is not None:
            values_BRC = qkv_NC[:, 2 * C :].view(B, R, C)
            values_BRC.copy_(context.value_mixer(values_BRC.clone(), context))
        qkv_BHRD = qkv_NC.view(B, R, 3 * H, -1).transpose(1, 2)
        q_BHRD, k_BHRD, v_BHRD = qkv_BHRD.split(H, dim=1)
        if module.query_norm is not None and module.key_norm is not None:
            q_BHRD.copy_(module.query_norm(q_BHRD))
            k_BHRD.copy_(module.key_norm(k_BHRD))
        if context.rotation is not None:
            qk_BHRD = qkv_BHRD[:, : 2 * H]
            qk_BHRD.copy_(rotate(qk_BHRD, context.rotation))
        keys_BHTD, values_BHTD = cache_2BHTD
        if B == 1:
            new = slice(int(positions_BR[0, 0]), int(positions_BR[0, 0]) + R)
            keys_BHTD[:, :, new], values_BHTD[:, :, new] = k_BHRD, v_BHRD
        else:
            keys_BHTD[texts_B1, :, positions_BR] = k_BHRD.transpose(1, 2)
            values_BHTD[texts_B1, :, positions_BR] = v_BHRD.transpose(1, 2)
        S = mask_B1RS.shape[-1]
        y_BHRD = F.scaled_dot_product_attention(q_BHRD, keys_BHTD[:, :, :S], values_BHTD[:, :, :S], mask_B1RS)
        return out_proj(y_BHRD.transpose(1, 2).reshape(B * R, -1))

    return attend
