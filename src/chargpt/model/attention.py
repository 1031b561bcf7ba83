"""Causal multi-head self-attention, with a KV cache for generation."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chargpt.errors import UserError
from chargpt.model.block_context import BlockContext
from chargpt.model.kernels.causal_attention import causal_attention
from chargpt.model.kernels.dropout import dropout
from chargpt.model.position import Rotation, rotate


class LayerKVCache:
    """The KV cache of one layer: keys and values of all tokens so far, each computed once.

    Args:
        keys_values_2BHTD: the buffer for the keys and values of up to T tokens; beyond `length` it is uninitialized.
    """

    def __init__(self, keys_values_2BHTD: Float[Tensor, "2 B H T D"]):
        self.keys_values_2BHTD = keys_values_2BHTD
        self.length = 0

    def append(
        self, keys_BHTD: Float[Tensor, "B H T D"], values_BHTD: Float[Tensor, "B H T D"]
    ) -> Float[Tensor, "2 B H S D"]:
        """Appends T tokens; returns the keys and values of all S tokens so far (a view)."""
        start, self.length = self.length, self.length + keys_BHTD.shape[2]
        self.keys_values_2BHTD[0, :, :, start : self.length] = keys_BHTD
        self.keys_values_2BHTD[1, :, :, start : self.length] = values_BHTD
        return self.keys_values_2BHTD[:, :, :, : self.length]

    def mask(self, T: int) -> Tensor | None:
        """The mask of the S tokens that each of the newest T attends to (T x S); None if `is_causal` is enough."""
        S = self.length
        if T in (1, S):
            return None
        return torch.ones(T, S, dtype=torch.bool, device=self.keys_values_2BHTD.device).tril(S - T)


class CausalSelfAttention(nn.Module):
    """Multi-head attention with one fused projection for queries, keys and values, and fused attention.

    Args:
        n_embd: C.
        n_head: H, must divide C; the head size D is C / H.
        dropout: probability for the attention weights and for the output.
        weights_dropout: whether dropout also applies to the attention weights; False is faster.
        projection: whether the concatenated heads pass through a linear layer (the lecture adds it together with
            the residual connections).
        qkv_bias: whether the queries, keys and values have a bias (in the lecture they do not).
        projection_bias: whether the output projection has a bias.
        qk_norm: builds a norm from (D), one for each head's queries and one for its keys; None for no norm
            (Henry et al. 2020, "Query-Key Normalization"; Dehghani et al. 2023, section 2).
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        dropout: float = 0.0,
        projection: bool = True,
        qkv_bias: bool = False,
        projection_bias: bool = True,
        qk_norm: Callable[[int], nn.Module] | None = None,
        weights_dropout: bool = True,
    ):
        super().__init__()
        if n_embd % n_head:
            below, above = n_embd // n_head * n_head, (n_embd // n_head + 1) * n_head
            near = f"{below} or {above}" if below else f"{above}"
            divisors = [h for h in range(1, min(n_embd, 64) + 1) if n_embd % h == 0]
            raise UserError(
                f"model.n_head={n_head} does not divide model.n_embd={n_embd}: "
                f"use n_embd={near}, or n_head from {divisors}"
            )
        self.n_head, self.dropout = n_head, dropout
        self.weights_dropout = dropout if weights_dropout else 0.0
        self.qkv_proj = nn.Linear(n_embd, 3 * n_embd, bias=qkv_bias)
        self.query_norm = qk_norm(n_embd // n_head) if qk_norm else None
        self.key_norm = qk_norm(n_embd // n_head) if qk_norm else None
        self.out_proj = nn.Linear(n_embd, n_embd, bias=projection_bias) if projection else None

    def forward(
        self,
        x_BTC: Float[Tensor, "B T C"],
        context: BlockContext | None = None,
        cache: LayerKVCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Attends within x_BTC. With a cache, x_BTC contains only the newest T tokens, which also attend to the cached
        ones."""
        B, T, C = x_BTC.shape
        rotation = context.rotation if context is not None else None
        q_BHTD, k_BHTD, v_BHTD = self.queries_keys_values(x_BTC, rotation, context)
        if cache is None:
            y_BHTD = causal_attention(q_BHTD, k_BHTD, v_BHTD, self.weights_dropout if self.training else 0.0)
        else:
            k_BHTD, v_BHTD = cache.append(k_BHTD, v_BHTD)
            mask_TS = cache.mask(T)
            y_BHTD = F.scaled_dot_product_attention(
                q_BHTD,
                k_BHTD,
                v_BHTD,
                attn_mask=mask_TS,
                dropout_p=self.weights_dropout if self.training else 0.0,
                is_causal=mask_TS is None and T > 1,
            )
        y_BTC = y_BHTD.transpose(1, 2).reshape(B, T, C)
        if self.out_proj is not None:
            y_BTC = self.out_proj(y_BTC)
        return dropout(y_BTC, self.dropout, self.training)

    def attention_weights(
        self, x_BTC: Float[Tensor, "B T C"], rotation: Rotation | None = None
    ) -> Float[Tensor, "B H T T"]:
        """The causal attention weights softmax(q k / sqrt(D)), which the fused attention of `forward` does not return.

        Row t contains the weight of each token's value in the output of token t.
        """
        q_BHTD, k_BHTD, _ = self.queries_keys_values(x_BTC, rotation)
        scores_BHTT = q_BHTD @ k_BHTD.transpose(-2, -1) * q_BHTD.shape[-1] ** -0.5
        past_TT = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool, device=x_BTC.device).tril()
        return scores_BHTT.masked_fill(~past_TT, -float("inf")).softmax(dim=-1)

    def queries_keys_values(
        self, x_BTC: Tensor, rotation: Rotation | None, context: BlockContext | None = None
    ) -> tuple[Float[Tensor, "B H T D"], Float[Tensor, "B H T D"], Float[Tensor, "B H T D"]]:
        """The queries, keys and values of each head. A variant of attention may override this."""
        B, T, C = x_BTC.shape
        # Split before the heads are separated: the backward pass then concatenates the gradients once, not twice.
        q_BTC, k_BTC, v_BTC = self.qkv_proj(x_BTC).split(C, dim=-1)
        if context is not None and context.value_mixer is not None:
            v_BTC = context.value_mixer(v_BTC, context)
        q_BTHD, k_BTHD, v_BTHD = (x.view(B, T, self.n_head, -1) for x in (q_BTC, k_BTC, v_BTC))
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHD, k_BTHD = self.query_norm(q_BTHD), self.key_norm(k_BTHD)
        q_BHTD, k_BHTD, v_BHTD = (x.transpose(1, 2) for x in (q_BTHD, k_BTHD, v_BTHD))
        if rotation is not None:
            q_BHTD, k_BHTD = rotate(q_BHTD, rotation), rotate(k_BHTD, rotation)
        return q_BHTD, k_BHTD, v_BHTD
