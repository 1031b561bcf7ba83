"""Decodes one token per sequence: the computation of `Transformer.forward` with less overhead.

Besides one pass over all weights, a token costs about a hundred small operations, each of which takes longer to call
than to compute. This code therefore calls as few operations as possible: it processes rows instead of blocks of one
token, writes products into preallocated memory, and repacks weights where that makes them faster to read.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from chargpt.errors import UserError
from chargpt.inference.linear_kernels import Kernel, LinearFactory, Rows, linear_factory
from chargpt.model.attention import CausalSelfAttention, LayerKVCache
from chargpt.model.block_context import BlockContext
from chargpt.model.ensemble import Ensemble, average_logits
from chargpt.model.feed_forward import FeedForward
from chargpt.model.language_model import LanguageModel
from chargpt.model.position import Learned, PositionEncoding, Rotary, rotate
from chargpt.model.transformer import Block, KVCache, Transformer
from chargpt.model.value_residual import ValueEmbedding, ValueResidual

INT8_BLOCK = 32  # weights that the int8 kernel reads at a time


class BlockRows(NamedTuple):
    """The layers of a block as functions of rows."""

    attention_norm: Kernel
    attention: Callable[..., Rows]
    feed_forward_norm: Kernel | None
    feed_forward: Kernel | None
    residual: bool


class TransformerRows:
    """A Transformer as functions of N = B * R rows: R tokens of each of B texts.

    Args:
        model: in eval mode, made of modules that `DecodeStep.supports` accepts. Its weights are copied if that makes
            them faster to read.
        batch_size: B.
        num_tokens: R.
        quantize: "int8" rounds the weights of linear layers to 8 bits, with one scale per row, and their inputs to
            bfloat16. Each token then requires a third of the memory traffic. CPU only.
    """

    def __init__(self, model: Transformer, batch_size: int, num_tokens: int, quantize: str | None = None):
        self._model, self._B, self._R = model, batch_size, num_tokens
        rows = batch_size * num_tokens
        linear = functools.partial(int8_linear, rows=rows) if quantize else linear_factory(model, rows)
        positions_T = torch.arange(model.block_size, device=model.device)
        zeros_BTC = model.token_embedding.weight.new_zeros(1, model.block_size, model.n_embd)
        (self._position_TC,) = model.position.add(zeros_BTC, positions_T)
        self._rotation = model.position.rotation(positions_T)
        self._embedding_norm = norm_rows(model.embedding_norm)
        blocks = cast(Iterable[Block], model.blocks)  # torch types every element as a plain Module
        self._blocks = [
            BlockRows(
                norm_rows(block.attention_norm),
                self.attention(cast(CausalSelfAttention, block.attention), linear),
                norm_rows(block.feed_forward_norm) if block.feed_forward_norm is not None else None,
                feed_forward_rows(block.feed_forward, linear),
                block.residual,
            )
            for block in blocks
        ]
        self._final_norm, self._head = norm_rows(model.final_norm), linear(model.head)

    def attention(self, module: CausalSelfAttention, linear: LinearFactory) -> Callable[..., Rows]:
        """A function that computes attention from rows, the context, and the arguments of a layer."""
        raise NotImplementedError

    def logits(self, x_NC: Rows, context: BlockContext, arguments: Iterable[tuple[Any, ...]]) -> Float[Tensor, "B R V"]:
        """The logits after the tokens with these embeddings.

        Args:
            arguments: those of each layer's attention.
        """
        shape, model = (self._B, self._R, -1), self._model
        for i, (block, of_layer) in enumerate(zip(self._blocks, arguments, strict=True)):
            if model.unet_skips is not None:
                x_NC = model.unet_skips(x_NC.view(shape), context.outputs).reshape(x_NC.shape).clone()
            context.value_mixer = model.value_residual[i] if model.value_residual is not None else None
            y_NC = block.attention(block.attention_norm(x_NC), context, *of_layer)
            x_NC = x_NC.add_(y_NC) if block.residual else y_NC.clone()
            if block.feed_forward is not None and block.feed_forward_norm is not None:
                y_NC = block.feed_forward(block.feed_forward_norm(x_NC))
                x_NC = x_NC.add_(y_NC) if block.residual else y_NC.clone()
            if model.unet_skips is not None:
                context.outputs.append(x_NC.view(shape).clone())
        return model.softcap(self._head(self._final_norm(x_NC)).view(shape))

    def queries_keys_values(
        self, module: CausalSelfAttention, qkv_proj: Kernel, x_NC: Rows, context: BlockContext
    ) -> Float[Tensor, "B H3 R D"]:
        """The queries of all heads, then the keys, then the values."""
        B, R, H, C = self._B, self._R, module.n_head, x_NC.shape[1]
        qkv_NC = qkv_proj(x_NC)
        if context.value_mixer is not None:
            values_BRC = qkv_NC[:, 2 * C :].view(B, R, C)
            values_BRC.copy_(context.value_mixer(values_BRC.clone(), context))
        qkv_BHRD = qkv_NC.view(B, R, 3 * H, -1).transpose(1, 2)
        if module.query_norm is not None and module.key_norm is not None:
            q_BHRD, k_BHRD, _ = qkv_BHRD.split(H, dim=1)
            q_BHRD.copy_(module.query_norm(q_BHRD))
            k_BHRD.copy_(module.key_norm(k_BHRD))
        if context.rotation is not None:
            qk_BHRD = qkv_BHRD[:, : 2 * H]
            qk_BHRD.copy_(rotate(qk_BHRD, context.rotation))
        return qkv_BHRD


class DecodeStep(TransformerRows):
    """The decoding step of one model for B sequences: computes the next logits from the newest tokens and a KV cache.

    Args:
        model, batch_size, quantize: as in `TransformerRows`.
    """

    def __init__(self, model: Transformer, batch_size: int, quantize: str | None = None):
        super().__init__(model, batch_size, 1, quantize)

    @classmethod
    def supports(cls, model: LanguageModel) -> bool:
        """Returns whether `DecodeStep` implements every module of the model."""
        if type(model) is Ensemble:
            return all(cls.supports(member) for member in model.members)
        if type(model) is not Transformer or type(model.position) not in (PositionEncoding, Learned, Rotary):
            return False
        if model.value_residual is not None and type(model.value_residual[0]) not in (ValueEmbedding, ValueResidual):
            return False
        return all(type(b) is Block and type(b.attention) is CausalSelfAttention for b in model.blocks)

    @classmethod
    def create(
        cls, model: LanguageModel, batch_size: int, quantize: str | None = None
    ) -> Callable[[Integer[Tensor, " B"], Any], Float[Tensor, "B V"]]:
        """Builds the step of a model; for an ensemble, one step per member whose logits are averaged."""
        if isinstance(model, Transformer):
            return cls(model, batch_size, quantize)
        assert isinstance(model, Ensemble), type(model)
        steps = [cls.create(member, batch_size, quantize) for member in model.members]
        return lambda tokens_B, caches: average_logits([s(tokens_B, c) for s, c in zip(steps, caches, strict=True)])

    def __call__(self, tokens_B: Integer[Tensor, " B"], cache: KVCache) -> Float[Tensor, "B V"]:
        """Appends tokens_B to the cache and returns the logits of the next tokens, valid until the next call."""
        position = cache.length
        x_BC = self._embed(tokens_B, position, cache)
        rotation = None
        if self._rotation is not None:
            cos_TD, sin_TD = self._rotation
            rotation = cos_TD[position : position + 1], sin_TD[position : position + 1]
        context = BlockContext(tokens_B[:, None], x_BC[:, None], rotation)
        return self.logits(x_BC, context, [(layer,) for layer in cache.layers])[:, 0]

    def _embed(self, tokens_B: Tensor, position: int, cache: KVCache) -> Rows:
        x_BC = F.embedding(tokens_B, self._model.token_embedding.weight)
        x_BC += self._position_TC[position]
        if self._model.ngram_embedding is not None:
            x_BC += self._model.ngram_embedding(tokens_B[:, None], cache.previous_BR)[:, 0]
            cache.append(tokens_B[:, None])
        return self._embedding_norm(x_BC)

    def attention(self, module: CausalSelfAttention, linear: LinearFactory) -> Callable[..., Rows]:
        qkv_proj, out_proj = attention_projections(module, linear)
        B, H = self._B, module.n_head

        def attend(x_BC: Rows, context: BlockContext, cache: LayerKVCache) -> Rows:
            qkv_BHTD = self.queries_keys_values(module, qkv_proj, x_BC, context)
            start, cache.length = cache.length, cache.length + 1
            cache.keys_values_2BHTD[:, :, :, start] = qkv_BHTD[:, H:].view(B, 2, H, -1).transpose(0, 1)
            keys_BHSD, values_BHSD = cache.keys_values_2BHTD[:, :, :, : cache.length]
            y_BHTD = F.scaled_dot_product_attention(qkv_BHTD[:, :H], keys_BHSD, values_BHSD)
            return out_proj(y_BHTD.reshape(B, -1))

        return attend


def attention_projections(module: CausalSelfAttention, linear: LinearFactory) -> tuple[Kernel, Kernel]:
    """The projections of rows to queries, keys and values, and of the heads' outputs."""
    return linear(module.qkv_proj), linear(module.out_proj) if module.out_proj is not None else nn.Identity()


