"""Causal attention by the fastest implementation for the device, the type and dropout.

On a CPU, torch's fused attention does not support dropout: torch falls back to full T x T matrices, half of which is
masked. In bfloat16 it is fused, but its backward pass takes twice as long as in float32 on processors without AMX. In
both cases each block of queries is multiplied here only by the keys up to the end of that block.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from chargpt.model.kernels.cpu_dtypes import BFLOAT16_BLOCKS, FLOAT32, get_cpu_dtypes
from chargpt.model.kernels.dropout import keep_mask

QUERY_BLOCK = 64  # long enough for fast matrix products, short enough to skip most of the masked half


def causal_attention(
    q_BHTD: Float[Tensor, "B H T D"],
    k_BHTD: Float[Tensor, "B H T D"],
    v_BHTD: Float[Tensor, "B H T D"],
    p: float = 0.0,
) -> Float[Tensor, "B H T D"]:
    """`F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)`.

    Args:
        p: in [0, 1), the probability that an attention weight is dropped.
    """
    if q_BHTD.device.type == "cpu" and not torch.compiler.is_compiling():
        dtypes = get_cpu_dtypes()
        measured = dtypes.attention if dtypes is not None and q_BHTD.dtype == torch.bfloat16 else ""
        if (p > 0 and q_BHTD.dtype in (torch.float32, torch.bfloat16)) or measured == BFLOAT16_BLOCKS:
            return _BlockedAttention.apply(q_BHTD, k_BHTD, v_BHTD, p)
        if measured == FLOAT32:
            with torch.autocast("cpu", enabled=False):
                return F.scaled_dot_product_attention(q_BHTD.float(), k_BHTD.float(), v_BHTD.float(), is_causal=True)
    return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, dropout_p=p, is_causal=True)


class _BlockedAttention(torch.autograd.Function):
    """Shapes: N = B * H; S is the number of tokens up to the end of a block; w_NRS are the weights of its R queries."""

    @staticmethod
    def forward(ctx, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, p: float) -> Tensor:
        ctx.qk_scale = q_BHTD.shape[-1] ** -0.5
        q_NTD = (q_BHTD * ctx.qk_scale).flatten(0, 1)
        k_NTD, v_NTD = k_BHTD.flatten(0, 1), v_BHTD.flatten(0, 1)
        y_NTD = torch.empty_like(q_NTD)
        future_RR = torch.ones(QUERY_BLOCK, QUERY_BLOCK, dtype=torch.bool).triu(1)
        saved, scale = [], 1.0
        for rows, seen in _blocks(q_NTD.shape[1]):
            w_NRS = q_NTD[:, rows] @ k_NTD[:, seen].transpose(1, 2)
            R = w_NRS.shape[1]
            w_NRS[:, :, rows].masked_fill_(future_RR[:R, :R], -torch.inf)
            w_NRS = torch.softmax(w_NRS, dim=-1)
            keep_NRS, kept_NRS = None, w_NRS
            if p > 0:
                keep_NRS, scale = keep_mask(w_NRS.shape, p)
                kept_NRS = w_NRS * keep_NRS
            y_NTD[:, rows] = kept_NRS @ v_NTD[:, seen]
            saved += [w_NRS, keep_NRS]
        ctx.scale = scale
        ctx.save_for_backward(q_NTD, k_NTD, v_NTD, *saved)
        return (y_NTD.mul_(scale) if p > 0 else y_NTD).view(q_BHTD.shape)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator makes ctx positional-only
        ctx, dy_BHTD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        q_NTD, k_NTD, v_NTD, *saved = ctx.saved_tensors
        dy_NTD = (dy_BHTD * ctx.scale if ctx.scale != 1 else dy_BHTD).flatten(0, 1)
        dq_NTD, dk_NTD, dv_NTD = torch.empty_like(q_NTD), torch.zeros_like(k_NTD), torch.zeros_like(v_NTD)
        for (rows, seen), w_NRS, keep_NRS in zip(_blocks(q_NTD.shape[1]), saved[::2], saved[1::2], strict=True):
            kept_NRS = w_NRS if keep_NRS is None else w_NRS * keep_NRS
            dv_NTD[:, seen] += kept_NRS.transpose(1, 2) @ dy_NTD[:, rows]
            # Softmax's backward pass, ds = w * (dw - sum(dw * w)), where dw = dy v^T * keep; in place.
            ds_NRS = (dy_NTD[:, rows] @ v_NTD[:, seen].transpose(1, 2)).mul_(kept_NRS)
            ds_NRS.addcmul_(w_NRS, ds_NRS.sum(dim=-1, keepdim=True), value=-1)
            dq_NTD[:, rows] = ds_NRS @ k_NTD[:, seen]
            dk_NTD[:, seen] += ds_NRS.transpose(1, 2) @ q_NTD[:, rows]
        dq_NTD.mul_(ctx.qk_scale)
        shape = dy_BHTD.shape
        return dq_NTD.view(shape), dk_NTD.view(shape), dv_NTD.view(shape), None


def _blocks(T: int) -> list[tuple[slice, slice]]:
    """For each block, the slice of its queries and the slice of the tokens they attend to."""
    return [(slice(a, min(a + QUERY_BLOCK, T)), slice(0, min(a + QUERY_BLOCK, T))) for a in range(0, T, QUERY_BLOCK)]
