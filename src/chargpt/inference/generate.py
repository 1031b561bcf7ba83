"""Generates tokens with a language model, one after the other."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypedDict

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from chargpt.errors import UserError
from chargpt.inference import cuda_graph as graphs
from chargpt.inference.context import QUANTIZATIONS, WINDOWS, Context
from chargpt.inference.ngram import NGramModel
from chargpt.inference.sampling import sample_token
from chargpt.inference.speculative import MAX_TEXTS, SpeculativeSampler
from chargpt.inference.verify_step import supports as supports_verification
from chargpt.model.language_model import LanguageModel
from chargpt.utils.seeding import fold_in


class SamplingSettings(TypedDict, total=False):
    """The settings of `generate`, except for the number of samples."""

    temperature: int | float
    top_k: int | None
    top_p: int | float | None
    seed: int
    window: str
    quantize: str | None
    cuda_graph: bool
    speculative: bool


def check_settings(
    max_new_tokens: int,
    temperature: int | float,
    top_k: int | None,
    top_p: int | float | None,
    window: str,
    quantize: str | None,
) -> None:
    """Raises `UserError` if a setting is invalid."""
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens={max_new_tokens}: it must not be negative")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature}: it must be 0 (greedy) or more, for example 0.8")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k}: it must be 1 or more, or null for all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: it must be more than 0 and at most 1, or null for all tokens")
    if window not in WINDOWS:
        raise UserError(f"window={window}: it must be one of {', '.join(WINDOWS)}")
    if quantize not in QUANTIZATIONS:
        raise UserError(f"quantize={quantize}: it must be int8, or null for no quantization")


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
    cuda_graph: bool = False,
    draft: NGramModel | None = None,
) -> Iterator[Integer[Tensor, " B"]]:
    """Yields the next token of each of B = `num_samples` continuations, `max_new_tokens` times.

    A KV cache is used, so that a new token costs a forward pass over that token only.

    Args:
        model: in eval mode; otherwise dropout is applied.
        prompt_T: at least one token; a prompt longer than `block_size` is cropped to its last tokens.
        temperature: divides the logits; 0 always takes the most likely token.
        top_k: samples from the k most likely tokens only.
        top_p: samples from the most likely tokens that together have probability p (Holtzman et al. 2020,
            section 3.1).
        seed: the same seed gives the same tokens, independent of `num_samples`: each sample has its own generator.
        window: how to crop a context that exceeds `block_size`. "half": to its newest half block, so that each
            token attends to between half a block and a full block, and the KV cache is valid until the block is
            full again. "exact": to its last `block_size` tokens, as in the lecture. The position of every token
            then changes at each step, so the context is recomputed for each token.
        quantize: "int8" uses quantized weights for each new token: faster for one sample on a CPU, and slightly
            less accurate.
        cuda_graph: on a GPU, launches all kernels of a token together. At temperature 0 the tokens are the same;
            otherwise the GPU draws the random numbers, and the tokens differ from those without it. Must not be
            used inside autocast.
        draft: drafts tokens, several of which the model then verifies in one pass. The tokens are those without it, up
            to rounding, in less time. On a CPU, for up to `MAX_TEXTS` samples, with `window="half"` and the components
            of this package; else unused.

    Raises:
        UserError: a setting is invalid.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p, window, quantize)
    seeds = [fold_in(seed, i) for i in range(num_samples)]
    tokens_BT = prompt_T.long().repeat(num_samples, 1)
    if cuda_graph:
        graphs.check(model, quantize)
        with torch.no_grad():
            sampler = graphs.GraphSampler(model, seeds, temperature, top_k, top_p, window)
        return sampler.sample(tokens_BT.cpu(), max_new_tokens)
    if draft is not None and window == "half" and num_samples <= MAX_TEXTS and supports_verification(model):
        with torch.no_grad():
            sampler = SpeculativeSampler(model, draft, prompt_T, seeds, temperature, top_k, top_p, quantize)
        return sampler.sample(max_new_tokens)
    with torch.no_grad():
        context = Context(model, num_samples, window, quantize)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    noise = partial(_noise, vocab_size=model.vocab_size, generators=generators)
    sample = partial(sample_token, noise=noise, temperature=temperature, top_k=top_k, top_p=top_p)
    return _continue(context, tokens_BT.to(model.device), max_new_tokens, sample)


@torch.no_grad()
def _continue(
    context: Context,
    tokens_BT: Integer[Tensor, "B T"],
    max_new_tokens: int,
    sample: Callable[[Float[Tensor, "B V"]], Integer[Tensor, " B"]],
) -> Iterator[Integer[Tensor, " B"]]:
    for _ in range(max_new_tokens):
        next_B = sample(context.extend(tokens_BT).float().cpu())
        yield next_B
        tokens_BT = next_B[:, None].to(tokens_BT.device)


def _noise(vocab_size: int, generators: list[torch.Generator]) -> Float[Tensor, "B V"]:
    return torch.stack([torch.empty(vocab_size).exponential_(generator=g).log_() for g in generators])
