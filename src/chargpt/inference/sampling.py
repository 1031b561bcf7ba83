"""Samples the next token from logits: temperature, top-k, top-p and Gumbel noise."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Integer
from torch import Tensor

MIN_TEMPERATURE = 1e-6  # practically greedy, and representable in float32


def sample_token(
    logits_BV: Float[Tensor, "B V"],
    noise: Callable[[], Float[Tensor, "B V"]],
    temperature: int | float,
    top_k: int | None,
    top_p: int | float | None,
) -> Integer[Tensor, " B"]:
    """Samples one token per row, on the device of the logits. All shapes are fixed, so a CUDA graph can capture it.

    Args:
        noise: returns logarithms of exponentially distributed numbers; not called if the temperature is 0.
        temperature, top_k, top_p: as in `chargpt.inference.generate`.
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    # Gumbel-max trick: the argmax of logits plus Gumbel noise is a sample from their softmax.
    return (adjust_logits(logits_BV, temperature, top_k, top_p) - noise()).argmax(dim=-1)


def adjust_logits(
    logits_BV: Float[Tensor, "B V"], temperature: int | float, top_k: int | None, top_p: int | float | None
) -> Float[Tensor, "B V"]:
    """The logits of the distribution from which `sample_token` samples at a temperature above 0."""
    # Subtract the maximum, so that a small temperature overflows to -inf and never to inf.
    logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / max(temperature, MIN_TEMPERATURE)
    return _filter_logits(logits_BV, top_k, top_p)


def _filter_logits(
    logits_BV: Float[Tensor, "B V"], top_k: int | None, top_p: int | float | None
) -> Float[Tensor, "B V"]:
    """Sets the logits of all tokens outside top-k and top-p to -inf."""
    if top_k is not None and top_k < logits_BV.shape[-1]:
        threshold_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < threshold_B1, -float("inf"))
    if top_p is not None and top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
        probabilities_BV = sorted_BV.softmax(dim=-1)
        preceding_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
        drop_BV = torch.zeros_like(preceding_BV, dtype=torch.bool).scatter(1, order_BV, preceding_BV >= top_p)
        logits_BV = logits_BV.masked_fill(drop_BV, -float("inf"))
    return logits_BV
