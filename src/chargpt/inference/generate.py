"""New tokens from a model, one after the other."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from chargpt.errors import UserError
from chargpt.inference import cuda_graph as graphs
from chargpt.inference.context import QUANTIZATIONS, WINDOWS, Context
from chargpt.inference.sampling import sample_token
from chargpt.model.language_model import LanguageModel
from chargpt.utils.seeding import fold_in


def check_settings(
    max_new_tokens: int,
    temperature: int | float,
    top_k: int | None,
    top_p: int | float | None,
    window: str,
    quantize: str | None,
) -> None:
    """Raises `UserError` for settings that cannot be sampled with."""
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens={max_new_tokens}: it must not be negative")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature}: it must be 0 (greedy) or more, for example 0.8")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k}: it must be 1 or more, or null for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: it must be more than 0 and at most 1, or null for all")
    if window not in WINDOWS:
        raise UserError(f"window={window}: it is one of {', '.join(WINDOWS)}")
    if quantize not in QUANTIZATIONS:
        raise UserError(f"quantize={quantize}: it is int8, or null for the weights as they are")


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
        cuda_graph: on a GPU, launches all kernels of a token together. At temperature 0 the tokens are the same;
            otherwise the random numbers are the GPU's, and the tokens differ from those without it. Not for use
            inside autocast.

    Raises:
        UserError: settings that cannot be sampled with.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p, window, quantize)
    seeds = [fold_in(seed, sample) for sample in range(num_samples)]
    tokens_BT = prompt_T.long().repeat(num_samples, 1)
    if cuda_graph:
        graphs.check(model, quantize)
        with torch.no_grad():
            sampler = graphs.GraphSampler(model, seeds, temperature, top_k, top_p, window)
        return sampler.sample(tokens_BT.cpu(), max_new_tokens)
    with torch.no_grad():
        context = Context(model, num_samples, window, quantize)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    noise = partial(_noise, vocab_size=model.vocab_size, generators=generators)
    choose = partial(sample_token, noise=noise, temperature=temperature, top_k=top_k, top_p=top_p)
    return _continue(context, tokens_BT.to(model.device), max_new_tokens, choose)


@torch.no_grad()
def _continue(
    context: Context,
    tokens_BT: Integer[Tensor, "B T"],
    max_new_tokens: int,
    choose: Callable[[Float[Tensor, "B V"]], Integer[Tensor, " B"]],
) -> Iterator[Integer[Tensor, " B"]]:
    for _ in range(max_new_tokens):
        next_B = choose(context.extend(tokens_BT).float().cpu())
        yield next_B
        tokens_BT = next_B[:, None].to(tokens_BT.device)


def _noise(vocab_size: int, generators: list[torch.Generator]) -> Float[Tensor, "B V"]:
    return torch.stack([torch.empty(vocab_size).exponential_(generator=g).log_() for g in generators])
