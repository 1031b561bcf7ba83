"""One more token through a Transformer: the model's own mathematics, laid out for a batch of single tokens.

A token costs a pass over all weights, and beside it some hundred small operations, each of which takes longer to
call than to do. So this calls as few as it can: rows instead of blocks of one token, products into memory that is
there already, weights laid out anew where that makes them faster to read.
"""

import functools
from collections.abc import Callable

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

WIDE_BATCH = 32  # weights that the int8 product reads at a time
Rows = Float[Tensor, "B C"]
Product = Callable[[nn.Linear], Callable[[Rows], Rows]]


class DecodeStep:
    """The step of one model for B sequences: next logits from the newest tokens and a cache.

    Args:
        model: in eval mode, made of parts that `supports` accepts. Its weights are copied for B > 1.
        batch_size: B.
        quantize: "int8" rounds the weights of linear layers to 8 bits, with a scale a row, and what they multiply
            to bfloat16: a third as much to read for a token. For the CPU.
    """

    def __init__(self, model: Transformer, batch_size: int, quantize: str | None = None):
        product = functools.partial(_int8_product if quantize else _product, batch_size=batch_size)
        self._model = model
        positions_T = torch.arange(model.block_size, device=model.device)
        embedding_VC = model.token_embedding.weight
        nothing_BTC = embedding_VC.new_zeros(1, model.block_size, model.n_embd)
        (self._added_TC,) = model.position.add(nothing_BTC, positions_T)
        self._rotation = model.position.rotation(positions_T)
        self._embedding_norm = _norm(model.embedding_norm)
        self._norms = [(_norm(b.attention_norm), _norm(b.feed_forward_norm)) for b in model.blocks]
        self._attentions = [_attention(b.attention, batch_size, product) for b in model.blocks]
        self._feed_forwards = [_feed_forward(b.feed_forward, product) for b in model.blocks]
        self._residual = [b.residual for b in model.blocks]
        self._final_norm, self._head = _norm(model.final_norm), product(model.head)

    @classmethod
    def supports(cls, model: LanguageModel) -> bool:
        """Whether all parts of the model are those written here."""
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
    ) -> Callable[[Integer[Tensor, " B"], list], Float[Tensor, "B V"]]:
        """The same for an ensemble too: a step of each member."""
        if not isinstance(model, Ensemble):
            return cls(model, batch_size, quantize)
        steps = [cls.create(member, batch_size, quantize) for member in model.members]
        return lambda tokens_B, caches: average_logits([s(tokens_B, c) for s, c in zip(steps, caches, strict=True)])

    def __call__(self, tokens_B: Integer[Tensor, " B"], cache: KVCache) -> Float[Tensor, "B V"]:
        """Logits after tokens_B, which follow those in the cache and join them. Valid until the next call."""
        position = cache.length
        x_BC = self._embed(tokens_B, position, cache)
        here = slice(position, position + 1)
        rotation = None if self._rotation is None else tuple(part_TD[here] for part_TD in self._rotation)
        now = BlockContext(tokens_B[:, None], x_BC[:, None], rotation)
        parts = zip(cache.layers, self._norms, self._attentions, self._feed_forwards, self._residual, strict=True)
        for i, (memory, norms, attention, feed_forward, residual) in enumerate(parts):
            attention_norm, feed_forward_norm = norms
            if self._model.unet_skips is not None:
                x_BC = self._model.unet_skips(x_BC[:, None], now.outputs)[:, 0].clone()
            now.value_mixer = self._model.value_residual[i] if self._model.value_residual is not None else None
            y_BC = attention(attention_norm(x_BC), memory, now)
            x_BC = x_BC.add_(y_BC) if residual else y_BC.clone()
            if feed_forward is not None:
                y_BC = feed_forward(feed_forward_norm(x_BC))
                x_BC = x_BC.add_(y_BC) if residual else y_BC.clone()
            if self._model.unet_skips is not None:
                now.outputs.append(x_BC[:, None].clone())
        return self._model.softcap(self._head(self._final_norm(x_BC))[:, None])[:, 0]

    def _embed(self, tokens_B: Tensor, position: int, cache: KVCache) -> Rows:
        x_BC = F.embedding(tokens_B, self._model.token_embedding.weight)
        x_BC += self._added_TC[position]
        if self._model.ngram_embedding is not None:
            x_BC += self._model.ngram_embedding(tokens_B[:, None], cache.previous_BR)[:, 0]
            cache.append(tokens_B[:, None])
        return self._embedding_norm(x_BC)