def feed_forward_rows(module: nn.Module | None, linear: LinearFactory) -> Callable[[Rows], Rows] | None:
    if type(module) is not FeedForward:
        return module and _with_time_axis(module)
    up_proj, down_proj = linear(module.up_proj), linear(module.down_proj)
    activation = module.activation.forward
    return lambda x_BC: down_proj(activation(up_proj(x_BC)))


def norm_rows(module: nn.Module) -> Callable[[Rows], Rows]:
    if type(module) is not nn.LayerNorm:
        return _with_time_axis(module)
    settings = (module.normalized_shape, module.weight, module.bias, module.eps)
    return lambda x_BC: torch.layer_norm(x_BC, *settings)


def _with_time_axis(module: nn.Module) -> Callable[[Rows], Rows]:
    """Wraps a module that expects x_BTC, so that it accepts and returns rows x_BC."""
    return lambda x_BC: module.forward(x_BC[:, None])[:, 0]


def int8_linear(module: nn.Linear, rows: int) -> Callable[[Rows], Rows]:
    if module.in_features % INT8_BLOCK:  # PyTorch's kernel would read past the end of a row
        raise UserError(
            f"quantize=int8: all channel counts must be multiples of {INT8_BLOCK}, "
            f"but this model has {module.in_features} channels"
        )
    bias = module.bias
    scale_C = (module.weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    weight = (module.weight / scale_C[:, None]).round().to(torch.int8)
    # torch.compile replaces `F.linear(x, weight.to(x.dtype)) * scale` by this operator. It has no public name, but no
    # documented operator multiplies by 8-bit weights without converting them first.
    scale_C, multiply = scale_C.bfloat16(), torch.ops.aten._weight_int8pack_mm.default
    if bias is None:
        return lambda x_BC: multiply(x_BC.bfloat16(), weight, scale_C).float()
    return lambda x_BC: bias + multiply(x_BC.bfloat16(), weight, scale_C)
