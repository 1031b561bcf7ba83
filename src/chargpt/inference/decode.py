"""Decodes one token per sequence: the computation of `Transformer.forward` with less overhead.

Besides one pass over all weights, a token costs about a hundred small operations, each of which takes longer to call
than to compute. This code therefore calls as few operations as possible: it processes rows instead of blocks of one
token, writes products into preallocated memory, and repacks weights where that makes them faster to read.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from chargpt.errors import UserError
from chargpt.model.attention import CausalSelfAttention, LayerKVCache
from chargpt.model.block_context import BlockContext
from chargpt.model.ensemble import Ensemble, average_logits
from chargpt.model.feed_forward import FeedForward
from chargpt.model.language_model import LanguageModel
from chargpt.model.position import Learned, PositionEncoding, Rotary, rotate
from chargpt.model.transformer import Block, KVCache, Transformer
from chargpt.model.value_residual import ValueEmbedding, ValueResidual

INT8_BLOCK = 32  # weights that the int8 kernel reads at a time
Rows = Float[Tensor, "B C"]
LinearFactory = Callable[[nn.Linear], Callable[[Rows], Rows]]


class DecodeStep:
    """The decoding step of one model for B sequences: computes the next logits from the newest tokens and a KV cache.

    Args:
        model: in eval mode, made of modules that `supports` accepts. Its weights are copied for B > 1.
        batch_size: B.
        quantize: "int8" rounds the weights of linear layers to 8 bits, with one scale per row, and their inputs to
            bfloat16. Each token then requires a third of the memory traffic. CPU only.
    """

    def __init__(self, model: Transformer, batch_size: int, quantize: str | None = None):
        linear = functools.partial(int8_linear if quantize else linear_rows, batch_size=batch_size)
        self._model = model
        positions_T = torch.arange(model.block_size, device=model.device)
        embedding_VC = model.token_embedding.weight
        zeros_BTC = embedding_VC.new_zeros(1, model.block_size, model.n_embd)
        (self._position_TC,) = model.position.add(zeros_BTC, positions_T)
        self._rotation = model.position.rotation(positions_T)
        self._embedding_norm = norm_rows(model.embedding_norm)
        blocks = list(cast(Iterable[Block], model.blocks))  # torch types every element as a plain Module
        self._norms = [
            (norm_rows(b.attention_norm), b.feed_forward_norm and norm_rows(b.feed_forward_norm)) for b in blocks
        ]
        self._attentions = [_attention(b.attention, batch_size, linear) for b in blocks]
        self._feed_forwards = [feed_forward_rows(b.feed_forward, linear) for b in blocks]
        self._residual = [b.residual for b in blocks]
        self._final_norm, self._head = norm_rows(model.final_norm), linear(model.head)

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
        layers = zip(cache.layers, self._norms, self._attentions, self._feed_forwards, self._residual, strict=True)
        unet_skips = self._model.unet_skips
        for i, (layer_cache, norms, attention, feed_forward, residual) in enumerate(layers):
            attention_norm, feed_forward_norm = norms
            if unet_skips is not None:
                x_BC = unet_skips(x_BC[:, None], context.outputs)[:, 0].clone()
            context.value_mixer = self._model.value_residual[i] if self._model.value_residual is not None else None
            y_BC = attention(attention_norm(x_BC), layer_cache, context)
            x_BC = x_BC.add_(y_BC) if residual else y_BC.clone()
            if feed_forward is not None and feed_forward_norm is not None:
                y_BC = feed_forward(feed_forward_norm(x_BC))
                x_BC = x_BC.add_(y_BC) if residual else y_BC.clone()
            if unet_skips is not None:
                context.outputs.append(x_BC[:, None].clone())
        return self._model.softcap(self._head(self._final_norm(x_BC))[:, None])[:, 0]

    def _embed(self, tokens_B: Tensor, position: int, cache: KVCache) -> Rows:
        x_BC = F.embedding(tokens_B, self._model.token_embedding.weight)
        x_BC += self._position_TC[position]
        if self._model.ngram_embedding is not None:
            x_BC += self._model.ngram_embedding(tokens_B[:, None], cache.previous_BR)[:, 0]
            cache.append(tokens_B[:, None])
        return self._embedding_norm(x_BC)


def _attention(module: nn.Module, B: int, linear: LinearFactory) -> Callable[..., Rows]:
    assert isinstance(module, CausalSelfAttention)  # as `DecodeStep.supports` requires
    qkv_proj, H = linear(module.qkv_proj), module.n_head
    out_proj = linear(module.out_proj) if module.out_proj is not None else nn.Identity()

    def attend(x_BC: Rows, layer_cache: LayerKVCache, context: BlockContext) -> Rows:
        qkv_BC = qkv_proj(x_BC)
        if context.value_mixer is not None:
            values_B1C = qkv_BC[:, None, 2 * x_BC.shape[1] :]
            values_B1C.copy_(context.value_mixer(values_B1C.clone(), context))
        if module.query_norm is not None and module.key_norm is not None:
            q_BHTD, k_BHTD, _ = qkv_BC.view(B, 3 * H, 1, -1).split(H, dim=1)
            q_BHTD.copy_(module.query_norm(q_BHTD))
            k_BHTD.copy_(module.key_norm(k_BHTD))
        if context.rotation is not None:
            qk_BHTD = qkv_BC.view(B, 3 * H, 1, -1)[:, : 2 * H]
            qk_BHTD.copy_(rotate(qk_BHTD, context.rotation))
        qkv_B3HD = qkv_BC.view(B, 3, H, -1)
        start, layer_cache.length = layer_cache.length, layer_cache.length + 1
        layer_cache.keys_values_2BHTD[:, :, :, start] = qkv_B3HD[:, 1:].transpose(0, 1)
        keys_BHSD, values_BHSD = layer_cache.keys_values_2BHTD[:, :, :, : layer_cache.length]
        y_BH1D = F.scaled_dot_product_attention(qkv_B3HD[:, 0, :, None], keys_BHSD, values_BHSD)
        return out_proj(y_BH1D.reshape(B, -1))

    return attend


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


def linear_rows(module: nn.Linear, batch_size: int) -> Callable[[Rows], Rows]:
    """Returns the fastest implementation of a linear layer for this many rows; see experiments/speed."""
    weight, bias = module.weight, module.bias
    if batch_size > 1 and weight.device.type == "cpu" and weight.dtype == torch.float32 and _has_mkl():
        return _packed_linear(weight, bias, batch_size)
    # For one row, the stored layout is fast (limited by memory bandwidth); for several, a transposed copy is faster.
    weight = weight.t() if batch_size == 1 else weight.t().contiguous()
    out_BC = weight.new_empty(batch_size, module.out_features)
    if bias is None:
        return lambda x_BC: torch.mm(x_BC, weight, out=out_BC)
    return lambda x_BC: torch.addmm(bias, x_BC, weight, out=out_BC)


def int8_linear(module: nn.Linear, batch_size: int) -> Callable[[Rows], Rows]:
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


def _has_mkl() -> bool:
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def _packed_linear(weight: Tensor, bias: Tensor | None, batch_size: int) -> Callable[[Rows], Rows]:
    """Returns a linear layer whose weights MKL has packed for `batch_size` rows.

    torch.compile replaces linear layers by these two operators. They have no public name; if this build of PyTorch
    lacks them, `linear_rows` multiplies by the transposed weights.
    """
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, batch_size)
    linear = torch.ops.mkl._mkl_linear.default
    return lambda x_BC: linear(x_BC, packed, weight, bias, batch_size)
