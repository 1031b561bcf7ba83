"""New tokens from a model, one after the other."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from chargpt.errors import Mistake
from chargpt.model.language_model import LanguageModel
from chargpt.randomness import derive
from chargpt.sampling.context import QUANTIZED, WINDOWS, Context

SMALLEST = 1e-6  # a temperature that is as good as 0, and still a float32


def check_settings(
    max_new_tokens: int,
    temperature: int | float,
    top_k: int | None,
    top_p: int | float | None,
    window: str,
    quantize: str | None,
) -> None:
    """Raises `Mistake` for settings that cannot be sampled with."""
    if max_new_tokens < 0:
        raise Mistake(f"max_new_tokens={max_new_tokens}: it must not be negative")
    if not 0 <= temperature < float("inf"):
        raise Mistake(f"temperature={temperature}: it must be 0 (greedy) or more, for example 0.8")
    if top_k is not None and top_k < 1:
        raise Mistake(f"top_k={top_k}: it must be 1 or more, or null for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise Mistake(f"top_p={top_p}: it must be more than 0 and at most 1, or null for all")
    if window not in WINDOWS:
        raise Mistake(f"window={window}: it is one of {', '.join(WINDOWS)}")
    if quantize not in QUANTIZED:
        raise Mistake(f"quantize={quantize}: it is int8, or null for the weights as they are")


def generate(
    model: LanguageModel,
    prompt_T: Integer[Tensor, " T"],
    max_new_tokens: int,
    temperature: int | float = 1.0,
    top_k: int | None = None,
    top_p: int | float | None = None,
    num_samples: int = 1,
    seed: int = 0,
    window: str = "half",
    quantize: str | None = None,
) -> Iterator[Integer[Tensor, " B"]]:
    """Yields the next token of each of B = `num_samples` continuations, `max_new_tokens` times.

    Keys and values are kept, so that a token costs one pass over itself.

    Args:
        model: in eval mode, or dropout falls on the samples.
        prompt_T: at least one token; of more than `block_size` the last.
        temperature: divides the logits; 0 takes the likeliest token always.
        top_k: only the k likeliest tokens are drawn from.
        top_p: only the likeliest tokens that together have probability p (Holtzman et al. 2020, section 3.1).
        seed: the same seed gives the same tokens, whatever `num_samples` is: each sample has a generator of
            its own.
        window: what a context that outgrows `block_size` is cropped to. "half": its newest half block, so that
            each token sees between half a block and a whole one, and the kept keys and values serve until it is
            full again. "exact": its last `block_size` tokens, as in the lecture, computed anew for each token,
            since every one of them has moved.
        quantize: "int8" reads rounded weights for each token: for one sample on a CPU faster, and a little off.

    Raises:
        Mistake: settings that cannot be sampled with.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p, window, quantize)
    with torch.no_grad():
        context = Context(model, num_samples, window, quantize)
    generators = [torch.Generator().manual_seed(derive(seed, sample)) for sample in range(num_samples)]
    tokens_BT = prompt_T.long().to(model.device).repeat(num_samples, 1)
    draw = partial(_draw, temperature=temperature, top_k=top_k, top_p=top_p, generators=generators)
    return _continue(context, tokens_BT, max_new_tokens, draw)


@torch.no_grad()
def _continue(
    context: Context,
    tokens_BT: Integer[Tensor, "B T"],
    max_new_tokens: int,
    draw: Callable[[Float[Tensor, "B V"]], Integer[Tensor, " B"]],
) -> Iterator[Integer[Tensor, " B"]]:
    for _ in range(max_new_tokens):
        next_B = draw(context.extend(tokens_BT).float().cpu())
        yield next_B
        tokens_BT = next_B[:, None].to(tokens_BT.device)


def _draw(
    logits_BV: Float[Tensor, "B V"],
    temperature: int | float,
    top_k: int | None,
    top_p: int | float | None,
    generators: list[torch.Generator],
) -> Integer[Tensor, " B"]:
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    # From the likeliest down, so that a small temperature makes the others' -inf and not its own inf.
    logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / max(temperature, SMALLEST)
    logits_BV = _keep(logits_BV, top_k, top_p)
    # Gumbel's trick: the argmax of logits plus Gumbel noise is a draw from their softmax.
    noise_BV = torch.stack([torch.empty(logits_BV.shape[1]).exponential_(generator=g).log_() for g in generators])
    return (logits_BV - noise_BV).argmax(dim=-1)


def _keep(logits_BV: Float[Tensor, "B V"], top_k: int | None, top_p: int | float | None) -> Float[Tensor, "B V"]:
    """The logits of the tokens to draw from; -inf for the others."""
    if top_k is not None and top_k < logits_BV.shape[-1]:
        floor_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < floor_B1, -float("inf"))
    if top_p is not None and top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
        probabilities_BV = sorted_BV.softmax(dim=-1)
        before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
        drop_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(1, order_BV, before_BV >= top_p)
        logits_BV = logits_BV.masked_fill(drop_BV, -float("inf"))
    return logits_BV