def _attention(part: CausalSelfAttention, B: int, product: Product) -> Callable[..., Rows]:
    qkv_proj, H = product(part.qkv_proj), part.n_head
    out_proj = product(part.out_proj) if part.out_proj is not None else nn.Identity()

    def attend(x_BC: Rows, memory: LayerKVCache, now: BlockContext) -> Rows:
        qkv_BC = qkv_proj(x_BC)
        if now.value_mixer is not None:
            values_B1C = qkv_BC[:, None, 2 * x_BC.shape[1] :]
            values_B1C.copy_(now.value_mixer(values_B1C.clone(), now))
        if part.query_norm is not None:
            q_BHTD, k_BHTD, _ = qkv_BC.view(B, 3 * H, 1, -1).split(H, dim=1)
            q_BHTD.copy_(part.query_norm(q_BHTD))
            k_BHTD.copy_(part.key_norm(k_BHTD))
        if now.rotation is not None:
            qk_BHTD = qkv_BC.view(B, 3 * H, 1, -1)[:, : 2 * H]
            qk_BHTD.copy_(rotate(qk_BHTD, now.rotation))
        qkv_B3HD = qkv_BC.view(B, 3, H, -1)
        start, memory.length = memory.length, memory.length + 1
        memory.both_2BHTD[:, :, :, start] = qkv_B3HD[:, 1:].transpose(0, 1)
        keys_BHSD, values_BHSD = memory.both_2BHTD[:, :, :, : memory.length]
        y_BH1D = F.scaled_dot_product_attention(qkv_B3HD[:, 0, :, None], keys_BHSD, values_BHSD)
        return out_proj(y_BH1D.reshape(B, -1))

    return attend


def _feed_forward(part: nn.Module | None, product: Product) -> Callable[[Rows], Rows] | None:
    if type(part) is not FeedForward:
        return part and _over_blocks(part)
    up_proj, down_proj = product(part.up_proj), product(part.down_proj)
    activation = part.activation.forward
    return lambda x_BC: down_proj(activation(up_proj(x_BC)))


def _norm(part: nn.Module | None) -> Callable[[Rows], Rows] | None:
    if type(part) is not nn.LayerNorm:
        return part and _over_blocks(part)
    settings = (part.normalized_shape, part.weight, part.bias, part.eps)
    return lambda x_BC: torch.layer_norm(x_BC, *settings)


def _over_blocks(part: nn.Module) -> Callable[[Rows], Rows]:
    """A part that wants x_BTC."""
    return lambda x_BC: part.forward(x_BC[:, None])[:, 0]


def _product(part: nn.Linear, batch_size: int) -> Callable[[Rows], Rows]:
    """The linear layer, by what is fastest for so many rows; see experiments/speed."""
    weight, bias = part.weight, part.bias
    if batch_size > 1 and weight.device.type == "cpu" and weight.dtype == torch.float32 and _has_mkl():
        return _packed_product(weight, bias, batch_size)
    # One row reads the weights as they lie as fast as memory gives them; several rows read them faster transposed.
    weight = weight.t() if batch_size == 1 else weight.t().contiguous()
    out_BC = weight.new_empty(batch_size, part.out_features)
    if bias is None:
        return lambda x_BC: torch.mm(x_BC, weight, out=out_BC)
    return lambda x_BC: torch.addmm(bias, x_BC, weight, out=out_BC)


def _int8_product(part: nn.Linear, batch_size: int) -> Callable[[Rows], Rows]:
    if part.in_features % WIDE_BATCH:  # torch's kernel would read past the end of a row
        raise UserError(f"quantize=int8 wants channels in multiples of {WIDE_BATCH}: this model has {part.in_features}")
    bias = part.bias
    scale_C = (part.weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    weight = (part.weight / scale_C[:, None]).round().to(torch.int8)
    # torch's own compiler puts this operator in the place of `F.linear(x, weight.to(x.dtype)) * scale`. It has no
    # public name, and no documented product reads weights of 8 bits as they are.
    scale_C, multiply = scale_C.bfloat16(), torch.ops.aten._weight_int8pack_mm.default
    if bias is None:
        return lambda x_BC: multiply(x_BC.bfloat16(), weight, scale_C).float()
    return lambda x_BC: bias + multiply(x_BC.bfloat16(), weight, scale_C)


def _has_mkl() -> bool:
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def _packed_product(weight: Tensor, bias: Tensor | None, batch_size: int) -> Callable[[Rows], Rows]:
    """The product with weights that MKL has laid out for `batch_size` rows.

    torch's own compiler puts these two operators in the place of a linear layer. They have no public name; where
    torch lacks them, `_product` multiplies by the transposed weights.
    """
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, batch_size)
    linear = torch.ops.mkl._mkl_linear.default
    return lambda x_BC: linear(x_BC, packed, weight, bias, batch_size)
