"""Causal self-attention: tokens of a block gather what they look for from those before them."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chargpt.errors import UserError
from chargpt.model.block_context import BlockContext
from chargpt.model.kernels.dropout import dropout
from chargpt.model.kernels.dropout_attention import dropout_attention
from chargpt.model.position import Rotation, rotate


class LayerKVCache:
    """Keys and values of the tokens seen so far, in one layer, so that they are computed once.

    Args:
        both_2BHTD: room for the keys and the values of up to T tokens.
    """

    def __init__(self, both_2BHTD: Float[Tensor, "2 B H T D"]):
        self.both_2BHTD = both_2BHTD
        self.length = 0

    def append(
        self, keys_BHTD: Float[Tensor, "B H T D"], values_BHTD: Float[Tensor, "B H T D"]
    ) -> Float[Tensor, "2 B H S D"]:
        """Appends T tokens; gives the keys and the values of all S tokens so far (a view)."""
        start, self.length = self.length, self.length + keys_BHTD.shape[2]
        self.both_2BHTD[0, :, :, start : self.length] = keys_BHTD
        self.both_2BHTD[1, :, :, start : self.length] = values_BHTD
        return self.both_2BHTD[:, :, :, : self.length]

    def mask(self, T: int) -> Tensor | None:
        """Which of the S tokens each of the newest T may attend to (T x S); None where causality alone decides."""
        S = self.length
        if T in (1, S):
            return None
        return torch.ones(T, S, dtype=torch.bool, device=self.both_2BHTD.device).tril(S - T)


class CausalSelfAttention(nn.Module):
    """All heads at once: one fused product for queries, keys and values, one fused attention.

    Args:
        n_embd: C.
        n_head: H, must divide C; the head size D is C / H.
        dropout: on the attention weights, and on the output.
        weights_dropout: whether it falls on the weights at all; on the output alone it is cheaper.
        projection: whether the heads' concatenated outputs go through a linear layer (the lecture adds it
            together with the residual connections).
        qkv_bias: bias of queries, keys and values (the lecture has none).
        projection_bias: bias of the output projection.
        qk_norm: makes the norm of each head's queries, and that of its keys, from (D); None for none
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
                f"take n_embd={near}, or n_head from {divisors}"
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
        """With a cache, x_BTC holds only the newest T tokens, and they see all those before them too."""
        B, T, C = x_BTC.shape
        rotation = context.rotation if context is not None else None
        q_BHTD, k_BHTD, v_BHTD = self._queries_keys_values(x_BTC, rotation, context)
        mask_TS = None
        if cache is not None:
            k_BHTD, v_BHTD = cache.append(k_BHTD, v_BHTD)
            mask_TS = cache.mask(T)
        if self._drops_by_itself(q_BHTD, cache):
            y_BHTD = dropout_attention(q_BHTD, k_BHTD, v_BHTD, self.weights_dropout)
        else:
            y_BHTD = F.scaled_dot_product_attention(
                q_BHTD,
                k_BHTD,
                v_BHTD,
                attn_mask=mask_TS,
                dropout_p=self.weights_dropout if self.training else 0.0,
                is_causal=k_BHTD.shape[2] == T and T > 1,
            )
        y_BTC = y_BHTD.transpose(1, 2).reshape(B, T, C)
        if self.out_proj is not None:
            y_BTC = self.out_proj(y_BTC)
        return dropout(y_BTC, self.dropout, self.training)

    def _drops_by_itself(self, q_BHTD: Tensor, cache: LayerKVCache | None) -> bool:
        """Whether torch's fused attention has no kernel for this, and ours takes its place."""
        wanted = self.training and self.weights_dropout > 0 and cache is None and not torch.compiler.is_compiling()
        return wanted and q_BHTD.device.type == "cpu" and q_BHTD.dtype == torch.float32

    def attention_weights(
        self, x_BTC: Float[Tensor, "B T C"], rotation: Rotation | None = None
    ) -> Float[Tensor, "B H T T"]:
        """Written out, what the fused attention of `forward` keeps to itself: softmax(q k / sqrt(D)), causal.

        Row t says how much of each token's value token t takes.
        """
        q_BHTD, k_BHTD, _ = self._queries_keys_values(x_BTC, rotation)
        scores_BHTT = q_BHTD @ k_BHTD.transpose(-2, -1) * q_BHTD.shape[-1] ** -0.5
        past_TT = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool, device=x_BTC.device).tril()
        return scores_BHTT.masked_fill(~past_TT, -float("inf")).softmax(dim=-1)

    def _queries_keys_values(
        self, x_BTC: Tensor, rotation: Rotation | None, context: BlockContext | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, T, C = x_BTC.shape
        # Split before the heads are told apart: so their gradients are joined in one pass, not in two.
        q_BTC, k_BTC, v_BTC = self.qkv_proj(x_BTC).split(C, dim=-1)
        if context is not None and context.value_mixer is not None:
            v_BTC = context.value_mixer(v_BTC, context)
        q_BTHD, k_BTHD, v_BTHD = (part.view(B, T, self.n_head, -1) for part in (q_BTC, k_BTC, v_BTC))
        if self.query_norm is not None:
            q_BTHD, k_BTHD = self.query_norm(q_BTHD), self.key_norm(k_BTHD)
        q_BHTD, k_BHTD, v_BHTD = (part.transpose(1, 2) for part in (q_BTHD, k_BTHD, v_BTHD))
        if rotation is not None:
            q_BHTD, k_BHTD = rotate(q_BHTD, rotation), rotate(k_BHTD, rotation)
        return q_BHTD, k_BHTD, v_BHTD
