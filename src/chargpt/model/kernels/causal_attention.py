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
        qk_scale = q_BHTD.shape[-1] ** -0.5
        q_NTD, k_NTD, v_NTD = (x_BHTD.flatten(0, 1) for x_BHTD in (q_BHTD, k_BHTD, v_BHTD))
        y_NTD = torch.empty_like(q_NTD)
        saved, scale = [], 1.0
        ctx.blocks = _blocks(q_NTD.shape[1], p)
        for rows, seen in ctx.blocks:
            future_RS = q_NTD.new_full((rows.stop - rows.start, seen.stop), -torch.inf).triu_(rows.start + 1)
            scores_NRS = torch.baddbmm(future_RS, q_NTD[:, rows], k_NTD[:, seen].mT, alpha=qk_scale)
            w_NRS = torch.softmax(scores_NRS, dim=-1)
            keep_NRS, kept_NRS = None, w_NRS
            if p > 0:
                keep_NRS, scale = keep_mask(w_NRS.shape, p)
                kept_NRS = w_NRS * keep_NRS
            y_NTD[:, rows] = torch.bmm(kept_NRS, v_NTD[:, seen])  # unlike @, it copies no slices
            saved += [w_NRS, keep_NRS]
        ctx.qk_scale, ctx.scale = qk_scale, scale
        ctx.save_for_backward(q_NTD, k_NTD, v_NTD, *saved)
        return (y_NTD.mul_(scale) if p > 0 else y_NTD).view(q_BHTD.shape)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator makes ctx positional-only
        ctx, dy_BHTD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        q_NTD, k_NTD, v_NTD, *saved = ctx.saved_tensors
        dy_NTD = (dy_BHTD * ctx.scale if ctx.scale != 1 else dy_BHTD).flatten(0, 1)
        dq_NTD, dk_NTD, dv_NTD = (torch.empty_like(x_NTD) for x_NTD in (q_NTD, k_NTD, v_NTD))
        blocks = zip(ctx.blocks, saved[::2], saved[1::2], strict=True)
        for (rows, seen), w_NRS, keep_NRS in reversed(list(blocks)):  # the last block has seen all tokens
            kept_NRS = w_NRS if keep_NRS is None else w_NRS * keep_NRS
            dw_NRS = torch.bmm(dy_NTD[:, rows], v_NTD[:, seen].mT)
            if keep_NRS is not None:
                dw_NRS.mul_(keep_NRS)
            # The backward pass of softmax, w * (dw - sum(dw * w)). Autograd calls this operator; it has no public name.
            ds_NRS = torch.ops.aten._softmax_backward_data.default(dw_NRS, w_NRS, -1, w_NRS.dtype)
            dq_NTD[:, rows] = torch.bmm(ds_NRS, k_NTD[:, seen]).mul_(ctx.qk_scale)
            dk_NSD = torch.bmm(ds_NRS.mT, q_NTD[:, rows]).mul_(ctx.qk_scale)
            dv_NSD = torch.bmm(kept_NRS.mT, dy_NTD[:, rows])
            if seen.stop == q_NTD.shape[1]:
                dk_NTD, dv_NTD = dk_NSD, dv_NSD
            else:
                dk_NTD[:, seen] += dk_NSD
                dv_NTD[:, seen] += dv_NSD
        shape = dy_BHTD.shape
        return dq_NTD.view(shape), dk_NTD.view(shape), dv_NTD.view(shape), None


def _blocks(T: int, p: float) -> list[tuple[slice, slice]]:
    """For each block, the slice of its queries and the slice of the tokens they attend to.

    Two blocks without dropout are one: the calls of two take longer than the products of the masked quarter.
    """
    size = QUERY_BLOCK if p > 0 or T > 2 * QUERY_BLOCK else T
    return [(slice(a, min(a + size, T)), slice(0, min(a + size, T))) for a in range(0, T, size)]
